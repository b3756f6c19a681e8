"""Checkpoints of transformers with one tower: the small models in fixtures/, which
tests/reference/hf_towers.py made, give what transformers computed, block by block.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from reference import hf_towers
from safetensors.numpy import load_file, save_file
from support.layouts import edit, equal

import clip_jax
from clip_jax import convert
from clip_jax.models import clip

TOLERANCE = 2e-5
WEIGHTS = 'model.safetensors'
IMAGE, TEXT = 'CLIPVisionModel', 'CLIPTextModelWithProjection'


def compare(folder) -> dict:
    """Asserts that embeddings and blocks are those of transformers; returns the card."""
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    ((tower, encoder),) = model.towers.items()

    @jax.jit
    def apply(variables, x):
        return model.apply(
            variables,
            x,
            method=f'encode_{tower}',
            capture_intermediates=lambda module, _: (module.name or '').startswith('block_'),
            mutable=['intermediates'],
        )

    inputs = hf_towers.inputs(getattr(encoder, 'image_size', None))
    embedding, found = apply(variables, inputs)
    blocks = found['intermediates'][tower]['transformer']
    expected = np.load(folder / 'expected.npz')
    assert len(expected.files) == 1 + encoder.depth
    for i in range(encoder.depth):
        (x,), there = blocks[f'block_{i}']['__call__'], expected[f'block_{i}']
        np.testing.assert_allclose(x, there, atol=TOLERANCE * np.abs(there).max())
    there = expected['embedding']
    np.testing.assert_allclose(embedding, there, atol=TOLERANCE * np.abs(there).max())
    return card


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_outputs_of_every_block_are_those_of_transformers(name):
    compare(hf_towers.FIXTURES / name)


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_it_is_written_back_as_it_was(name, tmp_path):
    card, variables = convert.read(hf_towers.FIXTURES / name)
    convert.write(tmp_path / 'x', 'huggingface', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)
    before, after = (
        json.loads((x / 'config.json').read_text())
        for x in (hf_towers.FIXTURES / name, tmp_path / 'x')
    )
    same = ('model_type', 'architectures', 'hidden_size', 'num_hidden_layers')
    assert {key: before[key] for key in same} == {key: after[key] for key in same}


def test_an_image_tower_embeds_images_and_says_that_the_text_tower_is_missing():
    model = clip_jax.load(hf_towers.FIXTURES / IMAGE / WEIGHTS)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    embedding = model.encode_image(image)
    features = model.encode_image(image, features='pre_projection')
    assert embedding.shape == (1, 16)
    np.testing.assert_allclose(embedding, features / np.linalg.norm(features), rtol=1e-5)
    for call in (lambda: model.encode_text(['a']), lambda: model.classify(image, ['a', 'b'])):
        with pytest.raises(ValueError, match='has no text encoder, only the other one; load'):
            call()


def test_a_text_tower_embeds_tokens_and_says_that_the_image_tower_is_missing():
    model = clip_jax.load(hf_towers.FIXTURES / TEXT)
    assert model.encode_text(hf_towers.inputs(None)).shape == (2, 6)
    for call in (
        lambda: model.encode_image([]),
        lambda: model.with_preprocess(max_pixels=1),
        lambda: clip_jax.load(hf_towers.FIXTURES / TEXT, image_size=16),
    ):
        with pytest.raises(ValueError, match='has no image encoder, only the other one; load'):
            call()


@pytest.mark.parametrize('layout', ['open_clip', 'big_vision'])
def test_other_layouts_cannot_hold_it(layout, tmp_path):
    with pytest.raises(ValueError, match='has one tower; expected huggingface'):
        convert.write(tmp_path / 'x', layout, *convert.read(hf_towers.FIXTURES / IMAGE))


@pytest.mark.parametrize(
    ('kind', 'line'),
    [
        ('clipseg', 'CLIPSeg segments images and is not supported'),
        ('clap', 'CLAP embeds audio, which is not supported'),
        ('clip_vision_modal', "Did you mean 'clip_vision_model'"),
        ('clip_text_model', 'vocab_size is 49,408, but the weights are only'),
    ],
)
def test_other_kinds_are_refused_by_name(kind, line, tmp_path):
    folder = shutil.copytree(hf_towers.FIXTURES / IMAGE, tmp_path / 'x')
    edit(folder / 'config.json', lambda x: x.update(model_type=kind))
    with pytest.raises(ValueError, match=line):
        convert.read(folder)


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_weights_that_lack_some_are_one_line(name, tmp_path):
    folder = shutil.copytree(hf_towers.FIXTURES / name, tmp_path / 'x')
    weights = load_file(folder / WEIGHTS)
    for missing in [*weights][:: len(weights) // 2]:
        save_file({n: x for n, x in weights.items() if n != missing}, folder / WEIGHTS)
        with pytest.raises(ValueError, match='1 missing: '):
            convert.read(folder)


@pytest.mark.reference
@pytest.mark.parametrize('name', hf_towers.MODELS)
def test_transformers_computes_the_same_today_and_loads_what_we_write(name, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    hf_towers.write(tmp_path / 'made', name)
    card = compare(tmp_path / 'made')
    convert.write(tmp_path / 'x', 'huggingface', card, convert.read(tmp_path / 'made')[1])
    model, about = getattr(transformers, name).from_pretrained(
        tmp_path / 'x', output_loading_info=True
    )
    assert not about['missing_keys'] and not about['unexpected_keys']
    there, _ = hf_towers.embedded(model.eval())
    expected = np.load(tmp_path / 'made' / 'expected.npz')['embedding']
    np.testing.assert_allclose(there, expected, atol=TOLERANCE * np.abs(expected).max())
