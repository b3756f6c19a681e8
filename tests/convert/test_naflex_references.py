"""SigLIP 2 NaFlex against transformers: pixels, tokens, embeddings, and the way back.

`pip install -e '.[reference]'` installs the library and PyTorch, and `pytest -m reference` runs
these tests; they are skipped if one is not installed.
"""

import jax
import numpy as np
import pytest
from PIL import Image
from reference import naflex as makes
from support.layouts import equal

import clip_jax
from clip_jax import convert
from clip_jax.data.patches import fitted
from clip_jax.data.preprocess import Preprocess

pytestmark = pytest.mark.reference
TOLERANCE = 2e-5
TEXTS = ['A Red CIRCLE on\ta  blue square', '', 'two green stars ' * 9, 'café 猫 <eos> x']


@pytest.fixture(params=makes.KINDS)
def theirs(request, tmp_path):
    """A folder that transformers wrote, and the model and processor that it is of."""
    pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('transformers', reason='transformers is not installed')
    model, processor = makes.theirs(request.param)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path, model, processor


def test_pixels_and_embeddings_are_equal(theirs):
    folder, model, processor = theirs
    expected = makes.expected(model, processor)
    ours = clip_jax.load(folder)
    rows = [ours.preprocess(image) for image in makes.images()]
    images = jax.tree.map(lambda *x: np.stack(x), *rows)
    np.testing.assert_array_equal(
        images.pixels.reshape(expected['pixels'].shape), expected['pixels']
    )
    np.testing.assert_array_equal(images.grid, expected['grid'])
    unit = expected['image'] / np.linalg.norm(expected['image'], axis=1, keepdims=True)
    np.testing.assert_allclose(ours.encode_image(makes.images()), unit, atol=TOLERANCE)
    unit = expected['text'] / np.linalg.norm(expected['text'], axis=1, keepdims=True)
    np.testing.assert_allclose(ours.encode_text(makes.TOKENS), unit, atol=TOLERANCE)


def test_what_is_written_loads_strictly_and_is_what_was_read(theirs, tmp_path):
    import transformers

    folder, model, processor = theirs
    card, variables = convert.read(folder)
    convert.write(tmp_path / 'again', 'huggingface', card, variables)
    assert equal(convert.read(tmp_path / 'again')[1], variables)
    again, problems = transformers.Siglip2Model.from_pretrained(
        tmp_path / 'again', output_loading_info=True
    )
    assert not any(problems.values()), problems
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], x, err_msg=name)
    image = [Image.fromarray(makes.images()[1])]
    written = transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path / 'again')
    for name, x in processor(image, return_tensors='np').items():
        np.testing.assert_array_equal(written(image, return_tensors='np')[name], x, err_msg=name)


def test_sizes_are_those_of_transformers_for_a_thousand_shapes():
    pytest.importorskip('transformers', reason='transformers is not installed')
    from transformers.models.siglip2 import image_processing_pil_siglip2 as library

    rng = np.random.default_rng(0)
    for _ in range(1000):
        shape = [int(x) for x in np.exp(rng.uniform(0, 8, 2))]
        size, most = int(rng.integers(1, 40)), int(rng.integers(1, 1025))
        expected = library.get_image_size_for_max_num_patches(*shape, size, most)
        assert fitted(*shape, size, most) == tuple(expected)


def test_photographs_have_the_same_pixels():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    rule = Preprocess(
        256, resize='patches', interpolation='bilinear', patch_size=16, max_patches=256
    )
    rng = np.random.default_rng(0)
    for height, width in (480, 640), (1333, 200), (31, 77), (256, 256), (90, 2000):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        found = transformers.Siglip2ImageProcessorPil()(
            [image], do_rescale=False, do_normalize=False, return_tensors='np'
        )
        row = rule(image)
        np.testing.assert_array_equal(row.pixels.reshape(256, -1), found['pixel_values'][0])
        np.testing.assert_array_equal(row.grid, found['spatial_shapes'][0])


def test_tokens_are_equal(theirs):
    import tokenizers as library
    import transformers

    folder, *_ = theirs
    letters = [
        '<pad>',
        '<eos>',
        '<bos>',
        '<unk>',
        '<mask>',
        '▁',
        *'abcdefghijklmnopqrstuvwxyzé猫<>',
    ]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    options = {'model_max_length': 9, 'padding_side': 'right', 'model_input_names': ['input_ids']}
    made = transformers.Siglip2Tokenizer(vocab=vocabulary, merges=[], **options)
    made._tokenizer.post_processor = library.processors.TemplateProcessing(
        single='$A <eos>', special_tokens=[('<eos>', 1)]
    )
    made.save_pretrained(folder)
    call = {'padding': 'max_length', 'max_length': 9, 'truncation': True}
    expected = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, **call)['input_ids']
    np.testing.assert_array_equal(clip_jax.load(folder).tokenizer(TEXTS), expected)


@pytest.mark.parametrize('kind', makes.KINDS)
def test_the_stored_models_are_what_the_script_makes(kind):
    pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('transformers', reason='transformers is not installed')
    made = makes.expected(*makes.theirs(kind))
    stored = np.load(makes.FOLDER / f'naflex_{kind}.npz')
    for name, x in made.items():
        np.testing.assert_allclose(stored[name], x, atol=1e-5, err_msg=name)
