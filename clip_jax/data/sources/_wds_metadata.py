"""Numbers that an evaluation set says of each image besides its label: a .npy array, as those of
WILDS in DataComp.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from clip_jax import lookup
from clip_jax.data.sources import _tar_labels


class Columns(NamedTuple):
    """What the columns of the arrays mean.

    Attributes:
        names: of the columns, in order.
        group_by: columns whose values, together, are the group of an image.
        label: the column with the label; '' if it is stored elsewhere.
    """

    names: tuple[str, ...]
    group_by: tuple[str, ...]
    label: str

    def check(self) -> None:
        """Raises ValueError if a column is unknown, or if the names would have no effect."""
        for option, names in (('columns', self.names), ('group_by', self.group_by)):
            if not all(isinstance(name, str) and name for name in names):
                raise ValueError(f'wds: {option} is {list(names)}; expected names of columns')
        for column in (*self.group_by, *([self.label] if self.label else [])):
            if not self.names:
                raise ValueError(
                    f'wds: {column!r} is a column of the .npy members, but columns is empty; give '
                    'the names of all columns, in order'
                )
            lookup.check(column, self.names, what='wds: columns')
        if self.names and not self.group_by and not self.label:
            raise ValueError('wds: columns has no effect without group_by or objective')

    def read(self, data: bytes) -> dict[str, Any]:
        """Returns the 'group' and 'label' of an array that has them; ValueError for others."""
        numbers, _ = _tar_labels.integers(data)
        if len(numbers) != len(self.names):
            raise ValueError(
                f'expected {len(self.names)} numbers, one for each of columns '
                f'({", ".join(self.names)}), found {len(numbers)}.'
            )
        values = dict(zip(self.names, numbers, strict=True))
        example: dict[str, Any] = {'label': values[self.label]} if self.label else {}
        if self.group_by:
            example['group'] = ', '.join(f'{name} {values[name]}' for name in self.group_by)
        return example


class Texts(NamedTuple):
    """Reads the captions of a sample, and its array."""

    texts: Any  # reads captions
    columns: Columns

    @property
    def fields(self) -> tuple[str, ...]:
        return self.texts.fields

    def read(self, members: Sequence[bytes | None]) -> dict[str, Any]:
        """Returns what the members add to an example; the array is the last."""
        *texts, array = members
        if array is None:
            raise ValueError('expected a .npy member with the columns, found none.')
        return self.texts.read(texts) | self.columns.read(array)


class Labels(NamedTuple):
    """Reads the label from a column of the array."""

    names: list[str]
    names_file: str
    columns: Columns

    def read(self, data: bytes) -> dict[str, Any]:
        """Returns the 'label' and the 'group'; ValueError if the label has no name."""
        example = self.columns.read(data)
        if self.names and example['label'] >= len(self.names):
            raise ValueError(
                f'expected {self.columns.label} below {len(self.names)}, the number of its names '
                f'in {self.names_file}, found {example["label"]}.'
            )
        return example
