"""Training with micro-batches equals training on the batch at once."""

import functools

import jax
import numpy as np
import pytest
from support.small_training import CARDS, assert_same, batch, on_one_device, setup, steps

from clip_jax import build
from clip_jax.data import preprocess
from clip_jax.losses import softmax

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'microbatches', [pytest.param(2, marks=SLOW), 4, pytest.param(8, marks=SLOW)]
)
def test_microbatches_train_as_one_batch(microbatches):
    """With dropout and patch dropout, which depend on the example alone."""
    assert_same(steps(1, 'vit', microbatches=microbatches), on_one_device('vit'))


def test_microbatches_of_a_sharded_batch_do_too():
    ring = {'name': 'sigmoid', 'implementation': 'ring'}
    how = {'fsdp': 4, 'microbatches': 4, 'remat': 'full', 'scan': True}
    assert_same(steps(8, 'vit', loss=ring, **how), on_one_device('vit', 'sigmoid'))


def test_batch_norm_uses_the_statistics_of_a_microbatch():
    """And the running averages are updated once for each."""
    card = {**softmax.INIT, **CARDS['resnet']}
    current, step, put = setup(1, card=card, microbatches=4)
    data = batch(0, 32, 32)
    after, numbers = step(current, put(data))
    embed = jax.jit(functools.partial(build.model(card).apply, train=True, mutable='batch_stats'))
    variables, embeddings = (
        current.variables,
        {'image': np.zeros((32, 16)), 'text': np.zeros((32, 16))},
    )
    for i in range(4):
        part = preprocess.normalize(
            data['image'][i::4], mean=preprocess.CLIP_MEAN, std=preprocess.CLIP_STD
        )
        (image, text, scale, _), new = embed(variables, part, data['tokens'][i::4])
        embeddings['image'][i::4], embeddings['text'][i::4] = image, text
        variables = {**variables, **new}
    expected, _ = softmax.loss(embeddings['image'], embeddings['text'], scale)
    assert numbers['loss'] == pytest.approx(float(expected), rel=1e-5)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, after.buffers['batch_stats'], variables['batch_stats'])
