"""Exported models load unchanged in transformers and open_clip and give the same embeddings.

`pip install -e '.[reference]'` installs these libraries and PyTorch, and `pytest -m reference` runs
these tests; the tests of a library that is not installed are skipped.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.small_models import made, pieces, words_json

from clip_jax import convert
from clip_jax.data.preprocess import Preprocess, normalize
from clip_jax.models import clip
from clip_jax.tokenizers import bpe, huggingface, sentencepiece

TOLERANCE = 2e-5

pytestmark = pytest.mark.reference
TEXTS = ['a photo of a cat', "Two dogs' toys & 7 red circles!", 'word ' * 100]


def forward(card: dict, variables: dict, images, tokens):
    """Normalized embeddings of images and texts, and their logits, from our model."""
    model = clip.from_card(card['model'])
    image, text, scale, bias = model.apply(variables, images, tokens)
    return image, text, scale * image @ text.T + (0 if bias is None else bias)


def inputs(card: dict) -> tuple[np.ndarray, np.ndarray]:
    """Images NHWC and tokens; each text has one end token, followed by padding."""
    model, rng = card['model'], np.random.default_rng(1)
    size, text = model['image']['image_size'], model['text']
    images = rng.normal(size=(3, size, size, 3)).astype(np.float32)
    end = text['eot_id'] or text['vocab_size'] - 1
    tokens = rng.integers(1, text['vocab_size'] - 1, (4, text['context_length']))
    tokens[tokens == end] = 1
    for text_tokens, length in zip(tokens, (3, 5, 8, 9), strict=True):
        text_tokens[length - 1 :] = 0
        text_tokens[length - 1] = end
    return images, tokens.astype(np.int32)


def scaled_down(variables: dict) -> dict:
    """Scales parameters so that activations neither vanish nor overflow."""
    return jax.tree.map(lambda x: (x - 0.4) * (0.5 if np.ndim(x) > 1 else 1), variables)


def exported(tmp_path, layout: str, name: str, **card) -> tuple[pathlib.Path, dict, dict]:
    card, variables = made(name, **card)
    variables = scaled_down(variables)
    convert.write(tmp_path / 'x', layout, card, variables)
    return tmp_path / 'x', card, variables


@pytest.mark.parametrize('name', ['clip', 'eot', 'quick', 'metaclip_2', 'siglip'])
def test_transformers_loads_what_we_write(tmp_path, name):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    path, card, variables = exported(tmp_path, 'huggingface', name)
    images, tokens = inputs(card)
    model, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        there = model.eval()(input_ids=torch.tensor(tokens).long(), pixel_values=pixels)
    image, text, logits = forward(card, variables, images, tokens)
    np.testing.assert_allclose(image, there.image_embeds, atol=TOLERANCE)
    np.testing.assert_allclose(text, there.text_embeds, atol=TOLERANCE)
    np.testing.assert_allclose(logits, there.logits_per_image, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize('name', ['clip', 'eot', 'quick', 'resnet', 'clipa', 'scaled'])
def test_open_clip_loads_what_we_write(tmp_path, name):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    path, card, variables = exported(tmp_path, 'open_clip', name)
    images, tokens = inputs(card)
    model = open_clip.create_model(f'local-dir:{path}').eval()
    with torch.no_grad():
        pixels, ids = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(tokens).long()
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(ids, normalize=True)
        logits = model.get_logits(pixels, ids)[0]
    ours = forward(card, variables, images, tokens)
    for here, there in zip(ours, (image, text, logits), strict=True):
        np.testing.assert_allclose(here, there, atol=TOLERANCE, rtol=TOLERANCE)


def clip_tokens(tmp_path, layout: str) -> pathlib.Path:
    """An exported model with CLIP's tokenizer."""
    return exported(tmp_path, layout, 'quick', tokenizer=bpe.Tokenizer(77).card)[0]


def test_transformers_makes_the_same_tokens(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    path = clip_tokens(tmp_path, 'huggingface')
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = bpe.Tokenizer(77)(TEXTS)
    tokens = theirs(TEXTS, padding='max_length', max_length=77, truncation=True)['input_ids']
    for here, there in zip(ours, tokens, strict=True):
        end = there.index(49407)  # it pads with the end token, OpenAI with 0
        assert here[: end + 1].tolist() == there[: end + 1]


@pytest.mark.parametrize('kind', ['sentencepiece', 'huggingface'])
def test_transformers_makes_the_same_tokens_of_other_vocabularies(tmp_path, kind):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    if kind == 'sentencepiece':
        options = {'add_bos': False, 'clean': 'remove_punctuation'}
        ours = sentencepiece.Tokenizer(pieces(), 9, **options)
    else:
        ours = huggingface.Tokenizer(words_json(), 9, clean='lower')
    path, _, _ = exported(tmp_path, 'huggingface', 'siglip', tokenizer=ours.card)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    texts = ['A cat', 'two Green, stars!', 'a cat ' * 9]
    tokens = theirs(texts, padding='max_length', max_length=9, truncation=True)['input_ids']
    np.testing.assert_array_equal(ours(texts), tokens)


def test_open_clip_makes_the_same_tokens(tmp_path):
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    path = clip_tokens(tmp_path, 'open_clip')
    theirs = open_clip.get_tokenizer(f'local-dir:{path}', context_length=77)
    np.testing.assert_array_equal(bpe.Tokenizer(77)(TEXTS), theirs(TEXTS))


@pytest.mark.parametrize('name', ['clip', 'clipa'])
def test_open_clip_prepares_images_as_we_do(tmp_path, name):
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    rule = Preprocess(32, resize='squash' if name == 'clipa' else 'shortest').card
    path, card, _ = exported(tmp_path, 'open_clip', name, preprocess=rule)
    _, _, transform = open_clip.create_model_and_transforms(f'local-dir:{path}')
    rng = np.random.default_rng(2)
    for size in ((50, 70), (33, 200), (20, 20)):
        image = Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8))
        ours = Preprocess.from_card(card['preprocess'])
        here = normalize(jnp.asarray(ours(image)), ours.mean, ours.std)
        there = transform(image).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(here, there, atol=1e-6)
