"""Zip archives and NumPy's `.npy` and `.npz` that others wrote.

What a header promises is compared with the size of the file before anything is allocated, data is
read to its end so that its checksum is compared, and an error is one line.
"""

import contextlib
import dataclasses
import errno
import functools
import lzma
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

ZIP = b'PK\x03\x04'
ADVICE = 'copy or download it again'
_MOST_AXES = 32
# What an archive may expand to: this many times its size, and as many bytes.
_MOST_TIMES, _MOST_BYTES = 4, 100 << 20
# What zipfile, its decompressors and NumPy raise for damaged bytes.
_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # also encrypted entries, versions that are not implemented, deep nesting
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a file: shape and dtype are known, the data is read on demand.

    Attributes:
        shape: its sizes.
        dtype: its dtype, or the name of one that NumPy does not have.
        read: returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | str
    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def whole(what: str | os.PathLike) -> Iterator[None]:
    """Turns every error of a library that reads damaged bytes into one ValueError.

    Args:
        what: the file; the message starts with it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a position that is impossible: damage as well
            raise
        raise ValueError(f'{what}: damaged ({_brief(error)}); {ADVICE}') from error
    except _ERRORS as error:
        raise ValueError(f'{what}: damaged ({_brief(error)}); {ADVICE}') from error


def _brief(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def is_zip(path: pathlib.Path) -> bool:
    """Returns whether a file begins as a zip archive does."""
    with path.open('rb') as file:
        return file.read(len(ZIP)) == ZIP


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens a zip archive.

    Returns:
        The archive; its entries have different names and are not much larger than the file.

    Raises:
        ValueError: the archive is damaged, or expands to much more than its size.
    """
    with whole(path):
        archive = zipfile.ZipFile(path)
        names = [info.filename for info in archive.infolist()]
        if len(set(names)) != len(names):
            raise ValueError('two entries have the same name')
    size, expanded = path.stat().st_size, sum(info.file_size for info in archive.infolist())
    if expanded > _MOST_TIMES * size + _MOST_BYTES:
        raise ValueError(
            f'{path}: damaged, or compressed as no weights are: {size:,} bytes expand to '
            f'{expanded:,}; {ADVICE}, or write it without compression'
        )
    return archive


def read_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Reads an entry, whose checksum is compared; ValueError if it is damaged."""
    with whole(f'{archive.filename}: {info.filename}'):
        return archive.read(info)


def open_npz(path: pathlib.Path) -> dict[str, Array]:
    """Opens an `.npz` file.

    Returns:
        Its arrays by name; their data is read on demand.

    Raises:
        ValueError: the file is damaged, or holds something else than arrays of numbers and texts.
    """
    archive = open_zip(path)  # stays open as long as arrays may be read
    found = {}
    for info in archive.infolist():
        with whole(f'{path}: {info.filename}'), archive.open(info) as file:
            shape, dtype = header(file, info.file_size)
        read = functools.partial(_read_entry, archive, info)
        found[info.filename.removesuffix('.npy')] = Array(shape, dtype, read)
    return found


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with whole(f'{archive.filename}: {info.filename}'), archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # at the end of the entry its checksum is compared
            raise ValueError('bytes follow the array')
        return array


def header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the header of an `.npy` file, and compares it with the size of the file.

    Args:
        file: the file, at its start.
        size: how many bytes it has.

    Returns:
        The shape and the dtype of the array; the data of Python objects cannot be read.

    Raises:
        ValueError: the header is damaged, or promises something else than the file holds. NumPy
            raises other errors too; see `whole`.
    """
    version = np.lib.format.read_magic(file)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise ValueError(f'unknown version {version} of the npy format')
    shape, _, dtype = reader(file)
    if len(shape) > _MOST_AXES or min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f'an array of dtype {dtype} with {len(shape)} axes')
    if dtype.hasobject:  # a pickle, which is never read
        return shape, dtype
    if file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f'its header says {dtype} {shape}, which does not fit {size:,} bytes')
    return shape, dtype
