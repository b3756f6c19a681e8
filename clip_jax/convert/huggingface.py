"""Hugging Face folders: weights and the `config.json` of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP or
SigLIP 2, and of one tower of these.

SigLIP 2 at fixed resolution is a SigLIP, and for images of any size (NaFlex) a `siglip2`. Missing
keys of the config have the defaults of transformers' classes.
"""

import functools
import json
import math
import pathlib
from collections.abc import Container, Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import (
    _cards,
    _files,
    _hf_dino,
    _hf_text,
    _image_processor,
    _table,
    _tokenizer_files,
)
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
CHINESE_TOKENS = 52  # of a text in Chinese-CLIP's training; the table of positions is longer
# Old configs of CLIP have eos_token_id 2, which is ignored: the text is pooled at the largest id.
LEGACY_EOS = 2
_CLASSES = {
    'clip': 'CLIPModel',
    'metaclip_2': 'MetaClip2Model',
    'chinese_clip': 'ChineseCLIPModel',
    'siglip': 'SiglipModel',
    'siglip2': 'Siglip2Model',
}
# `model_type` of one tower alone -> that of both, and the part of its config.
TOWERS = {
    f'{kind}_{name}_model': (kind, f'{name}_config')
    for kind in DEFAULTS
    for name in ('vision', 'text')
    if kind not in ('chinese_clip', 'siglip2')
}
_REFUSED = {
    'clipseg': 'CLIPSeg segments images and is not supported; load the CLIP that it was made from',
    'clap': 'CLAP embeds audio, which is not supported; only images and texts are',
}
_PROCESSORS = {
    'chinese_clip': 'ChineseCLIPImageProcessor',
    'dinov2': 'BitImageProcessor',
    'dinov2_with_registers': 'BitImageProcessor',
    'dinov3_vit': 'DINOv3ViTImageProcessor',
}
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
        names = list(_files.names_of(path))
        return any(name.startswith(('vision_model.', 'text_model.')) for name in names) or (
            _files.json_of(config)['model_type'] in {*TOWERS, *_hf_dino.DEFAULTS}
            and not any('visual.' in x for x in names)
        )
    return any((path / name).is_file() for name in WEIGHTS)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a folder, or one weight file in it."""
    folder = _files.folder_of(path)
    config = _files.json_of(folder / CONFIG)
    weights = _files.locate(path, WEIGHTS)
    theirs = _files.arrays(weights)
    with _cards.understood(str(folder / CONFIG)):
        fields = architecture(config, theirs, what=str(folder / CONFIG))
    # One tower alone may have no prefix before its names.
    prefixed = any(name.startswith(('vision_model.', 'text_model.')) for name in theirs)
    model, variables = _cards.complete(
        fields,
        functools.partial(rows, prefixed=prefixed),
        theirs,
        what=str(weights),
        image_size=(
            'patch_size * num_patches ** 0.5'
            if config['model_type'] == 'siglip2'
            else 'vision_config.image_size'
        ),
        ignored=lambda name: name.endswith('.position_ids') or _hf_dino.ignored(name),
    )
    usual = _PROCESSORS.get(config['model_type'], 'CLIPImageProcessor')
    if _is_siglip(model):
        naflex = _is_naflex(model['image'])
        usual = _image_processor.NAFLEX if naflex else 'SiglipImageProcessor'
    if _hf_dino.holds(model['image']) and (size := _image_processor.size_of(folder, usual)):
        # Trained on larger images than transformers' processor makes.
        model, variables = _hf_dino.resized(model, variables, size)
    image, text = model['image'], model['text']
    card = {
        'model': model,
        'preprocess': image
        and _image_processor.read(
            folder,
            image['image_size'],
            usual=usual,
            patch_size=image['patch_size'] if _is_naflex(image) else None,
        ),
        'tokenizer': text and _tokenizer_files.huggingface(folder, text),
    }
    return card, variables


def _is_siglip(model: Mapping[str, Any]) -> bool:
    text = model['text']
    return text['pool'] == 'last' if text else model['image'].get('pool') == 'map'


def architecture(config: Mapping[str, Any], names: Container[str], *, what: str) -> dict[str, Any]:
    """Returns the card's `model` that a `config.json` describes; `names` are those of its weights,
    which decide whether one tower alone has a projection.
    """
    kind = config['model_type']
    if kind in _REFUSED:
        raise ValueError(f'{what}: {_REFUSED[kind]}')
    lookup.check(kind, [*DEFAULTS, *TOWERS, *_hf_dino.DEFAULTS], what=f'{what}: model_type')
    if kind in _hf_dino.DEFAULTS:
        return _hf_dino.architecture(config, what)
    if kind in TOWERS:
        return _one_tower(config, names, what)
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
        'text': _bert(text, what)
        if kind == 'chinese_clip'
        else {
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


def _is_naflex(image: Mapping[str, Any] | None) -> bool:
    return image is not None and image['name'] == 'naflex'


def _side(vision: Mapping[str, Any], what: str) -> int:
    """The positions along each axis, of which a NaFlex config has the number in all."""
    count = vision['num_patches']
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f'{what}: vision_config.num_patches is {count}; expected a square number')
    return side


def _bert(text: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {
        'name': 'bert',
        **_tower(text, what),
        'vocab_size': text['vocab_size'],
        'context_length': min(CHINESE_TOKENS, text['max_position_embeddings']),
        'max_positions': text['max_position_embeddings'],
        'token_types': text['type_vocab_size'],
        'pad_id': text['pad_token_id'],
        'numbering': 'all',
        'pool': 'cls',
    }


def _one_tower(config: Mapping[str, Any], names: Container[str], what: str) -> dict[str, Any]:
    """Returns the card's `model` of one tower alone."""
    kind, part = TOWERS[config['model_type']]
    both = {**config, 'model_type': kind, part: config}
    fields = architecture(both, names, what=what)
    image = part == 'vision_config'
    ours, other = ('image', 'text') if image else ('text', 'image')
    fields |= {other: None, f'{other}_proj': 'none', 'init_logit_bias': None}
    name = 'visual_projection' if image else 'text_projection'
    named = any('WithProjection' in str(x) for x in config.get('architectures') or ())
    projected = named or f'{name}.weight' in names
    if image if kind == 'siglip' else not projected:
        fields |= {f'{ours}_proj': 'none', 'embed_dim': fields[ours]['width']}
    return fields


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


