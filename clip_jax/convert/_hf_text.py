"""Text encoders of transformers in open_clip's checkpoints: `text.transformer.*`, `text.proj.*`.

The settings of such an encoder are not in open_clip's folder, which only names a repository: sizes
follow from the shapes of the weights, and the rest from `KNOWN` or from a `config.json` beside it.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import _files
from clip_jax.convert._table import (
    LINEAR,
    SAME,
    Row,
    dense,
    into_heads,
    joined,
    mlp,
    norm,
    out_of_heads,
    row,
)
from clip_jax.runtime.foreign_arrays import Array

Fields = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

CONFIG = 'config.json'
DEFAULTS: dict[str, Any] = {
    'hf_model_name': None,
    'hf_model_pretrained': True,
    'hf_proj_type': 'mlp',
    'hf_pooler_type': 'mean_pooler',
    'context_length': 77,
    'hf_tokenizer_name': None,
    'tokenizer_kwargs': None,
}
TRUNK = 'text.transformer.'
_GELU = {'activation': 'gelu'}
_BERT = {'name': 'bert', 'pad_id': 0, 'norm_eps': 1e-12, 'numbering': 'all', **_GELU}
_ROBERTA = {'name': 'bert', 'pad_id': 1, 'norm_eps': 1e-5, 'numbering': 'text', **_GELU}
_NLLB = {'name': 'nllb', 'pad_id': 1, 'norm_eps': 1e-5, 'activation': 'relu'}
# Kinds of transformers, `model_type`: what their files say if nothing else is given.
_KINDS = {'bert': _BERT, 'roberta': _ROBERTA, 'xlm-roberta': _ROBERTA, 'm2m_100': _NLLB}


def _sizes(width: int, depth: int, mlp_dim: int, vocab_size: int, heads: int = 0) -> dict[str, int]:
    sizes = {'width': width, 'depth': depth, 'mlp_dim': mlp_dim, 'vocab_size': vocab_size}
    return {**sizes, 'heads': heads or width // 64}


# Repository -> the fields of its encoder. PubMedBERT is BiomedCLIP's.
_PUBMED = {**_BERT, **_sizes(768, 12, 3072, 30522), 'max_positions': 512, 'token_types': 2}
_OF_ROBERTA = {**_ROBERTA, 'max_positions': 514, 'token_types': 1}
KNOWN: dict[str, dict[str, Any]] = {
    'roberta-base': {**_OF_ROBERTA, **_sizes(768, 12, 3072, 50265)},
    'roberta-large': {**_OF_ROBERTA, **_sizes(1024, 24, 4096, 50265)},
    'xlm-roberta-base': {**_OF_ROBERTA, **_sizes(768, 12, 3072, 250002)},
    'xlm-roberta-large': {**_OF_ROBERTA, **_sizes(1024, 24, 4096, 250002)},
    'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract': _PUBMED,
    'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext': _PUBMED,
    'microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract': _PUBMED,
    'microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext': _PUBMED,
    'facebook/nllb-200-distilled-600M': {**_NLLB, **_sizes(1024, 12, 4096, 256206)},
    'facebook/nllb-200-distilled-1.3B': {**_NLLB, **_sizes(1024, 24, 8192, 256206)},
}
KNOWN |= {f'FacebookAI/{name}': KNOWN[name] for name in [*KNOWN] if 'roberta' in name}
_POOLS = {'mean_pooler': 'mean', 'cls_last_hidden_state_pooler': 'cls', 'cls_pooler': 'cls_dense'}
# What the config of a model of transformers must say, or leave out, beyond its sizes.
_CONFIG = {
    'model_type': str,
    'hidden_act': (str, None),
    'activation_function': (str, None),
    'num_attention_heads': (int, None),
    'encoder_attention_heads': (int, None),
    'layer_norm_eps': (float, None),
    'pad_token_id': (int, None),
    'position_embedding_type': (str, None),
    'scale_embedding': (bool, None),
    'is_decoder': (bool, None),
}
_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
_ACTIVATIONS |= {'quick_gelu': 'quick_gelu', 'relu': 'relu'}


def fields(
    folder: pathlib.Path | None, text: Fields, theirs: Mapping[str, Array], what: str
) -> tuple[dict[str, Any], str]:
    """Returns the fields of a text encoder, and the kind of its projection.

    Args:
        folder: where a `config.json` may be; None: nowhere.
        text: the `text_cfg`.
        theirs: the checkpoint's arrays by name.
        what: the file of `text_cfg`.

    Raises:
        ValueError: the encoder is not one of these, or a setting is not supported.
        KeyError: a weight is missing.
    """
    given = {**DEFAULTS, **text}
    for key, value in text.items():
        if key not in DEFAULTS and value not in (None, False, 0, ''):
            raise ValueError(
                f'{what}: text_cfg.{key} = {value!r} is not supported beside hf_model_name'
            )
    pool = given['hf_pooler_type']
    if pool is None:
        raise ValueError(
            f'{what}: text_cfg.hf_pooler_type is null; give one of {", ".join(_POOLS)}'
        )
    lookup.check(pool, _POOLS, what=f'{what}: text_cfg.hf_pooler_type')
    shapes = {n.removeprefix(TRUNK): x.shape for n, x in theirs.items() if n.startswith(TRUNK)}
    found = {**_by_name(folder, given['hf_model_name'], what)}
    found |= _sizes_of_nllb(shapes) if found['name'] == 'nllb' else _sizes_of_bert(shapes)
    found['pool'] = 'cls' if found['name'] == 'nllb' and pool == 'cls_pooler' else _POOLS[pool]
    kind = given['hf_proj_type'] or 'none'
    lookup.check(kind, ('linear', 'mlp', 'none'), what=f'{what}: text_cfg.hf_proj_type')
    return {**found, 'context_length': given['context_length']}, kind


def _by_name(folder: pathlib.Path | None, name: Any, what: str) -> dict[str, Any]:
    """Returns what no shape tells: the kind of the encoder, its heads, padding and norms."""
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    path = None if folder is None else folder / CONFIG
    if path is None or not path.is_file():
        known = ', '.join(KNOWN)
        raise ValueError(
            f'{what}: text_cfg.hf_model_name is {name!r}, whose settings are not known here; put '
            f'the {CONFIG} of that model into the same folder, or name one of {known}'
        )
    return _by_config(_files.json_of(path, _CONFIG), str(path))


def _by_config(config: Fields, what: str) -> dict[str, Any]:
    lookup.check(config['model_type'], _KINDS, what=f'{what}: model_type')
    found = dict(_KINDS[config['model_type']])
    nllb = found['name'] == 'nllb'
    if config.get('position_embedding_type') not in (None, 'absolute'):
        raise ValueError(
            f'{what}: position_embedding_type is {config["position_embedding_type"]!r}; only '
            "'absolute' is supported"
        )
    if config.get('is_decoder'):
        raise ValueError(f'{what}: is_decoder is true; only encoders are supported')
    if nllb and not config.get('scale_embedding', True):
        raise ValueError(f'{what}: scale_embedding is false; only true is supported')
    key = 'activation_function' if nllb else 'hidden_act'
    if config.get(key) is not None:
        lookup.check(config[key], _ACTIVATIONS, what=f'{what}: {key}')
        found['activation'] = _ACTIVATIONS[config[key]]
    heads = config.get('encoder_attention_heads' if nllb else 'num_attention_heads')
    found['heads'] = heads or (16 if nllb else 12)
    for key, name in (('pad_token_id', 'pad_id'), ('layer_norm_eps', 'norm_eps')):
        if config.get(key) is not None:
            found[name] = config[key]
    return found


def _depth(shapes: Shapes, block: str) -> int:
    numbers = (re.match(rf'{block}\.(\d+)\.', name) for name in shapes)
    return len({number[1] for number in numbers if number})


def _sizes_of_bert(shapes: Shapes) -> dict[str, int]:
    vocab_size, width = shapes['embeddings.word_embeddings.weight']
    return {
        'vocab_size': vocab_size,
        'width': width,
        'depth': _depth(shapes, r'encoder\.layer'),
        'mlp_dim': shapes['encoder.layer.0.intermediate.dense.weight'][0],
        'max_positions': shapes['embeddings.position_embeddings.weight'][0],
        'token_types': shapes['embeddings.token_type_embeddings.weight'][0],
    }


def _sizes_of_nllb(shapes: Shapes) -> dict[str, int]:
    vocab_size, width = shapes['embed_tokens.weight']
    return {
        'vocab_size': vocab_size,
        'width': width,
        'depth': _depth(shapes, 'layers'),
        'mlp_dim': shapes['layers.0.fc1.weight'][0],
    }


def holds(text: Fields) -> bool:
    """Returns whether a text encoder of a card is one of these."""
    return text['name'] in ('bert', 'nllb')


def ignored(name: str) -> bool:
    """Returns whether an array is a table that older versions of transformers saved."""
    ends = ('embeddings.position_ids', 'embeddings.token_type_ids', 'embed_positions.weights')
    return name.startswith(TRUNK) and name.endswith(ends)


def text_of(model: Fields) -> dict[str, Any]:
    """Returns the `text_cfg` of a model; ValueError if no known repository has its sizes."""
    text = model['text']
    pools = {pool: name for name, pool in _POOLS.items()}
    if model['text_proj'] == 'biased':
        raise ValueError(
            'the layout open_clip cannot hold this model: after an encoder of transformers its '
            'projection of texts has no bias; train with text_proj linear, mlp or none'
        )
    for name, known in KNOWN.items():
        if all(text[key] == value for key, value in known.items()):
            proj = None if model['text_proj'] == 'none' else model['text_proj']
            return {
                'hf_model_name': name,
                'hf_model_pretrained': False,
                'hf_pooler_type': pools[text['pool']],
                'hf_proj_type': proj,
                'context_length': text['context_length'],
            }
    sizes = ', '.join(f'{key} {text[key]}' for key in ('width', 'depth', 'heads', 'vocab_size'))
    raise ValueError(
        f'the layout open_clip cannot hold this model: no known encoder has {sizes} and the other '
        f'sizes of its text encoder; choices: {", ".join(KNOWN)}'
    )


def rows(model: Fields) -> Iterator[Row]:
    """Yields the table of the text encoder, its projection, and the logit scale and bias."""
    text = model['text']
    if text['name'] == 'nllb':
        yield from nllb(text, 'params/text', 'text.transformer')
    else:
        yield from bert(text, 'params/text', 'text.transformer')
    ours = 'params/text_projection'
    if model['text_proj'] == 'linear':
        yield row(f'{ours}/kernel', 'text.proj.weight', LINEAR)
    elif model['text_proj'] == 'mlp':
        yield row(f'{ours}/in/kernel', 'text.proj.0.weight', LINEAR)
        yield row(f'{ours}/out/kernel', 'text.proj.2.weight', LINEAR)
    yield row('params/logit_scale', 'logit_scale', SAME)
    if model.get('init_logit_bias') is not None:
        yield row('params/logit_bias', 'logit_bias', SAME)


def bert(text: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of BERT, RoBERTa and XLM-R."""
    at = f'{theirs}.embeddings'
    yield row(f'{ours}/token_embedding/embedding', f'{at}.word_embeddings.weight', SAME)
    yield row(f'{ours}/position_embedding/embedding', f'{at}.position_embeddings.weight', SAME)
    yield row(f'{ours}/type_embedding', f'{at}.token_type_embeddings.weight', SAME)
    yield from norm(f'{ours}/pre_norm', f'{at}.LayerNorm')
    for i in range(text['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}.encoder.layer.{i}'
        yield from _qkv(a, [f'{b}.attention.self.{x}' for x in ('query', 'key', 'value')], text)
        rule = out_of_heads(text['heads'])
        yield from dense(f'{a}/attention/out', f'{b}.attention.output.dense', rule)
        yield from norm(f'{a}/attention_norm', f'{b}.attention.output.LayerNorm')
        yield from mlp(f'{a}/mlp', b, 'intermediate.dense', 'output.dense')
        yield from norm(f'{a}/mlp_norm', f'{b}.output.LayerNorm')
    if text['pool'] == 'cls_dense':
        yield from dense(f'{ours}/pooler', f'{theirs}.pooler.dense')


def nllb(text: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of NLLB's encoder."""
    yield row(f'{ours}/token_embedding/embedding', f'{theirs}.embed_tokens.weight', SAME)
    for i in range(text['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}.layers.{i}'
        yield from norm(f'{a}/attention_norm', f'{b}.self_attn_layer_norm')
        yield from _qkv(a, [f'{b}.self_attn.{x}_proj' for x in 'qkv'], text)
        rule = out_of_heads(text['heads'])
        yield from dense(f'{a}/attention/out', f'{b}.self_attn.out_proj', rule)
        yield from norm(f'{a}/mlp_norm', f'{b}.final_layer_norm')
        yield from mlp(f'{a}/mlp', b, 'fc1', 'fc2')
    yield from norm(f'{ours}/post_norm', f'{theirs}.layer_norm')


def _qkv(ours: str, theirs: list[str], text: Fields) -> Iterator[Row]:
    rule = joined(into_heads(3, text['heads']), 3)
    for part, name in (('kernel', 'weight'), ('bias', 'bias')):
        yield row(f'{ours}/attention/qkv/{part}', [f'{x}.{name}' for x in theirs], rule)
