"""Image encoders of timm in open_clip's files: the small models in fixtures/, which the scripts in
tests/reference made, give what timm computed, block by block, and are written back unchanged.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from reference import convnext, eva, plain_vit, timm_towers
from support.layouts import edit, equal

from clip_jax import convert, lookup
from clip_jax.convert import _timm_convnext, _timm_eva, _timm_vit
from clip_jax.models import clip, layers

TOLERANCE = 2e-5
WEIGHTS = 'open_clip_model.safetensors'
# The script, the family in convert/, our encoder.
FAMILIES = [(convnext, _timm_convnext, 'convnext'), (eva, _timm_eva, 'rope_vit')]
FAMILIES += [(plain_vit, _timm_vit, 'vit')]
CASES = [
    pytest.param(script, family, encoder, name, id=name)
    for script, family, encoder in FAMILIES
    for name in script.MODELS
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The names of timm's models are those of the small ones."""
    for script, family, _ in FAMILIES:
        monkeypatch.setattr(family, 'TRUNKS', script.TRUNKS)


def outputs(card: dict, variables: dict, encoder: str) -> tuple[np.ndarray, np.ndarray, list]:
    """Embeddings of images and texts, and the outputs of the image encoder's blocks."""
    model = clip.from_card(card['model'])
    block = getattr(lookup.module('models.image', encoder), 'Block', layers.Block)

    @jax.jit
    def apply(variables, *inputs):
        return model.apply(
            variables,
            *inputs,
            capture_intermediates=lambda module, _: isinstance(module, block),
            mutable=['intermediates'],
        )

    images, tokens = timm_towers.inputs(model.image.image_size)
    (image, text, _, _), found = apply(variables, images, tokens)
    found = jax.tree.leaves_with_path(found['intermediates']['image'])
    numbered = sorted((jax.tree_util.keystr(path), x) for path, x in found)
    return image, text, [x for _, x in numbered]


def compare(folder, encoder: str) -> None:
    image, text, blocks = outputs(*convert.read(folder), encoder)
    expected = np.load(folder / 'expected.npz')
    assert len(blocks) == len(expected.files) - 2
    for i, x in enumerate(blocks):
        there = expected[f'block_{i}']
        np.testing.assert_allclose(x, there, atol=TOLERANCE * np.abs(there).max())
    np.testing.assert_allclose(image, expected['image'], atol=TOLERANCE)
    np.testing.assert_allclose(text, expected['text'], atol=TOLERANCE)


@pytest.mark.parametrize(('script', 'family', 'encoder', 'name'), CASES)
def test_outputs_of_every_block_are_those_of_timm(script, family, encoder, name):
    compare(timm_towers.FIXTURES / name, encoder)


@pytest.mark.parametrize(('script', 'family', 'encoder', 'name'), CASES)
def test_it_is_written_back_as_it_was(script, family, encoder, name, tmp_path):
    card, variables = convert.read(timm_towers.FIXTURES / name)
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)
    before, after = (
        json.loads((x / 'open_clip_config.json').read_text())['model_cfg']['vision_cfg']
        for x in (timm_towers.FIXTURES / name, tmp_path / 'x')
    )
    same = ('timm_model_name', 'timm_pool', 'timm_proj', 'image_size')
    assert {key: before[key] for key in same} == {key: after[key] for key in same}


def copied(name, tmp_path):
    return shutil.copytree(timm_towers.FIXTURES / name, tmp_path / 'x')


@pytest.mark.parametrize(
    ('name', 'change', 'line'),
    [
        ('convnext_base', {'timm_model_name': 'convnext_nano'}, "timm model 'convnext_nano'"),
        ('convnext_base', {'timm_pool': 'abs_attn'}, "with pooling 'abs_attn' is not supported"),
        ('convnext_base', {'timm_proj': 'mlp'}, r'missing: visual\.head\.mlp\.fc1\.bias'),
        ('convnext_large', {'timm_proj_bias': True}, 'timm_proj_bias is true.* with timm_proj mlp'),
        ('eva_giant_patch14_224', {'timm_pool': 'avg'}, "with pooling 'avg' is not supported"),
        ('eva_giant_patch14_224', {'timm_proj': 'linear'}, "timm_proj is 'linear'; only null"),
        ('eva_giant_patch14_224', {'image_size': 20}, 'for images of 16 pixels.*set it to 16'),
        ('eva_giant_patch14_224', {'patch_dropout': 0.5}, 'patch_dropout is 0.5; with eva_giant'),
        ('convnext_base', {'patch_dropout': 0.5}, 'patch_dropout is 0.5; with convnext_base'),
        ('convnext_base', {'image_size': 16}, 'image_size is 16; expected at least 32'),
    ],
)
def test_settings_that_do_not_fit_are_one_line(name, change, line, tmp_path):
    folder = copied(name, tmp_path)
    edit(folder / 'open_clip_config.json', lambda x: x['model_cfg']['vision_cfg'].update(change))
    with pytest.raises(ValueError, match=line) as error:
        convert.read(folder)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(('script', 'family', 'encoder', 'name'), CASES)
def test_weights_that_lack_some_are_one_line(script, family, encoder, name, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = copied(name, tmp_path)
    weights = load_file(folder / WEIGHTS)
    for missing in [*weights][:: len(weights) // 4]:
        save_file({n: x for n, x in weights.items() if n != missing}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=r'the weights lack|\d missing: '):
            convert.read(folder)


@pytest.mark.reference
@pytest.mark.parametrize(('script', 'family', 'encoder', 'name'), CASES)
def test_timm_computes_the_same_today_and_open_clip_loads_what_we_write(
    script, family, encoder, name, tmp_path
):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    script.write(tmp_path / 'made', name)
    compare(tmp_path / 'made', encoder)
    card, variables = convert.read(tmp_path / 'made')
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    with timm_towers.replaced(name, functools.partial(script.encoder, name)):
        model = open_clip.create_model(f'local-dir:{tmp_path}/x').eval()
    images, _ = timm_towers.inputs(card['model']['image']['image_size'])
    with torch.no_grad():
        there = model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2)), normalize=True)
    expected = np.load(tmp_path / 'made' / 'expected.npz')
    np.testing.assert_allclose(there, expected['image'], atol=TOLERANCE)
