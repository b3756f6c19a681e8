"""open_clip folders: `open_clip_config.json` and safetensors, a .bin or a training checkpoint.

Towers are open_clip's own classes (CLIP, CLIPA, CoCa) or, for SigLIP, timm's ViT. Missing keys of
the config have the defaults of open_clip's CLIPVisionCfg and CLIPTextCfg.
"""

import functools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import (
    _cards,
    _coca,
    _files,
    _hf_text,
    _preprocess_cfg,
    _resblocks,
    _table,
    _timm_convnext,
    _timm_eva,
    _timm_mobileclip,
    _timm_siglip,
    _timm_vit,
    _tokenizer_files,
)
from clip_jax.convert._table import Row, dense
from clip_jax.runtime import foreign_json
from clip_jax.runtime.foreign_arrays import Array

Fields = Mapping[str, Any]

CONFIG = 'open_clip_config.json'
SAFETENSORS = 'open_clip_model.safetensors'
WEIGHTS = (
    SAFETENSORS,
    'open_clip_model.safetensors.index.json',
    'open_clip_pytorch_model.bin',
    'open_clip_pytorch_model.bin.index.json',
)
SIGLIP_BIAS = -10.0

VISION = {
    'layers': 12,
    'width': 768,
    'head_width': 64,
    'mlp_ratio': 4.0,
    'patch_size': 16,
    'image_size': 224,
    'ls_init_value': None,
    'patch_dropout': 0.0,
    'attentional_pool': False,
    'attn_pooler_queries': 256,
    'attn_pooler_heads': 8,
    'no_ln_pre': False,
    'final_ln_after_pool': False,
    'pool_type': 'tok',
    'act_kwargs': None,
    'norm_kwargs': None,
    'timm_model_name': None,
    'timm_pool': 'avg',
    'timm_proj': 'linear',
    'timm_proj_bias': False,
}
TEXT = {
    'context_length': 77,
    'vocab_size': 49408,
    'width': 512,
    'heads': 8,
    'layers': 12,
    'mlp_ratio': 4.0,
    'ls_init_value': None,
    'embed_cls': False,
    'pad_id': 0,
    'no_causal_mask': False,
    'pool_type': 'argmax',
    'eos_id': 2,
    'proj_type': 'linear',
    'proj_bias': False,
    'act_kwargs': None,
    'norm_kwargs': None,
    'hf_tokenizer_name': None,
    'tokenizer_kwargs': None,
}
MODEL = {
    'embed_dim': None,
    'vision_cfg': None,
    'text_cfg': None,
    'quick_gelu': False,
    'custom_text': False,
    'init_logit_scale': None,
    'init_logit_bias': None,
    'nonscalar_logit_scale': False,
    'multimodal_cfg': None,
}
_PARTS = {
    'vision_cfg': (dict, None),
    'text_cfg': ({'hf_tokenizer_name': (str, None)}, None),
    'multimodal_cfg': (dict, None),
}
# Keys that do not change the model's outputs at inference.
_OF_NO_EFFECT = {
    'timm_model_pretrained',
    'timm_drop',
    'timm_drop_path',
    'output_tokens',
    'pos_embed_type',  # fixed embeddings are saved like learned ones
    'bos_id',
}
IMAGE_POOLS = {'tok': 'cls', 'avg': 'mean'}
TRUNK = 'visual.trunk.'  # before the names of timm's weights
# Of timm's image encoders.
FAMILIES = (_timm_siglip, _timm_convnext, _timm_eva, _timm_vit, _timm_mobileclip)
TEXT_POOLS = {'argmax': 'argmax', 'last': 'last', 'eos': 'eot'}


