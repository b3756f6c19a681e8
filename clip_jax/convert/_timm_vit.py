"""timm's plain vision transformers in open_clip's checkpoints, such as BiomedCLIP's:
`visual.trunk.*`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.convert._table import CONV, LEADING_ONE, LEADING_ONES, Row, dense, row
from clip_jax.convert._timm_siglip import blocks

CUSTOM_TEXT = True
HEAD = ''
# Width, depth, heads.
_SIZES = {
    'tiny': (192, 12, 3),
    'small': (384, 12, 6),
    'base': (768, 12, 12),
    'large': (1024, 24, 16),
    'huge': (1280, 32, 16),
}
_NAMES = ('tiny_patch16_224', 'tiny_patch16_384', 'small_patch32_224', 'small_patch32_384')
_NAMES += ('small_patch16_224', 'small_patch16_384', 'small_patch8_224', 'base_patch32_224')
_NAMES += ('base_patch32_384', 'base_patch16_224', 'base_patch16_384', 'base_patch8_224')
_NAMES += ('large_patch32_224', 'large_patch32_384', 'large_patch16_224', 'large_patch16_384')
_NAMES += ('large_patch14_224', 'huge_patch14_224')
# Name -> image size, patch size, width, depth, heads.
TRUNKS = {
    f'vit_{name}': (int(image_size), int(patch[5:]), *_SIZES[size])
    for name, (size, patch, image_size) in ((name, name.split('_')) for name in _NAMES)
}
_POOLS = {'': 'cls', 'token': 'cls', 'avg': 'mean'}
# The same in all of them.
_FIELDS = {
    'class_token': True,
    'pre_norm': False,
    'norm_after_pool': False,
    'patch_bias': True,
    'norm_eps': 1e-6,
}


def takes(vision: Mapping[str, Any]) -> bool:
    """Returns whether a `vision_cfg` with a timm_model_name is one of this family."""
    return vision['timm_pool'] in _POOLS and vision['timm_model_name'] in TRUNKS


def fields(
    vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], image_size: int
) -> dict[str, Any]:
    """Returns the fields of an image encoder; see _timm_siglip.py."""
    width, _, patch_size, _ = shapes['patch_embed.proj.weight']
    return {
        'name': 'vit',
        'image_size': image_size,
        'patch_size': patch_size,
        'width': width,
        'depth': len({n.split('.')[1] for n in shapes if re.match(r'blocks\.\d+\.', n)}),
        'heads': TRUNKS[vision['timm_model_name']][-1],
        'mlp_dim': shapes['blocks.0.mlp.fc1.weight'][0],
        'pool': _POOLS[vision['timm_pool']],
        'patch_dropout': vision['patch_dropout'],
        **_FIELDS,
    }


def holds(image: Mapping[str, Any]) -> bool:
    """Returns whether an image encoder of a card is one of this family."""
    if image['name'] != 'vit' or image['pool'] not in _POOLS.values():
        return False
    return image['stem'] == 'patches' and image['patch_bias'] and not image['pre_norm']


def vision_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `vision_cfg` of an image encoder; ValueError if timm has none of its sizes."""
    sizes = tuple(image[x] for x in ('image_size', 'patch_size', 'width', 'depth', 'heads'))
    for name, others in TRUNKS.items():
        wanted = {**_FIELDS, 'mlp_dim': 4 * image['width'], 'activation': 'gelu'}
        wanted |= {'positions': 'learned', 'layer_scale': 0, 'class_position': True}
        if sizes == others and all(image[key] == x for key, x in wanted.items()):
            return {'timm_model_name': name, 'timm_pool': {'cls': '', 'mean': 'avg'}[image['pool']]}
    raise ValueError(
        'the layout open_clip cannot hold this model: with a bias of the patch embedding, a vision '
        "transformer must be one of timm's, and none has image_size, patch_size, width, depth, "
        f'heads {sizes}; choices: {", ".join(TRUNKS)}'
    )


def rows(fields: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of timm's vision transformer with a class token."""
    ours, theirs = 'params/image', 'visual.trunk'
    yield from dense(f'{ours}/patch_embedding', f'{theirs}.patch_embed.proj', CONV)
    yield row(f'{ours}/class_embedding', f'{theirs}.cls_token', LEADING_ONES)
    yield row(f'{ours}/position_embedding', f'{theirs}.pos_embed', LEADING_ONE)
    yield from blocks(fields, ours, theirs)
