"""The optimizer: schedule, weight decay, gradient clipping, and the bound on the logit scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.models import clip
from clip_jax.step import optimizers

ADAMW = {'b1': 0.9, 'b2': 0.98, 'eps': 1e-6, 'weight_decay': 0.2, 'grad_clip_norm': 1.0}


def params():
    return {
        'image': {
            'dense': {'kernel': jnp.ones((3, 3)), 'bias': jnp.ones((2, 3))},
            'norm': {'scale': jnp.ones(3), 'bias': jnp.ones(3)},
            'position_embedding': jnp.ones((4, 3)),
        },
        'text': {'token_embedding': {'embedding': jnp.ones((5, 3))}},
        'logit_scale': jnp.float32(2.0),
    }


def test_the_learning_rate_has_linear_warmup_and_cosine_decay():
    rate = optimizers.warmup_cosine(peak=1.0, warmup_steps=10, total_steps=110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose([rate(35), rate(60), rate(110)], [0.853553, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize('warmup', [-1, 100, 200])
def test_impossible_warmup_is_refused(warmup):
    with pytest.raises(ValueError, match=f'warmup_steps is {warmup}'):
        optimizers.warmup_cosine(peak=1.0, warmup_steps=warmup, total_steps=100)


def test_weight_decay_spares_biases_norms_and_the_logit_scale():
    optimizer = optimizers.adamw(optax.constant_schedule(0.1), **ADAMW)
    before = params()
    zeros = jax.tree.map(jnp.zeros_like, before)
    updates, _ = optimizer.update(zeros, optimizer.init(before), before)
    moved = jax.tree.map(lambda x: bool(jnp.any(x != 0)), updates)
    assert moved == {
        'image': {
            'dense': {'kernel': True, 'bias': False},
            'norm': {'scale': False, 'bias': False},
            'position_embedding': True,
        },
        'text': {'token_embedding': {'embedding': True}},
        'logit_scale': False,
    }
    assert updates['image']['dense']['kernel'][0, 0] == pytest.approx(-0.1 * 0.2)


def test_logit_scale_stops_at_100_and_can_come_back():
    optimizer = optimizers.adamw(optax.constant_schedule(1.0), **ADAMW)
    tree = params()
    state = optimizer.init(tree)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    for sign, expected in [
        (-1, [3.0, 4.0, optimizers.MAX_LOGIT_SCALE, optimizers.MAX_LOGIT_SCALE])
    ]:
        for value in expected:
            grads = zeros | {'logit_scale': jnp.float32(sign)}
            updates, state = optimizer.update(grads, state, tree)
            tree = optax.apply_updates(tree, updates)
            assert tree['logit_scale'] == pytest.approx(value, abs=1e-4)
            assert jnp.exp(tree['logit_scale']) <= 100 * (1 + 1e-6)
    for _ in range(20):
        updates, state = optimizer.update(zeros | {'logit_scale': jnp.float32(1)}, state, tree)
        tree = optax.apply_updates(tree, updates)
    assert tree['logit_scale'] < optimizers.MAX_LOGIT_SCALE - 1


def test_gradients_are_clipped_by_their_global_norm():
    """A gradient of norm 10 counts as one of norm 1: Adam's first moment shows it."""
    optimizer = optimizers.adamw(optax.constant_schedule(0.1), **ADAMW)
    tree = params()
    grads = jax.tree.map(jnp.ones_like, tree)
    grads = jax.tree.map(lambda g: 10 * g / optax.global_norm(grads), grads)
    _, state = optimizer.update(grads, optimizer.init(tree), tree)
    (mu,) = [
        x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu')
    ]
    assert optax.global_norm(mu) == pytest.approx(0.1, rel=1e-5)
    free = optimizers.adamw(optax.constant_schedule(0.1), **(ADAMW | {'grad_clip_norm': 0.0}))
    _, state = free.update(grads, free.init(tree), tree)
    (mu,) = [
        x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu')
    ]
    assert optax.global_norm(mu) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize('size', [0.0, 0.3, 7.0])
def test_clipping_agrees_with_optax(size):
    grads = jax.tree.map(lambda x: size * x / optax.global_norm(params()), params())
    ours, theirs = optimizers.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    found, _ = ours.update(grads, ours.init(grads))
    wanted, _ = theirs.update(grads, theirs.init(grads))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    halved, _ = ours.update(grads, ours.init(grads), grad_norm=jnp.float32(2.0))
    np.testing.assert_allclose(halved['logit_scale'], grads['logit_scale'] / 2, rtol=1e-6)


def test_every_parameter_of_a_model_is_known_to_decay_or_not():
    """A new kind of parameter must be put on one side on purpose."""
    from clip_jax import build

    small = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}
    names = set()
    for pool in ('cls', 'mean', 'map'):
        card = {
            'image': {'name': 'vit', 'image_size': 16, 'patch_size': 8, 'pool': pool, **small},
            'text': {
                'name': 'transformer',
                'vocab_size': 9,
                'context_length': 4,
                'eot_id': 3,
                **small,
            },
            'embed_dim': 8,
        }
        shapes = clip.shapes(build.model(card))
        names |= {path[-1].key for path, _ in jax.tree.leaves_with_path(shapes)}
    assert names - set(optimizers.DECAYED) == {'scale', 'bias', 'logit_scale'}
