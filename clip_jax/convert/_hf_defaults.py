"""What a `config.json` of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP or SigLIP 2 means if keys are
missing: the defaults of transformers' classes.
"""

from typing import Any

_TOWER = {'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12}
_TOWER |= {'num_attention_heads': 12}
_CLIP = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
_SIGLIP = {'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6}
# `model_type` -> the part of the config -> the values of its keys where it says nothing.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    'clip': {
        'vision_config': {**_TOWER, **_CLIP, 'image_size': 224, 'patch_size': 32},
        'text_config': {
            **_CLIP,
            'hidden_size': 512,
            'intermediate_size': 2048,
            'num_hidden_layers': 12,
            'num_attention_heads': 8,
            'vocab_size': 49408,
            'max_position_embeddings': 77,
            'eos_token_id': 49407,
        },
    },
    'siglip': {
        'vision_config': {
            **_TOWER,
            **_SIGLIP,
            'image_size': 224,
            'patch_size': 16,
            'vision_use_head': True,
        },
        'text_config': {
            **_TOWER,
            **_SIGLIP,
            'vocab_size': 32000,
            'max_position_embeddings': 64,
        },
    },
}
DEFAULTS['siglip2'] = {
    'vision_config': {
        **_TOWER,
        **_SIGLIP,
        'num_patches': 256,
        'patch_size': 16,
        'vision_use_head': True,
    },
    'text_config': DEFAULTS['siglip']['text_config'],
}
# The same model; but its text is pooled at eos_token_id whatever that is.
DEFAULTS['metaclip_2'] = DEFAULTS['clip']
# Chinese-CLIP (arXiv 2211.01335): the same image encoder, and a BERT.
DEFAULTS['chinese_clip'] = {
    'vision_config': DEFAULTS['clip']['vision_config'],
    'text_config': {
        **_TOWER,
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-12,
        'vocab_size': 30522,
        'max_position_embeddings': 512,
        'type_vocab_size': 2,
        'pad_token_id': 0,
    },
}
