"""Training with micro-batches equals training on the batch at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.small_training import CARDS, assert_same, batch, on_one_device, setup, steps

from clip_jax import build, lookup, sharding
from clip_jax.data import preprocess
from clip_jax.losses import softmax
from clip_jax.step import grad_cache

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


@pytest.mark.slow
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


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
@pytest.mark.parametrize(
    ('implementation', 'devices'),
    [('dense', 1), ('gather', 8), ('ring', 8), pytest.param('ring', 2, marks=SLOW)],
)
def test_captions_and_hard_negatives_equal_a_float64_oracle(name, implementation, devices):
    """Of two matrices that embed images and texts, with 2 captions and 1 hard negative of each."""
    module, mesh = lookup.module('losses', name), sharding.make_mesh(jax.devices()[:devices])
    bias = module.INIT['init_logit_bias']
    image, *texts = jax.random.normal(jax.random.key(0), (4, 16, 12))
    data = {'image': image, 'tokens': jnp.stack(texts, axis=1) / 4 + image[:, None]}
    params = dict(zip(data, jax.random.normal(jax.random.key(1), (2, 12, 12)) / 8, strict=True))

    def loss(image, texts, scale, bias):
        options = {'mesh': mesh, 'implementation': implementation, 'block_size': 5}
        return module.loss(image, texts[:, :2], scale, bias, negatives=texts[:, 2:], **options)

    @jax.jit
    def run(params, data):
        value, _, _, grads = grad_cache.value_and_grad(
            lambda params, buffers, part: (
                tuple(part[k] @ params[k] for k in ('image', 'tokens')),
                buffers,
            ),
            lambda _: (jnp.float32(3), None if bias is None else jnp.float32(bias)),
            loss,
            lambda grads: grads,
            params,
            {},
            data,
            microbatches=2,
        )
        return value, grads

    value, grads = run(params, jax.device_put(data, sharding.over_batch(mesh)))
    data, params = jax.tree.map(lambda x: np.asarray(x, np.float64), (data, params))
    image, texts = (data[k] @ params[k] for k in ('image', 'tokens'))
    exact, sizes = getattr(oracles, f'{name}_of_texts')(
        image, texts[:, :2], 3, bias, negatives=texts[:, 2:]
    )
    assert abs(value - exact[0]) < 2e-6 * sizes[0]
    d_texts = np.concatenate(exact[2:4], axis=1)
    expected = {
        'image': data['image'].T @ exact[1],
        'tokens': np.einsum('bki,bko->io', data['tokens'], d_texts),
    }
    for key, theirs in expected.items():
        assert np.linalg.norm(grads[key] - theirs) < 2e-6 * np.linalg.norm(theirs)


@SLOW
def test_captions_and_hard_negatives_train_alike_on_any_mesh():
    """With dropout, whose random numbers are each text's own."""

    def train(devices, captions=2, texts=3, **options):
        current, step, put = setup(
            devices, card=CARDS['vit'], captions=captions, learning_rate=1e-4, **options
        )
        data = batch(0, 32)
        tokens = np.stack([np.roll(data['tokens'], i, axis=1) for i in range(texts)], axis=1)
        losses = []
        for _ in range(3):
            current, numbers = step(current, put({**data, 'tokens': tokens}))
            losses.append(float(numbers['loss']))
        return losses, current

    dense = train(1, loss={'implementation': 'dense'})
    assert_same(train(8, fsdp=2, microbatches=2, loss={'implementation': 'ring'}), dense)
    assert dense[0] != train(1, texts=2)[0]  # without the hard negatives
