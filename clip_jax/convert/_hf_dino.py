"""transformers' DINOv2, with and without registers, and DINOv3: image encoders alone.

DINOv3 rotates the two halves of a head's features against each other, and our encoder neighbors:
the features of queries and keys are reordered, which leaves their products as they are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    LEADING_ONES,
    LINEAR,
    SAME,
    Row,
    Rule,
    dense,
    divided,
    into_heads,
    joined,
    mlp,
    norm,
    out_of_heads,
    row,
)
from clip_jax.models import clip, positions

Fields = Mapping[str, Any]

_COMMON = {
    'hidden_act': 'gelu',
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'layerscale_value': 1.0,
    'layer_norm_eps': 1e-6,
    'num_channels': 3,
}
_V2 = {
    **_COMMON,
    'image_size': 224,
    'patch_size': 14,
    'mlp_ratio': 4,
    'qkv_bias': True,
    'use_swiglu_ffn': False,
    'num_register_tokens': 0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    'dinov2': _V2,
    'dinov2_with_registers': {**_V2, 'num_register_tokens': 4, 'patch_size': 16},
    'dinov3_vit': {
        **_COMMON,
        'hidden_size': 384,
        'num_attention_heads': 6,
        'intermediate_size': 1536,
        'image_size': 224,
        'patch_size': 16,
        'layer_norm_eps': 1e-5,
        'rope_theta': 100.0,
        'query_bias': True,
        'key_bias': False,
        'value_bias': True,
        'proj_bias': True,
        'mlp_bias': True,
        'use_gated_mlp': False,
        'num_register_tokens': 0,
    },
}
_CLASSES = {
    'dinov2': 'Dinov2Model',
    'dinov2_with_registers': 'Dinov2WithRegistersModel',
    'dinov3_vit': 'DINOv3ViTModel',
}
# Config keys of which our model supports one value.
_ONLY = {'num_channels': 3, 'qkv_bias': True, 'key_bias': False, 'proj_bias': True}
_ONLY |= {'mlp_bias': True}


def architecture(config: Fields, what: str) -> dict[str, Any]:
    """Returns the card's `model` that a `config.json` describes."""
    kind = config['model_type']
    full = {**DEFAULTS[kind], **config}
    gated = full['use_gated_mlp' if kind == 'dinov3_vit' else 'use_swiglu_ffn']
    only = {**_ONLY, 'hidden_act': 'silu' if gated and kind == 'dinov3_vit' else 'gelu'}
    for key, value in only.items():
        if key in full and full[key] != value:
            raise ValueError(f'{what}: {key} is {full[key]!r}; only {value!r} is supported')
    if not full['layerscale_value']:
        raise ValueError(
            f'{what}: layerscale_value is {full["layerscale_value"]}; expected another number, '
            'since these models have LayerScale'
        )
    image = {
        'name': 'rope_vit',
        'image_size': full['image_size'],
        'patch_size': full['patch_size'],
        'width': full['hidden_size'],
        'depth': full['num_hidden_layers'],
        'heads': full['num_attention_heads'],
        'mlp': 'swiglu' if gated else 'gelu',
        'registers': full['num_register_tokens'],
        'layer_scale': full['layerscale_value'],
        'norm_eps': full['layer_norm_eps'],
    }
    if kind == 'dinov3_vit':
        if full['query_bias'] != full['value_bias']:
            raise ValueError(
                f'{what}: query_bias and value_bias differ; only equal ones are supported'
            )
        image |= {
            'mlp_dim': full['intermediate_size'],
            'rope': 'centered',
            'rope_base': full['rope_theta'],
            'query_bias': full['query_bias'],
            'learned_positions': False,
        }
    else:
        image |= {
            'mlp_dim': _mlp_dim(full['hidden_size'], full['mlp_ratio'], gated),
            'key_bias': True,
        }
    return {
        'image': image,
        'text': None,
        'embed_dim': full['hidden_size'],
        'image_proj': 'none',
        'text_proj': 'none',
        'init_logit_bias': None,
    }