def describes(config: pathlib.Path) -> bool:
    """Returns whether a file named `CONFIG` is this layout's: `WEIGHTS` are then beside it."""
    return config.is_file()


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a path is an open_clip folder, or a weight file in one."""
    if not describes(_files.folder_of(path) / CONFIG):
        return False
    if path.is_file():
        return any(name.startswith('visual.') for name in _files.names_of(path))
    return any((path / name).is_file() for name in WEIGHTS)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a folder, or one weight file in it."""
    folder = _files.folder_of(path)
    what = str(folder / CONFIG)
    config, model_cfg = settings(folder)
    weights = _files.locate(path, WEIGHTS)
    theirs = _files.arrays(weights)
    with _cards.understood(what):
        fields = architecture(model_cfg, theirs, what=what, folder=folder)
    prefix = 'text.' if any(name.startswith('text.') for name in theirs) else ''
    model, variables = _cards.complete(
        fields,
        functools.partial(rows, text=prefix),
        theirs,
        what=str(weights),
        image_size='vision_cfg.image_size',
        ignored=lambda name: _ignored(name) or _coca.ignored(name, fields),
    )
    card = {
        'model': model,
        'preprocess': _preprocess_cfg.read(
            config.get('preprocess_cfg'), model['image']['image_size'], what=what
        ),
        'tokenizer': _tokenizer_files.open_clip(
            folder, model['text'], model_cfg['text_cfg'], what=what
        ),
    }
    return card, variables