def rows(model: Mapping[str, Any], *, prefixed: bool = True) -> Iterator[Row]:
    """Yields the table of the whole model; `prefixed`: whether names start with `vision_model.` or
    `text_model.`, without which there is only one tower.
    """
    siglip = _is_siglip(model)
    if _hf_dino.holds(model['image']):
        yield from _hf_dino.rows(model['image'])
    elif model['image']:
        yield from _image_rows(model, 'vision_model.' if prefixed else '')
    if model['text']:
        yield from _text_rows(model, 'text_model.' if prefixed else '')
    if model['image'] and model['text']:
        yield row('params/logit_scale', 'logit_scale', ONE if siglip else SAME)
        if siglip:
            yield row('params/logit_bias', 'logit_bias', ONE)


def _image_rows(model: Mapping[str, Any], theirs: str) -> Iterator[Row]:
    ours, image = 'params/image', model['image']
    at = f'{theirs}embeddings'
    kernel = PATCHES if _is_naflex(image) else CONV
    yield row(f'{ours}/patch_embedding/kernel', f'{at}.patch_embedding.weight', kernel)
    yield row(f'{ours}/position_embedding', f'{at}.position_embedding.weight', SAME)
    if _is_naflex(image) or image['pool'] == 'map':
        yield row(f'{ours}/patch_embedding/bias', f'{at}.patch_embedding.bias', SAME)
        yield from pooling_head(image['heads'], f'{theirs}head')
    else:
        yield row(f'{ours}/class_embedding', f'{at}.class_embedding', SAME)
        yield from norm(f'{ours}/pre_norm', f'{theirs}pre_layrnorm')
    if model['image_proj'] == 'linear':
        yield row('params/image_projection/kernel', 'visual_projection.weight', LINEAR)
    yield from layers(image, ours, theirs)
    yield from norm(f'{ours}/post_norm', f'{theirs}post_layernorm')


