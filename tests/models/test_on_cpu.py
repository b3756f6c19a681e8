"""What is computed in another form on CPU: the same results, without the copies and repetitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import layers, on_cpu


@pytest.fixture
def elsewhere(monkeypatch):
    """Traces as on other devices, in a call."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(on_cpu, 'here', lambda: False)
            return function(*args)

    return call


def gradients(depth: int = 3):
    """Value and gradients of a transformer, its arguments, and the lowered program."""
    model = layers.Transformer(layers.TransformerConfig(depth=depth, heads=2, mlp_dim=32))
    x = jax.random.normal(jax.random.key(0), (4, 5, 16))
    variables = model.init(jax.random.key(1), x)
    function = jax.jit(
        jax.value_and_grad(lambda v, x: jnp.sum(model.apply(v, x) * jnp.cos(x)), argnums=(0, 1))
    )
    return function(variables, x), function.lower(variables, x)


def test_results_are_those_of_other_devices(elsewhere):
    ours, theirs = gradients()[0], elsewhere(gradients)[0]
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_the_residual_stream_is_computed_once(elsewhere):
    ours = gradients(6)[1].compile().as_text()
    theirs = elsewhere(gradients, 6)[1].compile().as_text()
    assert ours.count(' multiply(') < 0.7 * theirs.count(' multiply(')


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_computed_once_changes_no_number(dtype):
    x = jnp.array([0.0, -0.0, 1.5, -3e38, jnp.inf, jnp.nan], dtype)
    found, slope = jax.jit(jax.value_and_grad(lambda x: (on_cpu.computed_once(x) * 3).sum()))(x[:3])
    assert found == 4.5
    np.testing.assert_array_equal(*(y.astype(float) for y in (jax.jit(on_cpu.computed_once)(x), x)))
    np.testing.assert_array_equal(slope, 3)
