"""transformers' TIPS v2 (arXiv 2604.12012): DINOv2's image encoder and a text encoder, without
projections, or one of them alone.

The files have the names of TIPS's own program, in which a layer of an MLP has two.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.convert import _hf_dino, _resblocks, _timm_siglip
from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    LEADING_ONES,
    SAME,
    Row,
    Rule,
    dense,
    mlp,
    norm,
    row,
)
from clip_jax.runtime.foreign_arrays import Array

Fields = Mapping[str, Any]

KIND = 'tipsv2'
# `model_type` of one tower alone -> the part of the config of both.
TOWERS = {f'{KIND}_{name}_model': f'{name}_config' for name in ('vision', 'text')}
PREFIXES = ('vision_encoder.', 'text_encoder.')
_OF_DINO = 'dinov2_with_registers'
DEFAULTS: dict[str, dict[str, Any]] = {
    'vision_config': {
        **_hf_dino.DEFAULTS[_OF_DINO],
        'image_size': 448,
        'patch_size': 14,
        'num_register_tokens': 1,
    },
    'text_config': {
        'hidden_act': 'relu',
        'hidden_size': 768,
        'intermediate_size': 3072,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'vocab_size': 32000,
        'max_position_embeddings': 64,
        'layer_norm_eps': 1e-5,
        'pad_token_id': 0,
        'attention_dropout': 0.0,
        'scale_sqrt_depth': True,
        'pooling_epsilon': 1e-8,
    },
}
_TEMPERATURE, _USUAL = 'temperature', 0.005065968260169029
# Config keys of texts of which our model supports one value.
_ONLY = {
    'hidden_act': 'relu',
    'attention_dropout': 0.0,
    'scale_sqrt_depth': True,
    'pooling_epsilon': 1e-8,
}
# Of the configs of TIPS's own program: vision_fn -> width, depth, heads, features of the MLP.
_VISION = {
    'vit_small': (384, 12, 6, 1536),
    'vit_base': (768, 12, 12, 3072),
    'vit_large': (1024, 24, 16, 4096),
    'vit_so400m': (1152, 27, 16, 4304),
    'vit_giant2': (1536, 40, 24, 6144),
}
# The key of transformers -> that of TIPS's own program.
_TEXT = {
    'hidden_size': 'text_hidden_size',
    'intermediate_size': 'text_mlp_dim',
    'num_hidden_layers': 'text_num_layers',
    'num_attention_heads': 'text_num_heads',
    'vocab_size': 'vocab_size',
    'max_position_embeddings': 'max_len',
}


def describes(kind: Any) -> bool:
    """Returns whether a `model_type` is one of these."""
    return kind == KIND or kind in TOWERS


def image_size_key(config: Fields) -> str:
    """Returns what a `config.json` calls the image size."""
    if 'vision_fn' in config:
        return 'img_size'
    return 'vision_config.image_size' if config['model_type'] == KIND else 'image_size'


def architecture(config: Fields, what: str) -> dict[str, Any]:
    """Returns the card's `model` that a `config.json` describes, of either program."""
    if 'vision_fn' in config:
        config = _as_transformers(config, what)
    kind = config['model_type']
    if kind in TOWERS:
        config = {TOWERS[kind]: config}
    parts = {
        part: {**defaults, **(config.get(part) or {})}
        for part, defaults in DEFAULTS.items()
        if kind == KIND or part in config
    }
    fields: dict[str, Any] = {'image': None, 'text': None, 'init_logit_bias': None}
    fields |= {'image_proj': 'none', 'text_proj': 'none'}
    if 'vision_config' in parts:
        vision = {**parts['vision_config'], 'model_type': _OF_DINO}
        fields |= {'image': _hf_dino.architecture(vision, what)['image']}
        fields['embed_dim'] = vision['hidden_size']
    if 'text_config' in parts:
        text = parts['text_config']
        fields |= {'text': _text(text, what), 'embed_dim': text['hidden_size']}
    if kind == KIND:
        fields['init_logit_scale'] = -math.log(_temperature(config, what))
    return fields


def _as_transformers(config: Fields, what: str) -> dict[str, Any]:
    """Returns the config of transformers that says the same as one of TIPS's own program."""
    name = lookup.check(config['vision_fn'], _VISION, what=f'{what}: vision_fn')
    width, depth, heads, mlp_dim = _VISION[name]
    gated = lookup.check(config['ffn_layer'], ('mlp', 'swiglu'), what=f'{what}: ffn_layer')
    if config['embed_dim'] != width:
        raise ValueError(
            f'{what}: embed_dim is {config["embed_dim"]}, but the vision_fn {name} has {width} '
            'features; make them agree'
        )
    return {
        'model_type': KIND,
        'vision_config': {
            'hidden_size': width,
            'num_hidden_layers': depth,
            'num_attention_heads': heads,
            'mlp_ratio': mlp_dim / width,
            'use_swiglu_ffn': gated == 'swiglu',
            'image_size': config['img_size'],
            'patch_size': config['patch_size'],
            'num_register_tokens': config['num_register_tokens'],
            'layerscale_value': config['init_values'],
        },
        'text_config': {theirs: config[its] for theirs, its in _TEXT.items()},
        'temperature_init_value': config[_TEMPERATURE],
    }


def _temperature(config: Fields, what: str) -> float:
    temperature = config.get('temperature_init_value', _USUAL)
    if not 0 < temperature < math.inf:
        raise ValueError(f'{what}: the temperature is {temperature}; expected more than 0')
    return temperature


