"""Labels of tables: columns of numbers, of class names, or of lists of either."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Rows(Protocol):
    """Rows that were read at once."""

    count: int
    columns: dict[str, Any]
    class_names: list[str]


def labels(
    parts: Sequence[Rows], key: str, separator: str, what: str
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Reads the labels of tables.

    Integers are labels as they are; anything else is a class name, numbered in sorted order.

    Args:
        parts: the rows.
        key: the column of labels.
        separator: splits text into several labels; '' does not split.
        what: what messages call the source.

    Returns:
        labels: int64 [rows], -1 for none; None if there is no column. If rows may have several
            labels, those of all rows, concatenated.
        ends: int64 [rows + 1], where the labels of each row start, if rows may have several; None
            otherwise.
        names: the class names, [] if there are none.
    """
    if not any(key in part.columns for part in parts):
        return None, None, []
    columns = [part.columns.get(key, pa.chunked_array([pa.nulls(part.count)])) for part in parts]
    ends = None
    try:
        if separator:
            columns = [_cut(column, separator) for column in columns]
        if any(is_list(column.type) for column in columns):
            columns, ends = _flattened(columns)
        columns = [_without_empty(column) for column in columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kinds = ', '.join(sorted({str(column.type) for column in columns}))
        raise ValueError(
            f'{what}: label_key: column {key!r} ({kinds}) holds neither integers nor names '
            f'({str(error).splitlines()[0][:100]}). Choose another column.'
        ) from error
    try:
        numbers = [_whole(column, f'{what}: label_key: column {key!r}') for column in columns]
        names = parts[0].class_names
        names = names if all(part.class_names == names for part in parts) else []
    except pa.ArrowInvalid:
        columns = [column.cast(pa.large_string()) for column in columns]
        names = sorted(set().union(*(column.unique().to_pylist() for column in columns)) - {None})
        numbers = [
            pc.index_in(column, pa.array(names, pa.large_string())).cast(pa.int64())
            for column in columns
        ]
    return np.concatenate([column.fill_null(-1).to_numpy() for column in numbers]), ends, names


def _cut(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Splits strings at separators into lists; lists and nulls are returned unchanged."""
    if is_list(column.type) or pa.types.is_null(column.type):
        return column
    return pc.split_pattern(column.cast(pa.large_string()), separator)


def _flattened(columns: list[pa.ChunkedArray]) -> tuple[list[pa.ChunkedArray], np.ndarray]:
    """Concatenates the values of lists; also returns where those of each row start and end.

    A value that is not a list counts as a list of one.
    """
    flat, lengths = [], [np.zeros(1, np.int64)]
    for column in columns:
        if is_list(column.type):
            flat.append(pc.list_flatten(column))
            lengths.append(pc.list_value_length(column).fill_null(0).to_numpy())
        else:
            flat.append(column)
            lengths.append(np.ones(len(column), np.int64))
    return flat, np.cumsum(np.concatenate(lengths))


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _without_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strips strings and makes empty ones null; numbers are returned unchanged."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return column
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.equal(column, ''), None, column)


def _whole(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Casts to int64; ArrowInvalid if there are names, ValueError if there are fractions."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        numbers = column.cast(pa.float64())
    try:
        return numbers.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError(
            f'{what} holds fractions ({error}); expected integers or names. Choose another column.'
        ) from None
