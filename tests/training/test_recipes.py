"""The recipes of docs/finetune.md: each is short, and trains; here with a small model and data."""

import io
import json
import re
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image
from support.process import ROOT
from support.runs import command

from clip_jax import pretrained
from clip_jax.cli import config_file
from clip_jax.models import clip
from clip_jax.training import loop

PAGE = ROOT / 'docs/finetune.md'
_BLOCK = re.compile(r'^```python title="(?P<file>[^"]+)"\n(?P<text>.*?)^```$', re.DOTALL | re.M)
RECIPES = {x['file']: x['text'] for x in _BLOCK.finditer(PAGE.read_text().partition('# Ten ')[2])}
LONGEST = 25  # lines


@pytest.fixture(scope='module')
def start(tiny_run, tmp_path_factory):
    """A checkpoint of two blocks in each tower, with random weights."""
    card, _ = pretrained.read(str(tiny_run), None)
    for tower in 'image', 'text':
        card['model'][tower]['depth'] = 2
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32),
        clip.shapes(clip.from_card(card['model'])),
    )
    folder = tmp_path_factory.mktemp('start') / 'model'
    pretrained.loaded.write(folder, card, variables)
    return str(folder)


@pytest.fixture(scope='module')
def embedded(start, tiny_tars, tmp_path_factory):
    """The embeddings of the training data by that checkpoint."""
    folder = tmp_path_factory.mktemp('embedded') / 'train'
    done = command('embed', f'--model={start}', f'--data={tiny_tars}', f'--out={folder}')
    assert done.returncode == 0, done.stderr
    return str(folder)


@pytest.fixture(scope='module')
def negatives(tmp_path_factory):
    """A tar shard whose JSON members have captions and wrong ones."""
    path = tmp_path_factory.mktemp('negatives') / 'train-0.tar'
    with tarfile.open(path, 'w') as tar:
        for i in range(16):
            image, color = io.BytesIO(), ('red', 'blue')[i % 2]
            Image.new('RGB', (24, 24), color).save(image, 'JPEG')
            texts = {'caption': [f'a {color} picture', f'something {color}'], 'swapped': 'none'}
            for ext, data in ('jpg', image.getvalue()), ('json', json.dumps(texts).encode()):
                member = tarfile.TarInfo(f'{i:03}.{ext}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


def shorten(config, start, data, embedded):
    """The same for a few steps of small images."""
    c = config.unlock()
    small = {224: 16, 336: 24, 1600: 2, 400: 2, 128: 8}
    c.stages = tuple({k: small[v] for k, v in stage.items()} for stage in c.stages)
    c.init_from, c.data.train, c.evals.retrieval.data = start, data, data
    c.batch_size, c.total_steps, c.optimizer.warmup_steps = 8, 4, 1
    c.checkpoint.every = c.eval_every = 2
    c.figures, c.data.num_threads = False, 1
    for teacher in c.distillation.teachers.values():
        place = {'path': start, 'embeddings': embedded}
        teacher.update({k: place[k] for k in place if k in teacher})
    if c.loss.dims:
        c.loss.dims = c.evals.retrieval.dims = (8, 16)
    return c.lock()


def test_they_are_ten_and_short():
    assert len(RECIPES) == 10
    for file, text in RECIPES.items():
        assert text.count('\n') <= LONGEST, file


# Those that no other test of runs is like; the others are slow.
USUAL = ('mine.py', 'adapters.py', 'precomputed.py', 'negatives.py')
ANY = [
    pytest.param(file, marks=() if file in USUAL else pytest.mark.slow, id=file) for file in RECIPES
]


@pytest.mark.parametrize('file', ANY)
def test_it_trains(file, start, embedded, negatives, tiny_tars, tmp_path, monkeypatch):
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    config = config_file.read(str(tmp_path / file))
    data = negatives if config.data.hard_negatives else tiny_tars
    summary = loop.train(shorten(config, start, data, embedded), tmp_path / 'run')
    assert summary['step'] == 4 and np.isfinite(summary['loss'])
    before, after = (
        pretrained.read(path, None)[1]['params'] for path in (start, str(tmp_path / 'run'))
    )
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), before, after)
    assert any(jax.tree.leaves(moved['text']))
    locked = config.optimizer.freeze == ('lit',)
    assert any(jax.tree.leaves(moved['image'])) != locked
