"""What was saved comes back bit for bit, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import checkpoint, sharding
from clip_jax.state import TrainState

ABOUT = {
    'card': {'model': {'image': {'name': 'vit', 'norm_eps': 1e-5}}, 'mean': [0.1, 0.25], 'ü': 'é'},
    'config': {'seed': 0, 'flip': 0.5, 'nothing': None, 'yes': True, 'empty': {}},
    'input': {'global_next_index': 2**40},
    'seconds': 1.25,
}


def state(step, devices=8):
    """A state of random bits on the first so many devices; the step decides all numbers."""
    key = jax.random.key(step)
    params = {
        'image': {'kernel': jax.random.normal(key, (24, 5)), 'bias': jnp.full(5, 1e-40)},
        'logit_scale': jnp.float32(1 / 3),
    }
    optimizer = optax.adamw(optax.linear_schedule(1.0, 0.0, 100))
    updates, opt_state = optimizer.update(params, optimizer.init(params), params)
    everywhere = sharding.replicated(sharding.make_mesh(jax.devices()[:devices]))
    return jax.device_put(
        TrainState(
            step=jnp.int32(step),
            params=optax.apply_updates(params, updates),
            buffers={'batch_stats': {'image': {'mean': jax.random.normal(key, (5,))}}},
            opt_state=opt_state,
            rng=jax.random.key_data(jax.random.fold_in(key, 7)),
        ),
        everywhere,
    )


def bits(tree):
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return structure, [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@pytest.fixture
def opened(tmp_path):
    """Opens the run directory's checkpoints, and closes them in the end."""
    every = []

    def open_them(keep=3):
        every.append(checkpoint.Checkpoints(tmp_path, keep=keep))
        return every[-1]

    yield open_them
    for checkpoints in every:
        checkpoints.close()


def saved(opened, *steps, keep=3):
    checkpoints = opened(keep)
    for step in steps:
        checkpoints.save(state(step), {**ABOUT, 'of': step})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize('devices', [1, 3, 8])
def test_what_was_saved_comes_back_bit_for_bit_onto_any_devices(opened, devices):
    saved(opened, 4)
    like = state(0, devices)
    restored = opened().restore(4, like)
    assert bits(restored) == bits(state(4))
    assert bits(restored) != bits(like)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert got.sharding == wanted.sharding


def test_without_running_statistics_there_are_parameters_alone(opened):
    checkpoints, current = opened(), state(4).replace(buffers={})
    checkpoints.save(current, ABOUT)
    restored = checkpoints.restore(4, state(0).replace(buffers={}))
    assert restored.variables.keys() == {'params'}
    assert bits(restored) == bits(current)


def test_the_state_saved_is_that_at_the_call(opened):
    # Training goes on, and may reuse the memory, while a checkpoint is being written.
    checkpoints, current = opened(), state(4)
    expected = bits(current)
    checkpoints.save(current, ABOUT)
    current = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(current)
    checkpoints.wait()
    assert bits(current) != expected
    assert bits(checkpoints.restore(4, state(0))) == expected


def test_the_newest_is_known_after_saving_and_after_opening_again(opened):
    assert opened().latest() is None
    assert saved(opened, 4, 12).latest() == 12
    assert opened().latest() == 12


def test_an_older_step_can_be_restored(opened):
    checkpoints = saved(opened, 4, 8)
    assert bits(checkpoints.restore(4, state(0))) == bits(state(4))


@pytest.mark.parametrize('keep', [1, 2])
def test_the_newest_so_many_stay(opened, tmp_path, keep):
    saved(opened, 2, 4, 10, keep=keep)
    there = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert there == [2, 4, 10][-keep:]
    # Also over a restart.
    saved(opened, 12, keep=keep)
    there = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert there == [2, 4, 10, 12][-keep:]


def test_the_json_part_comes_back(opened):
    saved(opened, 4, 8)
    again = opened()
    assert again.about(4) == {**ABOUT, 'of': 4}
    assert again.about(8) == {**ABOUT, 'of': 8}


def test_a_checkpoint_folder_is_read_without_its_run(opened, tmp_path):
    saved(opened, 4)
    folder = (tmp_path / 'checkpoints/4').rename(tmp_path / 'mine')
    mesh = sharding.make_mesh(jax.devices()[:2])
    shapes = jax.eval_shape(lambda: state(0).variables)
    variables = checkpoint.read_variables(checkpoint.find(folder), shapes, mesh)
    assert variables.keys() == {'params', 'batch_stats'}
    assert bits(variables) == bits(state(4).variables)
    assert {x.sharding for x in jax.tree.leaves(variables)} == {sharding.replicated(mesh)}
    assert checkpoint.read_about(checkpoint.find(folder)) == {**ABOUT, 'of': 4}


def test_find_takes_a_run_its_folder_or_one_checkpoint(opened, tmp_path):
    saved(opened, 8, 12, 100)  # 8 is the last by alphabet
    newest = tmp_path / 'checkpoints/100'
    for path in (tmp_path, str(tmp_path), tmp_path / 'checkpoints', newest):
        assert checkpoint.find(path) == newest
    assert checkpoint.find(tmp_path / 'checkpoints/8') == tmp_path / 'checkpoints/8'


def test_find_leaves_out_what_was_not_written_to_its_end(opened, tmp_path):
    saved(opened, 8)
    (tmp_path / 'checkpoints/9.orbax-checkpoint-tmp' / 'variables').mkdir(parents=True)
    (tmp_path / 'checkpoints/.DS_Store').write_text('')
    assert checkpoint.find(tmp_path) == tmp_path / 'checkpoints/8'
    assert opened().latest() == 8


def test_find_says_what_is_there_instead(tmp_path):
    with pytest.raises(ValueError, match=r'none: there is no such file or folder; expected a run'):
        checkpoint.find(tmp_path / 'none')
    (tmp_path / 'picture.jpg').write_text('')
    for path, found in (tmp_path, 'picture.jpg'), (tmp_path / 'picture.jpg', 'a file'):
        with pytest.raises(ValueError, match=f'no checkpoint found; expected .*found.*{found}'):
            checkpoint.find(path)


def test_another_model_cannot_be_restored_from_it(opened):
    saved(opened, 4)
    other = state(0)
    kernel = jnp.zeros((24, 6), jnp.float32, device=other.step.sharding)
    other = other.replace(
        params={**other.params, 'image': {**other.params['image'], 'kernel': kernel}}
    )
    with pytest.raises(ValueError):
        opened().restore(4, other)
