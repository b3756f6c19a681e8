"""A bad batch changes nothing but the counts, and training continues after it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_training import CARDS, batch, make_optimizer, setup

from clip_jax import build, lookup, sharding
from clip_jax.step import skip_updates, train_step

W = skip_updates.WINDOW


def after(losses, state=None, norm=1.0, spike=0.0):
    """The decisions for a sequence of losses, and the state after them."""
    state, said = skip_updates.init() if state is None else state, []
    for loss in losses:
        ok, state = skip_updates.should_update(
            state, jnp.float32(loss), {'norm': jnp.float32(norm)}, spike=spike
        )
        said.append(bool(ok))
    return said, {k: np.asarray(v).tolist() for k, v in state.items()}


def test_nonfinite_updates_are_skipped_and_counted():
    said, state = after([1.0, np.nan, np.inf, -np.inf, 2.0, np.nan])
    assert said == [True, False, False, False, True, False]
    assert (state['nonfinite'], state['consecutive'], state['spike']) == (4, 1, 0)
    assert state['losses'][-2:] == [1.0, 2.0] and np.isinf(state['losses'][:-2]).all()
    said, state = after([1.0, 1.0], norm=np.inf)
    assert said == [False, False] and state['consecutive'] == 2


def test_spikes_are_measured_by_a_full_window_of_losses():
    usual = [2.0 + 0.1 * (-1) ** i for i in range(W)]  # mean 2, standard deviation 0.1
    assert all(after([*usual[:-1], 1e6], spike=6.0)[0])
    said, state = after([*usual, 2.55, 2.75, 1e6, 2.0], spike=6.0)
    assert said[W:] == [True, False, False, True]
    assert (state['spike'], state['nonfinite'], state['consecutive']) == (2, 0, 0)
    assert max(state['losses']) < 2.6  # the losses of skipped updates are not in the window
    assert all(after([*usual, 1e6])[0])  # 0: off


def poisoned(images):
    """Normalizes images; NaN if the first image is white."""
    values = images.astype(jnp.float32) / 255
    return jnp.where(images[0].min() == 255, jnp.nan, values)


@pytest.mark.parametrize(
    ('encoder', 'devices', 'microbatches'),
    [
        ('vit', 1, 1),
        pytest.param('resnet', 1, 1, marks=pytest.mark.slow),
        pytest.param('vit', 8, 2, marks=pytest.mark.slow),
        pytest.param('resnet', 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_batch_of_nan_changes_only_the_counts(encoder, devices, microbatches):
    card = {**lookup.module('losses', 'softmax').INIT, **CARDS[encoder]}
    start, _, put = setup(devices, card=CARDS[encoder])
    mesh = sharding.make_mesh(jax.devices()[:devices])
    loss = build.loss({'name': 'softmax', 'implementation': 'gather', 'block_size': 8}, mesh)
    step = functools.partial(
        train_step.train_step,
        model=build.model(card),
        loss=loss,
        optimizer=make_optimizer(build.model(card)),
        normalize=poisoned,
        microbatches=microbatches,
    )
    step = jax.jit(step)
    good = batch(0, 32, card['image']['image_size'])
    bad = {**good, 'image': np.full_like(good['image'], 255)}
    with jax.set_mesh(mesh):
        start, _ = step(start, put(good))  # the learning rate begins at 0
        after_bad, numbers = step(start, put(bad))
        after_good, _ = step(after_bad, put(good))
    assert np.isnan(numbers['loss']) or encoder == 'resnet'  # whose ReLU hides it
    assert (numbers['skipped/nonfinite'], numbers['skipped/spike']) == (1, 0)
    for part in 'params', 'buffers', 'opt_state', 'rng':
        jax.tree.map(np.testing.assert_array_equal, getattr(after_bad, part), getattr(start, part))
    assert after_bad.step == 2 and after_good.step == 3
    # Training continues.
    assert not np.array_equal(after_good.params['logit_scale'], start.params['logit_scale'])
    assert (after_good.skip_state['consecutive'], after_good.skip_state['nonfinite']) == (0, 1)


def test_a_skipped_update_copies_nothing():
    """On CPU a donated state is overwritten where it lies."""
    state = {'weight': jnp.ones(1000), 'moment': jnp.ones(1000)}

    def step(state, gradient, ok):
        def update():
            moment = 0.9 * state['moment'] + gradient
            return {'weight': state['weight'] - 0.1 * moment, 'moment': moment}

        return skip_updates.apply_if(ok, update, state)

    arguments = state, jnp.full(1000, jnp.nan), jnp.array(False)
    program = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    assert not re.search(r'f32\[1000\]\S* copy\(', program.as_text())
    assert program.memory_analysis().temp_size_in_bytes < 4000
    kept = program(*arguments)
    assert all((x == 1).all() for x in kept.values())
