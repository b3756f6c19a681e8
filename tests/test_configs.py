"""Every page of configs/ can be read, says what differs from the default, and describes a model."""

import itertools
import re

import pytest
from support.process import ROOT

from clip_jax import build, sharding
from clip_jax.cli import config_file
from clip_jax.evaluation import evaluate
from clip_jax.models import clip

PAGES = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


class Vocabulary:
    """As much of a tokenizer as an architecture needs."""

    vocab_size, context_length, eot_id = 320, 24, 3


@pytest.mark.parametrize('page', PAGES)
def test_a_page_describes_a_model_an_optimizer_and_evaluations(page):
    config = config_file.read(page.removesuffix('.py'))
    assert config.is_locked
    architecture = build.architecture(config.model, Vocabulary())
    params = clip.shapes(build.model(architecture))['params']
    build.optimizer(config.optimizer, params, config.total_steps)
    build.loss(config.loss, sharding.make_mesh())
    build.preprocess(config.preprocess, architecture['image']['image_size'])
    for options in config.evals.values():
        evaluate.check_options(options.type, build.given(options, 'type', 'data'))


@pytest.mark.parametrize('page', PAGES)
def test_a_page_begins_with_its_command(page):
    text = (ROOT / 'configs' / page).read_text()
    assert f'clip-jax train --config={page.removesuffix(".py")} ' in text.split('"""')[1]


def test_every_key_of_the_default_has_a_comment():
    lines = (ROOT / 'configs/default.py').read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r'    c\.[\w.]+ = (?!ConfigDict\(\))', line):
            assert '  # ' in line or before.strip().startswith('#'), line
