"""Reads torch.save files (both containers) and TorchScript archives safely and without torch."""

import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.convert import _pickle, _torch_tensors
from clip_jax.convert._pickle import Inert, Instance, Name
from clip_jax.convert._torch_tensors import Storage
from clip_jax.runtime import foreign_arrays
from clip_jax.runtime.foreign_arrays import Array
from clip_jax.runtime.messages import first_few

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_START = b'\x8a\x0a' + _LEGACY_MAGIC.to_bytes(10, 'little')  # its first pickle
# Keys of training checkpoints; moving averages count if there is nothing else.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'module')
_AVERAGES = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema_model', 'ema')
_MOST_WRAPPERS = 3
_MOST_MODULES = 100_000
_LONGEST_NAME = 1_000
# Modules whose objects may lie between the tensors: numbers, settings, containers.
_HARMLESS = ('numpy', 'argparse', 'collections', 'datetime', 'pathlib', '_codecs')
_REMEDY = 'Only tensors are read; torch.save(model.state_dict(), FILE) writes such a file'


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a file looks like a torch file; ValueError if it is a damaged archive."""
    start = _start(path)
    if _is_legacy(start):
        return True
    if not start.startswith(foreign_arrays.ZIP):
        return False
    with foreign_arrays.open_zip(path) as archive:
        return bool(_pickles(archive.namelist()))


def state_dict(path: pathlib.Path) -> tuple[dict[str, Array], str]:
    """Reads the tensors of a model.

    Args:
        path: a torch file.

    Returns:
        The tensors by name; and the kind of file: 'state_dict', 'training' (a training checkpoint,
        of which only the model is returned) or 'torchscript'.

    Raises:
        ValueError: the file is incomplete, unsafe or has no tensors.
    """
    root = load(path)
    try:
        tensors, kind = _selected(root)
    except ValueError as error:
        raise ValueError(f'{path}: refused, because {error}. {_REMEDY}') from error
    if not tensors:
        found = first_few([_shown(key) for key in root] if isinstance(root, dict) else [], 8)
        raise ValueError(f'{path}: holds no named tensors; found {found or "none"}')
    size, total = path.stat().st_size, sum(_bytes(x) for x in tensors.values())
    if total > 2 * size + 2**20:
        raise ValueError(
            f'{path}: refused, because its tensors share storages: they are {total:,} bytes of a '
            f'file of {size:,}. {_REMEDY}'
        )
    return tensors, kind


def _selected(root: Any) -> tuple[dict[str, Array], str]:
    """Returns the tensors of the model in the value of a file, and the kind of the file."""
    if isinstance(root, Instance):
        return dict(_attributes(root)), 'torchscript'
    kind = 'state_dict'
    for _ in range(_MOST_WRAPPERS):
        inner = _inner(root) if isinstance(root, dict) else None
        if inner is None:
            break
        root, kind = inner, 'training'
    if not isinstance(root, dict):
        what = f'a {type(root).__name__}'
        if isinstance(root, Inert):
            what = f'an object of {_dotted(root.name)}'
        raise ValueError(f'it holds {what}, expected a dict of tensors')
    for name, value in root.items():
        _check_harmless(name, value)
    return {name: x for name, x in root.items() if isinstance(x, Array)}, kind


def _inner(root: dict) -> dict | None:
    """Returns the dict of the model in that of a training checkpoint; None: it is none."""
    alone = any(isinstance(x, Array) for x in root.values())
    found = [root.get(x) for x in (_WRAPPERS if alone else (*_WRAPPERS, *_AVERAGES))]
    return next((x for x in found if isinstance(x, dict)), None)


def _check_harmless(name: Any, value: Any) -> None:
    """Raises a ValueError for what does not lie beside weights."""
    if isinstance(value, Array) and not isinstance(name, str):
        raise ValueError(f'a tensor has the key {_shown(name)}, expected a name')
    if isinstance(value, Inert | Name):
        named = _dotted(value.name if isinstance(value, Inert) else value)
        module, _, last = named.rpartition('.')
        of_torch = module == 'torch' and not last.endswith('Storage')  # a dtype, a device
        if not of_torch and module.split('.')[0] not in _HARMLESS:
            raise ValueError(f'it names {named}, which files of tensors do not contain')


def _dotted(name: str) -> str:
    return name.replace(' ', '.')


def _shown(key: Any) -> str:
    return key[:100] if isinstance(key, str) else repr(key) if type(key) is int else '?'


def _bytes(array: Array) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _attributes(module: Instance) -> Iterator[tuple[str, Array]]:
    """Yields the tensors of a TorchScript module and its submodules by their dotted names."""
    waiting, seen = [('', module, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += 1 + len(module.attributes)
        # Modules may share submodules, so that a small file has any number of paths.
        if depth > _pickle.MOST_MARKS or seen > _MOST_MODULES or len(prefix) > _LONGEST_NAME:
            raise ValueError('modules are nested too deeply')
        inner = []
        for name, value in module.attributes.items():
            if isinstance(value, Array):
                yield prefix + name, value
            elif isinstance(value, Instance):
                inner.append((f'{prefix}{name}.', value, depth + 1))
        waiting += reversed(inner)


def load(path: pathlib.Path) -> Any:
    """Reads a torch file.

    Returns:
        Its value, as `_pickle.load` does, with tensors as `Array`s whose data is read on demand.

    Raises:
        ValueError: the file is incomplete or unsafe.
    """
    start = _start(path)
    legacy = _is_legacy(start)
    if not start.startswith(foreign_arrays.ZIP) and not legacy:
        raise ValueError(f'{path}: not a torch.save file ({_beginning(start)})')
    try:
        return _load_legacy(path) if legacy else _load_zip(path)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: damaged ({error}); {foreign_arrays.ADVICE}') from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f'{path}: refused, because {error}. {_REMEDY}') from error


def _start(path: pathlib.Path) -> bytes:
    with path.open('rb') as file:
        return file.read(32)


def _is_legacy(start: bytes) -> bool:
    # Protocols from 4 on have the length of a frame before the magic number.
    return start[:1] == b'\x80' and _LEGACY_START in start


def _beginning(start: bytes) -> str:
    return f'it begins with {start[:8]!r}' if start else 'it is empty'


def _pickles(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith('/data.pkl') and name.count('/') == 1]


def _load_zip(path: pathlib.Path) -> Any:
    archive = foreign_arrays.open_zip(path)  # stays open as long as arrays may be read
    records = {info.filename: info for info in archive.infolist()}
    pickles = _pickles(archive.namelist())
    if len(pickles) != 1:
        raise ValueError(f'it has {len(pickles)} records data.pkl, expected one')
    root = pickles[0].removesuffix('data.pkl')

    @functools.lru_cache(1)  # the storage of several tensors is read once
    def content(name: str) -> bytes:
        return foreign_arrays.read_bytes(archive, stored(name))

    def stored(name: str) -> zipfile.ZipInfo:
        if name not in records:
            raise ValueError(f'it lacks the record {name[:100]}')
        if records[name].compress_type != zipfile.ZIP_STORED:
            raise ValueError(f'its record {name} is compressed, which torch never does')
        return records[name]

    big = f'{root}byteorder' in records and content(f'{root}byteorder') == b'big'

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        name = f'{root}data/{key}'
        found, expected = stored(name).file_size, count * dtype.itemsize
        if found != expected:
            raise ValueError(f'the storage {key} is {found} bytes, expected {expected}')
        dtype = dtype.newbyteorder('>') if big else dtype
        return Storage(dtype, count, functools.partial(content, name))

    data = content(pickles[0])
    return _torch_tensors.unpickle(io.BytesIO(data), len(data), storage, path.stat().st_size)


def _load_legacy(path: pathlib.Path) -> Any:
    """Reads the format before torch 1.6: several pickles, then the raw storages."""
    size = path.stat().st_size
    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, count, bytes))

    with path.open('rb') as file:
        magic, protocol, system, value, keys = (
            _torch_tensors.unpickle(file, size, storage, size) for _ in range(5)
        )
        # What does not fit is not shown: shared containers print as any number of values.
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise ValueError(f'its protocol is another one than {_LEGACY_PROTOCOL}')
        order = 'little' if system.get('little_endian', True) else 'big'
        texts = isinstance(keys, list) and all(type(key) is str for key in keys)
        if not texts or set(keys) != set(storages):
            raise ValueError(
                'its list of storages does not match its tensors, or these are of another dtype '
                'than weights'
            )
        span = functools.lru_cache(1)(functools.partial(_span, path))
        for key in keys:
            stored = storages[key]
            if order == 'big':
                stored.dtype = stored.dtype.newbyteorder('>')
            count = int.from_bytes(file.read(8), order, signed=True)
            start, length = file.tell(), stored.count * stored.dtype.itemsize
            if count != stored.count or start + length > size:
                raise ValueError(f'the storage {key[:100]} is incomplete')
            stored.read = functools.partial(span, start, length)
            file.seek(start + length)
    return value


def _span(path: pathlib.Path, start: int, length: int) -> bytes:
    with path.open('rb') as file:
        file.seek(start)
        content = file.read(length)
    if len(content) != length:  # it was cut since it was opened
        raise ValueError(f'{path}: damaged (it ends early); {foreign_arrays.ADVICE}')
    return content
