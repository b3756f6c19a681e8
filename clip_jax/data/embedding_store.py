"""A folder of embeddings: its files, how they are written, and how they are read.

    embeddings.json         the data, the model and the options; completed when all shards exist
    images-00000.npy        embeddings [n, D] of a shard's images, in the order of the records; or
                            other features, [n, ...]
    texts-00000.npy         the same of all their captions, if these are embedded
    records-00000.parquet   a row per image: its index and place in the data, labels, captions
    index-00000.npy         the rows of each record and caption; see embedding_index.py
    shard-00000.json        a note that the shard is complete, with its bad records
    bad_records.jsonl       all bad records; they have no embeddings
    summary.json            seconds and versions; all other files are the same in every run

Shard k holds the records k * shard_size to (k + 1) * shard_size of the data.
"""

import bisect
import contextlib
import dataclasses
import functools
import io
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax.data import embedding_index, sharded_job
from clip_jax.data.errors import DataNotFound, Skipped
from clip_jax.data.sources import option_key
from clip_jax.runtime import atomic, checksums, foreign_arrays, foreign_json
from clip_jax.runtime.messages import brief, first_few

DESCRIPTION = 'embeddings.json'
DTYPES = ('float32', 'float16')  # of the files
_COLUMNS = {'record', 'where', 'label', 'labels', 'texts'}
_CACHED = 4  # shards whose records are kept in memory
_UNREADABLE = 'clip-jax embed, with the command that wrote the folder, writes missing files again'


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of embeddings.json: what was embedded, by which model, and how.

    Attributes:
        complete: whether all shards exist; the fields after `card` are known only then.
        model: where the model was loaded from.
        fingerprint: of the variables of the model.
        data: the SPEC of the data.
        data_options: the options of its source.
        source_records: how many records the data has.
        label_names: the names of its classes; labels are indices of it.
        features: what is stored of an image, as `Clip.encode_image` names it.
        dim: how many coordinates of the embeddings are kept; 0: all.
        save_dtype: dtype of the files.
        compute_dtype: dtype that the model computed in.
        captions: what is stored of a caption, as `Clip.encode_text` names it, or 'none'.
        shard_size: records per shard.
        batch_size: images per device and batch.
        image_options: `gray16` and `max_pixels` of `Preprocess`.
        card: the card of the model.
        scale: the factor of the model's cosine similarities; 0 of an encoder alone.
        images: how many images have embeddings.
        texts: how many captions have features.
        shape: the shape of an image's features, [D] of embeddings.
        text_shape: the same of a caption; [] if captions have no features.
        bad: per kind of bad records, their 'count' and 'examples'.
        shards: [images, texts] of each shard.
    """

    complete: bool
    model: str
    fingerprint: str
    data: str
    data_options: dict
    source_records: int
    label_names: list
    features: str
    dim: int
    save_dtype: str
    compute_dtype: str
    captions: str
    shard_size: int
    batch_size: int
    image_options: dict
    card: dict
    scale: float
    images: int = 0
    texts: int = 0
    shape: list = dataclasses.field(default_factory=list)
    text_shape: list = dataclasses.field(default_factory=list)
    bad: dict = dataclasses.field(default_factory=dict)
    shards: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = kinds[field.name]
            valid = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if valid and field.name == 'shards':
                valid = all(isinstance(x, list) and [*map(type, x)] == [int, int] for x in value)
            if valid and field.name in ('shape', 'text_shape'):
                valid = all(type(x) is int and x > 0 for x in value)
            if valid and field.name == 'bad':
                valid = all(
                    isinstance(x, dict) and {'count', 'examples'} <= {*x} for x in value.values()
                )
            if not valid:
                raise ValueError(f'{field.name!r} is {value!r:.60}')
        if self.complete:
            self._check_counts()

    def _check_counts(self) -> None:
        """Raises a ValueError if the numbers of a complete folder contradict each other."""
        if min(len(self.shape), self.shard_size, len(self.shards)) < 1:
            raise ValueError("'shape' is empty, 'shard_size' or the number of 'shards' below 1")
        if len(self.shards) != -(-self.source_records // self.shard_size):
            raise ValueError(
                f"'shards' has {len(self.shards)} items; {self.source_records} records in shards "
                f'of {self.shard_size} are others'
            )
        for name, counts in zip(('images', 'texts'), zip(*self.shards, strict=True), strict=True):
            if min(counts) < 0 or sum(counts) != getattr(self, name):
                raise ValueError(
                    f"{name!r} is {getattr(self, name)}, and the sum of 'shards' {sum(counts)}"
                )
        if self.save_dtype not in DTYPES:
            raise ValueError(f"'save_dtype' is {self.save_dtype!r:.60}")

    @classmethod
    def from_json(cls, text: str | bytes) -> 'Description':
        """Parses and checks a description; ValueError says what is wrong with it."""
        values = foreign_json.parse(text, 'its content')
        known = {}
        for field in dataclasses.fields(cls):
            required = field.name in _STARTED or values.get('complete')
            if field.name in values:
                known[field.name] = values[field.name]
            elif required:
                raise ValueError(f'it has no {field.name!r}')
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Returns what embeddings.json holds."""
        names = [field.name for field in dataclasses.fields(self)]
        return {k: getattr(self, k) for k in names if self.complete or k in _STARTED}


