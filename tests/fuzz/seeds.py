"""Valid inputs of every kind, whose files are mutated: small checkpoints, data, images, runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from PIL import Image
from support import orbax_trees
from support import torch_writer as torch
from support.small_models import MODELS, made, pieces, words_json
from support.sources import CAPTIONS, make_embeddings, make_folder, make_table, make_tars

from clip_jax import convert
from clip_jax.convert import _resblocks, _table, big_vision
from clip_jax.tokenizers import huggingface, sentencepiece


class Seed(NamedTuple):
    """An input: how it is made, what opens it, and the structure of each file by its suffix."""

    make: Callable[[Path], None]
    target: str
    structures: dict[str, str]
    weight: float = 1  # how often it is chosen


def _model(name: str, **card) -> tuple[dict, dict]:
    """A model with a single block in each tower; it is read twice as fast."""
    MODELS[f'{name}-fuzz'] = {
        **MODELS[name],
        'image': {**MODELS[name]['image'], 'depth': 1},
        'text': {**MODELS[name]['text'], 'depth': 1},
    }
    return made(f'{name}-fuzz', **card)


def _open_clip(folder: Path) -> None:
    tokenizer = huggingface.Tokenizer(words_json(), 9).card
    convert.write(folder, 'open_clip', *_model('clip', tokenizer=tokenizer))


def _open_clip_bin(folder: Path) -> None:
    convert.write(folder, 'open_clip', *_model('quick'))
    _as_torch(folder / 'open_clip_model.safetensors', folder / 'open_clip_pytorch_model.bin')


def _as_torch(weights: Path, path: Path) -> None:
    from safetensors.numpy import load_file

    storages = torch.Storages()
    torch.write_zip(path, torch.state_dict(load_file(weights), storages), storages)
    weights.unlink()


def _huggingface(folder: Path) -> None:
    tokenizer = huggingface.Tokenizer(words_json(), 9).card
    convert.write(folder, 'huggingface', *_model('clip', tokenizer=tokenizer))


def _sharded(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    convert.write(folder, 'huggingface', *_model('siglip'))
    arrays = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    names = sorted(arrays)
    parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
    for file, own in parts.items():
        save_file({name: arrays[name] for name in own}, folder / file)
    index = {'weight_map': {name: file for file, own in parts.items() for name in own}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def _big_vision(folder: Path) -> None:
    convert.write(folder, 'big_vision', *_model('siglip'))


def _orbax(folder: Path) -> None:
    card, variables = _model('siglip')
    flat = _table.write(list(big_vision.rows(card['model'])), variables)
    orbax_trees.save(folder / 'ocdbt', unflatten_dict(flat, sep='/'))


def _openai(folder: Path, *, legacy: bool = False, script: bool = False) -> None:
    folder.mkdir()
    card, variables = _model('quick')
    arrays, storages = (
        _table.write(_resblocks.rows(card['model']), variables),
        torch.Storages(legacy=legacy),
    )
    if legacy:
        torch.write_legacy(folder / 'x.pt', torch.state_dict(arrays, storages), storages)
    elif script:
        arrays |= {n: np.asarray(np.int64(3)) for n in _resblocks.NUMBERS}
        root = torch.script_of(arrays, storages)
        torch.write_zip(folder / 'x.pt', root, storages, script=True)
    else:
        torch.write_zip(folder / 'x.pt', torch.state_dict(arrays, storages), storages)


def _tokenizer_json(folder: Path) -> None:
    folder.mkdir()
    (folder / 'tokenizer.json').write_text(words_json())


def _sentencepiece(folder: Path) -> None:
    folder.mkdir()
    (folder / 'spiece.model').write_bytes(pieces())


def _card(folder: Path) -> None:
    folder.mkdir()
    for name, tokenizer in (
        ('a', huggingface.Tokenizer(words_json(), 9)),
        ('b', sentencepiece.Tokenizer(pieces(), 9)),
    ):
        (folder / f'{name}.json').write_text(json.dumps(tokenizer.card))


def _pictures(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    for ending, options in (
        ('jpg', {'quality': 90, 'exif': _exif()}),
        ('png', {}),
        ('webp', {}),
        ('gif', {}),
        ('bmp', {}),
        ('avif', {}),
        ('tiff', {}),
    ):
        Image.fromarray(pixels).save(folder / f'x.{ending}', **options)
    Image.fromarray(pixels[..., 0]).convert('P').save(folder / 'palette.png', transparency=3)
    Image.fromarray(pixels).save(folder / 'progressive.jpg', progressive=True)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _data(make: Callable[[Path, list[bytes]], str]) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        folder.mkdir()
        make(folder, [caption.encode() for caption in CAPTIONS])

    return made


def _jsonl(folder: Path) -> None:
    folder.mkdir()
    _data_files(folder)
    rows = [{'image': f'{i}.png', 'caption': text, 'label': i} for i, text in enumerate(CAPTIONS)]
    (folder / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def _parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    _data_files(folder)
    images = [(folder / f'{i}.png').read_bytes() for i in range(len(CAPTIONS))]
    columns = {'image': images, 'caption': CAPTIONS, 'label': [0, 1] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / 'a.parquet')
    for path in folder.glob('*.png'):
        path.unlink()


def _data_files(folder: Path) -> None:
    make_table(folder, [caption.encode() for caption in CAPTIONS])
    (folder / 'a.csv').unlink()


def _tfds(folder: Path) -> None:
    from support.sources import make_tfds

    folder.mkdir()
    make_tfds(folder, [caption.encode() for caption in CAPTIONS])


def _probe(folder: Path) -> None:
    from clip_jax.evals._probe import Probe

    folder.mkdir()
    weights = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    about = {'features': 'embedding', 'several': False, 'C': 1.0, 'fingerprint': 'f'}
    Probe(weights, np.zeros(3, np.float32), classes=['a', 'b', 'c'], **about).save(folder / 'x.npz')


def _run(folder: Path) -> None:
    from support.reports import classified, run_rows

    from clip_jax import metrics
    from clip_jax.runtime import atomic

    folder.mkdir()
    config = {'batch_size': 16, 'total_steps': 20, 'data': {'options': {}, 'max_pixels': 10**6}}
    (folder / 'config.json').write_text(json.dumps(config))
    writer = metrics.JsonlWriter(folder / 'metrics.jsonl')
    for row in run_rows(20):
        writer.write_scalars(row.pop('step'), row)
    writer.close()
    atomic.write_json(folder / 'evals' / 'zs.json', classified())
    summary = {'loss': 1.5, 'step': 20, 'seconds': 7.0, 'versions': {'jax': '0.10.2'}}
    (folder / 'summary.json').write_text(json.dumps(summary))


def _texts(folder: Path) -> None:
    folder.mkdir()
    (folder / 'classes.txt').write_text('cat\ndog\n')
    (folder / 'classes.json').write_text('["cat", "dog"]')
    (folder / 'templates.json').write_text('["a {}", "the {}"]')
    (folder / 'prompts.json').write_text('{"cat": ["a furry cat"], "dog": ["a big dog"]}')


WEIGHTS = {'.safetensors': 'safetensors', '.json': 'json', '.bin': 'torch', '.npz': 'npz'}
SEEDS = {
    'open_clip': Seed(_open_clip, 'checkpoint', WEIGHTS, 3),
    'open_clip_bin': Seed(_open_clip_bin, 'checkpoint', WEIGHTS, 2),
    'huggingface': Seed(_huggingface, 'checkpoint', WEIGHTS, 3),
    'sharded': Seed(_sharded, 'checkpoint', WEIGHTS),
    'big_vision': Seed(_big_vision, 'checkpoint', WEIGHTS, 3),
    'orbax': Seed(_orbax, 'checkpoint', {'.ocdbt': 'bytes'}, 2),
    'openai': Seed(_openai, 'checkpoint', {'.pt': 'torch'}, 2),
    'openai_script': Seed(lambda x: _openai(x, script=True), 'checkpoint', {'.pt': 'torch'}),
    'openai_legacy': Seed(lambda x: _openai(x, legacy=True), 'checkpoint', {'.pt': 'legacy'}, 2),
    'tokenizer_json': Seed(_tokenizer_json, 'tokenizer_json', {'.json': 'json'}, 2),
    'sentencepiece': Seed(_sentencepiece, 'sentencepiece', {'.model': 'sentencepiece'}, 2),
    'tokenizer_card': Seed(_card, 'tokenizer_card', {'.json': 'json'}),
    'images': Seed(_pictures, 'image', {'.jpg': 'jpeg', '.png': 'png'}, 12),
    'tars': Seed(_data(make_tars), 'tars', {'.tar': 'tar'}, 3),
    'csv': Seed(_data(make_table), 'csv', {'.csv': 'text', '.png': 'png'}, 3),
    'jsonl': Seed(_jsonl, 'jsonl', {'.jsonl': 'jsonl', '.png': 'png'}, 2),
    'parquet': Seed(_parquet, 'parquet', {'.parquet': 'parquet'}, 2),
    'folder': Seed(_data(make_folder), 'folder', {'.png': 'png', '.txt': 'text'}),
    'tfds': Seed(_tfds, 'tfds', {'.json': 'json'}, 2),
    'embeddings': Seed(
        _data(make_embeddings),
        'embeddings',
        {'.json': 'json', '.npy': 'npy', '.parquet': 'parquet'},
        2,
    ),
    'probe': Seed(_probe, 'probe', {'.npz': 'npz'}, 2),
    'run': Seed(_run, 'run', {'.json': 'json', '.jsonl': 'jsonl'}, 3),
    'plot': Seed(_run, 'plot', {'.json': 'json', '.jsonl': 'jsonl'}, 0.1),  # takes a second
    'texts': Seed(_texts, 'texts', {'.json': 'json', '.txt': 'text'}),
}


def make_all(place: Path) -> None:
    """Makes every seed in a folder of its name."""
    for name, seed in SEEDS.items():
        seed.make(place / name)


def copy(seed: Path, to: Path) -> None:
    """Copies a seed; files that do not change are links."""
    shutil.copytree(seed, to, copy_function=lambda a, b: Path(b).hardlink_to(a))
