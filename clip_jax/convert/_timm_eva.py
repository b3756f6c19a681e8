"""timm's class Eva in open_clip's checkpoints: EVA-CLIP and the Perception Encoder,
`visual.trunk.*`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    LEADING_ONES,
    Row,
    dense,
    into_heads,
    joined,
    mlp,
    norm,
    out_of_heads,
    row,
)
from clip_jax.convert._timm_siglip import attention_pool

CUSTOM_TEXT = True
HEAD = 'visual.trunk.head'
_VARIANTS = lookup.module('models.image', 'rope_vit').VARIANTS
# Name -> variant, image size, patch size.
_NAMES = {
    'eva_giant_patch14_224': ('EVA01-g', 224, 14),
    'eva_giant_patch14_clip_224': ('EVA01-g', 224, 14),
    'eva02_base_patch16_clip_224': ('EVA02-B', 224, 16),
    'eva02_large_patch14_clip_224': ('EVA02-L', 224, 14),
    'eva02_large_patch14_clip_336': ('EVA02-L', 336, 14),
    'eva02_enormous_patch14_clip_224': ('EVA02-E', 224, 14),
    'vit_pe_core_tiny_patch16_384': ('PE-T', 384, 16),
    'vit_pe_core_small_patch16_384': ('PE-S', 384, 16),
    'vit_pe_core_base_patch16_224': ('PE-B', 224, 16),
    'vit_pe_core_large_patch14_336': ('PE-L', 336, 14),
    'vit_pe_core_gigantic_patch14_448': ('PE-G', 448, 14),
}
# Name -> image size, patch size, width, depth, heads, mlp_dim.
TRUNKS = {
    name: (*sizes, *(_VARIANTS[variant][x] for x in ('width', 'depth', 'heads', 'mlp_dim')))
    for name, (variant, *sizes) in _NAMES.items()
}
_PLAIN = {'key_bias': False, 'post_norm': False, 'inner_norm': False, 'rope': 'none'}
_SIZES = ('image_size', 'patch_size', 'width', 'depth', 'heads', 'mlp_dim')
POOLS = {'token': 'cls', 'map': 'map'}
_BLOCK = re.compile(r'blocks\.(\d+)\.')


def takes(vision: Mapping[str, Any]) -> bool:
    """Returns whether a `vision_cfg` with a timm_model_name is one of this family."""
    return vision['timm_model_name'] in TRUNKS and vision['timm_pool'] in POOLS


def fields(
    vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], image_size: int
) -> dict[str, Any]:
    """Returns the fields of an image encoder; see _timm_siglip.py."""
    name = vision['timm_model_name']
    width, _, patch_size, _ = shapes['patch_embed.proj.weight']
    gated = 'blocks.0.mlp.fc1_g.weight' in shapes
    return {
        'name': 'rope_vit',
        'image_size': image_size,
        'patch_size': patch_size,
        'width': width,
        'depth': len({m[1] for m in map(_BLOCK.match, shapes) if m}),
        'heads': TRUNKS[name][4],
        'mlp_dim': shapes[f'blocks.0.mlp.{"fc1_g" if gated else "fc1"}.weight'][0],
        'mlp': 'swiglu' if gated else 'gelu',
        'pool': POOLS[vision['timm_pool']],
        'class_token': 'cls_token' in shapes,
        'pre_norm': 'norm_pre.weight' in shapes,
        **_PLAIN,
        **_by_name(name),
    }


def _by_name(name: str) -> dict[str, Any]:
    """The fields that no weight shows, those that differ from _PLAIN."""
    if 'pe_core' in name:
        image_size, patch_size = TRUNKS[name][:2]
        return {
            'pool_heads': 8,
            'key_bias': True,
            'norm_eps': 1e-5,
            'rope': 'columns_first',
            'rope_grid': image_size // patch_size,
            'rope_offset': 0.0 if 'gigantic' in name else 1.0,
        }
    if 'enormous' in name:
        return {'post_norm': True}
    if name.startswith('eva02'):
        return {'inner_norm': True, 'rope': 'rows_first', 'rope_grid': 16}
    return {}


def holds(image: Mapping[str, Any]) -> bool:
    """Returns whether an image encoder of a card is one of this family."""
    return image['name'] == 'rope_vit'


def vision_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `vision_cfg` of an image encoder; ValueError if timm has none of its sizes."""
    sizes = tuple(image[x] for x in _SIZES)
    for name, others in TRUNKS.items():
        if sizes == others and all(
            image[key] == x for key, x in {**_PLAIN, **_by_name(name)}.items()
        ):
            pool = {ours: theirs for theirs, ours in POOLS.items()}[image['pool']]
            return {'timm_model_name': name, 'timm_pool': pool}
    raise ValueError(
        'the layout open_clip cannot hold this model: it has no EVA and no PE with '
        f'{", ".join(_SIZES)} {sizes} and its other fields; choices: '
        f'{", ".join(TRUNKS)}'
    )