# The fields of a folder that is not complete yet.
_STARTED = tuple(
    field.name
    for field in dataclasses.fields(Description)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
)


def image_file(folder: epath.Path, shard: int) -> epath.Path:
    """The embeddings of a shard's images."""
    return folder / f'images-{shard:05}.npy'


def text_file(folder: epath.Path, shard: int) -> epath.Path:
    """The embeddings of a shard's captions."""
    return folder / f'texts-{shard:05}.npy'


def record_file(folder: epath.Path, shard: int) -> epath.Path:
    """A shard's records without their images."""
    return folder / f'records-{shard:05}.parquet'


def index_file(folder: epath.Path, shard: int) -> epath.Path:
    """The index of a shard."""
    return folder / f'index-{shard:05}.npy'


def note_file(folder: epath.Path, shard: int) -> epath.Path:
    """The note that a shard is complete."""
    return folder / f'shard-{shard:05}.json'


def write_shard(
    folder: epath.Path,
    shard: int,
    *,
    images: np.ndarray,
    texts: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
    span: range,
) -> None:
    """Writes the files of a shard, then the note that it is complete.

    Args:
        folder: the folder of embeddings.
        shard: the number of the shard.
        images: embeddings [n, D] of its images, or other features [n, ...].
        texts: embeddings [m, D] of all their captions; [0, D] if these are not embedded.
        records: for each image its 'record', 'where', 'image_hash' (see embedding_index.hash_of),
            and what it has of label, labels and texts.
        bad: for each bad record its 'record', 'kind', 'where' and 'message'.
        span: the records of the data that the shard is of.
    """
    files = {
        image_file(folder, shard): _as_npy(images),
        record_file(folder, shard): _table(records),
        index_file(folder, shard): _as_npy(
            embedding_index.build(records, span, texts=bool(len(texts)))
        ),
    }
    if len(texts):
        files[text_file(folder, shard)] = _as_npy(texts)
    for path, data in files.items():
        atomic.write(path, data)
    sizes = {path.name: len(data) for path, data in files.items()}
    note = {'images': len(images), 'texts': len(texts), 'bytes': sizes, 'bad': list(bad)}
    atomic.write_json(note_file(folder, shard), note)


def read_note(folder: epath.Path, shard: int) -> dict[str, Any] | None:
    """Returns the note of a shard whose files have the right sizes; None if it is not complete."""
    note = sharded_job.read_note(note_file(folder, shard), 'images', 'texts', 'bytes', 'bad')
    if note is None or not isinstance(note['bytes'], dict):
        return None
    for name, size in note['bytes'].items():
        file = folder / name
        if not file.exists() or checksums.stat(file).bytes != size:
            return None
    return note