def _text_rows(model: Mapping[str, Any], theirs: str) -> Iterator[Row]:
    ours = 'params/text'
    at = f'{theirs}embeddings'
    if model['text']['name'] == 'bert':
        yield from _hf_text.bert(model['text'], ours, theirs.removesuffix('.'))
    else:
        yield row(f'{ours}/token_embedding/embedding', f'{at}.token_embedding.weight', SAME)
        yield row(f'{ours}/position_embedding', f'{at}.position_embedding.weight', SAME)
        yield from layers(model['text'], ours, theirs)
        yield from norm(f'{ours}/post_norm', f'{theirs}final_layer_norm')
    if model['text_proj'] == 'biased':
        yield from dense('params/text_projection', f'{theirs}head')
    elif model['text_proj'] == 'linear':
        yield row('params/text_projection/kernel', 'text_projection.weight', LINEAR)


def layers(tower: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of the blocks of one tower, with separate query, key and value."""
    heads = tower['heads']
    for i in range(tower['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}encoder.layers.{i}'
        yield from norm(f'{a}/attention_norm', f'{b}.layer_norm1')
        for part, name in (('kernel', 'weight'), ('bias', 'bias')):
            three = [f'{b}.self_attn.{x}_proj.{name}' for x in 'qkv']
            yield row(f'{a}/attention/qkv/{part}', three, joined(into_heads(3, heads), 3))
        yield from dense(f'{a}/attention/out', f'{b}.self_attn.out_proj', out_of_heads(heads))
        yield from norm(f'{a}/mlp_norm', f'{b}.layer_norm2')
        yield from mlp(f'{a}/mlp', f'{b}.mlp', 'fc1', 'fc2')


def pooling_head(heads: int, theirs: str) -> Iterator[Row]:
    """Yields the table of SigLIP's attention pooling, with fused query, key and value."""
    ours = 'params/image/attention_pool'
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
    siglip = _is_siglip(model)
    config = config_of(model, siglip)
    table = list(rows(model))
    names = {name for row in table for name in row.theirs}
    _cards.check_expressible(model, architecture(config, names, what='huggingface'), 'huggingface')
    arrays = _table.write(table, variables)
    files = {CONFIG: config}
    if model['image']:
        processor = _image_processor.written(card['preprocess'], siglip=siglip)
        files[_image_processor.PREPROCESSOR] = processor
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + '\n')
    _files.save(folder / SAFETENSORS, arrays)
    _tokenizer_files.save(folder, card['tokenizer'])
    return table


def config_of(model: Mapping[str, Any], siglip: bool) -> dict[str, Any]:
    """Returns the `config.json` closest to an architecture; `write` checks that it is exact."""
    image, text, embed_dim = model['image'], model['text'], model['embed_dim']
    if _hf_dino.holds(image) and not text:
        return _hf_dino.config_of(model)
    naflex = _is_naflex(image)
    kind = 'siglip2' if naflex else 'siglip' if siglip else 'clip'
    parts = {}
    if image:
        parts['vision'] = {
            **_tower_of(image, 'the image encoder'),
            'image_size': image['image_size'],
            'patch_size': image.get('patch_size'),
        }
        if naflex:
            side = parts['vision'].pop('image_size') // image['patch_size']
            parts['vision']['num_patches'] = side * side
    if text:
        parts['text'] = {
            **_tower_of(text, 'the text encoder'),
            'vocab_size': text['vocab_size'],
            'max_position_embeddings': text['context_length'],
        }
        if siglip:
            parts['text']['projection_size'] = embed_dim
        elif text['name'] == 'bert':
            kind = 'chinese_clip'
            parts['text'] |= {
                'max_position_embeddings': text['max_positions'],
                'type_vocab_size': text['token_types'],
                'pad_token_id': text['pad_id'],
            }
        else:
            eos = LEGACY_EOS if text['pool'] == 'argmax' else text['eot_id']
            parts['text']['eos_token_id'] = eos
            kind = 'metaclip_2' if text['pool'] == 'eot' and eos == LEGACY_EOS else 'clip'
    special = {} if siglip else {'projection_dim': embed_dim}
    for name, part in parts.items():
        parts[name] = {'model_type': f'{kind}_{name}_model', **part, **special}
    if len(parts) == 1:
        ((name, part),) = parts.items()
        linear = 'linear' in (model['image_proj'], model['text_proj'])
        end = f'{name.title()}Model{"WithProjection" if linear else ""}'
        return {**part, 'architectures': [_CLASSES[kind].replace('Model', end)], 'dtype': 'float32'}
    return {
        'model_type': kind,
        'architectures': [_CLASSES[kind]],
        **special,
        **{f'{name}_config': part for name, part in parts.items()},
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
