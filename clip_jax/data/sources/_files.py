"""Files and folders: local, or at an address with '://' that fsspec supports."""

import codecs
import errno
import glob
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from clip_jax.data.errors import BadRecord, DataNotFound
from clip_jax.runtime.atomic import is_remote
from clip_jax.runtime.hub_errors import NoRepository
from clip_jax.runtime.messages import first_few
from clip_jax.runtime.object_storage import UnknownProtocol, as_oserror, filesystem

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
# Names that no file can have: too long, or circular links.
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)
_GONE = (401, 403, 404, 410, 451)
_LARGEST = 1 << 30  # bytes of a file that a row names; an image of 100 megapixels has fewer
# Protocols of addresses that rows of a table may name; chains of fsspec ('::') are none of them.
_NAMED = ('http', 'https', 'gs', 'gcs', 's3', 'az', 'abfs', 'hf', 'memory')


def open_file(path: str) -> BinaryIO:
    """Opens a file for reading bytes, with random access; OSError if it does not exist."""
    if not is_remote(path):
        return open(path, 'rb')
    fs, path = filesystem(path)
    return fs.open(path, 'rb')


def read(path: str, *, missing: str = 'no_image') -> bytes:
    """Reads a file; BadRecord of the kind `missing` if it does not exist."""
    try:
        if is_remote(path):
            fs, name = filesystem(path)
            return fs.cat_file(name)
        with open(path, 'rb') as file:
            return file.read()
    except Exception as error:
        reason = _why_missing(error)
        if not reason:
            # A failing network or disk does not mean that the record is bad.
            raise as_oserror(error, path) from error
        raise BadRecord(missing, f'cannot read {path[:200]!r} ({reason})') from error


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yields a file in blocks of about `size` bytes that end with a line.

    A byte order mark is left out. An unbuffered file would be read byte by byte for its lines.
    """
    block = file.read(size).removeprefix(codecs.BOM_UTF8)
    while block:
        yield block + file.readline()
        block = file.read(size)


def read_named(path: str) -> bytes:
    """Reads a file that data name: a regular file, or an object at an address of _NAMED.

    Raises BadRecord for anything else, and for files of more than _LARGEST bytes.
    """
    protocol = path.partition('://')[0]
    if is_remote(path) and protocol not in _NAMED:
        raise BadRecord(
            'no_image', f'cannot read {path[:200]!r} (protocol is none of {", ".join(_NAMED)})'
        )
    if not is_remote(path) and os.path.exists(path):
        # A pipe would be waited for, and a device never ends.
        if not os.path.isfile(path):
            raise BadRecord('no_image', f'cannot read {path[:200]!r} (not a regular file)')
        size = os.path.getsize(path)
        if size > _LARGEST:
            raise BadRecord('too_large', f'{path[:200]!r} has {size:,} bytes; at most {_LARGEST:,}')
    return read(path)


def _why_missing(error: Exception) -> str:
    """Says why a file does not exist or cannot be read; '' if the error means something else."""
    if isinstance(error, UnknownProtocol):
        return 'unknown protocol'
    if isinstance(error, NoRepository):
        return 'no such repository'
    if isinstance(error, _MISSING) or getattr(error, 'errno', 0) in _IMPOSSIBLE:
        # pyrefly: ignore[missing-attribute]  # an error with an errno has a strerror
        return error.strerror or type(error).__name__
    # HTTP clients have their own errors for responses other than a file.
    status = getattr(error, 'status', 0)
    return f'HTTP status {status}' if status in _GONE else ''


def join(folder: str, path: str) -> str:
    """Joins a folder and a path in it; BadRecord('no_image') if '..' leaves the folder."""
    depth = 0
    for part in path.split('/'):
        depth += {'..': -1, '.': 0, '': 0}.get(part, 1)
        if depth < 0:
            raise BadRecord('no_image', f'the path {path[:200]!r} leaves the folder {folder}')
    return f'{folder.rstrip("/")}/{path}' if folder else path


def matches(address: str, kind: str) -> list[str]:
    """Returns the files that a path, a glob or braces match, sorted; each part must match some."""
    address = os.path.expanduser(address)
    found = set()
    for pattern in expand(address):
        files = _glob(pattern)
        if not files:
            raise DataNotFound(
                f'{kind}: no file matches {pattern!r}. {nearest(pattern)} Expected a path, a '
                "glob or a range of files, such as 'x-*', 'x-{00000..00041}'."
            )
        found.update(files)
    return sorted(found)


def expand(pattern: str) -> list[str]:
    """Expands the braces of `{00000..00005}` and `{train,val}`."""
    braces = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
    if not braces:
        return [pattern]
    first, last, words = braces.groups()
    if words is None:
        low, high = sorted((int(first), int(last)))
        words = [str(number).zfill(len(first)) for number in range(low, high + 1)]
    else:
        words = words.split(',')
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [path for word in words for path in expand(head + word + tail)]


def listing(folder: str) -> Iterator[tuple[str, str]]:
    """Yields the (name, type) of the entries of a folder, unordered; OSError if it does not exist.

    Types are 'file' and 'folder', also for links to them, and 'not_a_file' for devices, pipes and
    links that lead nowhere.
    """
    if is_remote(folder):
        fs, path = filesystem(folder)
        for entry in fs.ls(path, detail=True):
            name = entry['name'].rstrip('/')
            # Object stores may list a folder as an empty object within itself.
            if name != path.rstrip('/'):
                yield name.rpartition('/')[2], 'folder' if entry['type'] == 'directory' else 'file'
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, _type_of(entry)


def _type_of(entry: os.DirEntry) -> str:
    try:
        if entry.is_file():
            return 'file'
        return 'folder' if entry.is_dir() else 'not_a_file'
    except OSError as error:
        if not _why_missing(error):
            raise
        return 'not_a_file'  # a link to itself, below a file, or where nobody may look


def identity(folder: str) -> object:
    """Returns what is equal for all paths of one folder: local paths may go through links."""
    if is_remote(folder):
        return folder
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def contents(folder: str) -> str:
    """Says what a folder contains, for error messages."""
    names = sorted(name for name, _ in listing(folder))
    return f'The folder {folder!r} holds: {first_few(names, 8) or "nothing"}.'


def nearest(pattern: str) -> str:
    """Says what the innermost existing folder of a pattern contains."""
    folder = pattern
    while folder:
        try:
            return contents(folder)
        except (OSError, NotImplementedError):
            folder = folder.rpartition('/')[0]
            if folder.endswith('/'):
                return ''  # only the protocol of an address is left
    return contents('/' if pattern.startswith('/') else '.')


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        fs, path = filesystem(pattern)
        if fs.isfile(path):
            return [pattern]
        found = fs.glob(path, detail=True).items()
        return [fs.unstrip_protocol(p) for p, info in found if info['type'] == 'file']
    if os.path.isfile(pattern):
        return [pattern]
    return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
