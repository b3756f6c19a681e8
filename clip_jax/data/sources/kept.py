"""Some records of another data set, by a list that `clip-jax data filter` wrote: `kept:FILE`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.data import kept_list
from clip_jax.data.sources import Source, open_source, text_fields


def source(address: str, *, data: str = '', options: Mapping[str, Any] = {}) -> 'KeptSource':
    """Opens the data set that a list of kept records is of, and has only these records.

    The data set must have the records that it had when the list was made.

    Args:
        address: the list.
        data: the SPEC of the data set where it has moved; '': the SPEC in the list.
        options: options of its source that replace those in the list, such as {'data_dir': DIR}.

    Raises:
        DataNotFound: the list or the data set does not exist.
        ValueError: the list is damaged or empty, or the data set has other records.
    """
    kept = kept_list.read(address)
    opened = open_source(data or kept.of.data, **{**kept.of.data_options, **options})
    found = KeptSource(address, opened, kept.records)
    kept.of.check(opened, str(found))
    return found


class KeptSource:
    """Records of a source, by their indices; as safe to share and to pickle as the source."""

    def __init__(self, address: str, source: Source, records: np.ndarray):
        self._address, self._source, self._records = address, source, records
        self.label_names = source.label_names
        self.skipped = source.skipped
        self.text_fields = text_fields(source)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the example of the `i`-th record that is kept."""
        return self._source[self._place(i)]

    def where(self, i: int) -> str:
        """Says where example `i` is stored."""
        return self._source.where(self._place(i))

    def __str__(self) -> str:
        return f'kept:{self._address}'

    def _place(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} records, none with the index {i}.')
        return int(self._records[i])
