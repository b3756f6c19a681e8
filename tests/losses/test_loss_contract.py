"""What every file of losses/ promises, tested on each."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from clip_jax import lookup
from clip_jax.models.clip import unit


@pytest.fixture(params=lookup.names('losses'))
def module(request):
    return lookup.module('losses', request.param)


def test_signature(module):
    parameters = inspect.signature(module.loss).parameters
    assert list(parameters) == ['image', 'text', 'scale', 'bias', 'implementation', 'mesh', 'axis']
    assert parameters['implementation'].default in module.IMPLEMENTATIONS


def test_matching_pairs_cost_less_and_pairs_may_come_in_any_order(module):
    rows = unit(jax.random.normal(jax.random.key(0), (16, 8)))
    right, metrics = module.loss(rows, rows, jnp.float32(20))
    wrong, _ = module.loss(rows, jnp.roll(rows, 1, axis=0), jnp.float32(20))
    other_order, _ = module.loss(rows[::-1], rows[::-1], jnp.float32(20))
    assert right.shape == () and right.dtype == jnp.float32
    assert right < wrong
    assert jnp.allclose(right, other_order, rtol=1e-5)
    assert all(value.shape == () for value in metrics.values())
