"""Published architectures by their names in open_clip.

OpenAI's models (arXiv 2103.00020, tables 18 and 19) are those with the suffix `-quickgelu`, the
activation that its weights were trained with; open_clip trained the same sizes with GELU (arXiv
2212.07143). CLIPA is arXiv 2305.07017. SigLIP (2303.15343) and SigLIP 2 (2502.14786) use the tanh
approximation of GELU. MobileCLIP is arXiv 2311.17049, MobileCLIP2 2508.20691.
"""

from typing import Any

from clip_jax import lookup

# OpenAI's code pools at the largest id, which is the end-of-text token.
CLIP_TEXT = {'vocab_size': 49408, 'context_length': 77, 'pool': 'eot', 'eot_id': 49407}

# name: variant of the image encoder / patch_size, image_size, variant of the text encoder,
# embed_dim
_VIT = {
    'ViT-S-32': ('S/32', 224, 'S', 384),
    'ViT-S-16': ('S/16', 224, 'S', 384),
    'ViT-S-32-alt': ('S/32', 224, 'XS', 256),
    'ViT-S-16-alt': ('S/16', 224, 'XS', 256),
    'ViT-M-32': ('M/32', 224, 'B', 512),
    'ViT-M-16': ('M/16', 224, 'B', 512),
    'ViT-M-32-alt': ('M/32', 224, 'S', 384),
    'ViT-B-32': ('B/32', 224, 'B', 512),
    'ViT-B-32-256': ('B/32', 256, 'B', 512),
    'ViT-B-32-plus-256': ('B+/32', 256, 'RN50x4', 640),
    'ViT-B-16': ('B/16', 224, 'B', 512),
    'ViT-B-16-plus': ('B+/16', 224, 'RN50x4', 640),
    'ViT-B-16-plus-240': ('B+/16', 240, 'RN50x4', 640),
    'ViT-L-16': ('L/16', 224, 'L', 768),
    'ViT-L-16-320': ('L/16', 320, 'L', 768),
    'ViT-L-14': ('L/14', 224, 'L', 768),
    'ViT-L-14-280': ('L/14', 280, 'L', 768),
    'ViT-L-14-336': ('L/14', 336, 'L', 768),
    'ViT-H-16': ('H/16', 224, 'H', 1024),
    'ViT-H-14': ('H/14', 224, 'H', 1024),
    'ViT-H-14-378': ('H/14', 378, 'H', 1024),
    'ViT-g-14': ('g/14', 224, 'H', 1024),
    'ViT-bigG-14': ('G/14', 224, 'G', 1280),
    'ViT-e-14': ('e/14', 224, 'e', 1280),
}
_CLIPA = {
    'ViT-L-14-CLIPA': ('L/14', 224, 'L', 768),
    'ViT-L-14-CLIPA-336': ('L/14', 336, 'L', 768),
    'ViT-H-14-CLIPA': ('H/14', 224, 'H', 1024),
    'ViT-H-14-CLIPA-336': ('H/14', 336, 'H', 1024),
    'ViT-bigG-14-CLIPA': ('G/14', 224, 'G', 1280),
    'ViT-bigG-14-CLIPA-336': ('G/14', 336, 'G', 1280),
}
_QUICKGELU = ('ViT-B-32', 'ViT-B-16', 'ViT-L-14', 'ViT-L-14-336', 'ViT-H-14', 'ViT-H-14-378')
_QUICKGELU += ('ViT-bigG-14',)
# name, which is also the image encoder's variant: variant of the text encoder, embed_dim
_RESNET = {
    'RN50': ('RN50', 1024),
    'RN101': ('RN50', 512),
    'RN50x4': ('RN50x4', 640),
    'RN50x16': ('RN50x16', 768),
    'RN50x64': ('RN50x64', 1024),
}
# name: variant / patch_size, image_size, variant of the text encoder, vocab_size, context_length
_SIGLIP = {
    'ViT-B-16-SigLIP': ('B/16', 224, 'siglip-B', 32000, 64),
    'ViT-B-16-SigLIP-256': ('B/16', 256, 'siglip-B', 32000, 64),
    'ViT-B-16-SigLIP-i18n-256': ('B/16', 256, 'siglip-B', 250000, 64),
    'ViT-B-16-SigLIP-384': ('B/16', 384, 'siglip-B', 32000, 64),
    'ViT-B-16-SigLIP-512': ('B/16', 512, 'siglip-B', 32000, 64),
    'ViT-L-16-SigLIP-256': ('L/16', 256, 'siglip-L', 32000, 64),
    'ViT-L-16-SigLIP-384': ('L/16', 384, 'siglip-L', 32000, 64),
    'ViT-SO400M-14-SigLIP': ('So400m/14', 224, 'So400m', 32000, 16),
    'ViT-SO400M-14-SigLIP-384': ('So400m/14', 384, 'So400m', 32000, 64),
    'ViT-B-32-SigLIP2-256': ('B/32', 256, 'siglip-B', 256000, 64),
    'ViT-B-16-SigLIP2': ('B/16', 224, 'siglip-B', 256000, 64),
    'ViT-B-16-SigLIP2-256': ('B/16', 256, 'siglip-B', 256000, 64),
    'ViT-B-16-SigLIP2-384': ('B/16', 384, 'siglip-B', 256000, 64),
    'ViT-B-16-SigLIP2-512': ('B/16', 512, 'siglip-B', 256000, 64),
    'ViT-L-16-SigLIP2-256': ('L/16', 256, 'siglip-L', 256000, 64),
    'ViT-L-16-SigLIP2-384': ('L/16', 384, 'siglip-L', 256000, 64),
    'ViT-L-16-SigLIP2-512': ('L/16', 512, 'siglip-L', 256000, 64),
    'ViT-SO400M-14-SigLIP2': ('So400m/14', 224, 'So400m', 256000, 64),
    'ViT-SO400M-14-SigLIP2-378': ('So400m/14', 378, 'So400m', 256000, 64),
    'ViT-SO400M-16-SigLIP2-256': ('So400m/16', 256, 'So400m', 256000, 64),
    'ViT-SO400M-16-SigLIP2-384': ('So400m/16', 384, 'So400m', 256000, 64),
    'ViT-SO400M-16-SigLIP2-512': ('So400m/16', 512, 'So400m', 256000, 64),
    'ViT-gopt-16-SigLIP2-256': ('giant-opt/16', 256, 'So400m', 256000, 64),
    'ViT-gopt-16-SigLIP2-384': ('giant-opt/16', 384, 'So400m', 256000, 64),
}
# name: variant of the image encoder / patch_size, of the text encoder, embed_dim, causal
_MOBILECLIP = {
    'MobileCLIP-B': ('B/16', 'B', 512, True),
    'MobileCLIP2-B': ('B/16', 'B', 512, True),
    'MobileCLIP2-L-14': ('L/14', 'L', 768, False),
}
_CONVOLUTIONS = {
    'stem': 'convolutions',
    'class_position': False,
    'pre_norm': False,
    'norm_eps': 1e-6,
}


