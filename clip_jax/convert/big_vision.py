"""big_vision's two-tower models (SigLIP, SigLIP 2, also NaFlex) in one `.npz`.

Names are Flax paths; blocks are separate or stacked on a leading axis; bfloat16 is stored as raw
bytes. All models use tanh GELU and epsilon 1e-6.
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.convert import _big_vision_tokenizer, _cards, _files, _table, _tokenizer_files
from clip_jax.convert._table import LEADING_ONE, ONE, SAME, STACKED, Row, Rule, row
from clip_jax.runtime import foreign_arrays
from clip_jax.runtime.foreign_arrays import Array

_ATTENTION = 'MultiHeadDotProductAttention_0'
FILE = 'model.npz'
# What the file does not store: the patches of an image that SigLIP 2's NaFlex is evaluated with.
MAX_PATCHES = 256
_MOST_BLOCKS = 1_000  # on a leading axis
_FLAT = Rule(lambda x: x, lambda x: x.reshape(-1, x.shape[-1]))  # (n, out) <-> (size, size, 3, out)
_BLOCKS = {'image': 'img/Transformer/encoderblock', 'text': 'txt/Encoder_0/encoderblock'}


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a path is an `.npz` with an image and a text tower, or its folder."""
    path = _file(path)
    if not path.is_file():
        return False
    _files.check_pointer(path)
    if not foreign_arrays.is_zip(path):
        return False
    with foreign_arrays.open_zip(path) as archive:
        names = [name.removeprefix('params/') for name in archive.namelist()]
    return all(any(n.startswith(tower) for n in names) for tower in ('img/', 'txt/'))


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint, with the SentencePiece model in the same folder if there is one."""
    path = _file(path)
    return complete(_arrays(path), path, path.parent)


def complete(
    arrays: Mapping[str, Array], path: pathlib.Path, folder: pathlib.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes a card and variables of the parameters of a file.

    Args:
        arrays: the parameters by name; blocks are separate or stacked.
        path: the file, for messages.
        folder: where the tokenizer is, if there is one.
    """
    theirs = unstacked(arrays, str(path))
    with _cards.understood(f'{path}: not a SigLIP model of two towers'):
        fields = architecture(theirs)
    model, variables = _cards.complete(fields, rows, theirs, what=str(path))
    card = {
        'model': model,
        'preprocess': {
            'size': model['image']['image_size'],
            **_resize(model['image']),
            'interpolation': 'bilinear',
            'mean': list(_cards.HALF),
            'std': list(_cards.HALF),
        },
        'tokenizer': _tokenizer_files.big_vision(folder, model['text']),
    }
    return card, variables


def _resize(image: Mapping[str, Any]) -> dict[str, Any]:
    if image['name'] == 'vit':
        return {'resize': 'squash'}
    sizes = {'patch_size': image['patch_size'], 'max_patches': MAX_PATCHES}
    return {'resize': 'patches', **sizes}


def missing(card: Mapping[str, Any]) -> str:
    """Says which tokenizer file a checkpoint without one lacks."""
    return _big_vision_tokenizer.missing(card['model']['text']['vocab_size'])


def _file(path: pathlib.Path) -> pathlib.Path:
    return path / FILE if path.is_dir() else path


def _arrays(path: pathlib.Path) -> dict[str, Array]:
    """Opens an npz file lazily: shapes and dtypes now, data on demand."""
    found = {n: _of_bfloat16(x) for n, x in foreign_arrays.open_npz(path).items()}
    # A training checkpoint also has the optimizer state, outside `params/`.
    prefixed = {n.removeprefix('params/'): x for n, x in found.items() if n.startswith('params/')}
    return prefixed or found


def _of_bfloat16(array: Array) -> Array:
    """Returns an array of two raw bytes as one of bfloat16, others as they are."""
    if array.dtype != np.dtype('V2'):
        return array
    dtype = np.dtype(ml_dtypes.bfloat16)
    return Array(array.shape, dtype, lambda: array.read().view(dtype))


