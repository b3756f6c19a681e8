"""One training step: pure, the same on any number of devices, and it learns."""

import functools

import jax
import numpy as np
import pytest

from clip_jax import build, optim, sharding, state
from clip_jax.data import transforms
from clip_jax.losses import softmax
from clip_jax.train import train_step

SMALL = {'width': 32, 'depth': 2, 'heads': 2, 'mlp_dim': 64}
CARD = {
    'image': {'name': 'vit', 'image_size': 16, 'patch_size': 4, 'patch_dropout': 0.5, **SMALL},
    'text': {'name': 'transformer', 'vocab_size': 40, 'context_length': 8, 'eot_id': 3, **SMALL},
    'embed_dim': 16,
}


def batch(seed: int, n: int = 16) -> dict[str, np.ndarray]:
    """Images of one brightness each, and texts that name it."""
    rng = np.random.default_rng(seed)
    level = rng.permutation(n)
    image = (level * 15)[:, None, None, None] + rng.integers(0, 10, (n, 16, 16, 3))
    tokens = np.zeros((n, 8), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 2, level + 4, 3
    return {'image': image.astype(np.uint8), 'tokens': tokens}


def setup(devices: int):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = build.model(CARD)
    schedule = optim.warmup_cosine(peak=3e-3, warmup_steps=5, total_steps=200)
    optimizer = optim.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=1.0)
    step = functools.partial(
        train_step,
        model=model,
        loss=softmax.loss,
        optimizer=optimizer,
        normalise=functools.partial(
            transforms.normalise, mean=transforms.CLIP_MEAN, std=transforms.CLIP_STD
        ),
    )
    put = functools.partial(jax.device_put, device=sharding.over_batch(mesh))
    return state.create(model, optimizer, seed=0, mesh=mesh), jax.jit(step), put


def test_eight_devices_train_as_one():
    (one, step, put_one), (eight, step_eight, put_eight) = setup(1), setup(8)
    for i in range(3):
        one, numbers = step(one, put_one(batch(i)))
        eight, numbers_eight = step_eight(eight, put_eight(batch(i)))
        assert numbers['loss'] == pytest.approx(float(numbers_eight['loss']), rel=1e-6)
        assert numbers['grad_norm'] == pytest.approx(float(numbers_eight['grad_norm']), rel=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one.params, eight.params)


def test_a_step_is_pure_and_its_randomness_depends_on_the_step():
    start, step, put = setup(1)
    data = put(batch(0))
    first, again = step(start, data), step(start, data)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert start.step == 0 and first[0].step == 1
    # The same state at another step drops other patches.
    later = step(start.replace(step=start.step + 1), data)
    assert later[1]['loss'] != first[1]['loss']


def test_it_learns_to_match():
    current, step, put = setup(1)
    for i in range(120):
        current, numbers = step(current, put(batch(i)))
        if i == 0:
            assert numbers['loss'] > np.log(16) - 0.5  # at the start nothing is matched
    assert numbers['loss'] < 1.5
    assert numbers['accuracy/image_to_text'] > 0.4


def test_state_lies_on_every_device_and_seeds_differ():
    eight, _, _ = setup(8)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(eight))
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = build.model(CARD)
    optimizer = optim.adamw(
        lambda _: 1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=0.0
    )
    other = state.create(model, optimizer, seed=1, mesh=mesh)
    kernel = 'image_projection'
    assert not np.array_equal(other.params[kernel]['kernel'], eight.params[kernel]['kernel'])
