"""GELU against its definition in float64, at every finite number of bfloat16."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special

from clip_jax.models import layers
from clip_jax.models.activations import gelu


def every_number() -> np.ndarray:
    found = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    # Beyond, the square of JAX's own slope overflows; there GELU is 0 or x.
    return found[np.abs(found.astype(np.float32)) < 1e18]


def errors(function, dtype) -> tuple[float, float]:
    """The largest error of the value, relative above 1, and that of the slope."""
    x = every_number()
    exact = x.astype(np.float64)
    cdf = scipy.special.erfc(-exact / np.sqrt(2)) / 2
    slope = cdf + exact * np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    given = jnp.asarray(x, dtype)
    value = np.asarray(jax.jit(function)(given), np.float64)
    found = np.asarray(jax.jit(jax.vmap(jax.grad(function)))(given), np.float64)
    scale = np.maximum(1, np.abs(exact))
    return np.max(np.abs(value - exact * cdf) / scale), np.max(np.abs(found - slope))


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_errors_are_not_larger_than_those_of_jax(dtype):
    ours = errors(gelu, dtype)
    theirs = errors(lambda x: jax.nn.gelu(x, approximate=False), dtype)
    assert ours[0] <= theirs[0] and ours[1] <= theirs[1]
    if dtype == jnp.bfloat16:  # the value is rounded once
        assert ours[0] < 2**-8 and ours[1] < 2**-8 + 1e-6
        assert theirs[0] > ours[0] and theirs[1] > 1.5 * ours[1]


def test_forward_and_reverse_derivatives_agree():
    x = jnp.linspace(-4, 4, 99, dtype=jnp.bfloat16)
    _, forward = jax.jvp(gelu, (x,), (jnp.ones_like(x),))
    reverse = jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(x)
    np.testing.assert_array_equal(forward, reverse)


def test_the_layers_use_it():
    assert layers.ACTIVATIONS['gelu'] is gelu
