"""Atomic writes: a file has its complete content, or what it had before."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from etils import epath

_ESCAPED = re.compile(r'\\u(dc[89a-f][0-9a-f])')  # a byte of a name that is not UTF-8
_PARTIAL_NAME = re.compile(r'\.[0-9a-f]{8}\.partial$')
PARTIAL = '.partial'  # suffix of a file that is being written


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as one of object storage."""
    return '://' in str(path)


def check_local(path: str | os.PathLike, what: str) -> None:
    """Raises a ValueError, which begins with `what`, if a path is not local."""
    if is_remote(path):
        raise ValueError(f'{what}: {path}: expected a local path')


def check_place(path: str | os.PathLike, what: str) -> None:
    """Raises a ValueError, which begins with `what`, if no local file can be written to a path."""
    check_local(path, what)
    folder = existing_parent(path)
    if not folder.is_dir():
        raise ValueError(f'{what}: {folder} is not a folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f'{what}: no permission to write to {folder}')


def existing_parent(path: str | os.PathLike) -> pathlib.Path:
    """Returns the nearest parent folder of a path that exists."""
    return next(folder for folder in pathlib.Path(path).absolute().parents if folder.exists())


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file atomically and durably, and creates its parent folders.

    Args:
        path: the file; until the write is complete it keeps its previous content.
        content: text, written as UTF-8, or bytes.
    """
    with _committed(epath.Path(path)) as partial:
        partial.write_bytes(encoded(content) if isinstance(content, str) else content)


def encoded(text: str) -> bytes:
    """Encodes text as UTF-8; bytes of file names that are not UTF-8 become JSON's escapes."""
    return text.encode(errors='backslashreplace')


def decoded(data: bytes) -> str:
    """Decodes what `encoded` made, with the bytes that it escaped."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), data.decode())


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[TextIO]:
    """Yields a new local text file that gets its name when it is complete; on errors it is removed.

    Parent folders are created. Line ends are written as they are.
    """
    with (  # the file is closed before it gets its name
        _committed(epath.Path(path)) as partial,
        open(partial, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file,
    ):
        yield file


@contextlib.contextmanager
def _committed(path: epath.Path) -> Iterator[epath.Path]:
    """Yields the path at which a new file is written until it is complete.

    Each writer has a path of its own, which nobody can have made a link. On errors the file is
    removed; what a killed writer left is removed by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = None
    if is_remote(path):
        partial = path.with_name(_partial_name(path.name))
    else:
        _remove_leftovers(pathlib.Path(path))
        local, opened = _new_partial(pathlib.Path(path), lambda new: new.touch(exist_ok=False))
        partial = epath.Path(local)
    try:
        yield partial
        commit(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if opened is not None:
            os.close(opened)


def _new_partial(
    path: pathlib.Path, create: Callable[[pathlib.Path], Any]
) -> tuple[pathlib.Path, int]:
    """Creates a file or folder and locks it for as long as its descriptor is open."""
    while True:
        partial = path.with_name(_partial_name(path.name))
        create(partial)
        try:
            opened = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:  # taken for a leftover before it was opened
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        if partial.exists():
            return partial, opened
        os.close(opened)  # taken for a leftover before it was locked


def _remove_leftovers(path: pathlib.Path) -> None:
    """Removes partial files and folders of a path that no writer has locked any more."""
    for name in os.listdir(path.parent):
        if name != path.name and _written(name) == path.name:
            leftover = path.with_name(name)
            with contextlib.suppress(OSError):
                opened = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                finally:
                    os.close(opened)


def _partial_name(name: str) -> str:
    """Returns a new name for what is being written; `_written` returns the name again."""
    return f'{name}.{secrets.token_hex(4)}{PARTIAL}'


def _written(name: str) -> str:
    """Returns the name that a file has, or will have when it is complete."""
    return _PARTIAL_NAME.sub('', name)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty local folder that gets its name when it is complete; on errors it is removed.

    Parent folders are created. What a killed writer left is removed by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial, opened = _new_partial(path, os.mkdir)
    try:
        yield partial
        sync(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(opened)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes an indented JSON file atomically."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def unexpected_files(folder: epath.Path, *own: str) -> list[str]:
    """Returns the sorted names of files in a folder, except its `own`, complete or partial."""
    return sorted(path.name for path in folder.iterdir() if _written(path.name) not in own)


def commit(partial: str | os.PathLike, path: str | os.PathLike) -> None:
    """Renames a complete file; its content, and then its name, are on the disk afterwards."""
    partial, path = epath.Path(partial), epath.Path(path)
    local = not is_remote(path)
    if local:
        _sync(partial)
    partial.replace(path)
    if local:
        _sync(path.parent)


def sync(folder: str | os.PathLike) -> None:
    """Flushes all files of a local folder to the disk."""
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