def rows(fields: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of timm's Eva."""
    ours, theirs = 'params/image', 'visual.trunk'
    bias = not fields['pre_norm']
    yield from dense(f'{ours}/patch_embedding', f'{theirs}.patch_embed.proj', CONV, bias=bias)
    yield row(f'{ours}/position_embedding', f'{theirs}.pos_embed', LEADING_ONE)
    if fields['class_token']:
        yield row(f'{ours}/class_embedding', f'{theirs}.cls_token', LEADING_ONES)
    if fields['pre_norm']:
        yield from norm(f'{ours}/pre_norm', f'{theirs}.norm_pre')
    for i in range(fields['depth']):
        yield from _block(fields, f'{ours}/transformer/block_{i}', f'{theirs}.blocks.{i}')
    yield from norm(f'{ours}/post_norm', f'{theirs}.norm')
    if fields['pool'] == 'map':
        yield from attention_pool(
            fields['pool_heads'], f'{ours}/attention_pool', f'{theirs}.attn_pool'
        )


def _block(fields: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Row]:
    yield from _attention(fields, f'{ours}/attention', f'{theirs}.attn')
    for a, b in (('attention', 'norm1'), ('mlp', 'norm2')):
        yield from norm(f'{ours}/{a}_norm', f'{theirs}.{b}')
    ours, theirs = f'{ours}/mlp', f'{theirs}.mlp'
    if fields['mlp'] == 'gelu':
        yield from mlp(ours, theirs, 'fc1', 'fc2')
        return
    for a, b in (('gate', 'fc1_g'), ('in', 'fc1_x'), ('out', 'fc2')):
        yield from dense(f'{ours}/{a}', f'{theirs}.{b}')
    if fields['inner_norm']:
        yield from norm(f'{ours}/norm', f'{theirs}.norm')


def _attention(fields: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Row]:
    heads = fields['heads']
    whole, part = into_heads(3, heads), into_heads(heads)
    if fields['key_bias']:
        yield row(f'{ours}/qkv/kernel', f'{theirs}.qkv.weight', whole)
        yield row(f'{ours}/qkv/bias', f'{theirs}.qkv.bias', whole)
    elif fields['mlp'] == 'swiglu':  # EVA-02's B and L have three projections
        three = [f'{theirs}.{x}_proj.weight' for x in 'qkv']
        yield row(f'{ours}/qkv/kernel', three, joined(whole, 3))
        for name in ('query', 'value'):
            yield row(f'{ours}/{name}_bias', f'{theirs}.{name[0]}_proj.bias', part)
    else:
        yield row(f'{ours}/qkv/kernel', f'{theirs}.qkv.weight', whole)
        for name in ('query', 'value'):
            yield row(f'{ours}/{name}_bias', f'{theirs}.{name[0]}_bias', part)
    if fields['inner_norm']:
        yield from norm(f'{ours}/norm', f'{theirs}.norm')
    yield from dense(f'{ours}/out', f'{theirs}.proj', out_of_heads(heads))
