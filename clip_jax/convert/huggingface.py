"""Hugging Face folders: weights and the `config.json` of CLIP, MetaCLIP 2, SigLIP or SigLIP 2.

SigLIP 2 at fixed resolution is a SigLIP, and for images of any size (NaFlex) a `siglip2`. Missing
keys of the config have the defaults of transformers' classes.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import _cards, _files, _image_processor, _table, _tokenizer_files
from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    LINEAR,
    ONE,
    PATCHES,
    SAME,
    Row,
    dense,
    divided,
    into_heads,
    joined,
    mlp,
    norm,
    out_of_heads,
    row,
)

CONFIG = 'config.json'
SAFETENSORS = 'model.safetensors'
WEIGHTS = (
    SAFETENSORS,
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
ACTIVATIONS = {'quick_gelu': 'quick_gelu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh'}

_TOWER = {'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12}
_TOWER |= {'num_attention_heads': 12}
_CLIP = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
_SIGLIP = {'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6}
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
# Old configs of CLIP have eos_token_id 2, which is ignored: the text is pooled at the largest id.
LEGACY_EOS = 2
_CLASSES = {'clip': 'CLIPModel', 'metaclip_2': 'MetaClip2Model', 'siglip': 'SiglipModel'}
_CLASSES['siglip2'] = 'Siglip2Model'
_SIGLIPS = ('siglip', 'siglip2')
# Config keys of which our model supports one value.
_ONLY = {'num_channels': 3, 'attention_dropout': 0.0, 'vision_use_head': True}


def describes(config: pathlib.Path) -> bool:
    """Returns whether a file named `CONFIG` is this layout's: `WEIGHTS` are then beside it."""
    return config.is_file() and 'model_type' in _files.json_of(config)


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a path is a transformers folder, or a weight file in one."""
    config = _files.folder_of(path) / CONFIG
    if not describes(config):
        return False
    if path.is_file():
        return any(name.startswith('vision_model.') for name in _files.names_of(path))
    return any((path / name).is_file() for name in WEIGHTS)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a folder, or one weight file in it."""
    folder = _files.folder_of(path)
    config = _files.json_of(folder / CONFIG)
    with _cards.understood(str(folder / CONFIG)):
        fields = architecture(config, what=str(folder / CONFIG))
    weights = _files.locate(path, WEIGHTS)
    model, variables = _cards.complete(
        fields,
        rows,
        _files.arrays(weights),
        what=str(weights),
        image_size=(
            'patch_size * num_patches ** 0.5'
            if config['model_type'] == 'siglip2'
            else 'vision_config.image_size'
        ),
        ignored=lambda name: name.endswith('.position_ids'),
    )
    card = {
        'model': model,
        'preprocess': _image_processor.read(
            folder,
            model['image']['image_size'],
            siglip=config['model_type'] in _SIGLIPS,
            patch_size=model['image']['patch_size'] if _is_naflex(model) else None,
        ),
        'tokenizer': _tokenizer_files.huggingface(folder, model['text']),
    }
    return card, variables


def architecture(config: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Returns the card's `model` that a `config.json` describes."""
    kind = config['model_type']
    lookup.check(kind, DEFAULTS, what=f'{what}: model_type')
    vision, text = (_filled(config, kind, part, what) for part in ('vision_config', 'text_config'))
    siglip = kind in _SIGLIPS
    eos = text.get('eos_token_id')
    legacy = kind == 'clip' and eos == LEGACY_EOS
    return {
        'image': {
            **_tower(vision, what),
            'patch_size': vision['patch_size'],
            **(
                {'name': 'naflex', 'image_size': _side(vision, what) * vision['patch_size']}
                if kind == 'siglip2'
                else {
                    'name': 'vit',
                    'image_size': vision['image_size'],
                    'pool': 'map' if siglip else 'cls',
                    'pre_norm': not siglip,
                    'patch_bias': siglip,
                }
            ),
        },
        'text': {
            'name': 'transformer',
            **_tower(text, what),
            'vocab_size': text['vocab_size'],
            'context_length': text['max_position_embeddings'],
            'causal': not siglip,
            'pool': 'last' if siglip else 'argmax' if legacy else 'eot',
            'eot_id': None if siglip or legacy else eos,
        },
        'embed_dim': text.get('projection_size', text['hidden_size'])
        if siglip
        else config.get('projection_dim', 512),
        'image_proj': 'none' if siglip else 'linear',
        'text_proj': 'biased' if siglip else 'linear',
        'init_logit_bias': -10.0 if siglip else None,
    }


def _is_naflex(model: Mapping[str, Any]) -> bool:
    return model['image']['name'] == 'naflex'


def _side(vision: Mapping[str, Any], what: str) -> int:
    """The positions along each axis, of which a NaFlex config has the number in all."""
    count = vision['num_patches']
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f'{what}: vision_config.num_patches is {count}; expected a square number')
    return side


