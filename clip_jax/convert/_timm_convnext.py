"""timm's ConvNeXt in open_clip's checkpoints: `visual.trunk.*`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert._table import CONV, SAME, Row, dense, mlp, norm, row

CUSTOM_TEXT = False
HEAD = ''
_VARIANTS = lookup.module('models.image', 'convnext').VARIANTS
_NAMES = {'tiny': 'T', 'small': 'S', 'base': 'B', 'large': 'L', 'xlarge': 'XL', 'xxlarge': 'XXL'}
# Name -> widths, depths, the epsilon of layer norms.
TRUNKS = {
    f'convnext_{name}': (sizes['widths'], sizes['depths'], sizes.get('norm_eps', 1e-6))
    for name, sizes in ((name, _VARIANTS[variant]) for name, variant in _NAMES.items())
}
_BLOCK = re.compile(r'stages\.(\d)\.blocks\.(\d+)\.gamma')


def takes(vision: Mapping[str, Any]) -> bool:
    """Returns whether a `vision_cfg` with a timm_model_name is one of this family."""
    return vision['timm_pool'] in ('', 'avg') and vision['timm_model_name'] in TRUNKS


def fields(
    vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], image_size: int
) -> dict[str, Any]:
    """Returns the fields of an image encoder; see _timm_siglip.py."""
    stages = [int(match[1]) for match in map(_BLOCK.fullmatch, shapes) if match]
    return {
        'name': 'convnext',
        'image_size': image_size,
        'widths': [shapes[f'stages.{i}.blocks.0.gamma'][0] for i in range(4)],
        'depths': [stages.count(i) for i in range(4)],
        'norm_eps': TRUNKS[vision['timm_model_name']][2],
    }


def holds(image: Mapping[str, Any]) -> bool:
    """Returns whether an image encoder of a card is one of this family."""
    return image['name'] == 'convnext'


def vision_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `vision_cfg` of an image encoder; ValueError if timm has none of its sizes."""
    sizes = tuple(image['widths']), tuple(image['depths']), image['norm_eps']
    for name, others in TRUNKS.items():
        if sizes == others:
            return {'timm_model_name': name, 'timm_pool': ''}
    raise ValueError(
        'the layout open_clip cannot hold this model: it has no ConvNeXt with widths, depths, '
        f'norm_eps {sizes}; choices: {", ".join(TRUNKS)}'
    )


def rows(fields: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of timm's ConvNeXt."""
    ours, theirs = 'params/image', 'visual.trunk'
    yield from dense(f'{ours}/stem', f'{theirs}.stem.0', CONV)
    yield from norm(f'{ours}/stem_norm', f'{theirs}.stem.1')
    for s, depth in enumerate(fields['depths']):
        a, b = f'{ours}/stage_{s + 1}', f'{theirs}.stages.{s}'
        if s:
            yield from norm(f'{a}/norm', f'{b}.downsample.0')
            yield from dense(f'{a}/downsample', f'{b}.downsample.1', CONV)
        for i in range(depth):
            yield from _block(f'{a}/block_{i}', f'{b}.blocks.{i}')
    yield from norm(f'{ours}/post_norm', f'{theirs}.head.norm')


def _block(ours: str, theirs: str) -> Iterator[Row]:
    yield row(f'{ours}/scale', f'{theirs}.gamma', SAME)
    yield from dense(f'{ours}/depthwise', f'{theirs}.conv_dw', CONV)
    yield from norm(f'{ours}/norm', f'{theirs}.norm')
    yield from mlp(f'{ours}/mlp', f'{theirs}.mlp', 'fc1', 'fc2')
