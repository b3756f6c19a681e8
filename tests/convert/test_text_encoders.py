"""BERT, RoBERTa, XLM-R and NLLB in open_clip's folders, against outputs of transformers."""

import json
import pathlib

import numpy as np
import pytest
from support.layouts import edit, equal

from clip_jax import convert
from clip_jax.convert import _files, _hf_text, open_clip
from clip_jax.models import clip

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


@pytest.fixture(params=['bert', 'roberta', 'xlm_cls', 'nllb'])
def stored(request, tmp_path):
    """A folder of open_clip, and what its model gave in open_clip."""
    content = dict(np.load(FIXTURES / f'text_{request.param}.npz'))
    model_cfg, config = (json.loads(content[x].item()) for x in ('model_cfg', 'config'))
    (tmp_path / open_clip.CONFIG).write_text(json.dumps({'model_cfg': model_cfg}))
    (tmp_path / _hf_text.CONFIG).write_text(json.dumps(config))
    weights = {
        name.removeprefix('weights/'): x.astype(np.float32)
        for name, x in content.items()
        if name.startswith('weights/')
    }
    _files.save(tmp_path / open_clip.SAFETENSORS, weights)
    return tmp_path, content


def test_embeddings_are_those_of_open_clip(stored):
    folder, content = stored
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    ours = model.apply(variables, content['tokens'], method='encode_text')
    np.testing.assert_allclose(ours, content['embedding'], atol=2e-5, rtol=2e-5)


def test_export_needs_a_known_encoder_and_keeps_every_weight(stored, tmp_path, monkeypatch):
    folder, content = stored
    card, variables = convert.read(folder)
    with pytest.raises(ValueError, match='no known encoder has width 16, depth 2'):
        convert.write(tmp_path / 'no', 'open_clip', card, variables)
    known = {k: v for k, v in card['model']['text'].items() if k in _hf_text.KNOWN['roberta-base']}
    monkeypatch.setitem(_hf_text.KNOWN, 'small', known)
    convert.write(tmp_path / 'again', 'open_clip', card, variables)
    again, others = convert.read(tmp_path / 'again')
    assert again['model'] == card['model'] and equal(others, variables)
    weights = _files.arrays(tmp_path / 'again' / open_clip.SAFETENSORS)
    assert {f'weights/{name}' for name in weights} == {x for x in content if '/' in x}


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        (
            open_clip.CONFIG,
            lambda c: c['model_cfg']['text_cfg'].update(hf_pooler_type='max_pooler'),
            r"hf_pooler_type: there is no 'max_pooler'",
        ),
        (
            open_clip.CONFIG,
            lambda c: c['model_cfg']['text_cfg'].update(hf_model_config={'a': 1}),
            r"text_cfg\.hf_model_config = \{'a': 1\} is not supported beside hf_model_name",
        ),
        (
            open_clip.CONFIG,
            lambda c: c['model_cfg']['text_cfg'].update(hf_proj_type='conv'),
            r"hf_proj_type: there is no 'conv'",
        ),
        (
            _hf_text.CONFIG,
            lambda c: c.update(position_embedding_type='relative_key'),
            "position_embedding_type is 'relative_key'; only 'absolute'",
        ),
        (_hf_text.CONFIG, lambda c: c.update(is_decoder=True), 'is_decoder is true'),
        (_hf_text.CONFIG, lambda c: c.update(model_type='t5'), "model_type: there is no 't5'"),
        (_hf_text.CONFIG, lambda c: c.update(hidden_act='tanh'), "hidden_act: there is no 'tanh'"),
        (
            _hf_text.CONFIG,
            lambda c: c.update(num_attention_heads=3),
            'width 16 is not a multiple of heads 3',
        ),
    ],
)
@pytest.mark.parametrize('stored', ['bert'], indirect=True)
def test_other_settings_are_refused(stored, file, change, message):
    edit(stored[0] / file, change)
    with pytest.raises(ValueError, match=message):
        convert.read(stored[0])
