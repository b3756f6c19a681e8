"""One training step: pure, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_training import (
    CARD,
    VIT,
    assert_same,
    batch,
    make_optimizer,
    on_one_device,
    setup,
    steps,
)

from clip_jax import build, lookup, sharding
from clip_jax.step import state


@pytest.mark.parametrize(
    ('encoder', 'remat', 'scan'),
    [
        ('vit', 'dots', False),
        ('vit', 'full', True),
        ('vit', 'offload', True),
        pytest.param('vit', 'offload', False, marks=pytest.mark.slow),
        pytest.param('resnet', 'full', False, marks=pytest.mark.slow),
        pytest.param('convnext', 'full', False, marks=pytest.mark.slow),
        pytest.param('convolutions', 'dots', True, marks=pytest.mark.slow),
        pytest.param('rope_vit', 'full', True, marks=pytest.mark.slow),
    ],
)
def test_recomputation_and_scan_change_nothing(encoder, remat, scan):
    result = steps(1, encoder, count=5, remat=remat, scan=scan)
    assert_same(result, on_one_device(encoder, count=5))


@pytest.mark.slow
def test_recomputation_saves_memory():
    deep = {**CARD, 'image': {**VIT, 'depth': 8, 'patch_dropout': 0.0}}

    def scratch(**execution) -> int:
        mesh = sharding.make_mesh(jax.devices()[:1])
        current, step, put = setup(1, card=deep, **execution)
        del step, put
        model = build.model({**lookup.module('losses', 'softmax').INIT, **deep}, **execution)

        def objective(params, images, tokens):
            image, text, *_ = model.apply({'params': params}, images, tokens)
            return (image * text).sum()

        args = current.params, jnp.zeros((256, 16, 16, 3)), jnp.zeros((256, 8), jnp.int32)
        with jax.set_mesh(mesh):
            program = jax.jit(jax.grad(objective)).lower(*args).compile()
        return program.memory_analysis().temp_size_in_bytes

    kept, dots, full = (scratch(remat=remat, scan=True) for remat in ('none', 'dots', 'full'))
    assert full < dots < kept


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


def test_the_state_is_on_every_device_and_seeds_differ():
    eight, _, _ = setup(8)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(eight))
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = build.model(CARD)
    optimizer = make_optimizer(model)
    other = state.create(model, optimizer, seed=1, mesh=mesh)
    kernel = 'image_projection'
    assert not np.array_equal(other.params[kernel]['kernel'], eight.params[kernel]['kernel'])


@pytest.mark.slow
def test_one_text_on_an_axis_of_its_own_is_one_caption():
    current, step, put = setup(1)
    data = batch(0)
    _, plain = step(current, put(data))
    _, other = step(current, put({**data, 'tokens': data['tokens'][:, None]}))
    assert plain['loss'] == other['loss']


def test_a_batch_with_fewer_texts_than_captions_is_refused():
    current, step, put = setup(1, captions=2)
    with pytest.raises(ValueError, match=r'captions_per_image is 2, but .* \[16, 8\]; expected'):
        step(current, put(batch(0)))
