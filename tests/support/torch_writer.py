"""Writes torch's containers without torch: an assembler of pickles, and what lies around them."""

import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype('<f4'): 'FloatStorage',
    np.dtype('<f2'): 'HalfStorage',
    np.dtype('<f8'): 'DoubleStorage',
    np.dtype('<i8'): 'LongStorage',
    np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
}
MAGIC = 0x1950A86A20F9469CFC6C


class Raw(bytes):
    """Instructions that leave one value on the stack."""


def name(module: str, attribute: str) -> Raw:
    return Raw(b'c' + f'{module}\n{attribute}\n'.encode())


def value(x: Any) -> bytes:
    """The instructions that make a value."""
    if isinstance(x, Raw):
        return x
    if x is None or isinstance(x, bool):
        return {None: b'N', True: b'\x88', False: b'\x89'}[x]
    if isinstance(x, int):
        size = x.bit_length() // 8 + 1
        return b'\x8a' + bytes([size]) + x.to_bytes(size, 'little', signed=True)
    if isinstance(x, float):
        return b'G' + struct.pack('>d', x)
    if isinstance(x, str):
        return b'X' + struct.pack('<I', len(x.encode())) + x.encode()
    if isinstance(x, tuple):
        return b'(' + b''.join(map(value, x)) + b't'
    if isinstance(x, list):
        return b'](' + b''.join(map(value, x)) + b'e'
    pairs = b''.join(value(part) for pair in x.items() for part in pair)
    return b'}(' + pairs + b'u'


def pickled(x: Any) -> bytes:
    return b'\x80\x02' + value(x) + b'.'


def call(function: Raw, *arguments: Any) -> Raw:
    return Raw(function + value(arguments) + b'R')


def module(class_name: str, attributes: Mapping[str, Any]) -> Raw:
    """An object as TorchScript pickles it."""
    return Raw(name('__torch__.made.up', class_name) + b')\x81' + value(dict(attributes)) + b'b')


ORDERED_DICT = call(name('collections', 'OrderedDict'))


class Storages:
    """Hands out storages for arrays, and keeps their bytes by key."""

    def __init__(self, device: str = 'cpu', *, legacy: bool = False):
        self.bytes: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.device, self.legacy = device, legacy

    def storage(self, array: np.ndarray, **changes: Any) -> Raw:
        key = str(len(self.bytes))
        self.bytes[key], self.counts[key] = array.tobytes(), array.size
        fields = {
            'kind': 'storage',
            'type': name('torch', STORAGES[array.dtype]),
            'key': key,
            'device': self.device,
            'count': array.size,
            **({'view': None} if self.legacy else {}),
            **changes,
        }
        return Raw(value(tuple(fields.values())) + b'Q')

    def tensor(self, array: np.ndarray) -> Raw:
        steps = tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
        return self.view(array, 0, array.shape, steps[: array.ndim])

    def view(self, array: np.ndarray, offset: Any, size: Any, stride: Any, **changes: Any) -> Raw:
        rebuild = name('torch._utils', '_rebuild_tensor_v2')
        storage = self.storage(array, **changes)
        return call(rebuild, storage, offset, size, stride, False, ORDERED_DICT)


def write_zip(
    path: Path,
    root: Any,
    storages: Storages,
    *,
    script: bool = False,
    more: Iterable[tuple[str, bytes]] = (),
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('any/data.pkl', pickled(root))
        for key, content in storages.bytes.items():
            archive.writestr(f'any/data/{key}', content)
        if script:
            archive.writestr('any/constants.pkl', pickled(()))
            archive.writestr('any/code/__torch__.py', 'class Never(Module): pass')
        for record, content in more:
            archive.writestr(record, content)
    return path


def write_legacy(path: Path, root: Any, storages: Storages, **system: Any) -> Path:
    parts = [MAGIC, 1001, {'little_endian': True, **system}, root, list(storages.bytes)]
    body = b''.join(map(pickled, parts))
    for key, content in storages.bytes.items():
        body += struct.pack('<q', storages.counts[key]) + content
    path.write_bytes(body)
    return path


def state_dict(arrays: Mapping[str, np.ndarray], storages: Storages) -> dict[str, Raw]:
    return {n: storages.tensor(np.asarray(x)) for n, x in arrays.items()}


def script_of(arrays: Mapping[str, np.ndarray], storages: Storages) -> Raw:
    """The tree of modules whose state dict the arrays are."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, last = path.split('.')
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = storages.tensor(np.asarray(array))

    def build(node: Mapping[str, Any]) -> Raw:
        attributes = {'training': False, '_is_full_backward_hook': None}
        for key, x in node.items():
            attributes[key] = build(x) if isinstance(x, dict) else x
        return module('Anything', attributes)

    return build(tree)
