"""Features from inside of the encoders are the hidden states and attentions of transformers."""

import jax
import numpy as np
import pytest
from reference import hidden_states

import clip_jax
from clip_jax import convert
from clip_jax.models import clip

TOLERANCE = 2e-5


NAMES = {'image': 'pre_projection', 'patches': 'patches', 'last': 'tokens'}


def compare(folder) -> None:
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    expected = dict(np.load(folder / 'expected.npz'))
    images, tokens = expected.pop('images'), expected.pop('tokens')
    kinds = {name: NAMES.get(name) or name.partition('_')[2].replace('_', ':') for name in expected}

    @jax.jit
    def every(variables, images, tokens):
        found = {}
        for name, kind in kinds.items():
            if name.startswith(('image', 'patches')):
                found[name] = clip_jax.image_features(model, variables, images, kind)
            else:
                found[name] = clip_jax.text_features(model, variables, tokens, kind)
        last = clip_jax.text_features(model, variables, tokens, 'block:-1')
        return found, last

    found, last = every(variables, images, tokens)
    for name, there in expected.items():
        np.testing.assert_allclose(found[name], there, atol=TOLERANCE, err_msg=name)
    of_last = expected[f'text_block_{model.text.depth - 1}']
    np.testing.assert_allclose(last, of_last, atol=TOLERANCE)


@pytest.mark.parametrize('name', hidden_states.FIXTURES)
def test_features_of_every_kind(name):
    compare(hidden_states.FOLDER / f'hidden_{name}')


@pytest.mark.reference
@pytest.mark.parametrize('name', hidden_states.MODELS)
def test_features_of_every_kind_by_the_library(name, tmp_path):
    pytest.importorskip('transformers', reason='transformers is not installed')
    hidden_states.write(tmp_path, name)
    compare(tmp_path)
