"""MobileCLIP's vision transformers in open_clip's files: the small models in fixtures/, which
tests/reference/mobileclip.py made, give what timm computed, block by block.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from reference import mobileclip
from safetensors.numpy import load_file, save_file
from support.layouts import edit, equal

from clip_jax import convert
from clip_jax.convert import _timm_mobileclip
from clip_jax.models import clip, layers

TOLERANCE = 2e-5
WEIGHTS, CONFIG = 'open_clip_model.safetensors', 'open_clip_config.json'
MCI, CLIP = mobileclip.MODELS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The names of timm's models are those of the small ones."""
    monkeypatch.setattr(_timm_mobileclip, 'TRUNKS', mobileclip.TRUNKS)


def compare(folder, name: str) -> None:
    """Asserts that embeddings and blocks are timm's."""
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])

    @jax.jit
    def apply(variables, *inputs):
        return model.apply(
            variables,
            *inputs,
            capture_intermediates=lambda module, _: isinstance(module, layers.Block),
            mutable=['intermediates'],
        )

    (image, text, _, _), found = apply(variables, *mobileclip.inputs(name))
    blocks = found['intermediates']['image']['transformer']
    expected = np.load(folder / 'expected.npz')
    for i in range(model.image.depth):
        (x,), there = blocks[f'block_{i}']['__call__'], expected[f'block_{i}']
        np.testing.assert_allclose(x, there, atol=TOLERANCE * np.abs(there).max())
    np.testing.assert_allclose(image, expected['image'], atol=TOLERANCE)
    np.testing.assert_allclose(text, expected['text'], atol=TOLERANCE)


@pytest.mark.parametrize('name', mobileclip.MODELS)
def test_outputs_of_every_block_are_those_of_timm(name):
    compare(mobileclip.FIXTURES / name, name)


@pytest.mark.parametrize('name', mobileclip.MODELS)
def test_it_is_written_back_as_it_was(name, tmp_path):
    card, variables = convert.read(mobileclip.FIXTURES / name)
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)
    before, after = (
        json.loads((x / CONFIG).read_text())['model_cfg']['vision_cfg']
        for x in (mobileclip.FIXTURES / name, tmp_path / 'x')
    )
    assert before.items() <= after.items()
    before, after = (load_file(x / WEIGHTS) for x in (mobileclip.FIXTURES / name, tmp_path / 'x'))
    extra = {x for x in before if not x.endswith(('num_batches_tracked', 'attn_mask'))}
    assert extra == {*after}


@pytest.mark.parametrize(
    ('name', 'change', 'line'),
    [
        (MCI, {'timm_model_name': 'fastvit_mci0'}, "timm model 'fastvit_mci0' with pooling"),
        (MCI, {'timm_pool': 'avg'}, "with pooling 'avg' is not supported"),
        (CLIP, {'timm_proj': 'linear'}, "timm_proj is 'linear'; only null"),
        (CLIP, {'image_size': 16}, 'vision_cfg.image_size'),
        (MCI, {'image_size': 64}, r'are for images of \d+ pixels .* set it to'),
        (CLIP, {'timm_model_name': MCI}, r'the weights lack visual\.trunk\.patch_embed\.backbone'),
    ],
)
def test_settings_that_do_not_fit_are_one_line(name, change, line, tmp_path):
    folder = shutil.copytree(mobileclip.FIXTURES / name, tmp_path / 'x')
    edit(folder / CONFIG, lambda x: x['model_cfg']['vision_cfg'].update(change))
    with pytest.raises(ValueError, match=line):
        convert.read(folder)


@pytest.mark.parametrize('name', mobileclip.MODELS)
def test_weights_that_lack_some_are_one_line(name, tmp_path):
    folder = shutil.copytree(mobileclip.FIXTURES / name, tmp_path / 'x')
    weights = load_file(folder / WEIGHTS)
    needed = [x for x in weights if not x.endswith(('num_batches_tracked', 'attn_mask'))]
    for missing in needed[:: len(needed) // 2]:
        save_file({n: x for n, x in weights.items() if n != missing}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=r'the weights lack|1 missing: '):
            convert.read(folder)


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface', 'big_vision'])
def test_what_a_layout_cannot_hold_is_said(layout, tmp_path):
    card, variables = convert.read(mobileclip.FIXTURES / MCI)
    if layout == 'open_clip':  # holds it, but not of this size
        card['model']['image']['norm_eps'] = 1e-3
    with pytest.raises(ValueError, match=f'the layout {layout} cannot hold'):
        convert.write(tmp_path / 'x', layout, card, variables)


@pytest.mark.reference
@pytest.mark.parametrize('name', mobileclip.MODELS)
def test_timm_computes_the_same_today_and_open_clip_loads_what_we_write(name, tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    mobileclip.write(tmp_path / 'made', name)
    compare(tmp_path / 'made', name)
    card, variables = convert.read(tmp_path / 'made')
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    with mobileclip.replaced(name):
        model = open_clip.create_model(f'local-dir:{tmp_path}/x').eval()
    images, tokens = mobileclip.inputs(name)
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2)), normalize=True)
        text = model.encode_text(torch.tensor(tokens).long(), normalize=True)
    expected = np.load(tmp_path / 'made' / 'expected.npz')
    np.testing.assert_allclose(image, expected['image'], atol=TOLERANCE)
    np.testing.assert_allclose(text, expected['text'], atol=TOLERANCE)
    written, made = (load_file(tmp_path / x / WEIGHTS) for x in ('x', 'made'))
    for key in written:
        if 'running' in key:
            np.testing.assert_array_equal(written[key], made[key])
