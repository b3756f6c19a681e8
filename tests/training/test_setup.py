"""What fails while a run is set up is one line, and leaves nothing open."""

import contextlib
import json
import threading

import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image
from support.runs import train

from clip_jax.cli import config_file
from clip_jax.training import setup

WRITER = """
from pathlib import Path

class Writer:
    def close(self):
        (workdir / 'closed').touch()

def create(folder, *, resume_step, config, broken=False):
    global workdir
    workdir = Path(folder)
    if broken:
        raise ValueError('nobody listens at this address')
    return Writer()
"""


def test_a_writer_that_cannot_be_opened_closes_the_others(tiny_config, tmp_path, monkeypatch):
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project/mine.py').write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / 'two_writers.py'
    config.write_text(f"""
import sys
sys.path.insert(0, {str(tiny_config.parent)!r})
import tiny
from ml_collections import ConfigDict

def get_config():
    c = tiny.get_config().unlock()
    mine = {{'type': 'project.mine'}}
    c.writers = ConfigDict({{'first': mine, 'second': {{**mine, 'broken': True}}}})
    return c.lock()
""")
    before = {*threading.enumerate()}
    done = train(config, tmp_path / 'run')
    assert done.returncode == 1 and 'nobody listens at this address' in done.stderr
    assert (tmp_path / 'run/closed').exists()
    assert not (tmp_path / 'run/training.lock').exists()
    assert not [t.name for t in {*threading.enumerate()} - before if 'to-device' in t.name]


@pytest.fixture
def negatives(tiny_config, tmp_path) -> ConfigDict:
    """A config for a table with a column of captions and one of hard negatives."""
    for i in range(16):
        Image.new('RGB', (24, 24), (i, 0, 0)).save(tmp_path / f'{i}.png')
    rows = [
        {'image': f'{i}.png', 'caption': f'number {i}', 'swapped': [f'not {i}', f'no {i}']}
        for i in range(16)
    ]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    overrides = {
        'data.train': f'table:{tmp_path}/a.jsonl',
        'data.options.table.text_key': '("caption", "swapped")',
        'data.negative_fields': '("swapped",)',
        'data.hard_negatives': '2',
        'evals.retrieval.data': f'table:{tmp_path}/a.jsonl',
    }
    config = config_file.read(
        str(tiny_config), [f'--config.{key}={value}' for key, value in overrides.items()]
    )
    with config.unlocked():
        del config.evals.zeroshot
        config.evals.retrieval.source = {'text_key': ('caption',)}
    return config


def test_hard_negatives_reach_the_batches_and_no_evaluation(negatives, tmp_path):
    parts = setup.prepare(negatives, epath.Path(tmp_path / 'run'))
    with contextlib.closing(parts.batches):
        tokens = next(parts.batches)['tokens']
    assert tokens.shape == (16, 3, 12)
    decode = parts.clip.tokenizer.decode
    for caption, *wrong in tokens:
        number = decode(caption).removeprefix('number ')
        assert {*map(decode, wrong)} == {f'not {number}', f'no {number}'}
    assert parts.evals['retrieval'].data[3]['texts'] == ['number 3']


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('caption_fields', {'captions': 1.0}, r"no 'captions'. Did you mean 'caption'\?"),
        ('negative_fields', (), 'hard_negatives is 2, and data.negative_fields is empty'),
        ('captions_per_image', 0, 'captions_per_image is 0'),
    ],
)
def test_wrong_fields_of_captions_are_one_line(negatives, tmp_path, key, value, message):
    with negatives.unlocked():
        negatives.data[key] = value
    with pytest.raises(ValueError, match=message) as error:
        setup.prepare(negatives, epath.Path(tmp_path / 'run'))
    assert '\n' not in str(error.value)


def test_options_of_the_source_of_an_evaluation_are_checked(negatives, tmp_path):
    for wrong, message in ({'text_keys': 'a'}, "no 'text_keys'"), ('caption', 'expected names and'):
        with negatives.unlocked():
            del negatives.evals.retrieval.source
            negatives.evals.retrieval.source = wrong
        with pytest.raises(ValueError, match=message):
            setup.prepare(negatives, epath.Path(tmp_path / 'run'))