def settings(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a folder's config, and its `model_cfg` with the defaults."""
    what = f'{folder / CONFIG}: model_cfg'
    config = _files.json_of(folder / CONFIG)
    inner = foreign_json.check(config.get('model_cfg', config), _PARTS, what)
    return config, _filled(inner, MODEL, what)


def _ignored(name: str) -> bool:
    return _resblocks.ignored(name) or _hf_text.ignored(name)


def architecture(
    config: Fields,
    theirs: Mapping[str, Array],
    *,
    what: str,
    folder: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Returns the card's `model` that a `model_cfg` describes; `folder` is where it is."""
    for key in ('embed_dim', 'vision_cfg', 'text_cfg'):
        if not config[key]:
            raise ValueError(f'{what}: model_cfg.{key} is missing')
    vision = _filled(config['vision_cfg'] or {}, VISION, f'{what}: vision_cfg')
    quick = bool(config['quick_gelu'])
    if vision['timm_model_name']:
        image, image_proj = timm(vision, theirs, what)
    elif isinstance(vision['layers'], list):
        image, image_proj = resnet(vision), 'biased'
    else:
        image, image_proj = vit(vision, config['embed_dim'], quick, what), 'linear'
    if config['text_cfg'].get('hf_model_name'):
        try:
            text, text_proj = _hf_text.fields(folder, config['text_cfg'], theirs, what)
        except KeyError as error:
            raise ValueError(f'{what}: the weights lack {_hf_text.TRUNK}{error.args[0]}') from error
    else:
        text, text_proj = transformer(config['text_cfg'], quick, what)
    model = {
        'image': image,
        'text': text,
        'embed_dim': config['embed_dim'],
        'image_proj': image_proj,
        'text_proj': text_proj,
        'init_logit_bias': _logit_bias(config, theirs),
    }
    return _coca.with_decoder(config['multimodal_cfg'], model, theirs, what)


def transformer(given: Fields, quick: bool, what: str) -> tuple[dict[str, Any], str]:
    """Returns the fields of open_clip's TextTransformer, and the kind of its projection."""
    text = _filled(given, TEXT, f'{what}: text_cfg')
    lookup.check(text['pool_type'], TEXT_POOLS, what=f'{what}: text_cfg.pool_type')
    lookup.check(text['proj_type'], ['linear', 'none'], what=f'{what}: text_cfg.proj_type')
    fields = {
        'name': 'transformer',
        'vocab_size': text['vocab_size'],
        'context_length': text['context_length'],
        'heads': text['heads'],
        'depth': text['layers'],
        'causal': not text['no_causal_mask'],
        'pool': 'cls' if text['embed_cls'] else TEXT_POOLS[text['pool_type']],
        'eot_id': text['eos_id'],
        'pad_id': text['pad_id'] if text['embed_cls'] else None,
        **_common(text, quick),
    }
    return fields, _projection(text['proj_type'], text['proj_bias'])


def _logit_bias(config: Fields, theirs: Mapping[str, Array]) -> float | None:
    """Returns the initial logit bias; training with --siglip adds one that no config names."""
    given = config['init_logit_bias']
    return SIGLIP_BIAS if given is None and 'logit_bias' in theirs else given


def _filled(given: Fields, defaults: Fields, what: str) -> dict[str, Any]:
    """Returns a part of a config with its defaults; ValueError for unsupported keys."""
    for key, value in given.items():
        no_effect = value in (None, False, 0, '') or key in _OF_NO_EFFECT
        if key not in defaults and not no_effect:
            raise ValueError(f'{what}.{key} = {value!r} is not supported')
    return {**defaults, **given}


def _common(config: Fields, quick: bool) -> dict[str, Any]:
    """Returns the fields that both towers of open_clip's classes have."""
    tanh = (config['act_kwargs'] or {}).get('approximate') == 'tanh'
    return {
        'width': config['width'],
        'mlp_dim': int(config['width'] * config['mlp_ratio']),
        'activation': 'quick_gelu' if quick else 'gelu_tanh' if tanh else 'gelu',
        'norm_eps': (config['norm_kwargs'] or {}).get('eps', 1e-5),
        'layer_scale': config['ls_init_value'] or 0.0,
    }


def vit(vision: Fields, embed_dim: int, quick: bool, what: str) -> dict[str, Any]:
    """Returns the fields of open_clip's VisionTransformer."""
    lookup.check(vision['pool_type'], IMAGE_POOLS, what=f'{what}: vision_cfg.pool_type')
    return {
        'name': 'vit',
        'image_size': _one(vision['image_size'], f'{what}: vision_cfg.image_size'),
        'patch_size': _one(vision['patch_size'], f'{what}: vision_cfg.patch_size'),
        'heads': vision['width'] // vision['head_width'],
        'depth': vision['layers'],
        'class_token': True,
        'pre_norm': not vision['no_ln_pre'],
        'norm_after_pool': vision['final_ln_after_pool'],
        'patch_dropout': vision['patch_dropout'],
        **_common(vision, quick),
        'pool': IMAGE_POOLS[vision['pool_type']],
        **_coca.image_pool(vision, embed_dim, what),
    }


def _one(size: Any, what: str) -> int:
    """Returns a size that is given as one number or as two equal ones."""
    sizes = set(size) if isinstance(size, list) else {size}
    if len(sizes) != 1:
        raise ValueError(f'{what} is {size}; only square sizes are supported')
    return sizes.pop()


def resnet(vision: Fields) -> dict[str, Any]:
    """Returns the fields of open_clip's ModifiedResNet."""
    return {
        'name': 'resnet',
        'image_size': vision['image_size'],
        'width': vision['width'],
        'depths': vision['layers'],
        'heads': vision['width'] * 32 // vision['head_width'],
    }


def timm(vision: Fields, theirs: Mapping[str, Array], what: str) -> tuple[dict[str, Any], str]:
    """Returns the fields of an image encoder of timm, and the kind of its projection."""
    family = next((x for x in FAMILIES if x.takes(vision)), None)
    if family is None:
        raise ValueError(
            f'{what}: timm model {vision["timm_model_name"]!r} with pooling '
            f'{vision["timm_pool"]!r} is not supported; supported timm models are those of SigLIP '
            '(vit_*_siglip_*, pooling map), convnext_*, eva_*, eva02_*, vit_pe_core_*, '
            f'{", ".join([*_timm_vit.TRUNKS, *_timm_mobileclip.TRUNKS])}'
        )
    shapes = {
        name.removeprefix(TRUNK): x.shape for name, x in theirs.items() if name.startswith(TRUNK)
    }
    image_size = _one(vision['image_size'], f'{what}: vision_cfg.image_size')
    try:
        fields = family.fields(vision, shapes, image_size)
    except KeyError as error:
        raise ValueError(f'{what}: the weights lack {TRUNK}{error.args[0]}') from error
    if vision['patch_dropout'] and 'patch_dropout' not in fields:
        raise ValueError(
            f'{what}: vision_cfg.patch_dropout is {vision["patch_dropout"]}; with '
            f'{vision["timm_model_name"]} only 0 is supported; set it to 0'
        )
    kind = vision['timm_proj'] or 'none'
    if family.HEAD:
        if kind != 'none':
            raise ValueError(f'{what}: vision_cfg.timm_proj is {kind!r}; only null is supported')
        return fields, 'biased'
    lookup.check(kind, ['none', 'linear', 'mlp'], what=f'{what}: vision_cfg.timm_proj')
    if kind == 'mlp' and vision['timm_proj_bias']:
        raise ValueError(
            f'{what}: vision_cfg.timm_proj_bias is true with timm_proj mlp; only false is supported'
        )
    if kind == 'mlp':
        return fields, 'wide_mlp'
    return fields, _projection(kind, vision['timm_proj_bias'])


def _projection(kind: str, bias: bool) -> str:
    return 'biased' if kind == 'linear' and bias else kind


def rows(model: Fields, text: str = '') -> Iterator[Row]:
    """Yields the table of the whole model; `text` is the prefix of the text tower's names."""
    family = _family(model['image'], model['image_proj'])
    if family is None:
        yield from _resblocks.image_rows(model)
    else:
        yield from family.rows(model['image'])
        yield from _projection_rows(model['image_proj'], family.HEAD)
    if _hf_text.holds(model['text']):
        yield from _hf_text.rows(model)
    else:
        yield from _resblocks.text_rows(model, text)
    if model.get('decoder'):
        yield from _coca.rows(model['decoder'])


def _projection_rows(kind: str, classifier: str) -> Iterator[Row]:
    """Yields the table of the projection after an image encoder of timm."""
    ours, theirs = 'params/image_projection', 'visual.head'
    if kind == 'wide_mlp':
        yield from dense(f'{ours}/in', f'{theirs}.mlp.fc1')
        yield from dense(f'{ours}/out', f'{theirs}.mlp.fc2', bias=False)
    elif kind != 'none':
        yield from dense(ours, classifier or f'{theirs}.proj', bias=kind == 'biased')


def _family(image: Fields, projection: str) -> Any:
    """Returns the family of timm that an image encoder belongs to; None: open_clip's own class."""
    whole = {**image, 'image_proj': projection}
    return next((x for x in FAMILIES if x.holds(whole)), None)


def write(folder: pathlib.Path, card: Fields, variables: Fields) -> list[Row]:
    """Writes config, weights and tokenizer files; returns the table applied."""
    preprocess_cfg = _preprocess_cfg.written(card['preprocess'])
    model, config = card['model'], config_of(card['model'])
    table = list(rows(model, 'text.' if config['custom_text'] else ''))
    arrays = _table.write(table, variables)
    # pyrefly: ignore[bad-argument-type]  # never read: the architecture follows from the shapes
    lazy = {name: Array(x.shape, x.dtype, lambda: None) for name, x in arrays.items()}
    again = architecture(_filled(config, MODEL, 'open_clip'), lazy, what='open_clip')
    _cards.check_expressible(model, again, 'open_clip')
    config['text_cfg'] |= _tokenizer_files.open_clip_config(card['tokenizer'])
    content = {'model_cfg': config, 'preprocess_cfg': preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + '\n')
    _files.save(folder / SAFETENSORS, arrays)
    _tokenizer_files.save(folder, card['tokenizer'])
    return table


def config_of(model: Fields) -> dict[str, Any]:
    """Returns the `model_cfg` closest to an architecture; `write` checks that it is exact."""
    image, foreign = model['image'], _hf_text.holds(model['text'])
    family, quick = _family(image, model['image_proj']), image if foreign else model['text']
    config: dict[str, Any] = {
        'embed_dim': model['embed_dim'],
        'quick_gelu': quick.get('activation') == 'quick_gelu',
        'custom_text': foreign
        or (family is not None and family.CUSTOM_TEXT)
        or model['text'].get('pool') == 'cls',
        'vision_cfg': _vision_of(image, model['image_proj']),
        'text_cfg': _hf_text.text_of(model) if foreign else _text_of(model),
    }
    if model['init_logit_bias'] is not None:
        config['init_logit_bias'] = model['init_logit_bias']
    return _coca.with_config(config, model)


def _text_of(model: Fields) -> dict[str, Any]:
    text = model['text']
    return {
        'context_length': text['context_length'],
        'vocab_size': text['vocab_size'],
        'heads': text['heads'],
        'layers': text['depth'],
        'no_causal_mask': not text['causal'],
        **_text_pool_of(text),
        'proj_type': 'none' if model['text_proj'] == 'none' else 'linear',
        'proj_bias': model['text_proj'] == 'biased',
        **_common_of(text),
    }


def _text_pool_of(text: Fields) -> dict[str, Any]:
    if text['pool'] == 'cls':
        return {'embed_cls': True, 'pad_id': text['pad_id']}
    pool = {'pool_type': _inverse(TEXT_POOLS, text['pool'], 'text pool')}
    return {**pool, 'eos_id': text['eot_id']} if text['pool'] == 'eot' else pool


def _vision_of(image: Fields, projection: str) -> dict[str, Any]:
    if image['name'] == 'resnet':
        return {
            'image_size': image['image_size'],
            'layers': image['depths'],
            'width': image['width'],
            'head_width': image['width'] * 32 // image['heads'],
            'patch_size': None,
        }
    if family := _family(image, projection):
        return {
            'image_size': image['image_size'],
            **family.vision_of(image),
            'timm_model_pretrained': False,
            'timm_proj': _timm_projection(family, projection),
            'timm_proj_bias': projection == 'biased' and not family.HEAD,
        }
    return {
        'image_size': image['image_size'],
        'patch_size': image['patch_size'],
        'layers': image['depth'],
        'head_width': image['width'] // image['heads'],
        'no_ln_pre': not image['pre_norm'],
        **_image_pool_of(image),
        'final_ln_after_pool': image['norm_after_pool'],
        'patch_dropout': image['patch_dropout'],
        **_common_of(image),
    }


def _image_pool_of(image: Fields) -> dict[str, Any]:
    if image['pool'] == 'queries':
        return _coca.image_pool_of(image)
    return {'pool_type': _inverse(IMAGE_POOLS, image['pool'], 'image pool')}


def _timm_projection(family: Any, projection: str) -> str | None:
    if family.HEAD:
        return None
    return {'none': 'none', 'wide_mlp': 'mlp'}.get(projection, 'linear')


def _inverse(table: Mapping[str, Any], value: Any, what: str) -> str:
    for key, x in table.items():
        if x == value:
            return key
    raise ValueError(
        f'the layout open_clip cannot hold this model: it has no {what} {value!r}, '
        f'but {", ".join(map(repr, table.values()))}'
    )


def _common_of(tower: Fields) -> dict[str, Any]:
    width, mlp_dim = tower['width'], tower['mlp_dim']
    ratio = mlp_dim / width
    while int(width * ratio) < mlp_dim:  # rounding may make the product too small
        ratio = math.nextafter(ratio, math.inf)
    config: dict[str, Any] = {'width': width, 'mlp_ratio': ratio}
    if tower['layer_scale']:
        config['ls_init_value'] = tower['layer_scale']
    if tower['activation'] == 'gelu_tanh':
        config['act_kwargs'] = {'approximate': 'tanh'}
    if tower['norm_eps'] != 1e-5:
        config['norm_kwargs'] = {'eps': tower['norm_eps']}
    return config
