"""The images of a folder of embeddings as unit vectors by number, and the records they are of."""

import bisect
import io

import numpy as np

from clip_jax import build
from clip_jax.data import embedding_index
from clip_jax.data.embedding_store import Embeddings, index_file
from clip_jax.data.errors import BadRecord
from clip_jax.data.kept_list import DataSet
from clip_jax.data.sources import Source
from clip_jax.runtime import atomic, foreign_arrays, similarity

SAMPLED = 16  # records that are compared with the data


class Rows:
    """Unit vectors by number, read from the files when they are asked for.

    Args:
        source: a folder of embeddings.
        records: only the images of these records of the data; None: all.

    Raises:
        ValueError: the folder is at an address, or its features are no vectors.
    """

    def __init__(self, source: Embeddings, records: np.ndarray | None = None):
        if atomic.is_remote(source.folder):
            raise ValueError(f'{source}: is at an address; copy it to a local folder')
        if len(source.description.shape) != 1:
            raise ValueError(
                f'{source}: holds {source.description.features}, several vectors of each image; '
                'write a folder with clip-jax embed --features=embedding'
            )
        self.source = source
        blocks = list(source.blocks())
        self._starts = [first for first, _, _ in blocks]
        self._parts = [part for _, _, part in blocks]
        self.records = np.concatenate([entry[:, 0] for entry in entries(source)])
        self._numbers = np.arange(len(source))
        if records is not None:
            self._numbers = np.flatnonzero(np.isin(self.records, records, assume_unique=True))
            self.records = self.records[self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def width(self) -> int:
        """The dimension of the embeddings."""
        return self.source.description.shape[0]

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Returns rows by their numbers as float32 [n, D] of `similarity.unit`."""
        places = self._numbers[rows]
        order = np.argsort(places, kind='stable')
        wanted, start = places[order], 0
        found = np.empty((len(places), self.width))
        while start < len(wanted):
            part = bisect.bisect_right(self._starts, wanted[start]) - 1
            end = self._starts[part] + len(self._parts[part])
            stop = int(np.searchsorted(wanted, end))
            found[order[start:stop]] = self._parts[part][wanted[start:stop] - self._starts[part]]
            start = stop
        return similarity.unit(found)


def entries(source: Embeddings) -> list[np.ndarray]:
    """Returns what the index of each shard says, as `embedding_index.entries` does.

    ValueError if an index is damaged.
    """
    found = []
    description = source.description
    for shard, (images, texts) in enumerate(description.shards):
        first = shard * description.shard_size
        span = range(first, min(first + description.shard_size, description.source_records))
        path = index_file(source.folder, shard)
        with foreign_arrays.whole(path):
            index = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            if index.shape != (embedding_index.FIELDS * len(span) + texts,):
                raise ValueError(f'it has the shape {index.shape}')
            found.append(embedding_index.entries(index, span))
            if len(found[-1]) != images or found[-1][:, 3].sum() not in (0, texts):
                raise ValueError(f'it has {len(found[-1]):,} images, the shard {images:,}')
    return found


def data_set(source: Embeddings) -> tuple[Source, DataSet]:
    """Opens and describes the data of which a folder holds the embeddings.

    Raises:
        ValueError: the data cannot be opened, or they are not those that were embedded.
    """
    spec, options = source.embedded
    data = build.source(spec, options)
    advice = 'give the data that was embedded, or embed it again'
    if len(data) != source.description.source_records:
        raise ValueError(
            f'{source}: {spec} had {source.description.source_records:,} records when it was '
            f'embedded, and has {len(data):,}; {advice}'
        )
    known = np.concatenate(entries(source))
    for place in np.linspace(0, len(known) - 1, min(SAMPLED, len(known)), dtype=int):
        record, image_hash, *_ = known[place].tolist()
        if _hash(data, record) != image_hash:
            raise ValueError(
                f'{source}: record {record:,} of {spec} has another image than when it was '
                f'embedded; {advice}'
            )
    return data, DataSet.of(data, spec, options)


def _hash(data: Source, record: int) -> int | None:
    try:
        return embedding_index.hash_of(data[record].get('image', b''))
    except BadRecord:
        return None
