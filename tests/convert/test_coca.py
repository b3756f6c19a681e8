"""CoCa of open_clip: the small models in fixtures/, which tests/reference/coca.py made, give
open_clip's embeddings, logits and captions.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from reference import coca
from safetensors.numpy import load_file, save_file
from support.layouts import edit, equal

from clip_jax import convert
from clip_jax.models import clip
from clip_jax.models.generate import Generation, generate

TOLERANCE = 2e-5
WEIGHTS, CONFIG = 'open_clip_model.safetensors', 'open_clip_config.json'
GREEDY = Generation(coca.START, coca.END, max_length=coca.LENGTH, min_length=coca.MIN_LENGTH + 1)


def compare(folder, name: str) -> None:
    """Asserts that embeddings, logits and captions are open_clip's."""
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    images, tokens = coca.inputs(name)
    expected = np.load(folder / 'expected.npz')

    @jax.jit
    def apply(variables, images, tokens):
        logits = model.apply(variables, images, tokens, method='caption_logits')
        captions = generate(model, variables, images, GREEDY)
        return *model.apply(variables, images, tokens)[:2], logits, captions

    image, text, logits, captions = apply(variables, images, tokens)
    np.testing.assert_allclose(image, expected['image'], atol=TOLERANCE)
    np.testing.assert_allclose(text, expected['text'], atol=TOLERANCE)
    there = expected['logits']
    np.testing.assert_allclose(logits, there, atol=TOLERANCE * np.abs(there).max())
    np.testing.assert_array_equal(captions, expected['captions'])


@pytest.mark.parametrize('name', coca.MODELS)
def test_logits_and_greedy_captions_are_those_of_open_clip(name):
    compare(coca.FIXTURES / name, name)


@pytest.mark.reference
@pytest.mark.parametrize('name', coca.MODELS)
def test_logits_and_greedy_captions_by_the_library(name, tmp_path):
    pytest.importorskip('open_clip', reason='open_clip is not installed')
    coca.write(tmp_path, name)
    compare(tmp_path, name)


@pytest.mark.parametrize('name', coca.MODELS)
def test_captions_of_the_fixture_differ_and_end_early(name):
    captions = np.load(coca.FIXTURES / name / 'expected.npz')['captions']
    assert len({tuple(x) for x in captions}) > 1
    assert len({int(np.argmax(x == coca.END)) for x in captions}) > 1


@pytest.mark.parametrize('name', coca.MODELS)
def test_it_is_written_back_as_it_was(name, tmp_path):
    card, variables = convert.read(coca.FIXTURES / name)
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)
    folders = coca.FIXTURES / name, tmp_path / 'x'
    before, after = (json.loads((x / CONFIG).read_text())['model_cfg'] for x in folders)
    unused = {'attn_pooler_heads'}  # of the decoder, which has no pooler
    for part in ('vision_cfg', 'text_cfg', 'multimodal_cfg'):
        kept = {k: v for k, v in before[part].items() if part[:1] != 'm' or k not in unused}
        assert kept.items() <= after[part].items()
    assert after['custom_text']
    first, second = (load_file(x / WEIGHTS) for x in folders)
    assert {*first} == {*second}
    for key, x in first.items():
        np.testing.assert_array_equal(x.astype(np.float32), second[key])


def copied(tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(coca.FIXTURES / 'coca_wide', folder)
    return folder


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'width': 16}, 'multimodal_cfg.width is 16, text_cfg.width is 8'),
        ({'context_length': 5}, 'multimodal_cfg.context_length is 5; expected at least'),
        ({'layers': 3}, 'missing: text_decoder.cross_attn.2'),
        ({'layers': 10**9}, 'decoder: 1,000,000,000 blocks, but the weights are only'),
        ({'heads': 3}, 'width 8 is not a multiple of heads 3'),
    ],
)
def test_wrong_sizes_are_named(change, line, tmp_path):
    folder = copied(tmp_path)
    edit(folder / CONFIG, lambda x: x['model_cfg']['multimodal_cfg'].update(change))
    with pytest.raises(ValueError, match=line):
        convert.read(folder)


def test_a_decoder_that_is_not_supported_is_left_out_with_a_warning(tmp_path, caplog):
    folder = copied(tmp_path)
    edit(folder / CONFIG, lambda x: x['model_cfg'].pop('multimodal_cfg'))
    card, _ = convert.read(folder)
    assert 'decoder' not in card['model']
    assert 'caption decoder is left out' in caplog.text


def test_encoders_alone_are_read_without_a_decoder(tmp_path):
    folder = copied(tmp_path)
    weights = load_file(folder / WEIGHTS)
    towers = {k: x for k, x in weights.items() if not k.startswith('text_decoder.')}
    save_file(towers, folder / WEIGHTS)
    card, variables = convert.read(folder)
    assert 'decoder' not in card['model'] and 'decoder' not in variables['params']
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)


def test_another_layout_refuses_the_decoder(tmp_path):
    card, variables = convert.read(coca.FIXTURES / 'coca_wide')
    with pytest.raises(ValueError, match='cannot hold this model'):
        convert.write(tmp_path / 'x', 'big_vision', card, variables)
