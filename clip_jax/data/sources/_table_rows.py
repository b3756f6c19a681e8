"""Columns that are wanted of a table, and rows that were read."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax import lookup

_DEFAULTS = {'text_key': 'caption', 'label_key': 'label'}


class Columns(NamedTuple):
    """The names of the columns of image, captions and label."""

    image: str
    texts: tuple[str, ...]
    label: str

    def found_in(self, names: Sequence[str], path: str) -> list[str]:
        """Returns the columns that a table with columns `names` has.

        ValueError if one is missing; captions and labels with their default names may be missing.
        """
        wanted = {self.image: 'image_key'}
        wanted |= dict.fromkeys(self.texts, 'text_key') | {self.label: 'label_key'}
        for name, option in wanted.items():
            if name != _DEFAULTS.get(option):
                lookup.check(name, names, what=f'{path}: {option}')
        return [name for name in wanted if name in names]


@dataclasses.dataclass
class Rows:
    """Rows that were read at once: a file, or a part of one."""

    path: str
    count: int
    # pa.ChunkedArray, or StoredImages of Parquet; without those that the file lacks. Strings are
    # bytes, which may not be UTF-8.
    columns: dict[str, Any]
    first: int = 0  # number of rows before these in the file
    skipped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    class_names: list[str] = dataclasses.field(default_factory=list)

    def number(self, k: int) -> int:
        """Returns the number of row k in its file, from 1; `skipped` counts from 0."""
        before = self.skipped - np.arange(len(self.skipped))
        return self.first + k + int(np.searchsorted(before, k, side='right')) + 1
