"""A folder of embeddings: what lies in it, how its files are written, and how they are read.

    embeddings.json         of what, by which model, and how; written anew when all is there
    images-00000.npy        rows [n, D] of one shard's images, in the order of their records
    texts-00000.npy         rows [m, D] of all their captions, if these are embedded
    records-00000.parquet   a line for each image: number and place in the data, labels, captions
    shard-00000.json        says that the shard is complete, and what could not be used
    bad_records.jsonl       all that could not be used: it has no row anywhere
    summary.json            seconds and versions; all other files are the same in every run

Shard k is made of records k * shard_size to (k + 1) * shard_size of the data.
"""

import bisect
import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax.data.errors import DataNotFound, Skipped
from clip_jax.runtime import atomic, checksums

DESCRIPTION = 'embeddings.json'
_CACHED = 4  # shards whose records are kept
# What a description must have, and of what kind.
_ALWAYS = {
    **dict.fromkeys(('model', 'fingerprint', 'data', 'features', 'dtype', 'arithmetic'), str),
    'complete': bool,
    **dict.fromkeys(('data_options', 'card'), dict),
}
_BEGUN = {'source_records': int, 'shard_size': int}
_COMPLETE = {'width': int, 'label_names': list, 'bad': dict, 'shards': list}


def image_file(folder: epath.Path, shard: int) -> epath.Path:
    """Where the rows of a shard's images lie."""
    return folder / f'images-{shard:05}.npy'


def text_file(folder: epath.Path, shard: int) -> epath.Path:
    """Where the rows of a shard's captions lie."""
    return folder / f'texts-{shard:05}.npy'


def record_file(folder: epath.Path, shard: int) -> epath.Path:
    """Where the other parts of a shard's records lie."""
    return folder / f'records-{shard:05}.parquet'


def note_file(folder: epath.Path, shard: int) -> epath.Path:
    """Where it is said that a shard is complete."""
    return folder / f'shard-{shard:05}.json'


