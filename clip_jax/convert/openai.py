"""OpenAI's released files: a TorchScript archive or a state dict, without a config.

Sizes are inferred from shapes; head width, activation and epsilon are the same in all of them
(github.com/openai/CLIP, model.py).
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from clip_jax.convert import _cards, _files, _resblocks, _tokenizer_files, _torch_file
from clip_jax.data.preprocess import CLIP_MEAN, CLIP_STD
from clip_jax.runtime.foreign_arrays import Array

HEAD_WIDTH = 64
OTHERS = ('open_clip_config.json', 'config.json')  # next to one of these a file is not OpenAI's


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a torch file holds OpenAI's CLIP and has no config next to it."""
    if not path.is_file() or not _torch_file.sniff(path):
        return False
    if any((path.parent / name).exists() for name in OTHERS):
        return False
    names, kind = _state_dict(path)
    return kind != 'training' and 'visual.conv1.weight' in names and 'ln_final.weight' in names


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a file."""
    theirs, kind = _state_dict(path)
    if kind == 'state_dict' and not any(name in theirs for name in _resblocks.NUMBERS):
        logging.warning(
            "%s: a state dict without a config, read as OpenAI's (quick_gelu). If it is "
            "open_clip's, put its open_clip_config.json next to it.",
            path,
        )
    with _cards.understood(f"{path}: not one of OpenAI's CLIP models"):
        fields = architecture(theirs)
    model, variables = _cards.complete(
        fields, _resblocks.rows, theirs, what=str(path), ignored=_resblocks.ignored
    )
    card = {
        'model': model,
        'preprocess': {
            'size': model['image']['image_size'],
            'mean': list(CLIP_MEAN),
            'std': list(CLIP_STD),
        },
        'tokenizer': _tokenizer_files.openai(model['text']),
    }
    return card, variables


def _state_dict(path: pathlib.Path) -> tuple[dict[str, Array], str]:
    arrays, kind = _torch_file.state_dict(path)
    return _files.unprefixed(arrays), kind


def architecture(theirs: Mapping[str, Array]) -> dict[str, Any]:
    """Returns the card's `model`, inferred from shapes."""
    shape = {name: array.shape for name, array in theirs.items()}
    text_width = shape['ln_final.weight'][0]
    return {
        'image': vit(shape) if 'visual.proj' in shape else resnet(shape),
        'text': {
            'name': 'transformer',
            'vocab_size': shape['token_embedding.weight'][0],
            'context_length': shape['positional_embedding'][0],
            'width': text_width,
            'depth': _depth(shape, 'transformer.resblocks.'),
            'heads': text_width // HEAD_WIDTH,
            'mlp_dim': shape['transformer.resblocks.0.mlp.c_fc.weight'][0],
            'pool': 'argmax',
            'activation': 'quick_gelu',
        },
        'embed_dim': shape['text_projection'][1],
        'image_proj': 'linear' if 'visual.proj' in shape else 'biased',
    }


def vit(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields of the vision transformer."""
    width, _, patch_size, _ = shape['visual.conv1.weight']
    grid = math.isqrt(shape['visual.positional_embedding'][0] - 1)
    return {
        'name': 'vit',
        'image_size': grid * patch_size,
        'patch_size': patch_size,
        'width': width,
        'depth': _depth(shape, 'visual.transformer.resblocks.'),
        'heads': width // HEAD_WIDTH,
        'mlp_dim': shape['visual.transformer.resblocks.0.mlp.c_fc.weight'][0],
        'activation': 'quick_gelu',
    }


def resnet(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields of ModifiedResNet, which downsamples by 32."""
    width = shape['visual.layer1.0.conv1.weight'][0]
    grid = math.isqrt(shape['visual.attnpool.positional_embedding'][0] - 1)
    return {
        'name': 'resnet',
        'image_size': 32 * grid,
        'width': width,
        'depths': [_depth(shape, f'visual.layer{i}.') for i in (1, 2, 3, 4)],
        'heads': width * 32 // HEAD_WIDTH,
    }


def _depth(shape: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Returns the number of blocks whose names start with `prefix` and a number."""
    return len({n.removeprefix(prefix).split('.')[0] for n in shape if n.startswith(prefix)})
