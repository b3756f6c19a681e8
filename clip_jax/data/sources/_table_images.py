"""Rows of tables that name the same image: one image with the captions of all."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_jax.data.sources import _files
from clip_jax.data.sources._table_rows import Rows


class Images(NamedTuple):
    """The rows of each image, images in the order of their first rows."""

    rows: np.ndarray  # int64 [rows], those of an image one after the other, in their order
    ends: np.ndarray  # int64 [images + 1], where the rows of each image start
    duplicates: np.ndarray  # int64, sorted: rows that repeat a row of their image in every caption
    empty: np.ndarray  # int64, sorted: others of several rows of an image, without any caption

    def rows_of(self, i: int) -> np.ndarray:
        """Returns the rows of image i without duplicates."""
        own = self.rows[self.ends[i] : self.ends[i + 1]]
        places = np.searchsorted(self.duplicates, own)
        places = np.minimum(places, max(len(self.duplicates) - 1, 0))
        return own[self.duplicates[places] != own] if len(self.duplicates) else own


def images(parts: Sequence[Rows], image: str, texts: Sequence[str], root: str) -> Images | None:
    """Groups rows by path; None if no path occurs twice or a file stores encoded images."""
    columns = [part.columns[image] for part in parts]
    if not all(isinstance(column, pa.ChunkedArray) for column in columns):
        return None
    own = _codes([_nonempty(column) for column in columns])
    if not root and len({part.path.rpartition('/')[0] for part in parts}) > 1:
        own = _with_folders(own, columns, parts)
    missing = own < 0  # a row without a path is an image of its own
    own[missing] = own.max(initial=-1) + 1 + np.arange(np.count_nonzero(missing))
    _, first, own = np.unique(own, return_index=True, return_inverse=True)
    if len(first) == len(own):
        return None
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    own = rank[own]
    counts = np.bincount(own)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    duplicates = _duplicates(own, parts, texts)
    empty = np.setdiff1d(
        np.flatnonzero(_without_text(parts, texts) & (counts[own] > 1)), duplicates
    )
    return Images(np.argsort(own, kind='stable'), ends, duplicates, empty)


def _duplicates(own: np.ndarray, parts: Sequence[Rows], texts: Sequence[str]) -> np.ndarray:
    keys = own
    for name in texts:
        if any(name in part.columns for part in parts):
            columns = [
                part.columns.get(name, pa.chunked_array([pa.nulls(part.count)])) for part in parts
            ]
            keys = _pairs(keys, _codes([_scalar(column) for column in columns]) + 1)
    _, first = np.unique(keys, return_index=True)
    return np.setdiff1d(np.arange(len(own)), first, assume_unique=True)


def _without_text(parts: Sequence[Rows], texts: Sequence[str]) -> np.ndarray:
    """Returns which rows have no caption; none where the tables have no captions at all."""
    empty = [np.ones(part.count, bool) for part in parts]
    for part, rows in zip(parts, empty, strict=True):
        for name in texts:
            if name in part.columns:
                rows &= _blank(part.columns[name])
    known = any(name in part.columns for part in parts for name in texts)
    return np.concatenate(empty) & known


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.array([not any((x or b'').strip() for x in row.as_py() or ()) for row in column])
    return pc.match_substring_regex(column.fill_null(b''), rb'^\s*$').to_numpy()


def _with_folders(
    own: np.ndarray, columns: Sequence[pa.ChunkedArray], parts: Sequence[Rows]
) -> np.ndarray:
    """Relative paths of tables in different folders are different images."""
    folders = list(dict.fromkeys(part.path.rpartition('/')[0] for part in parts))
    numbers = []
    for column, part in zip(columns, parts, strict=True):
        kinds = pc.dictionary_encode(column.cast(pa.large_binary())).combine_chunks()
        kinds = kinds if isinstance(kinds, pa.DictionaryArray) else kinds.chunk(0)
        far = [bool(path) and _is_absolute(path) for path in kinds.dictionary.to_pylist()]
        number = folders.index(part.path.rpartition('/')[0]) + 1
        of_kind = np.where(np.array([*far, True]), 0, number)
        numbers.append(of_kind[kinds.indices.fill_null(len(far)).to_numpy()])
    return np.where(own < 0, own, _pairs(own + 1, np.concatenate(numbers)))


def _is_absolute(path: bytes) -> bool:
    return path.startswith(b'/') or _files.is_remote(path.decode('utf-8', 'replace'))


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns numbers that are equal where both are."""
    _, first = np.unique(first, return_inverse=True)
    return first.astype(np.int64) * (int(second.max(initial=0)) + 1) + second


def _codes(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """Returns int64 numbers that are equal for equal values; -1 for null."""
    chunks = [chunk.cast(pa.large_binary()) for column in columns for chunk in column.chunks]
    encoded = pa.chunked_array(chunks, pa.large_binary()).dictionary_encode()
    indices = [
        chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.unify_dictionaries().chunks
    ]
    return np.concatenate([np.zeros(0, np.int64), *indices]).astype(np.int64)


def _nonempty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = column.cast(pa.large_binary())
    return pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)


def _scalar(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns lists as one value each."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return column
    values = [repr(value.as_py()).encode() for value in column]
    return pa.chunked_array([pa.array(values, pa.large_binary())])