def _mlp_dim(width: int, ratio: float, gated: bool) -> int:
    # A gated MLP has two thirds of the features, up to a multiple of 8.
    size = int(width * ratio)
    return (int(size * 2 / 3) + 7) // 8 * 8 if gated else size


def holds(image: Fields | None) -> bool:
    """Returns whether an image encoder of a card is one of these."""
    return bool(image) and image['name'] == 'rope_vit'


def ignored(name: str) -> bool:
    """Returns whether an array is the embedding of masked patches, which only pretraining needs."""
    return name == 'embeddings.mask_token'


def config_of(model: Fields) -> dict[str, Any]:
    """Returns the `config.json` closest to an architecture."""
    image = model['image']
    width, gated = image['width'], image['mlp'] == 'swiglu'
    config = {
        'hidden_size': width,
        'num_hidden_layers': image['depth'],
        'num_attention_heads': image['heads'],
        'image_size': image['image_size'],
        'patch_size': image['patch_size'],
        'layerscale_value': image['layer_scale'],
        'layer_norm_eps': image['norm_eps'],
    }
    if image['rope'] == 'centered':
        kind = 'dinov3_vit'
        config |= {
            'intermediate_size': image['mlp_dim'],
            'use_gated_mlp': gated,
            'hidden_act': 'silu' if gated else 'gelu',
            'query_bias': image['query_bias'],
            'value_bias': image['query_bias'],
            'rope_theta': image['rope_base'],
            'num_register_tokens': image['registers'],
        }
    else:
        kind = 'dinov2_with_registers' if image['registers'] else 'dinov2'
        ratio = image['mlp_dim'] * (1.5 if gated else 1) / width
        usual = _mlp_dim(width, 4, gated) == image['mlp_dim']
        ratio = 4 if usual else int(ratio) if ratio == int(ratio) else ratio
        config |= {'use_swiglu_ffn': gated, 'mlp_ratio': ratio}
        config |= {'num_register_tokens': image['registers']} if image['registers'] else {}
    return {'model_type': kind, 'architectures': [_CLASSES[kind]], **config, 'dtype': 'float32'}


def rows(image: Fields) -> Iterator[Row]:
    """Yields the table of the encoder."""
    three = image['rope'] == 'centered'
    ours, at = 'params/image', 'embeddings'
    patch = f'{at}.patch_embeddings{"" if three else ".projection"}'
    yield from dense(f'{ours}/patch_embedding', patch, CONV)
    yield row(f'{ours}/class_embedding', f'{at}.cls_token', LEADING_ONES)
    if image['learned_positions']:
        yield row(f'{ours}/position_embedding', f'{at}.position_embeddings', LEADING_ONE)
    if image['registers']:
        yield row(f'{ours}/register_embedding', f'{at}.register_tokens', LEADING_ONE)
    for i in range(image['depth']):
        a = f'{ours}/transformer/block_{i}'
        b = f'{"" if three else "encoder."}layer.{i}'
        yield from (_attention3 if three else _attention2)(
            image, f'{a}/attention', f'{b}.attention'
        )
        for number, name in ((1, 'attention'), (2, 'mlp')):
            yield from norm(f'{a}/{name}_norm', f'{b}.norm{number}')
            yield row(f'{a}/{name}_scale', f'{b}.layer_scale{number}.lambda1', SAME)
        yield from _mlp(image, f'{a}/mlp', f'{b}.mlp', three)
    yield from norm(f'{ours}/post_norm', 'norm' if three else 'layernorm')


def _mlp(image: Fields, ours: str, theirs: str, three: bool) -> Iterator[Row]:
    if image['mlp'] == 'gelu':
        yield from mlp(ours, theirs, *(('up_proj', 'down_proj') if three else ('fc1', 'fc2')))
    elif three:
        for a, b in (('gate', 'gate'), ('in', 'up'), ('out', 'down')):
            yield from dense(f'{ours}/{a}', f'{theirs}.{b}_proj')
    else:
        yield from swiglu(ours, f'{theirs}.weights_in', f'{theirs}.weights_out')