def _as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _table(records: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet has UTF-8 only; names of files need not be.
    records = [{**record, 'where': atomic.encoded(record['where']).decode()} for record in records]
    schema = pa.schema(
        {
            'record': pa.int64(),
            'where': pa.string(),
            'label': pa.int64(),
            'labels': pa.list_(pa.int64()),
            'texts': pa.list_(pa.string()),
        }
    )
    columns = {
        name: pa.array([record.get(name) for record in records], schema.field(name).type)
        for name in schema.names
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema), file, compression='zstd', write_page_checksum=True)
    return file.getvalue()


def describe(folder: epath.Path) -> Description:
    """Reads the description of a complete folder.

    Raises:
        DataNotFound: if it is not a folder of embeddings.
        ValueError: if it is not complete, or its description is damaged.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        found = 'there is no such folder'
        if folder.is_dir():
            names = sorted(inner.name for inner in folder.iterdir())
            found = f'it holds: {first_few(names, 8) or "nothing"}'
        raise DataNotFound(
            f'{folder}: not a folder of embeddings ({found}); clip-jax embed writes one, with '
            f'{DESCRIPTION} in it'
        )
    description = read_description(folder)
    if not description.complete:
        shards = -(-description.source_records // description.shard_size)
        done = sum(note_file(folder, shard).exists() for shard in range(shards))
        raise ValueError(
            f'{folder}: is not complete, {done} of {shards} shards are written; give the same '
            f'clip-jax embed command again ({description.data}, {description.model})'
        )
    return description


def read_description(folder: epath.Path) -> Description:
    """Reads the description of a folder, complete or not; ValueError if it is damaged."""
    path = folder / DESCRIPTION
    try:
        return Description.from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f'{path}: not a description that clip-jax embed wrote: {error}; restore the file, or '
            'write the embeddings to a new folder with clip-jax embed'
        ) from error


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Turns errors of a file of embeddings into a ValueError that says what to do."""
    try:
        with foreign_arrays.whole(path):
            yield
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error}); {_UNREADABLE}') from error
    except ValueError as error:
        raise ValueError(f'{error}, or remove it: {_UNREADABLE}') from error


