"""Layer normalization for GPUs: the function and gradients of the plain form."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.process import environment

from clip_jax import sharding
from clip_jax.models import layers, on_gpu
from clip_jax.planning import gpu

PROGRAM = Path(__file__).parents[1] / 'support' / 'compile_cudnn.py'
EPSILON = 1e-5


def inputs(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    x = rng.normal(3, 2, shape)
    return x, rng.normal(size=shape[-1]), rng.normal(size=shape[-1]), rng.normal(size=shape)


def plain(x, scale, bias):
    norm = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=x.dtype)
    return norm.apply({'params': {'scale': scale, 'bias': bias}}, x)


def ours(x, scale, bias):
    return on_gpu.layer_norm(x, scale, bias, EPSILON)


def value_and_gradients(function, dtype, shape):
    x, scale, bias, weights = map(jnp.asarray, inputs(shape))

    def loss(x, scale, bias):
        y = function(x, scale, bias)
        return (y.astype(jnp.float32) * weights).sum(), y

    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
        x.astype(dtype), scale.astype(jnp.float32), bias.astype(jnp.float32)
    )
    return [np.asarray(one, np.float64) for one in (y, *gradients)]


@pytest.mark.parametrize('shape', [(4, 96), (3, 17, 64), (2, 3, 5, 32)])
def test_in_float32_it_is_the_plain_form(shape):
    for found, wanted in zip(
        value_and_gradients(ours, jnp.float32, shape),
        value_and_gradients(plain, jnp.float32, shape),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_in_bfloat16_errors_are_not_larger():
    shape = 64, 33, 128
    x, scale, bias, weights = (jnp.asarray(one, jnp.float32) for one in inputs(shape))
    x, weights = (one.astype(jnp.bfloat16).astype(jnp.float32) for one in (x, weights))

    def loss(x, scale, bias):
        y = plain(x, scale, bias)
        return (y * weights).sum(), y

    gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)
    found = value_and_gradients(ours, jnp.bfloat16, shape)
    theirs = value_and_gradients(plain, jnp.bfloat16, shape)
    for one, other, exact in zip(found, theirs, (y, *gradients), strict=True):
        ours_off, theirs_off = (np.abs(z - np.asarray(exact)).max() for z in (one, other))
        assert ours_off <= 1.05 * theirs_off + 1e-4


@pytest.mark.parametrize(
    ('platform', 'dtype', 'used'),
    [
        ('cuda', jnp.bfloat16, True),
        ('gpu', jnp.float16, True),
        ('cuda', jnp.float32, False),
        ('tpu', jnp.bfloat16, False),
        ('cpu', jnp.bfloat16, False),
    ],
)
def test_it_is_for_gpus_and_numbers_of_16_bits(monkeypatch, platform, dtype, used):
    monkeypatch.setattr(sharding, 'platform', lambda: platform)
    norm, x = layers.Norm(epsilon=EPSILON, dtype=dtype), jnp.ones((2, 8), dtype)
    variables = norm.init(jax.random.key(0), x)
    same = nn.LayerNorm(dtype=dtype).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, same)
    traced = str(jax.make_jaxpr(functools.partial(norm.apply, variables))(x))
    assert ('custom_vjp_call' in traced) == used


@pytest.mark.slow
@pytest.mark.skipif(
    not gpu.installed(),
    reason="needs JAX's CUDA plugin, but no GPU: pip install 'clipax[plan-gpu]'",
)
@pytest.mark.parametrize('chip', ['h100', 'a100', 'b200'])
def test_the_compiled_gradient_writes_no_large_array_in_float32(chip):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), 'norm', chip],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['plain'] and not found['ours']
