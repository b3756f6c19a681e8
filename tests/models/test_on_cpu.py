"""What is computed in another form on CPU: the same results, without the copies and repetitions."""

import flax.linen as nn
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


def test_layer_norm_agrees_with_that_of_flax():
    x = 3 * jax.random.normal(jax.random.key(0), (4, 5, 24)) + 1
    ours = layers.Norm(dtype=jnp.float32)
    theirs = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    variables = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(p.size), p.shape),
        ours.init(jax.random.key(1), x),
    )
    to_variables = jax.tree.map(jnp.cos, variables)

    def derivatives(module):
        value, transpose = jax.vjp(module.apply, variables, x)
        _, forward = jax.jvp(module.apply, (variables, x), (to_variables, jnp.sin(x)))
        return value, transpose(jnp.cos(x)), forward

    found, wanted = (jax.jit(derivatives, static_argnums=0)(m) for m in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    program = jax.jit(lambda x: ours.apply(variables, x)).lower(x).as_text()
    assert 'dot_general' in program and 'reduce(' not in program


@pytest.mark.parametrize('shape', [(40, 24, 8), (40, 8, 24), (8, 24, 8)])
def test_the_gradient_of_a_product_is_that_of_the_plain_product(shape):
    rows, features, outputs = shape
    x = jax.random.normal(jax.random.key(0), (2, rows // 2, features))
    kernel = jax.random.normal(jax.random.key(1), (features, outputs))
    dimensions = (((2,), (0,)), ((), ()))

    def loss(x, kernel, product):
        return (product(x, kernel, dimensions) ** 3).sum()

    ours, theirs = (
        jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(x, kernel, product)
        for product in (on_cpu.dot_general, jax.lax.dot_general)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_computed_once_changes_no_number(dtype):
    x = jnp.array([0.0, -0.0, 1.5, -3e38, jnp.inf, jnp.nan], dtype)
    found, slope = jax.jit(jax.value_and_grad(lambda x: (on_cpu.computed_once(x) * 3).sum()))(x[:3])
    assert found == 4.5
    np.testing.assert_array_equal(*(y.astype(float) for y in (jax.jit(on_cpu.computed_once)(x), x)))
    np.testing.assert_array_equal(slope, 3)
