"""Text encoders of transformers in open_clip's models: outputs, blocks, and the way back.

`pip install -e '.[reference]'` installs these libraries and PyTorch, and `pytest -m reference` runs
these tests; they are skipped if one is not installed.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from reference import make_text_fixtures as makes
from support.layouts import equal

from clip_jax import convert
from clip_jax.convert import _hf_text, open_clip
from clip_jax.models import clip

pytestmark = pytest.mark.reference
TOLERANCE = 2e-5


@pytest.fixture(params=makes.KINDS)
def theirs(request, tmp_path):
    """A folder of open_clip with random weights, and the model that they are from."""
    pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('open_clip', reason='open_clip is not installed')
    pytest.importorskip('transformers', reason='transformers is not installed')
    from safetensors.torch import save_file

    settings, model = makes.theirs(request.param, tmp_path)
    content = {'model_cfg': settings, 'preprocess_cfg': {}}
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    save_file(state, tmp_path / open_clip.SAFETENSORS)
    return tmp_path, model


def test_embeddings_and_blocks_are_equal(theirs):
    import torch

    folder, reference = theirs
    card, variables = convert.read(folder)
    text = card['model']['text']
    for tokens in makes.batches(text['pad_id']):
        ours, state = clip.from_card(card['model']).apply(
            variables,
            jnp.asarray(tokens, jnp.int32),
            method='encode_text',
            capture_intermediates=True,
            mutable=['intermediates'],
        )
        with torch.no_grad():
            there = reference.text(torch.tensor(tokens))
            hidden = reference.text.transformer(
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(tokens != text['pad_id']).long(),
                output_hidden_states=True,
            ).hidden_states
        np.testing.assert_allclose(ours, there, atol=TOLERANCE, rtol=TOLERANCE)
        blocks = state['intermediates']['text']['transformer']
        # The last of transformers' states is after the final norm, where there is one.
        for i in range(text['depth'] - (text['name'] == 'nllb')):
            found, expected = blocks[f'block_{i}']['__call__'][0], hidden[i + 1].numpy()
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_is_written_loads_strictly_and_is_what_was_read(theirs, tmp_path, monkeypatch):
    folder, reference = theirs
    card, variables = convert.read(folder)
    text = card['model']['text']
    known = {k: v for k, v in text.items() if k in _hf_text.KNOWN['roberta-base']}
    monkeypatch.setattr(_hf_text, 'KNOWN', {str(folder): known})
    convert.write(tmp_path / 'again', 'open_clip', card, variables)
    assert equal(convert.read(tmp_path / 'again')[1], variables)
    import open_clip as library
    from safetensors.torch import load_file

    state = load_file(tmp_path / 'again' / open_clip.SAFETENSORS)
    config = json.loads((tmp_path / 'again' / open_clip.CONFIG).read_text())['model_cfg']
    config.pop('custom_text')
    again = library.model.CustomTextCLIP(**config)
    again.load_state_dict(state, strict=True)
    for name, array in reference.state_dict().items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


@pytest.mark.parametrize('kind', makes.FIXTURES)
def test_the_stored_models_are_what_the_script_makes(kind, tmp_path):
    pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('open_clip', reason='open_clip is not installed')
    made, stored = makes.fixture(kind, tmp_path), np.load(makes.FOLDER / f'text_{kind}.npz')
    assert {*made} == {*stored}
    for name in made:
        if name not in ('config', 'model_cfg'):
            np.testing.assert_allclose(made[name], stored[name], atol=1e-6, err_msg=name)