def _filled(config: Mapping[str, Any], kind: str, part: str, what: str) -> dict[str, Any]:
    """Returns one tower's config with its defaults; ValueError for unsupported values."""
    # Old files have both keys; the second overrides the first.
    given = {**(config.get(part) or {}), **(config.get(f'{part}_dict') or {})}
    full = {**DEFAULTS[kind][part], **given}
    for key, value in _ONLY.items():
        if key in full and full[key] != value:
            raise ValueError(f'{what}: {part}.{key} is {full[key]!r}; only {value!r} is supported')
    return full


def _tower(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    activation = lookup.check(config['hidden_act'], ACTIVATIONS, what=f'{what}: hidden_act')
    return {
        'width': config['hidden_size'],
        'depth': config['num_hidden_layers'],
        'heads': config['num_attention_heads'],
        'mlp_dim': config['intermediate_size'],
        'activation': ACTIVATIONS[activation],
        'norm_eps': config['layer_norm_eps'],
    }


def rows(model: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of the whole model."""
    image, text = model['image'], model['text']
    naflex = _is_naflex(model)
    siglip = naflex or image['pool'] == 'map'
    ours, theirs = 'params/image', 'vision_model'
    embeddings = f'{theirs}.embeddings'
    kernel = PATCHES if naflex else CONV
    yield row(f'{ours}/patch_embedding/kernel', f'{embeddings}.patch_embedding.weight', kernel)
    yield row(f'{ours}/position_embedding', f'{embeddings}.position_embedding.weight', SAME)
    if siglip:
        yield row(f'{ours}/patch_embedding/bias', f'{embeddings}.patch_embedding.bias', SAME)
        yield from pooling_head(image['heads'])
    else:
        yield row(f'{ours}/class_embedding', f'{embeddings}.class_embedding', SAME)
        yield from norm(f'{ours}/pre_norm', f'{theirs}.pre_layrnorm')
        yield row('params/image_projection/kernel', 'visual_projection.weight', LINEAR)
    yield from layers(image, ours, theirs)
    yield from norm(f'{ours}/post_norm', f'{theirs}.post_layernorm')

    ours, theirs = 'params/text', 'text_model'
    embeddings = f'{theirs}.embeddings'
    yield row(f'{ours}/token_embedding/embedding', f'{embeddings}.token_embedding.weight', SAME)
    yield row(f'{ours}/position_embedding', f'{embeddings}.position_embedding.weight', SAME)
    yield from layers(text, ours, theirs)
    yield from norm(f'{ours}/post_norm', f'{theirs}.final_layer_norm')
    if siglip:
        yield from dense('params/text_projection', f'{theirs}.head')
        yield row('params/logit_bias', 'logit_bias', ONE)
    else:
        yield row('params/text_projection/kernel', 'text_projection.weight', LINEAR)
    yield row('params/logit_scale', 'logit_scale', ONE if siglip else SAME)


def layers(tower: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of the blocks of one tower, with separate query, key and value."""
    heads = tower['heads']
    for i in range(tower['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}.encoder.layers.{i}'
        yield from norm(f'{a}/attention_norm', f'{b}.layer_norm1')
        for part, name in (('kernel', 'weight'), ('bias', 'bias')):
            three = [f'{b}.self_attn.{x}_proj.{name}' for x in 'qkv']
            yield row(f'{a}/attention/qkv/{part}', three, joined(into_heads(3, heads), 3))
        yield from dense(f'{a}/attention/out', f'{b}.self_attn.out_proj', out_of_heads(heads))
        yield from norm(f'{a}/mlp_norm', f'{b}.layer_norm2')
        yield from mlp(f'{a}/mlp', f'{b}.mlp', 'fc1', 'fc2')


def pooling_head(heads: int) -> Iterator[Row]:
    """Yields the table of SigLIP's attention pooling, with fused query, key and value."""
    ours, theirs = 'params/image/attention_pool', 'vision_model.head'
    yield row(f'{ours}/probe', f'{theirs}.probe', LEADING_ONE)
    for part, name in (('kernel', 'weight'), ('bias', 'bias')):
        three = [f'{ours}/attention/{x}/{part}' for x in ('query', 'key', 'value')]
        yield row(three, f'{theirs}.attention.in_proj_{name}', divided(into_heads(heads), 3))
    yield from dense(f'{ours}/attention/out', f'{theirs}.attention.out_proj', out_of_heads(heads))
    yield from norm(f'{ours}/norm', f'{theirs}.layernorm')
    yield from mlp(f'{ours}/mlp', f'{theirs}.mlp', 'fc1', 'fc2')


def write(folder: pathlib.Path, card: Mapping[str, Any], variables: Mapping[str, Any]) -> list[Row]:
    """Writes config, weights, preprocessing and tokenizer files; returns the table applied."""
    model = card['model']
    siglip = model['text']['pool'] == 'last'
    config = config_of(model, siglip)
    _cards.check_expressible(model, architecture(config, what='huggingface'), 'huggingface')
    table = list(rows(model))
    arrays = _table.write(table, variables)
    preprocessor = _image_processor.written(card['preprocess'], siglip=siglip)
    for name, content in ((CONFIG, config), (_image_processor.PREPROCESSOR, preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + '\n')
    _files.save(folder / SAFETENSORS, arrays)
    _tokenizer_files.save(folder, card['tokenizer'])
    return table


def config_of(model: Mapping[str, Any], siglip: bool) -> dict[str, Any]:
    """Returns the `config.json` closest to an architecture; `write` checks that it is exact."""
    image, text, embed_dim = model['image'], model['text'], model['embed_dim']
    vision_config = {
        **_tower_of(image, 'the image encoder'),
        'image_size': image['image_size'],
        'patch_size': image.get('patch_size'),
    }
    naflex = _is_naflex(model)
    if naflex:
        side = vision_config.pop('image_size') // image['patch_size']
        vision_config['num_patches'] = side * side
    text_config = {
        **_tower_of(text, 'the text encoder'),
        'vocab_size': text['vocab_size'],
        'max_position_embeddings': text['context_length'],
    }
    if siglip:
        text_config['projection_size'] = embed_dim
        kind, special = 'siglip2' if naflex else 'siglip', {}
    else:
        eos = LEGACY_EOS if text['pool'] == 'argmax' else text['eot_id']
        vision_config['projection_dim'] = text_config['projection_dim'] = embed_dim
        text_config['eos_token_id'] = eos
        kind, special = 'clip', {'projection_dim': embed_dim}
        if text['pool'] == 'eot' and eos == LEGACY_EOS:
            kind = 'metaclip_2'
    return {
        'model_type': kind,
        'architectures': [_CLASSES[kind]],
        **special,
        'vision_config': {'model_type': f'{kind}_vision_model', **vision_config},
        'text_config': {'model_type': f'{kind}_text_model', **text_config},
        'dtype': 'float32',
    }


def _tower_of(tower: Mapping[str, Any], what: str) -> dict[str, Any]:
    if 'mlp_dim' not in tower:
        raise ValueError(
            f'the layout huggingface cannot hold this model: it has no {tower["name"]} as {what}'
        )
    return {
        'hidden_size': tower['width'],
        'intermediate_size': tower['mlp_dim'],
        'num_hidden_layers': tower['depth'],
        'num_attention_heads': tower['heads'],
        'hidden_act': {ours: theirs for theirs, ours in ACTIVATIONS.items()}[tower['activation']],
        'layer_norm_eps': tower['norm_eps'],
    }
