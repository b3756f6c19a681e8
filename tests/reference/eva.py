"""Small models of open_clip with timm's Eva: EVA-CLIP, EVA-02 and the Perception Encoder."""

import functools
import pathlib
from typing import Any

from reference import timm_towers

# Name of open_clip's trunk -> image size, patch size, width, depth, heads, mlp_dim.
TRUNKS = {
    'eva_giant_patch14_224': (16, 4, 8, 2, 2, 24),
    'eva02_base_patch16_clip_224': (20, 4, 16, 2, 2, 48),
    'eva02_large_patch14_clip_336': (16, 4, 8, 1, 2, 24),
    'eva02_enormous_patch14_clip_224': (16, 4, 8, 2, 2, 24),
    'vit_pe_core_tiny_patch16_384': (16, 4, 16, 2, 2, 48),
    'vit_pe_core_large_patch14_336': (16, 4, 32, 1, 4, 96),
    'vit_pe_core_gigantic_patch14_448': (20, 4, 16, 1, 2, 48),
}
MODELS = tuple(TRUNKS)
_EVA02 = {
    'qkv_fused': False,
    'swiglu_mlp': True,
    'scale_mlp': True,
    'scale_attn_inner': True,
    'use_rot_pos_emb': True,
    'ref_feat_shape': (16, 16),
}


def _kind(name: str) -> dict[str, Any]:
    """What timm's function of that name passes to its class, beside the sizes."""
    if 'pe_core' in name:
        from timm.layers import LayerNorm

        image_size, patch_size = TRUNKS[name][:2]
        giant = 'gigantic' in name
        return {
            'attn_type': 'rope',
            'class_token': not giant,
            'use_pre_transformer_norm': True,
            'use_rot_pos_emb': True,
            'ref_feat_shape': (image_size // patch_size,) * 2,
            'rope_grid_offset': 0.0 if giant else 1.0,
            'rope_grid_indexing': 'xy',
            'attn_pool_num_heads': 8,
            'attn_pool_mlp_ratio': 4.0,
            'norm_layer': functools.partial(LayerNorm, eps=1e-5),
        }
    if 'enormous' in name:
        return {'use_post_norm': True}
    return _EVA02 if name.startswith('eva02') else {}


def encoder(name: str, **options: Any) -> Any:
    """timm's class with the sizes of TRUNKS, as timm.create_model calls it."""
    from timm.models.eva import Eva

    image_size, patch_size, width, depth, heads, mlp_dim = TRUNKS[name]
    return Eva(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_dim / width,
        num_classes=options['num_classes'],
        global_pool=options['global_pool'],
        **_kind(name),
    )


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a small model into a folder."""
    vision = {
        'image_size': TRUNKS[name][0],
        'timm_model_name': name,
        'timm_model_pretrained': False,
        'timm_pool': 'map' if 'pe_core' in name else 'token',
        'timm_proj': None,
    }
    config = {'embed_dim': 6, 'vision_cfg': vision, 'text_cfg': timm_towers.TEXT}
    blocks = 'EvaBlockPostNorm' if 'enormous' in name else 'EvaBlock'
    timm_towers.write(
        folder, {**config, 'custom_text': True}, functools.partial(encoder, name), blocks
    )


if __name__ == '__main__':
    for name in MODELS:
        write(timm_towers.FIXTURES / name, name)
