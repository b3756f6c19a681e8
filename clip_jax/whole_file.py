"""Files that are there as a whole or not at all."""

import os

from etils import epath


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, and the folders above it, so that it is on the disk as a whole, whatever
    happens meanwhile; what was there before stays until then.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
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