def swiglu(ours: str, first: str, last: str) -> Iterator[Row]:
    """Yields the table of a gated MLP whose gate and input are one layer, `first`."""
    for part, name, rule in (('kernel', 'weight', LINEAR), ('bias', 'bias', SAME)):
        two = [f'{ours}/{x}/{part}' for x in ('gate', 'in')]
        yield row(two, f'{first}.{name}', divided(rule, 2))
    yield from dense(f'{ours}/out', last)


def _attention2(image: Fields, ours: str, theirs: str) -> Iterator[Row]:
    heads = image['heads']
    for part, name in (('kernel', 'weight'), ('bias', 'bias')):
        three = [f'{theirs}.attention.{x}.{name}' for x in ('query', 'key', 'value')]
        yield row(f'{ours}/qkv/{part}', three, joined(into_heads(3, heads), 3))
    yield from dense(f'{ours}/out', f'{theirs}.output.dense', out_of_heads(heads))


def _attention3(image: Fields, ours: str, theirs: str) -> Iterator[Row]:
    heads = image['heads']
    three = [f'{theirs}.{x}_proj.weight' for x in 'qkv']
    yield row(f'{ours}/qkv/kernel', three, _reordered(heads))
    if image['query_bias']:
        yield row(f'{ours}/query_bias', f'{theirs}.q_proj.bias', _reordered_bias(heads))
        yield row(f'{ours}/value_bias', f'{theirs}.v_proj.bias', into_heads(heads))
    yield from dense(f'{ours}/out', f'{theirs}.o_proj', out_of_heads(heads))


def _neighbors(x: np.ndarray, heads: int) -> np.ndarray:
    """Brings features that are rotated against each other side by side: [heads * D, ...]."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _reordered(heads: int) -> Rule:
    """The kernels of query, key and value, of which the first two are reordered."""
    rule = joined(into_heads(3, heads), 3)

    def write(x: np.ndarray) -> list[np.ndarray]:
        query, key, value = rule.write(x)
        return [_halves(query, heads), _halves(key, heads), value]

    return Rule(lambda q, k, v: rule.read(_neighbors(q, heads), _neighbors(k, heads), v), write)


def _reordered_bias(heads: int) -> Rule:
    rule = into_heads(heads)
    return Rule(lambda x: rule.read(_neighbors(x, heads)), lambda x: _halves(rule.write(x), heads))


def resized(
    model: Fields, variables: Fields, size: int, *, bilinear: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the model for images of `size` pixels, as transformers interpolates positions.

    Args:
        model: a card's `model`.
        variables: the model's variables; they are not changed.
        size: height and width of images, in pixels.
        bilinear: whether positions are interpolated bilinearly with antialiasing, as TIPS's are.
            DINO's are bicubically: of models with registers with antialiasing, and of others
            without.
    """
    image = model['image']
    plain = image['registers'] and not bilinear
    if plain or not image['learned_positions'] or size == image['image_size']:
        return clip.with_image_size(model, variables, size)
    table = np.asarray(variables['params']['image']['position_embedding'])
    old, new = image['image_size'] // image['patch_size'], size // image['patch_size']
    if bilinear:
        found = positions.resized(jnp.asarray(table), new, tokens=1, method='bilinear')
        table = np.asarray(found)
    else:
        weights = _cubic(old, new)
        patches = table[1:].reshape(old, old, -1)
        patches = np.einsum('io,jp,opw->ijw', weights, weights, patches, optimize=True)
        table = np.concatenate([table[:1], patches.reshape(new * new, -1)]).astype(np.float32)
    params = variables['params']
    params = {**params, 'image': {**params['image'], 'position_embedding': table}}
    return {**model, 'image': {**image, 'image_size': size}}, {**variables, 'params': params}


def _cubic(old: int, new: int) -> np.ndarray:
    """Returns the weights [new, old] of bicubic interpolation without antialiasing, as in torch:
    the kernel of Keys with a = -0.75, and the border repeated.
    """
    a, weights = -0.75, np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            t = abs(place - tap)
            near = ((a + 2) * t - (a + 3)) * t * t + 1
            far = a * (((t - 5) * t + 8) * t - 4)
            weights[i, min(max(tap, 0), old - 1)] += near if t <= 1 else far
    return weights
