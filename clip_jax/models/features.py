"""Features of images and texts from any depth of a model: pure functions of JAX arrays.

They work inside jit, grad, jvp, vmap, shard_map and jax.export, and compute no more than the
features need once they are compiled.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup
from clip_jax.models import capture
from clip_jax.models.clip import CLIP, l2_normalize

_CAPTURED = 'intermediates'  # Flax's collection of what `capture_intermediates` captures
_BLOCK = re.compile(r'block_\d+')
_OF_BLOCK = re.compile(r'(block|attention):(-?\d+)')
OF_BLOCK = ('block:N', 'attention:N')
IMAGE = ('embedding', 'pre_projection', 'patches', *OF_BLOCK)
TEXT = ('embedding', 'pre_projection', 'tokens', *OF_BLOCK)


def image_features(
    model: CLIP, variables: Mapping[str, Any], images: jax.Array, features: str = 'embedding'
) -> jax.Array:
    """Computes features of images.

    Args:
        model: the model, such as `clip.model`.
        variables: its variables, such as `clip.variables`.
        images: float [B, H, W, 3], normalized by mean and std (`Clip.normalize`).
        features: 'embedding': L2-normalized; 'pre_projection': the output of the image encoder;
            'patches': the features of patches before pooling, after the last layer norm if that
            comes before the pooling; 'block:N': the output of block N, class token first;
            'attention:N': the attention weights of block N. Blocks count from 0, or from the end:
            block:-2 is the last but one.

    Returns:
        float32: [B, embed_dim], [B, width], [B, patches, width], [B, tokens, width] (of a ResNet or
        ConvNeXt [B, rows * columns, width]), or [B, heads, tokens, tokens] (rows are queries).

    Raises:
        ValueError: the encoder has no such features.
    """
    check(features, 'image')
    if features == 'embedding':
        return l2_normalize(cast(jax.Array, model.apply(variables, images, method='encode_image')))
    return _of_encoder(model.image, _tower(variables, 'image'), images, features, 'patches')


def text_features(
    model: CLIP, variables: Mapping[str, Any], tokens: jax.Array, features: str = 'embedding'
) -> jax.Array:
    """Computes features of texts.

    Args:
        model: the model, such as `clip.model`.
        variables: its variables, such as `clip.variables`.
        tokens: token ids, int32 [B, L].
        features: 'embedding': L2-normalized; 'pre_projection': the output of the text encoder;
            'tokens': the features of all tokens after the last layer norm; 'block:N': the output of
            block N; 'attention:N': the attention weights of block N. Blocks count from 0, or from
            the end: text-to-image models are often conditioned on block:-2.

    Returns:
        float32: [B, embed_dim], [B, width], [B, L, width], [B, L, width], or [B, heads, L, L] (rows
        are queries); a class token of the encoder is one more of the last two kinds.

    Raises:
        ValueError: the encoder has no such features.
    """
    check(features, 'text')
    if features == 'embedding':
        return l2_normalize(cast(jax.Array, model.apply(variables, tokens, method='encode_text')))
    return _of_encoder(model.text, _tower(variables, 'text'), tokens, features, 'tokens')


def check(features: str, tower: str, *, what: str = 'features') -> str:
    """Returns the name of features that a tower, 'image' or 'text', may have; else ValueError."""
    if not _OF_BLOCK.fullmatch(features):
        choices = IMAGE if tower == 'image' else TEXT
        lookup.check(features, choices, what=what)
        if features in OF_BLOCK:
            raise ValueError(f'{what}: {features} needs a number for N, such as {features[:-1]}-2')
    return features


def _tower(variables: Mapping[str, Any], tower: str) -> dict[str, Any]:
    return {kind: tree[tower] for kind, tree in variables.items() if tower in tree}


def _of_encoder(
    encoder: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    features: str,
    every: str,
) -> jax.Array:
    """Features of an encoder; `every`: what its features before pooling are called."""
    if features == 'pre_projection':
        return cast(jax.Array, encoder.apply(variables, inputs)).astype(jnp.float32)
    # A scan over blocks has no output of a block; parameters are the same without it.
    encoder = encoder.clone(scan=False) if hasattr(encoder, 'scan') else encoder
    kinds = _OF_BLOCK.fullmatch(features)
    if not kinds:
        found = _captured(encoder, variables, inputs, capture.FEATURES).get(every)
        if found is None:
            raise ValueError(
                f'features: the encoder {type(encoder).__module__} has no {every!r}; it stores '
                f'them with clip_jax.models.capture.keep(self, {every!r}, x)'
            )
    else:
        kind, number = kinds[1], int(kinds[2])
        path = _block(variables['params'], number, features)
        if kind == 'block':
            found = _captured(
                encoder, variables, inputs, _CAPTURED, lambda module, _: module.path == path
            )
        else:
            found = _captured(encoder, variables, inputs, capture.ATTENTION)
        found = _inside(found, path, kind, features)
    (value,) = found
    if value.ndim == 4 and not features.startswith('attention'):
        value = value.reshape(value.shape[0], -1, value.shape[-1])
    return value.astype(jnp.float32)


def _captured(
    encoder: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    collection: str,
    which: bool | Callable[[nn.Module, str], bool] = False,
) -> dict[str, Any]:
    """A collection after the encoder was applied; {} if there is none."""
    state: Any
    _, state = encoder.apply(variables, inputs, mutable=[collection], capture_intermediates=which)
    return cast(dict, state).get(collection, {})


def _block(params: Mapping[str, Any], number: int, features: str) -> tuple[str, ...]:
    """The path of a block by its number."""
    paths = [*_blocks(params)]
    if not -len(paths) <= number < len(paths):
        what = f'{len(paths)} blocks, 0 to {len(paths) - 1}' if paths else 'no blocks'
        raise ValueError(f'features {features!r}: the encoder has {what}')
    return paths[number]


def _blocks(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of blocks, whose names have a number, in the order in which they are applied."""
    for name in sorted(tree, key=lambda name: [len(name), name]):
        if _BLOCK.fullmatch(name):
            yield (*path, name)
        elif isinstance(tree[name], Mapping):
            yield from _blocks(tree[name], (*path, name))


def _inside(found: Mapping[str, Any], path: tuple[str, ...], kind: str, features: str) -> Any:
    """What was captured of a block, or of the attention in it."""
    for name in (*path, *(('__call__',) if kind == 'block' else ('attention', 'weights'))):
        if name not in found:
            raise ValueError(f'features {features!r}: the block {"/".join(path)} has no {kind}')
        found = found[name]
    return found
