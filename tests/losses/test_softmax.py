"""The softmax loss against a float64 oracle, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.losses import softmax
from clip_jax.models.clip import unit


def oracle(image, text, scale):
    """Loss and its gradients (image, text, scale) by hand, in float64, and the size of each.

    The size of the gradient of the scale is that of its summands, which cancel.
    """
    image, text, scale = (np.asarray(x, np.float64) for x in (image, text, scale))
    n = len(image)
    logits = scale * image @ text.T

    def log_softmax(x, axis):
        x = x - x.max(axis=axis, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))

    rows, columns = log_softmax(logits, 1), log_softmax(logits, 0)
    value = -(np.trace(rows) + np.trace(columns)) / (2 * n)
    d_logits = (np.exp(rows) + np.exp(columns) - 2 * np.eye(n)) / (2 * n)
    summands = d_logits * logits / scale
    grads = scale * d_logits @ text, scale * d_logits.T @ image
    exact = value, *grads, np.sum(summands)
    return exact, (*map(np.linalg.norm, exact[:3]), np.abs(summands).sum())


def pairs(seed, n=48, d=24, *, noise=1.0):
    """Unit rows of which row i of both is more alike than others, with some rows doubled."""
    image, other = jax.random.normal(jax.random.key(seed), (2, n, d))
    image = image.at[5].set(image[3])
    return unit(image), unit(image + noise * other)


@functools.partial(jax.jit, static_argnames='fn')
def value_and_grads(image, text, scale, fn=softmax.loss):
    (value, _), grads = jax.value_and_grad(
        lambda *args: fn(*args), argnums=(0, 1, 2), has_aux=True
    )(image, text, scale)
    return value, *grads


def relative_error(ours, exact):
    exact = np.asarray(exact, np.float64)
    return np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize('scale', [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize('n', [1, 7, 48])
def test_value_and_gradients_equal_a_float64_oracle(scale, n):
    image, text = (x[:n] for x in pairs(0))
    ours = value_and_grads(image, text, jnp.float32(scale))
    for mine, exact, size in zip(ours, *oracle(image, text, scale), strict=True):
        # Of one pair alone there is nothing to tell it from: all is 0.
        bound = 2e-6 * size if size > 1e-12 else 1e-6
        assert np.linalg.norm(np.asarray(mine, np.float64) - exact) < bound


@pytest.mark.parametrize('devices', [2, 8])
def test_devices_do_not_change_value_or_gradients(devices):
    image, text = pairs(1)
    scale = jnp.float32(100)
    one = value_and_grads(image, text, scale)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    rows = sharding.over_batch(mesh)
    many = value_and_grads(jax.device_put(image, rows), jax.device_put(text, rows), scale)
    assert many[1].sharding.is_equivalent_to(rows, 2)
    for a, b in zip(one, many, strict=True):
        assert relative_error(a, b) < 1e-6


def test_every_row_of_other_devices_is_a_negative():
    """With 8 devices of one pair each, a loss within devices would be 0."""
    image, text = pairs(2, n=8)
    rows = sharding.over_batch(sharding.make_mesh())
    args = jax.device_put(image, rows), jax.device_put(text, rows), jnp.float32(10)
    assert value_and_grads(*args)[0] > 0.1


def test_untrained_loss_is_the_logarithm_of_the_batch_size():
    rows = jnp.ones((32, 4)) / 2
    assert softmax.loss(rows, rows, jnp.float32(14))[0] == pytest.approx(np.log(32), rel=1e-6)


def test_bfloat16_rows_are_computed_in_float32():
    image, text = (x.astype(jnp.bfloat16) for x in pairs(3))
    value, _ = softmax.loss(image, text, jnp.float32(100))
    assert value.dtype == jnp.float32
    exact = oracle(image.astype(jnp.float32), text.astype(jnp.float32), 100)[0][0]
    assert value == pytest.approx(exact, rel=2e-6)


def test_accuracy_counts_partners_that_win_and_ties_as_lost():
    image = jnp.eye(4)
    text = image.at[1].set(image[0])  # text 1 looks like text 0, and image 1 has no text
    _, metrics = softmax.loss(image, text, jnp.float32(1))
    # Image 0 ties between texts 0 and 1; images 2 and 3 win; image 1 scores 0 everywhere.
    assert metrics['accuracy/image_to_text'] == 0.5
    # Text 0 finds image 0, text 1 finds image 0 instead of its own, 2 and 3 win.
    assert metrics['accuracy/text_to_image'] == 0.75


def test_a_bias_and_an_unknown_implementation_are_refused():
    image, text = pairs(4)
    with pytest.raises(ValueError, match='bias cancels out'):
        softmax.loss(image, text, jnp.float32(1), jnp.float32(-10))
    with pytest.raises(ValueError, match="Did you mean 'dense'"):
        softmax.loss(image, text, jnp.float32(1), implementation='dens')
