"""Which files of a place elsewhere a checkpoint needs."""

import pathlib
import posixpath
import re
from collections.abc import Mapping, Sequence

from clip_jax import lookup
from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import first_few

# What a checkpoint may need beside its weights: configs and tokenizers.
SMALL = ('.json', '.txt', '.model')
_INDEX = '.index.json'
# A checkpoint of a run: what it needs but its optimizer's state. Not at the root, where the hub
# has files of its own, which the checksums of a checkpoint do not know.
OURS = re.compile(r'checkpoints/(\d+)/manifest\.json')
_TRAINING = 'training/'
ORBAX = ('manifest.ocdbt', '_METADATA')  # one of them is in a folder of Orbax
BIG_VISION = 'params~'  # before the names of arrays in a checkpoint of big_vision's training


def settings(path: str, names: Sequence[str]) -> list[str]:
    """Returns the small files that are needed first.

    Args:
        path: a file or folder of the place, '' for its root.
        names: all files of the place.
    """
    folders = [posixpath.dirname(path) if path in names else path]
    if path and _orbax({x.removeprefix(f'{path}/'): x for x in names if x.startswith(f'{path}/')}):
        # A config of open_clip may lie above.
        while folders[-1]:
            folders.append(posixpath.dirname(folders[-1]))
    return [x for x in names if posixpath.dirname(x) in folders and x.endswith(SMALL)]


def weights(address: str, root: pathlib.Path, path: str, names: Sequence[str]) -> list[str]:
    """Returns the files of weights that a path means.

    Args:
        address: for messages.
        root: a local copy, which has the settings already.
        path: a file or folder of the place, '' for its root.
        names: all files of the place.

    Raises:
        ValueError: there is no such path, or no weights of a layout that file names tell.
    """
    if path in names:
        return _with_shards(address, path, root, names)
    inside = {x.removeprefix(f'{path}/'): x for x in names if x.startswith(f'{path}/') or not path}
    if not inside:
        shown = first_few([name for name in names if not name.startswith('.')], 8)
        raise ValueError(f'{address}: there is no {path} there; there is {shown}')
    if steps := {int(m[1]) for m in map(OURS.fullmatch, inside) if m}:
        folder = f'checkpoints/{max(steps)}/'
        return [
            name
            for short, name in inside.items()
            if short.startswith(folder) and not short.startswith(f'{folder}{_TRAINING}')
        ]
    for name in lookup.names('convert'):
        layout = lookup.module('convert', name)
        config = getattr(layout, 'CONFIG', '')
        if config in inside and layout.describes(root / inside[config]):
            for weights in layout.WEIGHTS:
                if weights in inside:
                    return _with_shards(address, inside[weights], root, names)
    if files := _orbax(inside):
        return files
    found = [x for x in names if is_weights(x)]
    hint = f'; name one of its files: {first_few(found)}' if found else ''
    raise ValueError(
        f'{address}: no checkpoint of a layout that is found by its names, as '
        f'open_clip_config.json or config.json with model.safetensors{hint}'
    )


def is_weights(name: str) -> bool:
    """Returns whether a file is one of weights by its name."""
    return name.endswith(('.safetensors', '.bin', '.pt', '.npz'))


def _orbax(inside: Mapping[str, str]) -> list[str]:
    """All files of the folders of Orbax, of the newest step where steps are numbered."""
    folders = {posixpath.dirname(x) for x in inside if posixpath.basename(x) in ORBAX}
    folders |= {
        posixpath.dirname(array)
        for array in map(posixpath.dirname, inside)
        if posixpath.basename(array).startswith(BIG_VISION)
    }
    if 'manifest.json' in inside:  # a checkpoint of ours
        return []
    newest = max((_step(folder) for folder in folders), default=-1)
    starts = tuple(f'{x}/' if x else '' for x in folders if _step(x) == newest)
    return [name for short, name in inside.items() if short.startswith(starts)]


def _step(folder: str) -> int:
    """The number of a step in a path, -1 if there is none."""
    return next((int(part) for part in folder.split('/') if part.isdecimal()), -1)


def _with_shards(address: str, file: str, root: pathlib.Path, names: Sequence[str]) -> list[str]:
    """A file of weights; for an index also all that it names."""
    if not file.endswith(_INDEX):
        return [file]
    schema = {'weight_map': {foreign_json.ANY: str}}
    index = foreign_json.read(root / file, schema).get('weight_map', {})
    found = [posixpath.join(posixpath.dirname(file), x) for x in sorted({*index.values()})]
    if missing := [name for name in found if name not in names]:
        raise ValueError(f'{address}: {file} names {missing[0]}, which is not in the repository')
    return [file, *found]
