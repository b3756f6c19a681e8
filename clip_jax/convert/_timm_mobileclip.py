"""timm's vision transformers of MobileCLIP in open_clip's checkpoints: `visual.trunk.*`.

The projection is timm's classifier, which has a bias.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.convert._resblocks import batch_norm
from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    LEADING_ONES,
    Row,
    dense,
    norm,
    row,
)
from clip_jax.convert._timm_siglip import blocks

CUSTOM_TEXT = True
HEAD = 'visual.trunk.head'  # the projection
# Name -> image size, patch size, width, depth, heads; the stem and what it decides.
TRUNKS = {
    'vit_base_mci_224': (224, 16, 768, 12, 12),
    'vit_large_patch14_clip_224': (224, 14, 1024, 24, 16),
}
_KINDS = {
    True: {
        'stem': 'convolutions',
        'class_position': False,
        'patch_bias': True,
        'pre_norm': False,
        'norm_eps': 1e-6,
    },
    False: {
        'stem': 'patches',
        'class_position': True,
        'patch_bias': False,
        'pre_norm': True,
        'norm_eps': 1e-5,
    },
}
_SIZES = ('image_size', 'patch_size', 'width', 'depth', 'heads')
_STEM = 'patch_embed.backbone'


def takes(vision: Mapping[str, Any]) -> bool:
    """Returns whether a `vision_cfg` with a timm_model_name is one of this family."""
    return vision['timm_pool'] == 'token' and vision['timm_model_name'] in TRUNKS


def fields(
    vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], image_size: int
) -> dict[str, Any]:
    """Returns the fields of an image encoder; see _timm_siglip.py."""
    name = vision['timm_model_name']
    kind = _KINDS['mci' in name]
    if kind['stem'] == 'convolutions':
        width, patch_size = shapes['cls_token'][-1], 4 * shapes[f'{_STEM}.0.conv.weight'][-1]
    else:
        width, _, patch_size, _ = shapes['patch_embed.proj.weight']
    return {
        'name': 'vit',
        'image_size': image_size,
        'patch_size': patch_size,
        'width': width,
        'depth': len({n.split('.')[1] for n in shapes if re.match(r'blocks\.\d+\.', n)}),
        'heads': TRUNKS[name][-1],
        'mlp_dim': shapes['blocks.0.mlp.fc1.weight'][0],
        'pool': 'cls',
        'patch_dropout': vision['patch_dropout'],
        **kind,
    }


def holds(image: Mapping[str, Any]) -> bool:
    """Returns whether an image encoder of a card is one of this family; `image` also has the
    card's `image_proj`.
    """
    if image['name'] != 'vit':
        return False
    biased = image['pool'] == 'cls' and image['image_proj'] == 'biased'
    return image['stem'] == 'convolutions' or biased


def vision_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `vision_cfg` of an image encoder; ValueError if timm has none of its sizes."""
    sizes = tuple(image[x] for x in _SIZES)
    for name, others in TRUNKS.items():
        wanted = {**_KINDS['mci' in name], 'mlp_dim': 4 * image['width'], 'pool': 'cls'}
        wanted |= {'activation': 'gelu', 'positions': 'learned', 'layer_scale': 0}
        if sizes == others and all(image[key] == x for key, x in wanted.items()):
            return {'timm_model_name': name, 'timm_pool': 'token'}
    raise ValueError(
        'the layout open_clip cannot hold this model: with a stem of convolutions or a '
        "projection with a bias, a vision transformer must be one of timm's, whose "
        f'{", ".join(_SIZES)} are: {TRUNKS}; those of this one are {sizes}'
    )


def rows(fields: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of timm's vision transformer with a class token."""
    ours, theirs = 'params/image', 'visual.trunk'
    if fields['stem'] == 'convolutions':
        for i in (0, 1, 2):
            a, b = f'{ours}/stem/conv_{i + 1}', f'{theirs}.{_STEM}.{i}'
            yield from dense(a, f'{b}.conv', CONV, bias=i == 2)
            if i < 2:
                yield from batch_norm(f'image/stem/norm_{i + 1}', f'{b}.bn')
    else:
        yield from dense(
            f'{ours}/patch_embedding',
            f'{theirs}.patch_embed.proj',
            CONV,
            bias=fields['patch_bias'],
        )
    yield row(f'{ours}/class_embedding', f'{theirs}.cls_token', LEADING_ONES)
    yield row(f'{ours}/position_embedding', f'{theirs}.pos_embed', LEADING_ONE)
    if fields['pre_norm']:
        yield from norm(f'{ours}/pre_norm', f'{theirs}.norm_pre')
    yield from blocks(fields, ours, theirs)
