"""OpenVision's two towers (arXiv 2505.04601), with the names of its JAX program.

The parameters are named as big_vision's, with a class token that pooling leaves out, fixed image
positions and no bias at the ends. Query, key and value may have one axis for heads and features:
then only published sizes say how many heads there are, and nothing says the image size.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.convert._table import LEADING_ONE, ONE, SAME, Row, Rule, row
from clip_jax.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from clip_jax.runtime.foreign_arrays import Array

ATTENTION = 'MultiHeadDotProductAttention_0'
BLOCKS = {'image': 'img/Transformer/encoderblock', 'text': 'txt/Transformer/encoderblock'}
DECODER = 'txt_decoder/'  # captions images; not read
# Attention heads by width, as in decode_variant of src/models/{vit,text_transformer}.py.
_HEADS = {
    'image': {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16},
    'text': {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16},
}
# Published models: widths of the two encoders, and image sizes by patch size (README, model zoo).
_SMALL = {16: (160, 224, 384), 8: (160, 224, 384)}
_PUBLISHED = {
    'tiny': (192, 192, _SMALL),
    'small': (384, 384, _SMALL),
    'base': (768, 512, _SMALL),
    'large': (1024, 768, {14: (84, 224, 336)}),
    'so400m': (1152, 1152, {14: (84, 224, 384)}),
    'huge': (1280, 1024, {14: (84, 224)}),
}
_NAMES = {
    f'openvision-vit-{size}-patch{patch}-{pixels}': (widths, patch, pixels)
    for size, (*widths, patches) in _PUBLISHED.items()
    for patch, sizes in patches.items()
    for pixels in sizes
}
# Those of every model in src/convert_upload/open_clip/model_configs.
PREPROCESS = {
    'mean': list(IMAGENET_MEAN),
    'std': list(IMAGENET_STD),
    'interpolation': 'bilinear',
    'resize_mode': 'squash',
}
TOKENIZER = {'hf_tokenizer_name': 'local', 'tokenizer_kwargs': {'strip_sep_token': True}}


def holds(names: Mapping[str, Any]) -> bool:
    """Returns whether parameters have the names of this program."""
    return 'img/cls' in names and f'{BLOCKS["text"]}_0/LayerNorm_0/scale' in names


def is_separate(theirs: Mapping[str, Array]) -> bool:
    """Returns whether heads have an axis of their own."""
    query = theirs.get(f'{BLOCKS["image"]}_0/{ATTENTION}/query/kernel')
    return query is not None and len(query.shape) == 3


def architecture(theirs: Mapping[str, Array], name: str, what: str) -> dict[str, Any]:
    """Returns the card's `model` of weights with a published model's name.

    Args:
        theirs: the arrays.
        name: as 'openvision-vit-large-patch14-224'.
        what: for messages.

    Raises:
        ValueError: there is no such model, or the weights are of another size.
    """
    lookup.check(name, _NAMES, what='the name of an OpenVision model')
    widths, patch, pixels = _NAMES[name]
    shape = {name: array.shape for name, array in theirs.items()}
    found_patch, _, _, width = shape['img/embedding/kernel']
    vocab_size, text_width = shape['txt/Embed_0/embedding']
    if (found_patch, width, text_width) != (patch, *widths):
        raise ValueError(
            f'{what}: {name} has patches of {patch} pixels and encoders of width {widths[0]} and '
            f'{widths[1]}, but the weights have {found_patch}, {width} and {text_width}; '
            'give the name of the model that they are of'
        )
    same = {'norm_eps': 1e-6}
    return {
        'image': {
            'name': 'vit',
            'image_size': pixels,
            'patch_size': patch,
            'class_token': True,
            'pool': 'mean',
            'pre_norm': False,
            'norm_after_pool': True,
            'activation': 'gelu',
            **_tower(shape, 'image', width),
            **same,
        },
        'text': {
            'name': 'transformer',
            'vocab_size': vocab_size,
            'context_length': shape['txt/pos_embedding'][1],
            'causal': False,
            'pool': 'last',
            'activation': 'gelu_tanh',
            **_tower(shape, 'text', text_width),
            **same,
        },
        'embed_dim': shape['txt/head/kernel'][1],
    }


def _tower(shape: Mapping[str, tuple[int, ...]], tower: str, width: int) -> dict[str, Any]:
    blocks = BLOCKS[tower]
    query = shape[f'{blocks}_0/{ATTENTION}/query/kernel']
    return {
        'width': width,
        'depth': len({n.split('/')[2] for n in shape if n.startswith(f'{blocks}_')}),
        'heads': query[1] if len(query) == 3 else _HEADS[tower][width],
        'mlp_dim': shape[f'{blocks}_0/MlpBlock_0/Dense_0/kernel'][1],
    }


def rows(model: Mapping[str, Any], separate: bool) -> Iterator[Row]:
    """Yields the table of the whole model; `separate`: heads have an axis of their own."""
    image, text = model['image'], model['text']
    yield row('params/image/patch_embedding/kernel', 'img/embedding/kernel', SAME)
    yield row('params/image/class_embedding', 'img/cls', Rule(np.ravel, lambda x: x[None, None]))
    yield from _blocks('image', image, separate)
    yield from _norm('params/image/post_norm', 'img/encoder_norm')
    yield row('params/image_projection/kernel', 'img/head/kernel', SAME)

    yield row('params/text/token_embedding/embedding', 'txt/Embed_0/embedding', SAME)
    yield row('params/text/position_embedding', 'txt/pos_embedding', LEADING_ONE)
    yield from _blocks('text', text, separate)
    yield from _norm('params/text/post_norm', 'txt/encoder_norm')
    yield row('params/text_projection/kernel', 'txt/head/kernel', SAME)
    yield row('params/logit_scale', 't', ONE)


def _blocks(tower: str, fields: Mapping[str, Any], separate: bool) -> Iterator[Row]:
    for i in range(fields['depth']):
        a, b = f'params/{tower}/transformer/block_{i}', f'{BLOCKS[tower]}_{i}'
        yield from _norm(f'{a}/attention_norm', f'{b}/LayerNorm_0')
        for part in ('kernel', 'bias'):
            three = [f'{b}/{ATTENTION}/{x}/{part}' for x in ('query', 'key', 'value')]
            yield row(f'{a}/attention/qkv/{part}', three, _qkv(fields['heads'], separate))
        out = SAME if separate else _out(fields['heads'])
        yield row(f'{a}/attention/out/kernel', f'{b}/{ATTENTION}/out/kernel', out)
        yield row(f'{a}/attention/out/bias', f'{b}/{ATTENTION}/out/bias', SAME)
        yield from _norm(f'{a}/mlp_norm', f'{b}/LayerNorm_1')
        for ours, theirs in (('in', 'Dense_0'), ('out', 'Dense_1')):
            for part in ('kernel', 'bias'):
                yield row(f'{a}/mlp/{ours}/{part}', f'{b}/MlpBlock_0/{theirs}/{part}', SAME)


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    for part in ('scale', 'bias'):
        yield row(f'{ours}/{part}', f'{theirs}/{part}', SAME)


def _qkv(heads: int, separate: bool) -> Rule:
    """Query, key and value, (..., h, k) or (..., h * k) each, <-> (..., 3, h, k)."""

    def read(*three: np.ndarray) -> np.ndarray:
        if not separate:
            three = tuple(x.reshape(*x.shape[:-1], heads, -1) for x in three)
        return np.stack(three, axis=-3)

    def write(x: np.ndarray) -> list[np.ndarray]:
        three = np.moveaxis(x, -3, 0)
        return [*three] if separate else [x.reshape(*x.shape[:-2], -1) for x in three]

    return Rule(read, write)


def _out(heads: int) -> Rule:
    """(h * k, width) <-> (h, k, width)."""
    return Rule(
        lambda x: x.reshape(heads, -1, x.shape[-1]),
        lambda x: x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
    )
