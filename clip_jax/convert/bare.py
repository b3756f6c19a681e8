"""Weights without a settings file: the architecture is named by the user."""

import functools
import pathlib
from typing import Any

from clip_jax import lookup
from clip_jax.convert import _cards, _files, _resblocks, _timm_siglip, _tokenizer_files
from clip_jax.data.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from clip_jax.models import presets
from clip_jax.runtime.messages import first_few

_HALF = {'mean': list(_cards.HALF), 'std': list(_cards.HALF), 'resize': 'squash'}
_IMAGENET = {'mean': list(IMAGENET_MEAN), 'std': list(IMAGENET_STD)}
_OF_CLIP = {'mean': list(CLIP_MEAN), 'std': list(CLIP_STD)}
# How open_clip prepares images, by a part of the name in lowercase; the others as OpenAI's.
_PREPROCESSING: dict[str, dict[str, Any]] = {
    'siglip': _HALF,
    'pe-core': {**_HALF, 'interpolation': 'bilinear'},
    'clipa': {**_IMAGENET, 'resize': 'squash', 'interpolation': 'bilinear'},
    'vit-h-14-378': {**_OF_CLIP, 'resize': 'squash'},
    'mobileclip2-l': _OF_CLIP,
    'mobileclip': {'mean': [0.0] * 3, 'std': [1.0] * 3, 'interpolation': 'bilinear'},
}


def sniff(path: pathlib.Path) -> bool:
    """Returns False: the content does not say which architecture it is."""
    del path
    return False


def read(path: pathlib.Path, name: str = '') -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a state dict with the names of OpenAI and open_clip.

    Args:
        path: a torch or safetensors file; or a folder of Orbax with OpenVision's names.
        name: the architecture, as open_clip ('ViT-L-14') or OpenVision names it; it also decides
            preprocessing and tokenizer.

    Returns:
        The model card, and the variables.

    Raises:
        ValueError: there is no such architecture, or the weights are not of it.
    """
    orbax = lookup.module('convert', 'orbax')
    if path.is_dir() and orbax.sniff(path):
        return orbax.read(path, name)
    if not path.is_file():
        raise ValueError(f'{path}: no file; expected one file of weights of {name}')
    fields = presets.architecture(name)
    theirs = _files.arrays(path)
    if not any(key.startswith('visual.') for key in theirs):
        shown = first_few(sorted(theirs), 3)
        raise ValueError(
            f'{path}: its weights are named {shown}; with the name of an architecture, expected '
            "those of OpenAI and open_clip, as 'visual.conv1.weight'"
        )
    siglip = 'siglip' in name.lower()
    if siglip:
        fields['image'] |= _timm_siglip.by_name(name.lower(), fields['image']['width'])
    text = 'text.' if any(key.startswith('text.') for key in theirs) else ''
    model, variables = _cards.complete(
        fields,
        functools.partial(lookup.module('convert', 'open_clip').rows, text=text),
        theirs,
        what=f'{path} as {name}',
        ignored=_resblocks.ignored,
    )
    preprocess = {'size': model['image']['image_size'], **preprocessing(name)}
    tokenizer = None if siglip else _tokenizer_files.openai(model['text'])
    return {'model': model, 'preprocess': preprocess, 'tokenizer': tokenizer}, variables


def preprocessing(name: str) -> dict[str, Any]:
    """Returns how open_clip prepares images for an architecture, beside the size."""
    for part, found in _PREPROCESSING.items():
        if part in name.lower():
            return found
    return _OF_CLIP
