"""The ResNet's batch normalization counts as PyTorch's does, over the global batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.models.image import resnet

EPSILON = 1e-5


def norm(x, variables=None, *, train):
    model = resnet.BatchNorm()
    if variables is None:
        variables = model.init(jax.random.key(0), x, train=False)
    return model.apply(variables, x, train=train, mutable=['batch_stats'])


def test_training_normalizes_by_the_batch_and_keeps_running_statistics():
    x = jax.random.normal(jax.random.key(1), (6, 2, 2, 3)) * 2 + 5
    y, updated = norm(x, train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + EPSILON), atol=1e-5)
    stats = updated['batch_stats']
    np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
    # PyTorch keeps the unbiased variance: 24 values, 23 degrees of freedom.
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * var * 24 / 23, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    x = jax.random.normal(jax.random.key(1), (4, 2, 2, 3))
    stats = {'mean': jnp.array([1.0, 2, 3]), 'var': jnp.array([4.0, 9, 16])}
    params = {'scale': jnp.array([2.0, 1, 1]), 'bias': jnp.array([0.0, 0, 5])}
    variables = {'params': params, 'batch_stats': stats}
    y, updated = norm(x, variables, train=False)
    expected = (x - stats['mean']) / np.sqrt(stats['var'] + EPSILON) * params['scale']
    np.testing.assert_allclose(y, expected + params['bias'], atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated['batch_stats'], stats)


def test_a_first_batch_of_one_value_does_not_divide_by_zero():
    _, updated = norm(jnp.ones((1, 1, 1, 3)), train=True)
    assert np.isfinite(updated['batch_stats']['var']).all()


def test_the_batch_is_the_global_one_on_any_number_of_devices():
    encoder = resnet.Encoder(image_size=64, width=4, depths=(1, 1, 1, 1), heads=4)
    images = jax.random.normal(jax.random.key(1), (8, 64, 64, 3))
    images = images * jnp.arange(1.0, 9)[:, None, None, None]  # each device's share is another
    variables = jax.jit(encoder.init)(jax.random.key(0), images)

    @jax.jit
    def step(images):
        features, updated = encoder.apply(variables, images, train=True, mutable=['batch_stats'])
        return features, updated['batch_stats']

    def on(count):
        mesh = sharding.make_mesh(jax.devices()[:count])
        return step(jax.device_put(images, sharding.over_batch(mesh)))

    for one, eight in zip(*map(jax.tree.leaves, (on(1), on(8))), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-5, rtol=2e-5)


def test_a_block_begins_as_the_identity():
    block = resnet.Bottleneck(width=4, stride=1, dtype=jnp.float32, param_dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 16))
    variables = block.init(jax.random.key(0), x, train=False)
    np.testing.assert_allclose(block.apply(variables, x, train=False), jax.nn.relu(x), atol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'depths': (1, 1, 1)}, r'depths are \(1, 1, 1\); expected 4 numbers'),
        ({'depths': (1, 1, 1, 0)}, 'expected 4 numbers of at least 1'),
        ({'image_size': 100}, 'image_size 100 is not a multiple of 32'),
        ({'width': 5}, 'width 5 is odd'),
        ({'heads': 7}, '32 \\* width, which is 128, is not a multiple of heads 7'),
        ({'heads': 0}, 'heads is 0; expected at least 1'),
    ],
)
def test_impossible_fields_are_refused(change, message):
    fields = {'image_size': 64, 'width': 4, 'depths': (1, 1, 1, 1), 'heads': 4, **change}
    with pytest.raises(ValueError, match=message):
        resnet.Encoder(**fields)