def names() -> list[str]:
    """Returns the names of all published architectures."""
    quick = [f'{name}-quickgelu' for name in (*_RESNET, *_QUICKGELU)]
    return [*_RESNET, *_VIT, *quick, *_CLIPA, *_SIGLIP, *_MOBILECLIP]


def architecture(name: str) -> dict[str, Any]:
    """Returns the `model` of a card for a published name; ValueError with the nearest name if it is
    unknown.
    """
    lookup.check(name, names(), what='models/presets')
    base = name.removesuffix('-quickgelu')
    same: dict[str, Any] = {'activation': 'quick_gelu' if name != base else 'gelu'}
    if base in _RESNET:
        image = {'name': 'resnet', **lookup.module('models.image', 'resnet').VARIANTS[base]}
        text, embed_dim = _RESNET[base]
        text = {**CLIP_TEXT, **_text(text), **same}
        return _model(image, text, embed_dim, image_proj='biased')
    if base in _VIT:
        variant, image_size, text, embed_dim = _VIT[base]
        image = {**_vit(variant, image_size), **same}
        return _model(image, {**CLIP_TEXT, **_text(text), **same}, embed_dim)
    if base in _CLIPA:
        variant, image_size, text, embed_dim = _CLIPA[base]
        ends = {'pool': 'mean', 'class_token': True, 'pre_norm': False, 'norm_after_pool': True}
        image = {**_vit(variant, image_size), **ends}
        tokens = {'vocab_size': 32000, 'context_length': 32, 'pool': 'last', 'causal': False}
        return _model(image, {**_text(text), **tokens}, embed_dim)
    if base in _MOBILECLIP:
        variant, text, embed_dim, causal = _MOBILECLIP[base]
        image = {**_vit(variant, 224), **(_CONVOLUTIONS if variant == 'B/16' else {})}
        text = {**CLIP_TEXT, **_text(text), 'causal': causal}
        return _model(image, text, embed_dim, image_proj='biased')
    variant, image_size, text, vocab_size, context_length = _SIGLIP[base]
    same = {'activation': 'gelu_tanh', 'norm_eps': 1e-6}
    image = {**_vit(variant, image_size), **same}
    image |= {'pool': 'map', 'pre_norm': False, 'patch_bias': True}
    tokens = {'vocab_size': vocab_size, 'context_length': context_length}
    return _model(
        image,
        {**_text(text), **tokens, **same, 'pool': 'last', 'causal': False},
        image['width'],
        image_proj='none',
        text_proj='biased',
        **lookup.module('losses', 'sigmoid').INIT,
    )


def _model(image: dict, text: dict, embed_dim: int, **rest: Any) -> dict[str, Any]:
    return {'image': image, 'text': text, 'embed_dim': embed_dim, **rest}


def _vit(variant: str, image_size: int) -> dict[str, Any]:
    size, _, patch_size = variant.partition('/')
    fields = lookup.module('models.image', 'vit').VARIANTS[size]
    return {'name': 'vit', **fields, 'patch_size': int(patch_size), 'image_size': image_size}


def _text(variant: str) -> dict[str, Any]:
    return {'name': 'transformer', **lookup.module('models.text', 'transformer').VARIANTS[variant]}
