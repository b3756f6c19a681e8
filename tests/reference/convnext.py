"""Small ConvNeXts of open_clip."""

import functools
import pathlib
from typing import Any

from reference import timm_towers

# Name of open_clip's trunk -> widths, depths, epsilon; projection, image size.
MODELS = {
    'convnext_base': ((4, 8, 8, 12), (1, 1, 2, 1), 1e-6, 'linear', 64),
    'convnext_large': ((4, 4, 8, 12), (1, 2, 1, 1), 1e-6, 'mlp', 70),
    'convnext_xxlarge': ((4, 8, 8, 16), (2, 1, 1, 1), 1e-5, 'linear', 64),
}
TRUNKS = {name: sizes[:3] for name, sizes in MODELS.items()}
BLOCK = 'ConvNeXtBlock'


def encoder(name: str, **options: Any) -> Any:
    """timm's class with the sizes of MODELS, as timm.create_model calls it."""
    from timm.models.convnext import ConvNeXt

    widths, depths, eps = TRUNKS[name]
    model = ConvNeXt(
        dims=widths,
        depths=depths,
        norm_eps=eps if eps != 1e-6 else None,
        drop_path_rate=options.get('drop_path_rate', 0.0),
    )
    model.default_cfg = model.pretrained_cfg = {'pool_size': (7, 7)}
    return model


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a small model into a folder."""
    *_, projection, size = MODELS[name]
    vision = {
        'timm_model_name': name,
        'timm_model_pretrained': False,
        'timm_pool': '',
        'timm_proj': projection,
        'timm_drop': 0.0,
        'timm_drop_path': 0.1,
        'image_size': size,
    }
    config = {'embed_dim': 6, 'vision_cfg': vision, 'text_cfg': timm_towers.TEXT}
    timm_towers.write(folder, config, functools.partial(encoder, name), BLOCK)


if __name__ == '__main__':
    for name in MODELS:
        write(timm_towers.FIXTURES / name, name)
