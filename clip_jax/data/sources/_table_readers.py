"""Readers of CSV, TSV, JSONL and Parquet files: their rows in Arrow's buffers."""

import contextlib
import functools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _captions, _files, _table_labels
from clip_jax.data.sources._skipped import Ledger
from clip_jax.data.sources._table_csv import Dialect, read_csv
from clip_jax.data.sources._table_rows import Columns, Rows
from clip_jax.runtime.messages import brief

_BLOCK = 1 << 23  # bytes of a JSONL file that are parsed at once
CACHE_BYTES = 512 << 20  # decoded row groups of images of Parquet files that stay in memory


# A reader returns the rows of one file. Rows that cannot be parsed go to the ledger; images that
# are read later go through the cache.


def _read_jsonl(
    path: str, columns: Columns, ledger: Ledger, images: 'Cache', _: Dialect
) -> list[Rows]:
    parts, names, first = [], set(), 0
    with _files.open_file(path) as file:
        for block in _files.blocks(file, _BLOCK):
            lines = block.count(b'\n') + (not block.endswith(b'\n'))
            if not first and block.lstrip().startswith(b'['):
                raise ValueError(
                    f'{path}: starts with a list; expected one object per line. Convert it, '
                    "for example with: jq -c '.[]'"
                )
            start = _first_objects(block)
            # pyarrow crashes on a line that is null, and takes several objects in a line.
            objects = all(line.lstrip()[:1] == b'{' for line in block.rstrip().split(b'\n'))
            table, skipped = _parse_block(block, columns, start) if objects else None, []
            # Blank lines would shift the row numbers.
            if table is None or len(table) != lines:
                table, skipped = _parse_lines(block, columns, f'{path}: row', first, ledger)
            names.update(*start)
            names.update(name for name in table.column_names if table[name].null_count < len(table))
            arrays = {name: table[name] for name in table.column_names}
            parts.append(Rows(path, len(table), arrays, first, np.array(skipped, np.int64)))
            first += lines
    if any(part.count for part in parts):
        found = columns.found_in(sorted(names), path)
        for part in parts:
            part.columns = {name: part.columns[name] for name in found}
    return parts


def _first_objects(block: bytes) -> list[dict[str, Any]]:
    """The objects among the first lines of a block."""
    found = []
    for line in block.split(b'\n', 100)[:100]:
        with contextlib.suppress(ValueError, RecursionError):
            found += [row for row in [json.loads(line)] if isinstance(row, dict)]
    return found


def _parse_block(block: bytes, columns: Columns, start: list[dict[str, Any]]) -> pa.Table | None:
    """Parses lines whose columns have the types of the first ones; None if some have others."""
    types = {columns.image: pa.binary(), columns.label: pa.binary()}
    types |= dict.fromkeys(columns.texts, pa.binary())
    for name in types:
        for row in start:
            value = row.get(name)
            first = value[0] if isinstance(value, list) and value else value
            integer = name == columns.label and isinstance(first, int)
            if isinstance(value, list):
                types[name] = pa.list_(pa.int64() if integer else pa.binary())
            elif integer:
                types[name] = pa.int64()
    parse = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema(types.items()), unexpected_field_behavior='ignore'
    )
    try:
        return pyarrow.json.read_json(pa.BufferReader(block), parse_options=parse)
    except pa.ArrowInvalid:
        return None


def _parse_lines(
    block: bytes, columns: Columns, where: str, first: int, ledger: Ledger
) -> tuple[pa.Table, list[int]]:
    """Parses line by line; also returns the indices in the block of the lines left out."""
    rows, skipped = [], []
    for number, line in enumerate(block.removesuffix(b'\n').split(b'\n')):
        try:
            rows.append(_parse_line(line, columns))
        except (ValueError, RecursionError):
            skipped.append(number)
            if line.strip():
                ledger.add('unparsable_row', f'{where} {first + number + 1}')
    lists = any(isinstance(row[columns.label], list) for row in rows)
    for row in rows if lists else ():
        label = row[columns.label]
        row[columns.label] = label if isinstance(label, list) else [label]
    types = {columns.image: pa.binary()}
    types[columns.label] = pa.list_(pa.binary()) if lists else pa.binary()
    types |= dict.fromkeys(columns.texts, pa.list_(pa.binary()))
    return pa.Table.from_pylist(rows, pa.schema(types.items())), skipped


def _parse_line(line: bytes, columns: Columns) -> dict[str, Any]:
    """Parses one line of a .jsonl file; ValueError if it is not an object, or for a wrong type.

    Bytes that are not UTF-8 are kept; if they matter, reading the row fails.
    """
    row = json.loads(line.decode('utf-8', 'surrogateescape'))
    if not isinstance(row, dict):
        raise ValueError
    label = row.get(columns.label)
    label = [*map(_as_text, label)] if isinstance(label, list) else _as_text(label)
    texts = {name: row.get(name) for name in columns.texts}
    parsed = {columns.image: _captions.encoded(row.get(columns.image)), columns.label: label}
    for name, text in texts.items():
        several = text if isinstance(text, list) else [text]
        parsed[name] = [_captions.encoded(one) for one in several]
    return parsed


