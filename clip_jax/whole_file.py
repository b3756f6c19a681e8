"""Files that are there as a whole or not at all."""

import os

from etils import epath

PARTIAL = '.partial'  # what a write that was killed leaves behind ends so


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, and the folders above it, so that it is on the disk as a whole, whatever
    happens meanwhile; what was there before stays until then.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    give_name(partial, path)


def give_name(partial: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a complete file its name once its content, and then the name, are on the disk."""
    partial, path = epath.Path(partial), epath.Path(path)
    local = '://' not in str(path)
    if local:
        _sync(partial)
    partial.replace(path)
    if local:
        _sync(path.parent)


def _sync(path: epath.Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