def write_shard(
    folder: epath.Path,
    shard: int,
    *,
    images: np.ndarray,
    texts: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the files of a shard, then the note that they are complete."""
    files = {
        image_file(folder, shard): _as_npy(images),
        record_file(folder, shard): _table(records),
    }
    if len(texts):
        files[text_file(folder, shard)] = _as_npy(texts)
    for path, data in files.items():
        atomic.write(path, data)
    sizes = {path.name: len(data) for path, data in files.items()}
    note = {'images': len(images), 'texts': len(texts), 'bytes': sizes, 'bad': list(bad)}
    atomic.write_json(note_file(folder, shard), note)


def read_note(folder: epath.Path, shard: int) -> dict[str, Any] | None:
    """Returns what is said of a shard that is complete; None if it is not."""
    path = note_file(folder, shard)
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_bytes())
        sizes = note['bytes']
        sound = {'images', 'texts', 'bad'} <= note.keys() and isinstance(sizes, dict)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        return None  # damaged: the shard is written again
    for name, size in sizes.items():
        file = folder / name
        if not file.exists() or checksums.stat(file).bytes != size:
            return None
    return note


def _as_npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def _table(records: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    pq.write_table(pa.table(columns, schema), file, compression='zstd')
    return file.getvalue()


def describe(folder: epath.Path) -> dict[str, Any]:
    """Reads what a folder says of itself; Missing if it is no folder of embeddings, ValueError if
    it is not complete.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        there = 'there is no such folder'
        if folder.is_dir():
            names = sorted(inner.name for inner in folder.iterdir())[:8]
            there = f'it holds: {", ".join(names) or "nothing"}'
        raise DataNotFound(
            f'{folder}: no folder of embeddings ({there}); clip-jax embed writes one, with '
            f'{DESCRIPTION} in it'
        )
    description = read_description(folder)
    if not description['complete']:
        shards = -(-description['source_records'] // description['shard_size'])
        done = sum(note_file(folder, shard).exists() for shard in range(shards))
        raise ValueError(
            f'{folder}: was begun and is not complete, {done} of {shards} shards are there; give '
            f'the same clip-jax embed command again ({description["data"]}, {description["model"]})'
        )
    return description


def read_description(folder: epath.Path) -> dict[str, Any]:
    """Reads what the DESCRIPTION of a folder holds, complete or not; ValueError if that is none."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
        found = _lacks(description)
    except ValueError as error:
        found = f'no JSON ({error})'
    if found:
        raise ValueError(
            f'{path}: not what clip-jax embed wrote: {found}; bring that file back, or write the '
            'embeddings to a new folder with clip-jax embed'
        )
    return description


def _lacks(description: Any) -> str:
    """What is wrong with the content of a description; '' if nothing."""
    if not isinstance(description, dict):
        return f'a dict was expected, found {description!r:.60}'
    kinds = _ALWAYS | (_COMPLETE if description.get('complete') else _BEGUN)
    for name, kind in kinds.items():
        if name not in description:
            return f'it has no {name!r}'
        value = description[name]
        sound = isinstance(value, kind)
        if sound and name == 'shards':
            sound = all(isinstance(x, list) and [*map(type, x)] == [int, int] for x in value)
        if sound and name == 'bad':
            sound = all(
                isinstance(x, dict) and {'count', 'examples'} <= {*x} for x in value.values()
            )
        if not sound:
            return f'{name!r} is {value!r:.60}'
    return ''


class Embeddings:
    """A complete folder of embeddings: rows in place of images, and the rest of the records.

    `description` is what embeddings.json says. Safe to share between threads and to pickle.
    """

    def __init__(self, address: str):
        self._address = address
        self.folder = epath.Path(address).expanduser()
        self.description = describe(self.folder)
        self.label_names: list[str] = self.description['label_names']
        self.left_out = {
            kind: Skipped(found['count'], found['examples'])
            for kind, found in self.description['bad'].items()
        }
        self._ends = list(itertools.accumulate(n for n, _ in self.description['shards']))
        self._read = functools.lru_cache(_CACHED)(self._table)

    @property
    def fingerprint(self) -> str:
        """Of the variables of the model that made these rows."""
        return self.description['fingerprint']

    @property
    def embedded(self) -> tuple[str, dict[str, dict[str, Any]]]:
        """SPEC and options of what was embedded, as `build.source` takes them."""
        spec = self.description['data']
        return spec, {spec.partition(':')[0]: self.description['data_options']}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the 'embedding', float32 [D], and 'texts' and 'label' where there are some."""
        shard, place = self._place(i)
        row = self._load(image_file(self.folder, shard))[place]
        return {'embedding': np.asarray(row, np.float32), **_example(self.record(i))}

    def record(self, i: int) -> dict[str, Any]:
        """Returns what is known of image `i`: its 'record' in the data, 'where' that lies, and
        label and texts or None.
        """
        shard, place = self._place(i)
        return self._read(shard).slice(place, 1).to_pylist()[0]

    def where(self, i: int) -> str:
        """Says where the image `i` itself was stored."""
        return self.record(i)['where']

    def __str__(self) -> str:
        return f'embeddings:{self._address}'

    def rows(self, features: str = 'embedding') -> np.ndarray:
        """Returns the rows of all images, float32 [N, D]; ValueError if these are other features.

        Rows stored in half precision are scaled to the length 1 that rounding has changed.
        """
        if features != self.description['features']:
            raise ValueError(
                f'{self}: holds the features {self.description["features"]!r}, this evaluation '
                f'needs {features!r}; write them with clip-jax embed --features={features}'
            )
        rows = np.empty((len(self), self.description['width']), np.float32)
        for start, _, part in self.blocks():
            rows[start : start + len(part)] = part
        return self._exact(rows)

    def records(self) -> list[dict[str, Any]]:
        """Returns texts and labels of all images, as a data set has them."""
        return [
            _example(record)
            for shard in range(len(self._ends))
            for record in self._table(shard).to_pylist()
        ]

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields (number of the first image, shard, rows [n, D]), as they are stored; files on this
        machine are mapped, not read.
        """
        for shard, end in enumerate(self._ends):
            part = self._load(image_file(self.folder, shard))
            yield end - len(part), shard, part

    def texts(self) -> tuple[list[str], np.ndarray]:
        """Returns all captions and their rows, float32 [M, D]; none if they are not embedded."""
        counts = [count for _, count in self.description['shards']]
        rows = np.empty((sum(counts), self.description['width']), np.float32)
        captions, start = [], 0
        for shard, count in enumerate(counts):
            if count:
                rows[start : start + count] = self._load(text_file(self.folder, shard))
                start += count
                captions += [
                    t for own in self._table(shard)['texts'].to_pylist() for t in own or ()
                ]
        return captions, self._exact(rows)

    def _exact(self, rows: np.ndarray) -> np.ndarray:
        if self.description['features'] == 'embedding' and self.description['dtype'] != 'float32':
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} images, none with the number {i}.')
        shard = bisect.bisect_right(self._ends, i)
        return shard, int(i) - (self._ends[shard - 1] if shard else 0)

    def _load(self, path: epath.Path) -> np.ndarray:
        try:
            if atomic.is_remote(path):
                return np.load(io.BytesIO(path.read_bytes()))
            return np.load(path, mmap_mode='r')
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f'{path}: cannot be read ({error}); clip-jax embed, with the command that wrote '
                'the folder, writes again what is missing'
            ) from error

    def _table(self, shard: int) -> Any:
        import pyarrow.parquet as pq

        path = record_file(self.folder, shard)
        try:
            return pq.read_table(io.BytesIO(path.read_bytes()))
        except (OSError, ValueError) as error:  # pyarrow's errors are such
            raise ValueError(
                f'{path}: cannot be read ({error}); clip-jax embed, with the command that wrote '
                'the folder, writes again what is missing'
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_read'}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._read = functools.lru_cache(_CACHED)(self._table)


def _example(record: Mapping[str, Any]) -> dict[str, Any]:
    """Those parts of a record that a data set gives."""
    return {k: record[k] for k in ('texts', 'label', 'labels') if record[k] is not None}
