"""Where a downloaded checkpoint is."""

import pathlib
from typing import NamedTuple


class Place(NamedTuple):
    """Where a checkpoint is.

    Attributes:
        path: the local file or folder.
        address: where it came from, with its revision if it has one.
    """

    path: pathlib.Path
    address: str