def _text(text: Fields, what: str) -> dict[str, Any]:
    for key, value in _ONLY.items():
        if text[key] != value:
            raise ValueError(
                f'{what}: text_config.{key} is {text[key]!r}; only {value!r} is supported'
            )
    return {
        'name': 'nllb',
        'width': text['hidden_size'],
        'depth': text['num_hidden_layers'],
        'heads': text['num_attention_heads'],
        'mlp_dim': text['intermediate_size'],
        'activation': text['hidden_act'],
        'norm_eps': text['layer_norm_eps'],
        'vocab_size': text['vocab_size'],
        'context_length': text['max_position_embeddings'],
        'pad_id': text['pad_token_id'],
        'numbering': 'all',
        'pool': 'mean',
    }


def completed(theirs: Mapping[str, Array], fields: Fields) -> dict[str, Array]:
    """Returns the arrays of a file under the names that transformers writes.

    Args:
        theirs: the arrays by name.
        fields: of the architecture. Published files lack the temperature, which is then that of
            the config.
    """
    found = {}
    for name, array in theirs.items():
        for ours, other in (('.mlp.c_fc.', '.mlp.fc1.'), ('.mlp.c_proj.', '.mlp.fc2.')):
            name = name.replace(other, ours)
        found[name] = array
    if 'init_logit_scale' in fields and _TEMPERATURE not in found:
        value = np.float32(math.exp(-fields['init_logit_scale']))
        found[_TEMPERATURE] = Array((), value.dtype, lambda: np.asarray(value))
    return found


def ignored(name: str) -> bool:
    """Returns whether an array is the embedding of masked patches, which only pretraining needs."""
    return name.removeprefix(PREFIXES[0]) == 'mask_token'


def holds(model: Fields) -> bool:
    """Returns whether a card's model is one of these. An image encoder alone with one register is;
    the published DINOv2 have none or four.
    """
    image, text = model['image'], model['text']
    if image and not (_hf_dino.holds(image) and image['rope'] == 'none'):
        return False
    if text is None:
        return image['registers'] == 1
    return text['name'] == 'nllb' and text['numbering'] == 'all'


def config_of(model: Fields) -> dict[str, Any]:
    """Returns the `config.json` closest to an architecture."""
    image, text = model['image'], model['text']
    parts = {}
    if image:
        dino = _hf_dino.config_of(model)
        parts['vision'] = {k: v for k, v in dino.items() if k not in ('architectures', 'dtype')}
        parts['vision']['num_register_tokens'] = image['registers']
    if text:
        parts['text'] = {
            'hidden_act': text['activation'],
            'hidden_size': text['width'],
            'intermediate_size': text['mlp_dim'],
            'num_hidden_layers': text['depth'],
            'num_attention_heads': text['heads'],
            'layer_norm_eps': text['norm_eps'],
            'vocab_size': text['vocab_size'],
            'max_position_embeddings': text['context_length'],
            'pad_token_id': text['pad_id'],
        }
    for name, part in parts.items():
        part['model_type'] = f'{KIND}_{name}_model'
    if len(parts) == 1:
        ((name, part),) = parts.items()
        return {**part, 'architectures': [f'Tipsv2{name.title()}Model'], 'dtype': 'float32'}
    return {
        'model_type': KIND,
        'architectures': ['Tipsv2Model'],
        'temperature_init_value': math.exp(-model['init_logit_scale']),
        **{f'{name}_config': part for name, part in parts.items()},
        'dtype': 'float32',
    }


def rows(model: Fields, *, prefixed: bool = True) -> Iterator[Row]:
    """Yields the table of the model; `prefixed`: whether names begin with that of their encoder."""
    image, text = model['image'], model['text']
    of_image, of_text = PREFIXES if prefixed else ('', '')
    if image:
        yield from _image_rows(image, of_image)
    if text:
        ours, theirs = 'params/text', f'{of_text}token_embedding.weight'
        yield row(f'{ours}/token_embedding/embedding', theirs, SAME)
        yield from _resblocks.blocks({**text, 'layer_scale': 0}, ours, of_text)
        yield from norm(f'{ours}/post_norm', f'{of_text}ln_final')
    if image and text:
        yield row('params/logit_scale', _TEMPERATURE, Rule(_log_inverse, _inverse_exp))


def _image_rows(image: Fields, theirs: str) -> Iterator[Row]:
    ours = 'params/image'
    yield from dense(f'{ours}/patch_embedding', f'{theirs}patch_embed.proj', CONV)
    yield row(f'{ours}/class_embedding', f'{theirs}cls_token', LEADING_ONES)
    yield row(f'{ours}/position_embedding', f'{theirs}pos_embed', LEADING_ONE)
    if image['registers']:
        yield row(f'{ours}/register_embedding', f'{theirs}register_tokens', LEADING_ONE)
    for i in range(image['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}blocks.{i}'
        yield from _timm_siglip.norms_and_attention(image['heads'], a, b)
        for number, name in ((1, 'attention'), (2, 'mlp')):
            yield row(f'{a}/{name}_scale', f'{b}.ls{number}.gamma', SAME)
        if image['mlp'] == 'swiglu':
            yield from _hf_dino.swiglu(f'{a}/mlp', f'{b}.mlp.w12', f'{b}.mlp.w3')
        else:
            yield from mlp(f'{a}/mlp', f'{b}.mlp', 'c_fc', 'c_proj')
    yield from norm(f'{ours}/post_norm', f'{theirs}norm')


def _log_inverse(temperature: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore', invalid='ignore'):  # found and named by _table.read
        return -np.log(np.asarray(temperature, np.float64)).reshape(())


def _inverse_exp(logit_scale: np.ndarray) -> np.ndarray:
    return np.exp(-np.asarray(logit_scale, np.float64)).astype(np.float32)
