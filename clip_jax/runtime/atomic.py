"""Files that are there as a whole or not at all."""

import json
import os
import pathlib
from typing import Any

from etils import epath

PARTIAL = '.partial'  # what a write that was killed leaves behind ends so


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is one of object storage, or another that is none of this machine's."""
    return '://' in str(path)


def check_local(path: str | os.PathLike, what: str) -> None:
    """ValueError, which begins with `what`, if a path is not on this machine."""
    if is_remote(path):
        raise ValueError(f'{what}: {path}: expected a place on this machine')


def check_place(path: str | os.PathLike, what: str) -> None:
    """ValueError, which begins with `what`, if a path is not on this machine, or no file can be
    written to it.
    """
    check_local(path, what)
    folder = existing_parent(path)
    if not folder.is_dir():
        raise ValueError(f'{what}: {folder} is no folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f'{what}: nothing can be written into {folder}')


def existing_parent(path: str | os.PathLike) -> pathlib.Path:
    """Returns the nearest of the folders above a path that is there."""
    return next(folder for folder in pathlib.Path(path).absolute().parents if folder.exists())


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, and the folders above it, so that it is on the disk as a whole, whatever
    happens meanwhile; what was there before stays until then.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        commit(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file whole, as people read it."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def unexpected_files(folder: epath.Path, *own: str) -> list[str]:
    """The names of what lies in a folder, sorted, except files that are its `own`, whole or not."""
    own += tuple(name + PARTIAL for name in own)
    return sorted(path.name for path in folder.iterdir() if path.name not in own)


def commit(partial: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a complete file its name once its content, and then the name, are on the disk."""
    partial, path = epath.Path(partial), epath.Path(path)
    local = not is_remote(path)
    if local:
        _sync(partial)
    partial.replace(path)
    if local:
        _sync(path.parent)


def sync(folder: str | os.PathLike) -> None:
    """Returns when all that lies in a local folder is on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(os.path.join(place, name))
        _sync(place)


def _sync(path: str | os.PathLike) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