def unstacked(theirs: Mapping[str, Array], what: str) -> dict[str, Array]:
    """Unstacks blocks on a leading axis: encoderblock/x -> encoderblock_0/x, …"""
    found = {}
    for name, array in theirs.items():
        before, stack, after = name.partition('encoderblock/')
        if not stack:
            found[name] = array
            continue
        if not array.shape or array.shape[0] > _MOST_BLOCKS:
            raise ValueError(
                f'{what}: {name} has the shape {array.shape}; expected a leading axis of at most '
                f'{_MOST_BLOCKS:,} blocks'
            )
        stacked = functools.cache(array.read)  # read once for all blocks
        for i in range(array.shape[0]):
            part = functools.partial(lambda stacked, i: stacked()[i], stacked, i)
            found[f'{before}encoderblock_{i}/{after}'] = Array(array.shape[1:], array.dtype, part)
    return found


def architecture(theirs: Mapping[str, Array]) -> dict[str, Any]:
    """Returns the card's `model`, inferred from shapes."""
    shape = {name: array.shape for name, array in theirs.items()}
    naflex = len(shape['img/embedding/kernel']) == 2
    if naflex:
        patch_size = math.isqrt(shape['img/embedding/kernel'][0] // 3)
    else:
        patch_size, _, _, _ = shape['img/embedding/kernel']
    *_, rows, columns, width = shape['img/pos_embedding']  # NaFlex's positions are a grid
    _, length, text_width = shape['txt/pos_embedding']
    if 'img/MAPHead_0/probe' not in shape:
        raise KeyError('img/MAPHead_0/probe')
    sizes = {
        'image': {
            **_tower(shape, _BLOCKS['image'], width),
            'image_size': image_size(math.isqrt(rows * columns), patch_size),
            'patch_size': patch_size,
        },
        'text': {
            **_tower(shape, _BLOCKS['text'], text_width),
            'vocab_size': shape['txt/Embed_0/embedding'][0],
            'context_length': length,
        },
        'embed_dim': shape['txt/head/kernel'][1],
    }
    return siglip(sizes, naflex=naflex)


def siglip(sizes: Mapping[str, Any], *, naflex: bool) -> dict[str, Any]:
    """Returns SigLIP's architecture in the given sizes; the layout implies the other fields."""
    same = {'activation': 'gelu_tanh', 'norm_eps': 1e-6}
    of_vit = {'name': 'vit', 'pool': 'map', 'pre_norm': False, 'patch_bias': True}
    image = {**({'name': 'naflex'} if naflex else of_vit), **same}
    text = {'name': 'transformer', 'causal': False, 'pool': 'last', **same}
    return {
        'image': {**image, **sizes['image']},
        'text': {**text, **sizes['text']},
        'embed_dim': sizes['embed_dim'],
        'image_proj': 'none',
        'text_proj': 'biased',
        'init_logit_bias': -10.0,
    }


def image_size(grid: int, patch_size: int) -> int:
    """Returns the image size for a grid of patches, since the file does not store it."""
    # SigLIP's So400m/14 at 384 pixels drops the last 6 pixels of each axis.
    return 384 if (grid, patch_size) == (27, 14) else grid * patch_size


def _tower(shape: Mapping[str, tuple[int, ...]], blocks: str, width: int) -> dict[str, Any]:
    return {
        'width': width,
        'depth': len({n.split('/')[2] for n in shape if n.startswith(f'{blocks}_')}),
        'heads': shape[f'{blocks}_0/{_ATTENTION}/query/kernel'][1],
        'mlp_dim': shape[f'{blocks}_0/MlpBlock_0/Dense_0/kernel'][1],
    }


def rows(model: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of the whole model, with separate blocks."""
    image, positions = model['image'], LEADING_ONE
    embedding = 'params/image/patch_embedding', 'img/embedding'
    if image['name'] == 'naflex':
        yield from _pairs(*embedding, rule=_FLAT)
        side = image['image_size'] // image['patch_size']
        positions = Rule(lambda x: x, lambda x: x.reshape(side, side, -1))
    else:
        yield from _pairs(*embedding)
    yield row('params/image/position_embedding', 'img/pos_embedding', positions)
    yield from _blocks(model['image']['depth'], 'params/image', _BLOCKS['image'])
    yield from _norm('params/image/post_norm', 'img/Transformer/encoder_norm')
    ours, theirs = 'params/image/attention_pool', 'img/MAPHead_0'
    yield row(f'{ours}/probe', f'{theirs}/probe', LEADING_ONE)
    for part in ('query', 'key', 'value', 'out'):
        yield from _pairs(f'{ours}/attention/{part}', f'{theirs}/{_ATTENTION}/{part}')
    yield from _norm(f'{ours}/norm', f'{theirs}/LayerNorm_0')
    yield from _mlp(f'{ours}/mlp', f'{theirs}/MlpBlock_0')

    yield row('params/text/token_embedding/embedding', 'txt/Embed_0/embedding', SAME)
    yield row('params/text/position_embedding', 'txt/pos_embedding', LEADING_ONE)
    yield from _blocks(model['text']['depth'], 'params/text', _BLOCKS['text'])
    yield from _norm('params/text/post_norm', 'txt/Encoder_0/encoder_norm')
    yield from _pairs('params/text_projection', 'txt/head')
    yield row('params/logit_scale', 't', ONE)
    yield row('params/logit_bias', 'b', ONE)


def _blocks(depth: int, ours: str, theirs: str) -> Iterator[Row]:
    for i in range(depth):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}_{i}'
        yield from _norm(f'{a}/attention_norm', f'{b}/LayerNorm_0')
        for part in ('kernel', 'bias'):
            three = [f'{b}/{_ATTENTION}/{x}/{part}' for x in ('query', 'key', 'value')]
            yield row(f'{a}/attention/qkv/{part}', three, STACKED)
        yield from _pairs(f'{a}/attention/out', f'{b}/{_ATTENTION}/out')
        yield from _norm(f'{a}/mlp_norm', f'{b}/LayerNorm_1')
        yield from _mlp(f'{a}/mlp', f'{b}/MlpBlock_0')


def _mlp(ours: str, theirs: str) -> Iterator[Row]:
    yield from _pairs(f'{ours}/in', f'{theirs}/Dense_0')
    yield from _pairs(f'{ours}/out', f'{theirs}/Dense_1')


def _pairs(ours: str, theirs: str, first: str = 'kernel', rule: Rule = SAME) -> Iterator[Row]:
    yield row(f'{ours}/{first}', f'{theirs}/{first}', rule)
    yield row(f'{ours}/bias', f'{theirs}/bias', SAME)


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield from _pairs(ours, theirs, 'scale')


def write(folder: pathlib.Path, card: Mapping[str, Any], variables: Mapping[str, Any]) -> list[Row]:
    """Writes `model.npz`, with separate blocks, and the tokenizer; returns the table applied."""
    model = card['model']
    image, text = model['image'], model['text']
    if image['name'] not in ('vit', 'naflex'):
        raise ValueError(f'the layout big_vision cannot hold this model: it has no {image["name"]}')
    sizes = ('width', 'depth', 'heads', 'mlp_dim')
    patch_size = image['patch_size']
    same = siglip(
        {
            'image': {
                **{name: image[name] for name in sizes},
                'image_size': image_size(image['image_size'] // patch_size, patch_size),
                'patch_size': patch_size,
            },
            'text': {name: text[name] for name in (*sizes, 'vocab_size', 'context_length')},
            'embed_dim': model['embed_dim'],
        },
        naflex=image['name'] == 'naflex',
    )
    _cards.check_expressible(model, same, 'big_vision')
    table = list(rows(model))
    arrays = _table.write(table, variables)
    # pyrefly: ignore[bad-argument-type]  # no name is that of another parameter
    np.savez(folder / FILE, **{f'params/{name}': array for name, array in arrays.items()})
    _tokenizer_files.save(folder, card['tokenizer'])
    return table
