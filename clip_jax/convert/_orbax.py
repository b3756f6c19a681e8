"""Orbax checkpoints of other programs as {name: Array}, read lazily and into host memory.

An item is a folder with `manifest.ocdbt` (all arrays in one key-value store), or with a folder of
chunks for each array, as older programs write it and big_vision's training (`checkpoint.bv-000100`,
where `params~img~cls` is a path in the tree). TensorStore reads the arrays alone: neither the tree
that `_METADATA` describes nor a class that it names is made.
"""

import contextlib
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from clip_jax.convert import _files
from clip_jax.places import choice, naming
from clip_jax.runtime import foreign_arrays, messages
from clip_jax.runtime.foreign_arrays import Array

OCDBT, METADATA = choice.ORBAX
_OLDEST = 'checkpoint'  # beside folders of chunks, before there was METADATA
_DRIVERS = {'.zarray': 'zarr', 'zarr.json': 'zarr3'}  # by the file of an array's shape
_MOST_DEPTH, _MOST_ENTRIES = 4, 1000  # of folders that are searched for items
# What arrays may expand to: this many times the size of the files, and as many bytes.
_MOST_TIMES, _MOST_BYTES = 4, 100 << 20


def items(path: pathlib.Path, depth: int = _MOST_DEPTH) -> list[pathlib.Path]:
    """Returns the items of Orbax in a folder, those of the newest step where steps are numbered."""
    if _is_item(path):
        return [path]
    # A checkpoint of our own has checksums, and is read as such.
    if not depth or not path.is_dir() or (path / 'manifest.json').exists():
        return []
    try:
        inside = sorted(x for x in itertools.islice(path.iterdir(), _MOST_ENTRIES) if x.is_dir())
    except PermissionError:
        return []
    inside = [x for x in inside if x.name[:1] != '.' and x.name != naming.CHECKPOINTS]
    found = [(folder, some) for folder in inside if (some := items(folder, depth - 1))]
    steps = [(int(folder.name), some) for folder, some in found if folder.name.isdecimal()]
    return max(steps)[1] if steps else [item for _, some in found for item in some]


def _is_item(path: pathlib.Path) -> bool:
    if any((path / name).is_file() for name in (OCDBT, METADATA)):
        return True
    first = next(path.glob(f'{choice.BIG_VISION}*'), None)
    return bool((first or (path / _OLDEST).is_file()) and _chunked(path))


def _path(name: str) -> str:
    """The path in the tree of an array's name."""
    return name.replace('~' if '~' in name else '.', '/')


def _chunked(path: pathlib.Path) -> dict[str, str]:
    """The arrays that are folders of chunks, and their drivers."""
    return {
        folder.name: driver
        for folder in path.iterdir()
        for file, driver in _DRIVERS.items()
        if (folder / file).is_file()
    }


def names(item: pathlib.Path) -> list[str]:
    """Returns the paths of an item's arrays; ValueError if it is damaged."""
    return [_path(name) for name in _stored(item, ts.Context())[0]]


def arrays(item: pathlib.Path, start: str = '') -> dict[str, Array]:
    """Opens an item.

    Args:
        item: its folder.
        start: only arrays with names that start so are opened.

    Returns:
        The arrays by their path in the tree, joined with '/'; their data is read on demand.

    Raises:
        ValueError: the item is damaged or incomplete, or expands to much more than its size.
    """
    context = ts.Context()
    stored, kvstore = _stored(item, context)
    filled = _is_filled(item)
    opening = {}
    for name, driver in stored.items():
        if _path(name).startswith(start):
            spec = {
                'driver': driver,
                'kvstore': {**kvstore, 'path': f'{kvstore["path"]}{name}/'},
                'fill_missing_data_reads': not filled,  # otherwise chunks that are lost are zeros
            }
            opening[name] = ts.open(spec, open=True, read=True, context=context)
    found, total = {}, 0
    for name, future in opening.items():
        with _whole(f'{item}: {name}'):
            store = future.result()
            dtype = _dtype(store.dtype)
            itemsize = 1 if isinstance(dtype, str) else dtype.itemsize
            chunk = [size or 1 for size in store.chunk_layout.write_chunk.shape or ()]
            total += itemsize * max(math.prod(store.shape), math.prod(chunk))
        read = functools.partial(_read, store, f'{item}: {name}')
        found[_path(name)] = Array(tuple(store.shape), dtype, read)
    size = sum(file.stat().st_size for file in item.rglob('*') if file.is_file())
    if total > _MOST_TIMES * size + _MOST_BYTES:
        raise ValueError(
            f'{item}: damaged, or compressed as no weights are: {size:,} bytes expand to '
            f'{total:,}; {foreign_arrays.ADVICE}'
        )
    return found


def _stored(item: pathlib.Path, context: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """The drivers of the arrays by their names, and the store that has them."""
    if not (item / OCDBT).is_file():
        found, kvstore = _chunked(item), {'driver': 'file', 'path': f'{item}/'}
    else:
        _files.check_pointer(item / OCDBT)
        base = {'driver': 'file', 'path': f'{item}/'}
        kvstore = {'driver': 'ocdbt', 'base': base, 'path': ''}
        with _whole(item):
            keys = ts.KvStore.open(kvstore, context=context).result().list().result()
        parts = [key.decode(errors='replace').rpartition('/') for key in keys]
        found = {name: _DRIVERS[file] for name, _, file in parts if file in _DRIVERS}
    if not found:
        raise ValueError(
            f'{item}: holds no arrays, so that it is incomplete; copy or download the whole folder '
            'again'
        )
    return found, kvstore


def _is_filled(item: pathlib.Path) -> bool:
    """Whether zeros were written too, so that no chunk may be missing."""
    path = item / METADATA
    if not path.is_file():
        return False
    key = 'store_array_data_equal_to_fill_value'
    return bool(_files.json_of(path, {key: (bool, None)}).get(key))


def _dtype(dtype: Any) -> np.dtype | str:
    try:
        return np.dtype(dtype.numpy_dtype)
    except TypeError:
        return dtype.name


def _read(store: Any, what: str) -> np.ndarray:
    with _whole(what):
        return np.asarray(store.read().result())


@contextlib.contextmanager
def _whole(what: object) -> Iterator[None]:
    """Turns what TensorStore raises for damaged or lost files into one ValueError."""
    try:
        yield
    except (ValueError, OSError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        if str(error).startswith(f'{what}'):
            raise
        # Places in TensorStore's own source follow.
        why = messages.one_line(error).partition(' [')[0][:200]
        raise ValueError(
            f'{what}: damaged or incomplete ({why}); copy or download the whole folder again'
        ) from error
