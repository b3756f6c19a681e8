"""The captioning loss: its value, exact gradients from micro-batches, and the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.small_models import random_variables
from support.small_training import SMALL, TEXT, VIT, assert_same, batch, setup

from clip_jax.models import clip
from clip_jax.models.decoder import caption_sums
from clip_jax.step import captions
from clip_jax.step.captions import Captioning

DECODER = {**SMALL, 'vocab_size': 80, 'context_length': 8, 'dropout': 0.2}
COCA = {
    'image': {**VIT, 'pool': 'queries', 'pool_queries': 3, 'pool_width': 16, 'pool_heads': 2},
    'text': {**TEXT, 'pool': 'cls', 'eot_id': None, 'dropout': 0.2},
    'embed_dim': 16,
    'decoder': DECODER,
}
CAPPA = {
    'image': {**VIT, 'pool': 'map', 'patch_dropout': 0.0},
    'text': TEXT,
    'embed_dim': 16,
    'decoder': {**DECODER, 'inputs': 'tokens', 'parallel': True},
}
CARDS = {'coca': COCA, 'cappa': CAPPA}
HOW = {'coca': Captioning(), 'cappa': Captioning(1.0, 0.0, 0.5)}


def steps(devices: int, kind: str, count: int = 4, **options) -> tuple:
    """The numbers of some steps, and the state after them."""
    current, step, put = setup(
        devices, card=CARDS[kind], captioning=HOW[kind], learning_rate=1e-4, **options
    )
    found = []
    for i in range(count):
        current, numbers = step(current, put(batch(i, 32)))
        found.append({name: float(x) for name, x in numbers.items()})
    return found, current


def losses(run: tuple) -> tuple:
    return [numbers['loss'] for numbers in run[0]], run[1]


@pytest.fixture(scope='module')
def on_one_device():
    return {kind: steps(1, kind) for kind in CARDS}


def test_sums_are_optax_cross_entropy_without_padding():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 6, 9)), jnp.float32)
    tokens = jnp.array([[1, 4, 5, 2, 0, 0], [1, 2, 0, 0, 0, 0], [1, 8, 7, 6, 5, 2]])
    found = caption_sums(logits, tokens, 0)
    for row, text, sums in zip(logits, tokens, found, strict=True):
        labels = [int(x) for x in text[1:] if x]
        each = optax.softmax_cross_entropy_with_integer_labels(
            row[: len(labels)], jnp.array(labels)
        )
        right = sum(int(row[i].argmax()) == label for i, label in enumerate(labels))
        np.testing.assert_allclose(sums, [each.sum(), len(labels), right], rtol=1e-5)


PARTS = {'devices': 1, 'microbatches': 4}
MESH = {'devices': 8, 'fsdp': 2, 'tensor': 2, 'microbatches': 2}


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('coca', MESH),
        ('cappa', PARTS),
        pytest.param('coca', PARTS, marks=pytest.mark.slow),
        pytest.param('cappa', MESH, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_meshes_change_nothing(kind, options, on_one_device):
    alone = losses(on_one_device[kind])
    assert_same(losses(steps(kind=kind, **options)), alone)
    assert np.isfinite(alone[1].params['logit_scale'])  # also without a contrastive loss


def test_the_loss_is_the_weighted_sum(on_one_device):
    numbers = on_one_device['coca'][0][0]
    total = numbers['contrastive'] + 2 * numbers['caption/loss']
    np.testing.assert_allclose(numbers['loss'], total, rtol=1e-6)
    np.testing.assert_allclose(numbers['caption/perplexity'], np.exp(numbers['caption/loss']))


def test_captions_alone_do_not_compute_the_text_encoder():
    model = clip.from_card(CAPPA)
    variables = random_variables(model)
    del variables['params']['text'], variables['params']['text_projection']
    images, tokens = jnp.zeros((2, 16, 16, 3)), jnp.full((2, 8), 4)
    how = {'method': clip.captioned, 'contrastive': False}
    (sums,) = jax.jit(functools.partial(model.apply, **how))(variables, images, tokens)
    assert sums.shape == (2, 3) and np.all(sums[:, 1] == 7)


def test_in_parallel_no_token_is_seen():
    """With mask tokens alone, logits do not depend on the caption; else only on earlier tokens."""
    model = clip.from_card(CAPPA)
    variables = random_variables(model)
    image = jnp.ones((2, 4, 32))
    first = jnp.array([[2, 5, 6, 3, 0, 0, 0, 0], [2, 5, 6, 3, 0, 0, 0, 0]])
    second = first.at[:, 2].set(9)

    def logits(tokens):
        masked = jnp.array([True, False])
        params = {'params': variables['params']['decoder']}
        return model.decoder.apply(params, tokens, image, masked=masked)

    a, b = logits(first), logits(second)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_allclose(a[1, :2], b[1, :2], atol=1e-6)
    assert np.abs(a[1, 2] - b[1, 2]).max() > 1e-3
    assert np.abs(a[0, 0] - a[1, 0]).max() > 1e-3


@pytest.mark.parametrize(
    ('card', 'change', 'line'),
    [
        (COCA, {'weight': -1.0}, 'captioning.weight is -1.0; expected a number, at least 0'),
        (COCA, {'weight': 0.0}, 'captioning.weight is 0'),
        (COCA, {'parallel': 0.5}, 'needs model.decoder.parallel'),
        (CAPPA, {'parallel': 1.5}, 'expected at most 1'),
    ],
)
def test_wrong_settings_are_named(card, change, line):
    config = {'weight': 2.0, 'contrastive': 1.0, 'parallel': 0.0, **change}
    with pytest.raises(ValueError, match=line):
        captions.make(config, clip.from_card(card))


def test_teachers_need_embeddings():
    config = {'weight': 1.0, 'contrastive': 0.0, 'parallel': 0.0}
    with pytest.raises(ValueError, match='contrastive is 0'):
        captions.make(config, clip.from_card(COCA), teachers=True)


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'text': {**COCA['text'], 'causal': False}}, 'need a causal text encoder'),
        ({'decoder': {**DECODER, 'width': 64}}, "width is 64 and the text encoder's is 32"),
        ({'decoder': {**DECODER, 'parallel': True}}, "needs inputs 'tokens'"),
        ({'image': {**COCA['image'], 'pool_queries': 1}}, 'expected 2 or more'),
        (
            {
                'image': {
                    'name': 'resnet',
                    'image_size': 32,
                    'width': 8,
                    'depths': (1,) * 4,
                    'heads': 4,
                }
            },
            'image encoder clip_jax.models.image.resnet does not return',
        ),
    ],
)
def test_encoders_that_do_not_fit_are_named(change, line):
    with pytest.raises(ValueError, match=line):
        clip.from_card({**COCA, **change})