def _as_text(label: Any) -> bytes | None:
    """Returns a label of JSON as CSV would have it."""
    number = isinstance(label, int | float) and not isinstance(label, bool)
    return _captions.encoded(str(label) if number else label)


def _read_parquet(
    path: str, columns: Columns, ledger: Ledger, images: 'Cache', _: Dialect
) -> list[Rows]:
    with (
        _files.open_file(path) as file,
        pq.ParquetFile(file, page_checksum_verification=True) as table,
    ):
        schema, metadata = table.schema_arrow, table.metadata
        names = columns.found_in(schema.names, path)
        stored = _holds_images(schema.field(columns.image), path)
        in_memory = [name for name in names if name != columns.image or not stored]
        read = table.read(in_memory)
    arrays = {}
    for name in in_memory:
        is_text = name == columns.image or name in columns.texts
        arrays[name] = _as_bytes(read[name], f'{path}: {name!r}') if is_text else read[name]
    if stored:
        arrays[columns.image] = StoredImages(path, metadata, columns.image, images)
    return [Rows(path, metadata.num_rows, arrays, class_names=_class_names(schema, columns.label))]


def _read_delimited(
    path: str, columns: Columns, ledger: Ledger, _: 'Cache', dialect: Dialect
) -> list[Rows]:
    return read_csv(path, columns, ledger, dialect)


DELIMITED = ('.csv', '.tsv', '.txt')
READERS = {
    '.csv': _read_delimited,
    '.tsv': _read_delimited,
    '.txt': _read_delimited,
    '.jsonl': _read_jsonl,
    '.parquet': _read_parquet,
}


def _holds_images(field: pa.Field, path: str) -> bool:
    """Whether a column of a Parquet file holds encoded images, not paths."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if _is_string(kind):
        return False
    names = {inner.name for inner in kind} if pa.types.is_struct(kind) else ()
    if _is_binary(kind) or 'bytes' in names:
        return True
    raise ValueError(
        f'{path}: image_key: column {field.name!r} holds {kind}; expected paths, encoded images, '
        "or both in fields 'bytes' and 'path'. Choose another column."
    )


def _as_bytes(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Casts strings, or lists of strings, to bytes, without a copy and without validation."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    inner = kind.value_type if _table_labels.is_list(kind) else kind
    if not (_is_string(inner) or _is_binary(inner) or pa.types.is_null(inner)):
        raise ValueError(
            f'{what}: is a column of {kind}; expected strings or lists of strings. Choose another.'
        )
    return column.cast(
        pa.large_list(pa.large_binary()) if _table_labels.is_list(kind) else pa.large_binary()
    )


def _is_string(kind: pa.DataType) -> bool:
    checks = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(check(kind) for check in checks)


def _is_binary(kind: pa.DataType) -> bool:
    checks = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
    return any(check(kind) for check in checks)


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """The class names that Hugging Face's datasets store in Parquet files."""
    try:
        noted = json.loads((schema.metadata or {})[b'huggingface'])
        return [str(name) for name in noted['info']['features'][label]['names']]
    except (KeyError, TypeError, ValueError):
        return []


class StoredImages:
    """The images of one Parquet file by row; they are decoded one row group at a time."""

    def __init__(self, path: str, metadata: pq.FileMetaData, name: str, cache: 'Cache'):
        self._path, self._metadata, self._name, self._cache = path, metadata, name, cache
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self.largest = max((group.total_byte_size for group in groups), default=0)

    def __getitem__(self, k: int) -> pa.Scalar:
        group = int(np.searchsorted(self._ends, k, side='right'))
        read = functools.partial(self._read, group)
        return self._cache.get((self._path, group), read)[k - int(self._ends[group])]

    def _read(self, group: int) -> pa.ChunkedArray:
        try:
            with _files.open_file(self._path) as file:
                table = pq.ParquetFile(
                    file, metadata=self._metadata, page_checksum_verification=True
                )
                return table.read_row_group(group, [self._name])[self._name]
        except (pa.ArrowException, OSError) as error:
            if getattr(error, 'errno', None):
                raise  # A failing disk does not mean that the record is bad.
            reason = brief(error)
            raise BadRecord('damaged', f'{self._path}: row group {group}: {reason}') from error


class Cache:
    """An LRU cache limited in bytes; threads that need the same value wait for one read."""

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._futures: dict[Any, Future] = {}  # the most recently used is the last

    def get(self, key: Any, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        with self._lock:
            future = self._futures.pop(key, None)
            is_new = future is None
            future = self._futures[key] = Future() if is_new else future
        if is_new:
            try:
                future.set_result(read())
            except BaseException as error:
                future.set_exception(error)
            self._shrink()
        return future.result()

    def _shrink(self) -> None:
        with self._lock:
            done = {key: future for key, future in self._futures.items() if future.done()}
            for key in [key for key, future in done.items() if future.exception()]:
                del self._futures[key], done[key]
            total = sum(future.result().nbytes for future in done.values())
            for key in list(done)[:-1]:
                if total <= self._limit:
                    break
                total -= self._futures.pop(key).result().nbytes
