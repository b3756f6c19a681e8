"""The caption decoder of open_clip's CoCa: its config and its name table, `text_decoder.*`."""

from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from clip_jax.convert import _resblocks
from clip_jax.convert._table import (
    SAME,
    Row,
    dense,
    divided,
    into_heads,
    mlp,
    norm,
    out_of_heads,
    row,
)

Fields = Mapping[str, Any]

PREFIX = 'text_decoder.'
# open_clip passes on these keys of `multimodal_cfg`; the MLPs are always 4 times as wide.
CONFIG: dict[str, Any] = {
    'context_length': 77,
    'vocab_size': 49408,
    'width': 512,
    'heads': 8,
    'layers': 12,
    'ls_init_value': None,
}
MLP_RATIO = 4


def image_pool(vision: Fields, embed_dim: int, what: str) -> dict[str, Any]:
    """Returns the fields of the image encoder's pool, {} if it is not the attentional pooler."""
    if vision['attentional_pool'] not in (False, True):
        raise ValueError(
            f'{what}: vision_cfg.attentional_pool = {vision["attentional_pool"]!r} '
            'is not supported; true is'
        )
    if not vision['attentional_pool']:
        return {}
    return {
        'pool': 'queries',
        'pool_queries': vision['attn_pooler_queries'],
        'pool_heads': vision['attn_pooler_heads'],
        'pool_width': embed_dim,
    }


def image_pool_of(image: Fields) -> dict[str, Any]:
    """Returns the keys of `vision_cfg` for the attentional pooler."""
    return {
        'attentional_pool': True,
        'attn_pooler_queries': image['pool_queries'],
        'attn_pooler_heads': image['pool_heads'],
    }


def ignored(name: str, model: Fields) -> bool:
    """Returns whether an array is of a decoder that is not read."""
    return 'decoder' not in model and name.startswith(PREFIX)


def with_decoder(
    given: Fields | None, model: dict[str, Any], theirs: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Adds the decoder to the fields of a model, if its weights are there.

    Args:
        given: `multimodal_cfg`.
        model: the fields of the encoders.
        theirs: the arrays by name.
        what: the config; messages start with it.

    Raises:
        ValueError: sizes that open_clip itself cannot have.
    """
    if not any(name.startswith(PREFIX) for name in theirs):
        return model
    if given and model['image']['name'] == 'vit' and model['text']['name'] == 'transformer':
        return {**model, 'decoder': fields(given, model, what)}
    logging.warning(
        '%s: CoCa, whose caption decoder is left out: it needs multimodal_cfg and the encoders vit '
        'and transformer; the encoders are read',
        what,
    )
    return model


def with_config(config: dict[str, Any], model: Fields) -> dict[str, Any]:
    """Adds the decoder of a model, if it has one, to a `model_cfg`."""
    if not model.get('decoder'):
        return config
    # CoCa's encoders also return their tokens.
    towers = {x: {**config[x], 'output_tokens': True} for x in ('vision_cfg', 'text_cfg')}
    return {**config, **towers, 'multimodal_cfg': config_of(model['decoder'])}


def fields(given: Fields, model: Fields, what: str) -> dict[str, Any]:
    """Returns the fields of the decoder.

    Args:
        given: `multimodal_cfg`.
        model: the fields of the encoders.
        what: the config; error messages start with it.

    Raises:
        ValueError: sizes that open_clip itself cannot have.
    """
    config = {**CONFIG, **{k: v for k, v in given.items() if k in CONFIG}}
    image, text = model['image'], model['text']
    widths = {
        'multimodal_cfg.width': config['width'],
        'text_cfg.width': text['width'],
        'the width of image tokens': image.get('pool_width') or image['width'],
    }
    if len({*widths.values()}) > 1:
        found = ', '.join(f'{name} is {width}' for name, width in widths.items())
        raise ValueError(f'{what}: {found}; expected equal ones')
    if config['context_length'] < text['context_length']:
        raise ValueError(
            f'{what}: multimodal_cfg.context_length is {config["context_length"]}; expected at '
            f'least that of text_cfg, {text["context_length"]}'
        )
    return {
        'vocab_size': text['vocab_size'],  # of the logits; multimodal_cfg.vocab_size is not used
        'context_length': text['context_length'],
        'width': config['width'],
        'depth': config['layers'],
        'heads': config['heads'],
        'mlp_dim': MLP_RATIO * config['width'],
        'activation': 'quick_gelu' if text['activation'] == 'quick_gelu' else 'gelu',
        'layer_scale': config['ls_init_value'] or 0.0,
        'pad_id': text['pad_id'] or 0,
    }


def config_of(decoder: Fields) -> dict[str, Any]:
    """Returns the `multimodal_cfg` closest to a decoder."""
    config = {
        'context_length': decoder['context_length'],
        'vocab_size': decoder['vocab_size'],
        'width': decoder['width'],
        'heads': decoder['heads'],
        'layers': decoder['depth'],
    }
    if decoder['layer_scale']:
        config['ls_init_value'] = decoder['layer_scale']
    return config


def rows(decoder: Fields) -> Iterator[Row]:
    """Yields the table of the decoder."""
    ours, heads = 'params/decoder', decoder['heads']
    for i in range(decoder['depth']):
        yield from _resblocks.block(decoder, f'{ours}/block_{i}', f'{PREFIX}resblocks.{i}')
        a, b = f'{ours}/cross_block_{i}', f'{PREFIX}cross_attn.{i}'
        yield from norm(f'{a}/attention_norm', f'{b}.ln_1')
        yield from norm(f'{a}/image_norm', f'{b}.ln_1_kv')
        for kind, end in (('kernel', 'in_proj_weight'), ('bias', 'in_proj_bias')):
            parts = [f'{a}/attention/{name}/{kind}' for name in ('query', 'key', 'value')]
            yield row(parts, f'{b}.attn.{end}', divided(into_heads(heads), 3))
        yield from dense(f'{a}/attention/out', f'{b}.attn.out_proj', out_of_heads(heads))
        yield from norm(f'{a}/mlp_norm', f'{b}.ln_2')
        yield from mlp(f'{a}/mlp', f'{b}.mlp', 'c_fc', 'c_proj')
        yield from _resblocks.layer_scales(decoder, a, b)
    yield from norm(f'{ours}/post_norm', f'{PREFIX}ln_final')
    yield row(f'{ours}/logits/kernel', f'{PREFIX}text_projection', SAME)
