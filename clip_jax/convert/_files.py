"""Weight files of any format as {name: Array}, read lazily."""

import functools
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from clip_jax.convert import _torch_file
from clip_jax.runtime import foreign_arrays, foreign_json
from clip_jax.runtime.foreign_arrays import Array
from clip_jax.runtime.messages import brief, shown

_INDEX = '.index.json'
# Of torch's wrappers and of training scripts, one inside another.
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'online_model.', 'state_dict.', 'model_state_dict.')
# Of wrappers of single layers: torch.compile, FSDP, activation checkpoints.
_INSIDE = re.compile(r'\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
# Beside the weights: moving averages, which are another model, what only training needs, counts.
_AVERAGES = ('ema.', 'ema_model.', 'model_ema.', 'state_dict_ema.', 'ema_state_dict.')
_BESIDE = ('optimizer.', 'optimizer_states.', 'scaler.', 'lr_scheduler.', 'lr_schedulers.')
_COUNTS = {'epoch', 'step', 'global_step', 'global_steps', 'iteration', 'n_averaged'}
_COUNTS |= {'num_updates', 'initted', 'decay', 'loss'}
_POINTER = b'version https://git-lfs'
_TYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
}


def arrays(path: pathlib.Path) -> dict[str, Array]:
    """Opens a weight file: safetensors, an index of several files, or a torch file.

    Returns:
        The arrays by name, without the prefixes of wrappers; their data is read on demand.

    Raises:
        ValueError: the file is incomplete, unsafe or of another format.
    """
    if path.name.endswith(_INDEX):
        return unprefixed(_sharded(path))
    return unprefixed(_one_file(path))


def unprefixed(found: dict[str, Array]) -> dict[str, Array]:
    """Returns the weights alone, without the prefixes of wrappers such as `module.`.

    Counts of training and optimizers are left out, and moving averages unless nothing else is
    there.
    """
    inner = {_INSIDE.sub('', name): x for name, x in found.items()}
    found = inner if len(inner) == len(found) else found
    while found:
        alone = {k: x for k, x in found.items() if k not in _COUNTS and not k.startswith(_BESIDE)}
        found = {k: x for k, x in alone.items() if not k.startswith(_AVERAGES)} or alone
        names, prefixes = list(found), (*_PREFIXES, *_AVERAGES)
        prefix = next((p for p in prefixes if all(n.startswith(p) for n in names)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): x for name, x in found.items()}
    return found


def _one_file(path: pathlib.Path) -> dict[str, Array]:
    check_pointer(path)
    # In safetensors: the length of the header, and its first character.
    if path.suffix == '.safetensors' or _start(path, 9)[8:] == b'{':
        return _safetensors(path)
    return _torch_file.state_dict(path)[0]


def _start(path: pathlib.Path, size: int) -> bytes:
    with path.open('rb') as file:
        return file.read(size)


def check_pointer(path: pathlib.Path) -> None:
    """Raises a ValueError if a file is only Git LFS's pointer to the file."""
    if _start(path, len(_POINTER)) == _POINTER:
        raise ValueError(
            f'{path}: only a pointer of Git LFS, not the file itself; run git lfs pull in its '
            'folder, or download the file'
        )


def _safetensors(path: pathlib.Path) -> dict[str, Array]:
    found = {}
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                kind = part.get_dtype()
                dtype = np.dtype(_TYPES[kind]) if kind in _TYPES else str(kind)
                read = functools.partial(_safetensor, path, name)
                found[name] = Array(tuple(part.get_shape()), dtype, read)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f'{path}: damaged, or no safetensors file ({brief(error)}); {foreign_arrays.ADVICE}'
        ) from error
    return found


def _safetensor(path: pathlib.Path, name: str) -> np.ndarray:
    # Opened for each tensor: an open file keeps what it read in memory, a second copy of the model.
    with safetensors.safe_open(path, 'numpy') as file:
        return file.get_tensor(name)


def _sharded(path: pathlib.Path) -> dict[str, Array]:
    """Reads `*.index.json`: {'weight_map': {name: file in the same folder}}."""
    names = json_of(path, {'weight_map': {foreign_json.ANY: str}}).get('weight_map')
    if names is None:
        raise ValueError(f"{path}: no index of weights: 'weight_map' should map names to files")
    found: dict[str, Array] = {}
    for file in sorted(set(names.values())):
        # os.path: a name may be longer than any file can have.
        if pathlib.PurePath(file).name != file or not os.path.isfile(path.parent / file):
            raise ValueError(
                f'{path}: names the file {shown(file)}, which is not in the same folder'
            )
        if file.endswith(_INDEX):
            raise ValueError(f'{path}: names {file!r}, an index, among the files of weights')
        found |= _one_file(path.parent / file)
    if set(found) != set(names):
        wrong = sorted(set(found) ^ set(names))[:8]
        raise ValueError(f'{path}: index and files do not name the same arrays: {wrong}')
    return found


def names_of(path: pathlib.Path) -> list[str]:
    """Returns the names of a file's arrays, [] for a JSON file that is no index of weights."""
    if path.suffix == '.json' and not path.name.endswith(_INDEX):
        return []
    return list(arrays(path))


def json_of(path: pathlib.Path, schema: Any = dict) -> dict[str, Any]:
    """Reads a JSON file with an object; ValueError if it holds anything else than the schema."""
    check_pointer(path)
    return foreign_json.read(path, schema)


def locate(path: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """Returns the weight file of a path: the path itself, or the first of `names` in the folder."""
    if path.is_file():
        return path
    names = list(names)
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ValueError(f'{path}: no weight file; expected one of {", ".join(names)}')


def folder_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a checkpoint, where its config and tokenizer files are."""
    return path if path.is_dir() else path.parent


def save(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file with the metadata that PyTorch programs expect."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={'format': 'pt'})
    except safetensors.SafetensorError as error:
        raise ValueError(
            f'{path}: cannot be written ({error}); free some space, or name another folder'
        ) from error
    path.chmod(mode)  # that of other new files; the library gives it to the user alone
