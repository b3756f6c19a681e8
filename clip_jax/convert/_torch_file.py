"""Reads torch.save files (both containers) and TorchScript archives safely and without torch."""

import dataclasses
import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clip_jax.convert import _pickle
from clip_jax.convert._pickle import Instance, Name
from clip_jax.convert._table import Array

_ZIP = b'PK\x03\x04'
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_START = b'\x80\x02\x8a\x0a' + _LEGACY_MAGIC.to_bytes(10, 'little') + b'.'
_MOST_AXES = 32

_STORAGES: dict[str, np.dtype] = {
    f'torch {name}Storage': np.dtype(dtype)
    for name, dtype in {
        'Float': '<f4',
        'Half': '<f2',
        'BFloat16': ml_dtypes.bfloat16,
        'Double': '<f8',
        'Long': '<i8',
        'Int': '<i4',
        'Short': '<i2',
        'Char': 'i1',
        'Byte': 'u1',
        'Bool': '?',
    }.items()
}


@dataclasses.dataclass
class _Storage:
    """The data of one or several tensors."""

    dtype: np.dtype
    count: int
    read: Callable[[], bytes]


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a file looks like a torch file."""
    with path.open('rb') as file:
        start = file.read(len(_LEGACY_START))
    if start == _LEGACY_START:
        return True
    if not start.startswith(_ZIP) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool(_pickles(archive.namelist()))


def state_dict(path: pathlib.Path) -> tuple[dict[str, Array], str]:
    """Reads the tensors of a model.

    Args:
        path: a torch file.

    Returns:
        The tensors by name, without the prefixes of torch's wrappers (`module.`, `_orig_mod.`); and
        the kind of file: 'state_dict', 'training' (a training checkpoint; only its model is
        returned) or 'torchscript'.

    Raises:
        ValueError: the file is incomplete, unsafe or has no tensors.
    """
    root = load(path)
    if isinstance(root, Instance):
        return dict(_attributes(root)), 'torchscript'
    if not isinstance(root, dict):
        raise ValueError(f'{path}: holds a {type(root).__name__}, expected a dict of tensors')
    kind, tensors = 'state_dict', root
    if isinstance(root.get('state_dict'), dict):
        kind, tensors = 'training', root['state_dict']
    tensors = {name: x for name, x in tensors.items() if isinstance(x, Array)}
    if not tensors:
        raise ValueError(
            f'{path}: holds no named tensors; found {", ".join(map(str, list(root)[:8])) or "none"}'
        )
    for prefix in ('module.', '_orig_mod.'):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors, kind


def _attributes(module: Instance, prefix: str = '', depth: int = 0) -> Iterator[tuple[str, Array]]:
    """Yields the tensors of a TorchScript module and its submodules by their dotted names."""
    if depth > _pickle.MOST_MARKS:
        raise ValueError('modules are nested too deeply')
    for name, value in module.attributes.items():
        if isinstance(value, Array):
            yield prefix + name, value
        elif isinstance(value, Instance):
            yield from _attributes(value, f'{prefix}{name}.', depth + 1)


def load(path: pathlib.Path) -> Any:
    """Reads a torch file.

    Returns:
        Its value: dicts, lists, numbers, strings and `Instance`s, with tensors as `Array`s whose
        data is read on demand.

    Raises:
        ValueError: the file is incomplete or unsafe.
    """
    with path.open('rb') as file:
        start = file.read(len(_LEGACY_START))
    read = _load_zip if start.startswith(_ZIP) else _load_legacy
    if read is _load_legacy and start != _LEGACY_START:
        raise ValueError(f'{path}: not a torch.save file ({_beginning(start)})')
    try:
        return read(path)
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: incomplete ({error}); copy or download it again') from error
    except ValueError as error:
        raise ValueError(
            f'{path}: refused, because {error}. Only tensors are read from torch files; '
            'torch.save(model.state_dict(), FILE) writes such a file'
        ) from error


def _beginning(start: bytes) -> str:
    return f'it begins with {start[:8]!r}' if start else 'it is empty'


def _pickles(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith('/data.pkl') and name.count('/') == 1]


def _load_zip(path: pathlib.Path) -> Any:
    archive = zipfile.ZipFile(path)  # stays open as long as arrays may be read
    records = {info.filename: info for info in archive.infolist()}
    pickles = _pickles(archive.namelist())
    if len(pickles) != 1 or len(records) != len(archive.infolist()):
        raise ValueError(f'it has {len(pickles)} records data.pkl, expected one')
    root = pickles[0].removesuffix('data.pkl')

    def stored(name: str) -> zipfile.ZipInfo:
        if name not in records:
            raise ValueError(f'it lacks the record {name}')
        if records[name].compress_type != zipfile.ZIP_STORED:
            raise ValueError(f'its record {name} is compressed, which torch never does')
        return records[name]

    big = f'{root}byteorder' in records and archive.read(stored(f'{root}byteorder')) == b'big'

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        info = stored(f'{root}data/{key}')
        if info.file_size != count * dtype.itemsize:
            raise ValueError(
                f'the storage {key} is {info.file_size} bytes, expected {count * dtype.itemsize}'
            )
        dtype = dtype.newbyteorder('>') if big else dtype
        return _Storage(dtype, count, functools.partial(_record, archive, info, path))

    content = archive.read(stored(pickles[0]))
    return _unpickle(io.BytesIO(content), len(content), storage, path.stat().st_size)


def _record(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: pathlib.Path) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f'{path}: corrupt ({error}); copy or download it again') from error


def _load_legacy(path: pathlib.Path) -> Any:
    """Reads the format before torch 1.6: several pickles, then the raw storages."""
    size = path.stat().st_size
    storages: dict[str, _Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, count, bytes))

    with path.open('rb') as file:
        magic, protocol, system, value, keys = (
            _unpickle(file, size, storage, size) for _ in range(5)
        )
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise ValueError(f'its protocol is {protocol!r}, expected {_LEGACY_PROTOCOL}')
        order = 'little' if system.get('little_endian', True) else 'big'
        if not isinstance(keys, list) or set(map(str, keys)) != set(storages):
            raise ValueError('its list of storages does not match its tensors')
        for key in keys:
            stored = storages[key]
            if order == 'big':
                stored.dtype = stored.dtype.newbyteorder('>')
            count = int.from_bytes(file.read(8), order, signed=True)
            start, length = file.tell(), stored.count * stored.dtype.itemsize
            if count != stored.count or start + length > size:
                raise ValueError(f'the storage {key} is incomplete')
            stored.read = functools.partial(_span, path, start, length)
            file.seek(start + length)
    return value


def _span(path: pathlib.Path, start: int, length: int) -> bytes:
    with path.open('rb') as file:
        file.seek(start)
        return file.read(length)


def _unpickle(file: BinaryIO, end: int, storage: Callable, limit: int) -> Any:
    """Reads a pickle with tensors of at most `limit` bytes each."""

    def persistent(identity: Any) -> _Storage:
        match identity:
            case 'storage', Name() as kind, str(key), str(), int(count), *view if count >= 0:
                if kind not in _STORAGES:
                    raise ValueError(f'its tensors are of {kind.replace(" ", ".")}')
                if view not in ([], [None]):
                    raise ValueError('a storage is a view of another, as in very old files')
                return storage(_STORAGES[kind], key, count)
        raise ValueError('a persistent id is no tensor storage')

    def call(name: Name, arguments: tuple) -> Any:
        match name, arguments:
            case 'collections OrderedDict', ():
                return {}
            case 'torch Size', (tuple(size),):
                return size
            case 'torch._utils _rebuild_tensor_v2', (_Storage() as numbers, *view):
                return _tensor(numbers, *view[:3], limit=limit)
            case 'torch._utils _rebuild_parameter', (Array() as tensor, *_):
                return tensor
            case _, (value, *_) if name in _TYPED:
                return value
        raise ValueError(f'it calls {name.replace(" ", ".")}')

    return _pickle.load(file, end, known=_known, call=call, persistent=persistent)


# Typed containers of TorchScript; the first argument is their content.
_TYPED = {
    f'torch.jit._pickle {name}'
    for name in (
        'build_intlist',
        'build_tensorlist',
        'build_doublelist',
        'build_boollist',
        'restore_type_tag',
    )
}
_NAMES = {
    'collections OrderedDict',
    'torch Size',
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_parameter',
    *_TYPED,
}


def _known(name: Name) -> bool:
    is_storage = name.startswith('torch ') and name.endswith('Storage')
    return name in _NAMES or is_storage or _pickle.is_script_class(name)


def _tensor(
    storage: _Storage, offset: Any = None, size: Any = None, stride: Any = None, *, limit: int
) -> Array:
    """Returns a view of a storage; offset and strides are in elements."""
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError('a tensor has no size')
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise ValueError(f'a tensor has the impossible view {numbers}')
    count = math.prod(size)
    if len(size) > _MOST_AXES or count * storage.dtype.itemsize > limit:
        raise ValueError(f'a tensor of shape {size} is larger than the file')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= storage.count:
        raise ValueError('a tensor reaches beyond the end of its storage')

    def read() -> np.ndarray:
        values = np.frombuffer(storage.read(), storage.dtype)
        steps = [step * storage.dtype.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)

    return Array(size, storage.dtype, read)
