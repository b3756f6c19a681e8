"""Captions: the cache changes nothing, beam search finds what an exhaustive search finds, and
samples have the probabilities of the model.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_variables
from support.small_training import VIT

from clip_jax.models import clip
from clip_jax.models.generate import Generation, filtered, generate

PAD, START, END, VOCAB, LENGTH = 0, 1, 2, 6, 5
SIZES = {'width': 8, 'depth': 1, 'heads': 2, 'mlp_dim': 16}
TOKENS = {**SIZES, 'vocab_size': VOCAB, 'context_length': LENGTH}
CARD = {
    'image': {**VIT, **SIZES, 'patch_dropout': 0.0},
    'text': {'name': 'transformer', **TOKENS, 'pool': 'eot', 'eot_id': END},
    'embed_dim': 8,
    'decoder': {**TOKENS, 'depth': 2},
}
MODELS = {'text': CARD, 'tokens': {**CARD, 'decoder': {**CARD['decoder'], 'inputs': 'tokens'}}}
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
settings = functools.partial(Generation, START, END, PAD, max_length=LENGTH, min_length=2)


@functools.cache
def made(inputs: str) -> tuple[clip.CLIP, dict]:
    """A model whose decoder reads these inputs, with weights that make captions differ."""
    model = clip.from_card(MODELS[inputs])
    with jax.ensure_compile_time_eval():  # functions that are compiled call this
        return model, jax.tree.map(lambda x: 4 * x, random_variables(model))


@functools.partial(jax.jit, static_argnames='inputs')
def logits(images, tokens, *, inputs: str):
    model, variables = made(inputs)
    return model.apply(variables, images, tokens, method='caption_logits')


@functools.partial(jax.jit, static_argnames=('inputs', 'how'))
def captions(images, key=None, index=None, *, how: Generation, inputs: str = 'text'):
    return generate(*made(inputs), images, how, key, index)


def greedy(inputs: str) -> np.ndarray:
    """Greedy captions without a cache."""
    tokens = np.full((len(IMAGES), LENGTH), PAD, np.int32)
    tokens[:, 0] = START
    for i in range(1, LENGTH):
        scores = np.array(logits(IMAGES, tokens, inputs=inputs)[:, i - 1])
        if i == LENGTH - 1:
            scores[:, [x for x in range(VOCAB) if x != END]] = -np.inf
        ended = np.isin(tokens[:, i - 1], (END, PAD))
        tokens[:, i] = np.where(ended, PAD, scores.argmax(axis=1))
    return tokens


@pytest.mark.parametrize('inputs', MODELS)
def test_the_cache_changes_nothing(inputs):
    found = captions(IMAGES, how=settings(), inputs=inputs)
    np.testing.assert_array_equal(found, greedy(inputs))


@functools.cache
def every_caption() -> np.ndarray:
    """All captions, int32 [N, LENGTH]: the start token, up to three others, and the end."""
    words = [x for x in range(VOCAB) if x not in (PAD, END)]
    return np.array(
        [
            [START, *inside, END, *[PAD] * (LENGTH - 2 - n)]
            for n in range(LENGTH - 1)
            for inside in itertools.product(words, repeat=n)
        ],
        np.int32,
    )


@pytest.mark.parametrize('penalty', [0.0, 1.0])
@pytest.mark.parametrize('least', [2, 4])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(penalty, least):
    every = every_caption()
    lengths = (every == END).argmax(axis=1)
    how = settings(method='beam', beams=64, length_penalty=penalty, min_length=least)
    found = captions(IMAGES, how=how)
    for image, caption in zip(IMAGES, found, strict=True):
        images = np.repeat(image[None], len(every), axis=0)
        each = np.asarray(jax.nn.log_softmax(logits(images, every, inputs='text')))
        each = np.take_along_axis(each[:, :-1], every[:, 1:, None], axis=2)[..., 0]
        scores = np.sum(each, axis=1, where=np.arange(LENGTH - 1) < lengths[:, None])
        scores = np.where(lengths + 1 < least, -np.inf, scores / lengths**penalty)
        np.testing.assert_array_equal(caption, every[scores.argmax()])


def test_samples_have_the_probabilities_of_the_model():
    count = 4_000
    images = np.repeat(IMAGES[:1], count, axis=0)
    how = settings(method='sample', temperature=2.0, max_length=3)
    found = captions(images, jax.random.key(0), how=how)
    tokens = np.full((1, LENGTH), PAD, np.int32)
    tokens[:, 0] = START
    expected = jax.nn.softmax(logits(IMAGES[:1], tokens, inputs='text')[0, 0] / 2)
    shares = np.bincount(found[:, 1], minlength=VOCAB) / count
    np.testing.assert_allclose(shares, expected, atol=4 * (0.25 / count) ** 0.5)
    assert expected.max() < 0.95  # so that there is something to sample


def test_samples_depend_on_the_seed_and_the_index_of_an_image():
    how = settings(method='sample', temperature=10.0)
    images = np.repeat(IMAGES, 8, axis=0)
    index = np.arange(24)
    first = captions(images, jax.random.key(0), index, how=how)
    order = np.roll(index, 5)
    again = captions(images[order], jax.random.key(0), order, how=how)
    np.testing.assert_array_equal(again, np.asarray(first)[order])
    assert np.any(captions(images, jax.random.key(1), index, how=how) != first)


def test_only_the_most_probable_tokens_stay():
    values = jnp.log(jnp.array([[0.05, 0.5, 0.15, 0.3]]))

    def kept(**options) -> list[int]:
        return np.flatnonzero(filtered(values, **options)[0] > -1e8).tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.1) == [1]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(top_p=0.81) == [1, 2, 3]
    assert kept(top_k=3, top_p=0.6) == [1, 3]


@pytest.mark.parametrize(
    ('options', 'line'),
    [
        ({'method': 'best'}, 'captions: method'),
        ({'max_length': 1}, 'max_length is 1; expected at least 2'),
        ({'min_length': 9}, 'min_length is 9; expected at most max_length, 5'),
        ({'temperature': 0.0}, 'temperature is 0.0; expected more than 0'),
        ({'top_p': 1.5}, 'top_p is 1.5'),
        ({'beams': 0}, 'beams is 0; expected at least 1'),
    ],
)
def test_wrong_options_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        settings(**options)


def test_what_the_model_cannot_do_is_named():
    model, variables = made('text')
    with pytest.raises(ValueError, match='max_length is 9; expected at most 5'):
        generate(model, variables, IMAGES, Generation(START, END, max_length=9))
    with pytest.raises(ValueError, match='needs a random key'):
        generate(model, variables, IMAGES, settings(method='sample'))
    with pytest.raises(ValueError, match='no caption decoder'):
        generate(clip.from_card({**CARD, 'decoder': None}), variables, IMAGES, settings())
