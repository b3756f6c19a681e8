"""Published architectures by their names in open_clip.

OpenAI's models (arXiv 2103.00020, tables 18 and 19) are those with the suffix `-quickgelu`, the
activation that its weights were trained with; open_clip trained the same sizes with GELU (arXiv
2212.07143). CLIPA is arXiv 2305.07017, EVA-CLIP 2303.15389, PE (Perception Encoder) 2504.13181.
MobileCLIP is 2311.17049, MobileCLIP2 2508.20691, CoCa 2205.01917. SigLIP (2303.15343) and SigLIP 2
(2502.14786) use the tanh approximation of GELU.
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
# name: variant of the image encoder, image_size, variant of the text encoder and its depth,
# embed_dim, projection
_CONVNEXT = {
    'convnext_base': ('B', 224, 'B', 12, 512, 'linear'),
    'convnext_base_w': ('B', 256, 'RN50x4', 12, 640, 'linear'),
    'convnext_base_w_320': ('B', 320, 'RN50x4', 12, 640, 'linear'),
    'convnext_large_d': ('L', 256, 'L', 16, 768, 'wide_mlp'),
    'convnext_large_d_320': ('L', 320, 'L', 16, 768, 'wide_mlp'),
    'convnext_xxlarge': ('XXL', 256, 'H', 24, 1024, 'linear'),
}
# name: variant of the image encoder / patch_size, image_size, variant of the text encoder,
# context_length, embed_dim
_ROPE_VIT = {
    'EVA01-g-14': ('EVA01-g/14', 224, 'L', 77, 1024),
    'EVA01-g-14-plus': ('EVA01-g/14', 224, 'H', 77, 1024),
    'EVA02-B-16': ('EVA02-B/16', 224, 'B', 77, 512),
    'EVA02-L-14': ('EVA02-L/14', 224, 'L', 77, 768),
    'EVA02-L-14-336': ('EVA02-L/14', 336, 'L', 77, 768),
    'EVA02-E-14': ('EVA02-E/14', 224, 'H', 77, 1024),
    'EVA02-E-14-plus': ('EVA02-E/14', 224, 'G', 77, 1024),
    'PE-Core-T-16-384': ('PE-T/16', 384, 'B', 32, 512),
    'PE-Core-S-16-384': ('PE-S/16', 384, 'B', 32, 512),
    'PE-Core-B-16': ('PE-B/16', 224, 'H', 32, 1024),
    'PE-Core-L-14-336': ('PE-L/14', 336, 'H', 32, 1024),
    'PE-Core-bigG-14-448': ('PE-G/14', 448, 'PE-G', 72, 1280),
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
# name: name with the same image and text encoders, embed_dim
_COCA = {
    'coca_ViT-B-32': ('ViT-B-32', 512),
    'coca_ViT-L-14': ('ViT-L-14', 768),
}
_CONVOLUTIONS = {
    'stem': 'convolutions',
    'class_position': False,
    'pre_norm': False,
    'norm_eps': 1e-6,
}

_ROBERTA = {'name': 'bert', 'context_length': 77, 'pad_id': 1, 'pool': 'mean'}
_NLLB = {'name': 'nllb', 'context_length': 77, 'pad_id': 1, 'pool': 'cls', 'vocab_size': 256206}
# Of another image encoder's name, with a text encoder of transformers.
# name: name with the image encoder, text encoder, its variant, embed_dim, text_proj
_OTHER_TEXT = {
    'roberta-ViT-B-32': (
        'ViT-B-32-quickgelu',
        {**_ROBERTA, 'vocab_size': 50265},
        'roberta-base',
        512,
        'mlp',
    ),
    'xlm-roberta-base-ViT-B-32': (
        'ViT-B-32',
        {**_ROBERTA, 'vocab_size': 250002},
        'roberta-base',
        512,
        'mlp',
    ),
    'xlm-roberta-large-ViT-H-14': (
        'ViT-H-14',
        {**_ROBERTA, 'vocab_size': 250002},
        'roberta-large',
        1024,
        'mlp',
    ),
    'nllb-clip-base': ('ViT-B-32', _NLLB, '600M', 512, 'linear'),
    'nllb-clip-large': ('ViT-H-14', _NLLB, '1.3B', 1024, 'linear'),
    'nllb-clip-base-siglip': ('ViT-B-16-SigLIP-384', _NLLB, '600M', 768, 'linear'),
    'nllb-clip-large-siglip': ('ViT-SO400M-14-SigLIP-384', _NLLB, '1.3B', 1152, 'linear'),
}


def names() -> list[str]:
    """Returns the names of all published architectures."""
    quick = [f'{name}-quickgelu' for name in (*_RESNET, *_QUICKGELU)]
    return [
        *_RESNET,
        *_VIT,
        *quick,
        *_CLIPA,
        *_CONVNEXT,
        *_ROPE_VIT,
        *_SIGLIP,
        *_MOBILECLIP,
        *_COCA,
        *_OTHER_TEXT,
    ]


def architecture(name: str) -> dict[str, Any]:
    """Returns the `model` of a card for a published name; ValueError with the nearest name if it is
    unknown.
    """
    lookup.check(name, names(), what='models/presets')
    if name in _OTHER_TEXT:
        return _other_text(*_OTHER_TEXT[name])
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
    if base in _CONVNEXT:
        variant, image_size, text, depth, embed_dim, projection = _CONVNEXT[base]
        sizes = lookup.module('models.image', 'convnext').VARIANTS[variant]
        image = {'name': 'convnext', **sizes, 'image_size': image_size}
        text = {**CLIP_TEXT, **_text(text), 'depth': depth}
        return _model(image, text, embed_dim, image_proj=projection)
    if base in _ROPE_VIT:
        variant, image_size, text, context_length, embed_dim = _ROPE_VIT[base]
        image = _vit(variant, image_size, 'rope_vit')
        text = {**CLIP_TEXT, **_text(text), 'context_length': context_length}
        return _model(image, text, embed_dim, image_proj='biased')
    if base in _COCA:
        return _coca(*_COCA[base])
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


def _other_text(
    like: str, text: dict[str, Any], variant: str, embed_dim: int, text_proj: str
) -> dict[str, Any]:
    model = architecture(like)
    # open_clip has timm's SigLIP here, whose GELU is exact.
    image = {**model['image'], 'activation': 'gelu'} if 'SigLIP' in like else model['image']
    sizes = lookup.module('models.text', text['name']).VARIANTS[variant]
    given = {'text_proj': text_proj, **({'image_proj': 'none'} if 'SigLIP' in like else {})}
    if 'SigLIP' in like:
        given['init_logit_bias'] = model['init_logit_bias']
    return _model(image, {**sizes, **text}, embed_dim, **given)


def _coca(like: str, embed_dim: int) -> dict[str, Any]:
    model = architecture(like)
    pool = {'pool': 'queries', 'pool_queries': 256, 'pool_heads': 8, 'pool_width': embed_dim}
    tokens = {'context_length': 76, 'pool': 'cls', 'eot_id': None, 'pad_id': 0}
    text = {**model['text'], **tokens}
    sizes = ('vocab_size', 'context_length', 'width', 'depth', 'heads', 'mlp_dim', 'pad_id')
    image = {**model['image'], **pool, 'class_token': True}
    return _model(image, text, embed_dim, decoder={name: text[name] for name in sizes})


def _model(image: dict, text: dict, embed_dim: int, **rest: Any) -> dict[str, Any]:
    return {'image': image, 'text': text, 'embed_dim': embed_dim, **rest}


def _vit(variant: str, image_size: int, name: str = 'vit') -> dict[str, Any]:
    size, _, patch_size = variant.partition('/')
    fields = lookup.module('models.image', name).VARIANTS[size]
    return {'name': name, **fields, 'patch_size': int(patch_size), 'image_size': image_size}


def _text(variant: str) -> dict[str, Any]:
    return {'name': 'transformer', **lookup.module('models.text', 'transformer').VARIANTS[variant]}
