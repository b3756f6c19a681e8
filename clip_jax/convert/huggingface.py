"""Hugging Face folders: weights and the `config.json` of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP,
SigLIP 2 or TIPS v2, and of one tower of these.

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
    _hf_tips,
    _image_processor,
    _table,
    _tokenizer_files,
)
from clip_jax.convert._hf_defaults import DEFAULTS
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
    'tipsv2_dpt': 'heads for depth and segmentation are not supported; load the TIPS v2 below them',
    'clap': 'CLAP embeds audio, which is not supported; only images and texts are',
}
_PROCESSORS = {
    'chinese_clip': 'ChineseCLIPImageProcessor',
    'dinov2': 'BitImageProcessor',
    'dinov2_with_registers': 'BitImageProcessor',
    'dinov3_vit': 'DINOv3ViTImageProcessor',
    **dict.fromkeys((_hf_tips.KIND, *_hf_tips.TOWERS), 'Tipsv2ImageProcessor'),
}
_ENCODERS = ('vit', 'naflex', 'transformer', 'bert')
_SIGLIPS = ('siglip', 'siglip2')
_PREFIXES = ('vision_model.', 'text_model.', *_hf_tips.PREFIXES)
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
        return any(name.startswith(_PREFIXES) for name in names) or (
            _files.json_of(config)['model_type'] in {*TOWERS, *_hf_dino.DEFAULTS, *_hf_tips.TOWERS}
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
    tips = _hf_tips.describes(config['model_type'])
    theirs = _hf_tips.completed(theirs, fields) if tips else theirs
    # One tower alone may have no prefix before its names.
    prefixed = any(name.startswith(_PREFIXES) for name in theirs)
    model, variables = _cards.complete(
        fields,
        functools.partial(_hf_tips.rows if tips else rows, prefixed=prefixed),
        theirs,
        what=str(weights),
        image_size=_image_size_key(config),
        ignored=_ignored,
    )
    usual = _PROCESSORS.get(config['model_type'], 'CLIPImageProcessor')
    if _is_siglip(model):
        naflex = _is_naflex(model['image'])
        usual = _image_processor.NAFLEX if naflex else 'SiglipImageProcessor'
    if _hf_dino.holds(model['image']) and (size := _image_processor.size_of(folder, usual)):
        # Trained on larger images than transformers' processor makes.
        model, variables = _hf_dino.resized(model, variables, size, bilinear=tips)
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


def _image_size_key(config: Mapping[str, Any]) -> str:
    """Returns what a config calls the image size."""
    if _hf_tips.describes(config['model_type']):
        return _hf_tips.image_size_key(config)
    naflex = config['model_type'] == 'siglip2'
    return 'patch_size * num_patches ** 0.5' if naflex else 'vision_config.image_size'


def _ignored(name: str) -> bool:
    """Returns whether an array is no parameter that is read."""
    return name.endswith('.position_ids') or _hf_dino.ignored(name) or _hf_tips.ignored(name)


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
    dino, tips = _hf_dino.DEFAULTS, (_hf_tips.KIND, *_hf_tips.TOWERS)
    lookup.check(kind, [*DEFAULTS, *TOWERS, *dino, *tips], what=f'{what}: model_type')
    if kind in dino:
        return _hf_dino.architecture(config, what)
    if kind in tips:
        return _hf_tips.architecture(config, what)
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
    siglip, tips = _is_siglip(model), _hf_tips.holds(model)
    config = _hf_tips.config_of(model) if tips else config_of(model, siglip)
    table = list(_hf_tips.rows(model) if tips else rows(model))
    names = {name for row in table for name in row.theirs}
    _cards.check_expressible(model, architecture(config, names, what='huggingface'), 'huggingface')
    arrays = _table.write(table, variables)
    files = {CONFIG: config}
    if model['image']:
        rule = _image_processor.written(card['preprocess'], siglip=siglip)
        files[_image_processor.PREPROCESSOR] = rule
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
    if tower['name'] not in _ENCODERS:
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
