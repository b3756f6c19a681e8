"""Tensors in the pickles of torch files: storages, and views of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clip_jax.convert import _pickle
from clip_jax.convert._pickle import Inert, Name
from clip_jax.runtime.foreign_arrays import Array

_MOST_AXES = 32
_LARGEST = 2**62  # of offsets, sizes and strides

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
        'ComplexFloat': '<c8',
        'ComplexDouble': '<c16',
    }.items()
}
_BYTES = 'torch.storage UntypedStorage'  # the dtype of its tensors is named by each of them
_DTYPES: dict[str, np.dtype] = {
    f'torch {name}': np.dtype(dtype)
    for name, dtype in {
        'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
        'float8_e5m2': ml_dtypes.float8_e5m2,
        'float8_e4m3fnuz': ml_dtypes.float8_e4m3fnuz,
        'float8_e5m2fnuz': ml_dtypes.float8_e5m2fnuz,
        'float8_e8m0fnu': ml_dtypes.float8_e8m0fnu,
        'uint16': '<u2',
        'uint32': '<u4',
        'uint64': '<u8',
    }.items()
}
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


@dataclasses.dataclass
class Storage:
    """The data of one or several tensors.

    Attributes:
        dtype: of the numbers.
        count: how many there are.
        read: returns their bytes.
    """

    dtype: np.dtype
    count: int
    read: Callable[[], bytes]


def unpickle(
    file: BinaryIO, end: int, storage: Callable[[np.dtype, str, int], Storage], limit: int
) -> Any:
    """Reads a pickle with tensors.

    Args:
        file: the file, at the start of the pickle.
        end: the position that the pickle must not exceed.
        storage: makes the storage of a dtype, a key and a count.
        limit: the most bytes of a tensor.

    Returns:
        What `_pickle.load` does, with tensors as `Array`s.

    Raises:
        ValueError: a value is none that torch files contain.
    """

    def persistent(identity: Any) -> Storage | Inert:
        match identity:
            case 'storage', Name() as kind, str(key), str(), int(count), *view if count >= 0:
                if view not in ([], [None]):
                    raise ValueError('a storage is a view of another, as in very old files')
                if kind == _BYTES:
                    return storage(np.dtype('u1'), key, count)
                if kind not in _STORAGES:
                    return Inert(kind)
                return storage(_STORAGES[kind], key, count)
        raise ValueError('a persistent id is no tensor storage')

    def call(name: Name, arguments: tuple) -> Any:
        match name, arguments:
            case 'collections OrderedDict' | 'collections defaultdict', _:
                return {}
            case 'torch Size', (tuple(size),):
                return size
            case 'torch._utils _rebuild_tensor_v2', (Inert() as unknown, *_):
                return unknown
            case 'torch._utils _rebuild_tensor_v2', (Storage() as numbers, *view):
                return _tensor(numbers, *view[:3], limit=limit)
            case 'torch._utils _rebuild_tensor_v3', (Storage() as numbers, *view, Name() as kind):
                return _tensor(_typed(numbers, kind), *view[:3], limit=limit)
            case _, (Array() | Inert() as tensor, *_) if name in _PARAMETERS:
                return tensor
            case _, (value, *_) if name in _TYPED:
                return value
        if name in _KNOWN or _pickle.is_script_class(name):
            raise ValueError(f'it calls {name.replace(" ", ".")} with other arguments than torch')
        return Inert(name)

    return _pickle.load(file, end, call=call, persistent=persistent)


_PARAMETERS = {
    'torch._utils _rebuild_parameter',
    'torch._utils _rebuild_parameter_with_state',
}
_KNOWN = {
    'torch Size',
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_tensor_v3',
    *_PARAMETERS,
    *_TYPED,
}


def _typed(storage: Storage, name: Name) -> Storage:
    """Returns a storage of bytes as one of the dtype that a tensor names."""
    if storage.dtype.itemsize != 1 or name not in _DTYPES:
        raise ValueError(f'its tensors are of {name.replace(" ", ".")}')
    dtype = _DTYPES[name]
    return Storage(dtype, storage.count // dtype.itemsize, lambda: storage.read())


def _tensor(
    storage: Storage, offset: Any = None, size: Any = None, stride: Any = None, *, limit: int
) -> Array:
    """Returns a view of a storage; offset and strides are in elements."""
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError('a tensor has no size')
    # What is compared and shown is bounded: a file of a few bytes may hold 2^40 numbers.
    if len(size) != len(stride) or len(size) > _MOST_AXES:
        raise ValueError(f'a tensor has {len(size)} sizes and {len(stride)} strides')
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n <= _LARGEST for n in numbers):
        raise ValueError('a tensor has an impossible view')
    if math.prod(size) * storage.dtype.itemsize > limit:
        raise ValueError(f'a tensor of shape {size} is larger than the file')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.count:
        raise ValueError('a tensor reaches beyond the end of its storage')

    def read() -> np.ndarray:
        values = np.frombuffer(storage.read(), storage.dtype)
        steps = [step * storage.dtype.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
        return view if view.size >= storage.count else view.copy()  # a part does not keep the rest

    return Array(size, storage.dtype, read)