class Embeddings:
    """A complete folder of embeddings, as a data source without images.

    Safe to share between threads and to pickle. `description` is the content of embeddings.json.
    """

    def __init__(self, address: str):
        self._address = address
        self.folder = epath.Path(address).expanduser()
        self.description = describe(self.folder)
        self.label_names: list[str] = self.description.label_names
        self.skipped = {
            kind: Skipped(found['count'], found['examples'])
            for kind, found in self.description.bad.items()
        }
        self._ends = list(itertools.accumulate(n for n, _ in self.description.shards))
        self._checked: set[str] = set()  # files whose headers are as described
        self._read = functools.lru_cache(_CACHED)(self._table)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the variables of the model."""
        return self.description.fingerprint

    @property
    def embedded(self) -> tuple[str, dict[str, dict[str, Any]]]:
        """SPEC and options of the embedded data, as `build.source` takes them."""
        spec = self.description.data
        return spec, {option_key(spec): self.description.data_options}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the 'embedding', float32 [D], and 'texts' and 'label' where there are some."""
        shard, place = self._place(i)
        embedding = self._images(shard)[place]
        return {'embedding': np.asarray(embedding, np.float32), **_example(self.record(i))}

    def record(self, i: int) -> dict[str, Any]:
        """Returns what is stored of image `i` besides its embedding.

        That is its index in the data, 'record', its place, 'where', and label, labels and texts or
        None.
        """
        shard, place = self._place(i)
        (found,) = self._read(shard).slice(place, 1).to_pylist()
        return {**found, 'where': atomic.decoded(found['where'].encode())}

    def where(self, i: int) -> str:
        """Says where image `i` itself is stored."""
        return self.record(i)['where']

    def __str__(self) -> str:
        return f'embeddings:{self._address}'

    def embeddings(self, features: str = 'embedding') -> np.ndarray:
        """Returns the embeddings of all images, float32 [N, D], or other features [N, ...].

        Embeddings stored in half precision are L2-normalized again. ValueError if the folder holds
        other features.
        """
        if features != self.description.features:
            raise ValueError(
                f'{self}: holds the features {self.description.features!r}, this evaluation '
                f'needs {features!r}; write them with clip-jax embed --features={features}'
            )
        values = self._memory(image_file, len(self))
        for start, _, part in self.blocks():
            values[start : start + len(part)] = part
        return self._exact(values, features)

    def records(self) -> list[dict[str, Any]]:
        """Returns texts and labels of all images, as other sources do."""
        return [
            _example(record)
            for shard in range(len(self._ends))
            for record in self._table(shard).to_pylist()
        ]

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields (index of the first image, shard, embeddings [n, D]) as stored; local files are
        memory-mapped.
        """
        for shard, end in enumerate(self._ends):
            part = self._images(shard)
            yield end - len(part), shard, part

    def texts(self) -> tuple[list[str], np.ndarray]:
        """Returns captions and their embeddings, float32 [M, D], or features; none if none."""
        values = self._memory(text_file, self.description.texts)
        captions: list[str] = []
        for shard, (_, count) in enumerate(self.description.shards):
            if count:
                values[len(captions) : len(captions) + count] = self.load(text_file, shard)
                own = self._table(shard)['texts'].to_pylist()
                captions += itertools.chain.from_iterable(texts or () for texts in own)
        return captions, self._exact(values, self.description.captions)

    def _exact(self, values: np.ndarray, features: str) -> np.ndarray:
        """Normalizes embeddings again, whose length rounding has changed."""
        if features == 'embedding' and self.description.save_dtype != 'float32':
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        return values

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} images, none with the number {i}.')
        shard = bisect.bisect_right(self._ends, i)
        return shard, int(i) - (self._ends[shard - 1] if shard else 0)

    def _images(self, shard: int) -> np.ndarray:
        return self.load(image_file, shard)

    def _described(self, kind: Callable, shard: int) -> tuple[int, ...]:
        """The shape of a file, which is of images or texts, that the description says."""
        images, texts = self.description.shards[shard]
        if kind is image_file:
            return images, *self.description.shape
        return texts, *self.description.text_shape

    def _memory(self, kind: Callable, count: int) -> np.ndarray:
        """Returns memory for rows, after a file has the width that the description says."""
        shape = self._described(kind, 0)
        for shard in range(len(self.description.shards)):
            if (shape := self._described(kind, shard))[0]:
                with _reading(path := kind(self.folder, shard)):
                    self._check_header(path, shape)
                break
        return np.empty((count, *shape[1:]), np.float32)

    def load(self, kind: Callable, shard: int) -> np.ndarray:
        """Returns the rows of a shard's `image_file` or `text_file`, [n, ...] as stored."""
        path = kind(self.folder, shard)
        with _reading(path):
            self._check_header(path, self._described(kind, shard))
            if atomic.is_remote(path):
                return np.load(io.BytesIO(path.read_bytes()))
            return np.load(path, mmap_mode='r')

    def _check_header(self, path: epath.Path, shape: tuple[int, ...]) -> None:
        # NumPy maps a file of any header, and some of them end the process.
        if str(path) in self._checked:
            return
        with path.open('rb') as file:
            found = foreign_arrays.header(file, checksums.stat(path).bytes)
        expected = shape, np.dtype(self.description.save_dtype)
        if found != expected:
            raise ValueError(
                f'it holds {found[1]} {found[0]}, and {DESCRIPTION} says '
                f'{expected[1]} {expected[0]}'
            )
        self._checked.add(str(path))

    def _table(self, shard: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = record_file(self.folder, shard)
        try:
            file = io.BytesIO(path.read_bytes())
            table = pq.read_table(file, page_checksum_verification=True)
            rows = self.description.shards[shard][0]
            if table.num_rows != rows or not {*table.column_names} >= _COLUMNS:
                raise ValueError(
                    f'it has {table.num_rows} rows of {", ".join(table.column_names)}; expected '
                    f'{rows} of {", ".join(sorted(_COLUMNS))}'
                )
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = brief(error)
            raise ValueError(f'{path}: cannot be read ({reason}); {_UNREADABLE}') from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_read'}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._read = functools.lru_cache(_CACHED)(self._table)


def _example(record: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record that an example has."""
    return {k: record[k] for k in ('texts', 'label', 'labels') if record[k] is not None}
