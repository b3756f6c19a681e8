"""The examples of docs/python.md do what the page says."""

import re

import numpy as np
import pytest
from PIL import Image
from support.process import ROOT

import clip_jax

PAGE = (ROOT / 'docs/python.md').read_text()
BLOCKS = dict(re.findall(r'^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$', PAGE, re.S | re.M))

# The run has one block, and needs no more than two steps.
SMALLER = {'block:-2': 'block:-1', 'range(5)': 'range(2)', 'range(20)': 'range(5)'}


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(section: str) -> dict:
        code = BLOCKS[section].replace('runs/quickstart', str(tiny_run))
        for ours, here in SMALLER.items():
            code = code.replace(ours, here)
        names = {}
        exec(code, names)
        return names

    return run


def test_every_section_with_code_is_run_here():
    assert PAGE.count('```python') == len(BLOCKS) == 6


def test_features(run):
    found = run('Features')
    assert found['patches'].shape[0] == found['attention'].shape[0] == 2
    np.testing.assert_allclose(found['attention'].sum(-1), 1, atol=1e-5)


def test_inside_jit(run):
    found = run('Inside jit')
    assert found['found'].shape == (3, found['clip'].model.embed_dim)


def test_a_training_loop_of_your_own(run, tmp_path):
    found = run('A training loop of your own')
    again = clip_jax.load(tmp_path / 'runs/tuned')
    images = [row['image'] for row in found['rows']]
    tuned = found['tuned'].encode_image(images)
    np.testing.assert_array_equal(again.encode_image(images), tuned)
    assert np.abs(found['clip'].encode_image(images) - tuned).max() > 1e-3
    assert again.card == found['clip'].card


def test_guidance_by_a_text(run):
    found = run('Guidance by a text')
    assert found['after'] > found['before'] + 0.02


def test_where_a_text_is_in_a_picture(run, tmp_path):
    found = run('Where a text is in a picture')
    assert found['falls'].shape == (64, 2) and np.std(found['falls']) > 0
    for name in ('star', 'ring'):
        assert Image.open(tmp_path / f'{name}.png').size == (256, 256)


def test_hidden_states_of_texts(run):
    found = run('Hidden states of texts for image generators')
    assert found['states'].shape[:2] == (2, found['clip'].tokenizer.context_length)
