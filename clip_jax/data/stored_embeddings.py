"""Embeddings that another model gave the training data: rows of a folder, by record and caption."""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from clip_jax.data import embedding_index
from clip_jax.data.captions import Captions
from clip_jax.data.embedding_store import Embeddings, image_file, index_file, text_file
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import Source, with_fields
from clip_jax.runtime import atomic, checksums, foreign_arrays
from clip_jax.runtime.messages import shown

File = Callable[[epath.Path, int], epath.Path]  # (folder, shard) -> a file of a shard
_INT64 = np.dtype(np.int64)
SAMPLED = 16  # records that are compared with the training data before a run
NEAR_ONE = 1e-2  # how much the length of an embedding, also in half precision, may differ from 1
SAME = 'expected a folder that clip-jax embed wrote over the training data, or over a copy of it'
AGAIN = 'write the folder again with clip-jax embed'
MISSING = 'clip-jax embed, with the command that wrote the folder, writes missing files again'


class StoredEmbeddings:
    """The embeddings of training data in a folder that `clip-jax embed` wrote.

    An example costs a few small reads, and no file is in memory as a whole. Safe to share between
    threads and to pickle.

    Args:
        folder: the folder.
        what: what messages call it.

    Raises:
        ValueError: the folder cannot be used: it is not complete, at an address, or has no
            embeddings of captions.
    """

    def __init__(self, folder: str, what: str):
        self._what = f'{what}: {folder}'
        try:
            self._stored = Embeddings(folder)
        except ValueError as error:
            raise ValueError(f'{what}: {error}') from error
        self.description = self._stored.description
        self._dtype = np.dtype(self.description.save_dtype)
        self._files: dict[tuple[File, int], tuple[str, int]] = {}  # with where their numbers begin
        if atomic.is_remote(self._stored.folder):
            raise self._error('is at an address; copy it to a local folder', '')
        if self.description.features != 'embedding':
            raise self._error(
                f'has the features {self.description.features!r}, which no loss compares',
                f'expected {"embedding"!r}: {AGAIN} --features=embedding',
            )
        if self.description.captions != 'embedding':
            raise self._error(
                'has no embeddings of captions, which the losses compare too',
                f'{AGAIN} from a model that has a tokenizer, without --text-features',
            )
        if not 0 < self.scale < np.inf:
            raise self._error(f'says scale {self.scale}', f'expected a number above 0: {AGAIN}')

    @property
    def width(self) -> int:
        """The dimension of the embeddings."""
        return self.description.shape[-1]

    @property
    def scale(self) -> float:
        """The factor of the cosine similarities of the model that made them."""
        return self.description.scale

    def check(self, source: Source, captions: Captions) -> None:
        """Compares some records with the training data.

        Args:
            source: the training data.
            captions: how its captions are chosen.

        Raises:
            ValueError: the folder is of other data, or damaged.
        """
        if len(source) != self.description.source_records:
            raise self._error(
                f'has embeddings of {self.description.source_records:,} records '
                f'({self.description.data}), and the training data has {len(source):,}'
            )
        for record in np.linspace(0, len(source) - 1, min(SAMPLED, len(source)), dtype=int):
            try:
                example = with_fields(source, source[int(record)])
                text, *_ = captions.choose(example, np.random.default_rng(int(record)))
                self.find(int(record), example.get('image', b''), text)
            except BadRecord:  # training replaces it
                continue

    def find(self, record: int, image: Any, caption: str) -> dict[str, np.ndarray]:
        """Returns the embeddings of an example, float32 [D] each, by 'image' and 'text'.

        Args:
            record: the index of the record in the training data.
            image: its image, encoded or an array.
            caption: one of its captions.

        Raises:
            BadRecord: 'no_embedding': the record was bad when the data was embedded.
            ValueError: image or caption are not those that were embedded, or a file is damaged.
        """
        size, fields = self.description.shard_size, embedding_index.FIELDS
        shard, place = divmod(record, size)
        span = min(size, self.description.source_records - shard * size)
        images, texts = self.description.shards[shard]
        index = index_file, shard, (fields * span + texts,), _INT64
        row, image_hash, first, count = self._read(*index, fields * place, fields).tolist()
        if row == embedding_index.NONE:
            raise BadRecord('no_embedding', f'{self._what}: it was a bad record there')
        if not (0 <= row < images and 0 <= first <= first + count <= texts):
            raise self._error(f'the index of shard {shard} is damaged', AGAIN)
        if image_hash != embedding_index.hash_of(image):
            raise self._error(f'the image of record {record:,} is not the one that was embedded')
        hashes = self._read(*index, fields * span + first, count).tolist()
        try:
            row_of_text = first + hashes.index(embedding_index.hash_of(caption))
        except ValueError:
            raise self._error(
                f'record {record:,} has the caption {shown(caption)}, which is not among the '
                f'{count} that were embedded'
            ) from None
        return {
            'image': self._row(image_file, shard, images, row),
            'text': self._row(text_file, shard, texts, row_of_text),
        }

    def _row(self, file: File, shard: int, rows: int, row: int) -> np.ndarray:
        """One embedding; half precision has changed its length."""
        width = self.width
        found = self._read(file, shard, (rows, width), self._dtype, row * width, width)
        found = found.astype(np.float32)
        length = math.sqrt(found @ found)
        if not abs(length - 1) < NEAR_ONE:
            name = file(self._stored.folder, shard).name
            raise self._error(f'row {row:,} of {name} has length {length:.3g}, not 1', AGAIN)
        return found if self._dtype == np.float32 else found / length

    def _read(
        self,
        file: File,
        shard: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        start: int,
        count: int,
    ) -> np.ndarray:
        """`count` numbers of an array in a file of a shard."""
        try:
            if (file, shard) not in self._files:
                self._files[file, shard] = _begin(file(self._stored.folder, shard), shape, dtype)
            path, begin = self._files[file, shard]
            # Not mapped: a file that shrinks then is an error, where a map would end the process.
            handle = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(handle, count * dtype.itemsize, begin + start * dtype.itemsize)
            finally:
                os.close(handle)
            if len(data) < count * dtype.itemsize:
                raise ValueError(f'{path}: ends early')
        except (OSError, ValueError) as error:
            raise self._error(f'{error}', MISSING) from error
        return np.frombuffer(data, dtype)

    def _error(self, found: str, remedy: str = SAME) -> ValueError:
        return ValueError('; '.join(filter(None, (f'{self._what}: {found}', remedy))))


def _begin(path: epath.Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[str, int]:
    """A file and where its numbers begin; ValueError if it holds another array."""
    with foreign_arrays.whole(path), path.open('rb') as file:
        found = foreign_arrays.header(file, checksums.stat(path).bytes)
        if found != (shape, dtype):
            raise ValueError(f'it holds {found[1]} {found[0]}; expected {dtype} {shape}')
        return str(path), file.tell()
