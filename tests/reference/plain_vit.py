"""Small models of open_clip with timm's plain vision transformers, as in BiomedCLIP."""

import functools
import pathlib
from typing import Any

from reference import timm_towers

# Name of open_clip's trunk -> image size, patch size, width, depth, heads; pooling, projection.
TRUNKS = {
    'vit_base_patch16_224': (16, 4, 16, 2, 2),
    'vit_small_patch32_224': (20, 8, 8, 1, 2),
}
MODELS = tuple(TRUNKS)
_HEADS = {'vit_base_patch16_224': ('', 'linear'), 'vit_small_patch32_224': ('avg', 'mlp')}


def encoder(name: str, **options: Any) -> Any:
    """timm's class with the sizes of TRUNKS, as timm.create_model calls it."""
    from timm.models.vision_transformer import VisionTransformer

    image_size, patch_size, width, depth, heads = TRUNKS[name]
    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        **{k: v for k, v in options.items() if k == 'num_classes'},
    )
    model.default_cfg = {'pool_size': None}  # which open_clip reads
    return model


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a small model into a folder."""
    pool, projection = _HEADS[name]
    vision = {
        'image_size': TRUNKS[name][0],
        'timm_model_name': name,
        'timm_model_pretrained': False,
        'timm_pool': pool,
        'timm_proj': projection,
    }
    config = {'embed_dim': 6, 'vision_cfg': vision, 'text_cfg': timm_towers.TEXT}
    timm_towers.write(
        folder, {**config, 'custom_text': True}, functools.partial(encoder, name), 'Block'
    )


if __name__ == '__main__':
    for name in MODELS:
        write(timm_towers.FIXTURES / name, name)
