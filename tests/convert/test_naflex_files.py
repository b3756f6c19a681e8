"""SigLIP 2 NaFlex in the layouts of transformers and big_vision, against what transformers gave."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from reference import naflex as makes
from support.layouts import edit, equal

import clip_jax
from clip_jax import convert
from clip_jax.convert import _files, big_vision, huggingface
from clip_jax.data.patches import Patches
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip
from clip_jax.models.image import naflex
from clip_jax.step import state

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
TOLERANCE = 2e-5
PREPROCESSOR = 'preprocessor_config.json'


@pytest.fixture(params=makes.KINDS)
def stored(request, tmp_path):
    """A folder of transformers, and what its model gave there."""
    content = dict(np.load(FIXTURES / f'naflex_{request.param}.npz'))
    (tmp_path / huggingface.CONFIG).write_text(content['config'].item())
    (tmp_path / PREPROCESSOR).write_text(content['processor'].item())
    weights = {
        name.removeprefix('weights/'): x.astype(np.float32)
        for name, x in content.items()
        if name.startswith('weights/')
    }
    _files.save(tmp_path / huggingface.SAFETENSORS, weights)
    return tmp_path, content


def test_pixels_and_grids_are_those_of_the_processor(stored):
    folder, content = stored
    prepare = Preprocess.from_card(convert.read(folder)[0]['preprocess'])
    for image, pixels, grid in zip(makes.images(), content['pixels'], content['grid'], strict=True):
        for given in image, Image.fromarray(image):
            found = prepare(given)
            np.testing.assert_array_equal(found.pixels.reshape(pixels.shape), pixels)
            np.testing.assert_array_equal(found.grid, grid)


def test_embeddings_and_blocks_are_those_of_transformers(stored):
    folder, content = stored
    card, variables = convert.read(folder)
    size, grid = card['model']['image']['patch_size'], content['grid']
    pixels = content['pixels'].reshape(len(grid), -1, size, size, 3)
    images = Patches(pixels.astype(np.float32) / 127.5 - 1, grid)
    model = clip.from_card(card['model'])

    @jax.jit
    def embed(variables, images, tokens):
        kept = {'capture_intermediates': True, 'mutable': ['intermediates']}
        image = model.apply(variables, images, method='encode_image', **kept)
        return image, model.apply(variables, tokens, method='encode_text')

    (ours, kept), text = embed(variables, images, makes.TOKENS)
    np.testing.assert_allclose(ours, content['image'], atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(text, content['text'], atol=TOLERANCE, rtol=TOLERANCE)
    blocks = kept['intermediates']['image']['transformer']
    for i in range(card['model']['image']['depth']):
        found, there = blocks[f'block_{i}']['__call__'][0], content[f'block/{i}']
        for row in range(makes.BLOCKS):
            count = grid[row].prod()
            np.testing.assert_allclose(
                found[row, :count], there[row, :count], atol=TOLERANCE, rtol=TOLERANCE
            )


def test_loaded_it_embeds_ten_aspect_ratios_as_it_does_each(stored):
    folder, content = stored
    model = clip_jax.load(folder)
    together = model.encode_image(makes.images())
    unit = content['image'] / np.linalg.norm(content['image'], axis=1, keepdims=True)
    np.testing.assert_allclose(together, unit, atol=TOLERANCE)
    alone = np.concatenate([model.encode_image(image) for image in makes.images()])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    most = max(grid.prod() for grid in content['grid'])
    closer = model.with_preprocess(max_patches=int(most) + 60)
    assert closer.preprocess(makes.images()[0]).grid.prod() > most
    assert closer.encode_image(makes.images()).shape == together.shape


@pytest.mark.parametrize('layout', ['huggingface', 'big_vision'])
def test_what_is_written_is_what_was_read(stored, tmp_path, layout):
    folder, content = stored
    card, variables = convert.read(folder)
    convert.write(tmp_path / 'again', layout, card, variables)
    again, others = convert.read(tmp_path / 'again')
    assert again['model'] == card['model'] and equal(others, variables)
    if layout == 'huggingface':
        assert again['preprocess'] == card['preprocess']
        weights = _files.arrays(tmp_path / 'again' / huggingface.SAFETENSORS)
        for name, array in weights.items():
            np.testing.assert_array_equal(array.read(), content[f'weights/{name}'])
        assert len(weights) == sum(name.startswith('weights/') for name in content)
    else:
        assert again['preprocess']['max_patches'] == big_vision.MAX_PATCHES


# Counted by transformers 5.24 in its own models of these sizes.
@pytest.mark.parametrize(('variant', 'count'), [('B', 375_234_050), ('So400m', 1_135_670_962)])
def test_numbers_of_parameters_of_the_published_models(variant, count):
    sizes = naflex.VARIANTS[variant]
    theirs = {
        'hidden_size': sizes['width'],
        'num_hidden_layers': sizes['depth'],
        'num_attention_heads': sizes['heads'],
        'intermediate_size': sizes['mlp_dim'],
    }
    config = {'model_type': 'siglip2', 'vision_config': theirs}
    config['text_config'] = {**theirs, 'vocab_size': 256_000}
    fields = huggingface.architecture(config, (), what='published')
    assert (fields['image']['image_size'], fields['image']['patch_size']) == (256, 16)
    assert state.count_parameters(clip.shapes(clip.from_card(fields))['params']) == count


@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_open_clip_has_no_such_model(stored, tmp_path):
    with pytest.raises(ValueError, match=r"open_clip cannot hold this model.*resize is 'patches'"):
        convert.write(tmp_path / 'no', 'open_clip', *convert.read(stored[0]))


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        (
            huggingface.CONFIG,
            lambda c: c['vision_config'].update(num_patches=10),
            r'config.json: vision_config.num_patches is 10; expected a square number',
        ),
        (
            huggingface.CONFIG,
            lambda c: c['vision_config'].update(num_patches=25),
            r'the weights are for images of \d+ pixels .* but patch_size \* num_patches',
        ),
        (
            huggingface.CONFIG,
            lambda c: c['vision_config'].update(vision_use_head=False),
            'vision_use_head is False; only True is supported',
        ),
        (
            huggingface.CONFIG,
            lambda c: c['vision_config'].update(patch_size=[4, 4]),
            'impossible architecture|unexpected kind',
        ),
        (
            PREPROCESSOR,
            lambda c: c.update(patch_size=8),
            'patch_size is 8; expected [34], t',
        ),
        (PREPROCESSOR, lambda c: c.update(do_resize=False), 'do_resize is false; expected true'),
        (PREPROCESSOR, lambda c: c.update(max_num_patches=0), 'max_patches 0; expected a positive'),
        (
            PREPROCESSOR,
            lambda c: c.update(image_processor_type='SiglipImageProcessor'),
            'is SiglipImageProcessor; expected Siglip2ImageProcessor',
        ),
    ],
)
@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_wrong_files_say_what_is_wrong(stored, file, change, message):
    folder, _ = stored
    edit(folder / file, change)
    with pytest.raises(ValueError, match=message) as error:
        convert.read(folder)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_partial_weights_are_refused(stored):
    folder, _ = stored
    weights = {n: x.read() for n, x in _files.arrays(folder / huggingface.SAFETENSORS).items()}
    del weights['vision_model.head.probe']
    _files.save(folder / huggingface.SAFETENSORS, weights)
    with pytest.raises(ValueError, match=r'1 missing: vision_model\.head\.probe'):
        convert.read(folder)


@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_a_folder_without_a_processor_has_the_patches_of_the_model(stored):
    folder, _ = stored
    (folder / PREPROCESSOR).unlink()
    card, _ = convert.read(folder)
    found = card['preprocess']
    size = card['model']['image']['patch_size']
    assert (found['resize'], found['patch_size'], found['max_patches']) == ('patches', size, 256)


@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_another_image_size_is_refused(stored):
    with pytest.raises(ValueError, match='takes images of any size: give max_patches'):
        clip_jax.load(stored[0], image_size=300)


@pytest.mark.parametrize('stored', ['small'], indirect=True)
def test_in_a_file_of_big_vision_positions_are_a_grid_and_patches_are_flat(stored):
    folder, content = stored
    card, variables = convert.read(folder)
    convert.write(folder / 'again', 'big_vision', card, variables)
    with np.load(folder / 'again' / big_vision.FILE) as file:
        table = file['params/img/pos_embedding']
        assert file['params/img/embedding/kernel'].ndim == 2
    side = json.loads(content['config'].item())['vision_config']['num_patches'] ** 0.5
    assert table.shape[:2] == (side, side)
