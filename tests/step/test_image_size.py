"""The state of a run for another image size, against an interpolation written out in NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from support import small_training as small

from clip_jax import build, sharding
from clip_jax.step import image_size, rules
from clip_jax.step.state import TrainState, abstract_state

DECAY = 0.9
OLD, NEW = 16, 24  # pixels; patches of 4
POSITIONS = 'image/position_embedding'


def card(size: int, **image) -> dict:
    return {**small.CARD, 'image': {**small.VIT, 'image_size': size, **image}}


def resized(state: TrainState, optimizer: dict | None = None, **mesh: int) -> TrainState:
    """The state for NEW pixels, on the mesh that the state is on."""
    losses = {'init_logit_scale': 1.0, 'init_logit_bias': None}
    old, new = (build.model({**losses, **card(size)}) for size in (OLD, NEW))
    made = small.make_optimizer(new, **(optimizer or {}))
    devices = jax.devices()[: mesh.pop('devices', 1)]
    like = abstract_state(new, made, sharding.make_mesh(devices, **mesh), averaged=bool(state.ema))
    return image_size.resized(state, like, old, made, NEW)


def keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -1/2 (1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def interpolated(table: np.ndarray, bounded: bool = False) -> np.ndarray:
    """Positions of a class token and 4 x 4 patches for 6 x 6 patches, in float64."""
    table = np.asarray(table, np.float64)
    old, new = OLD // 4, NEW // 4
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights = keys(centers[:, None] - np.arange(old))
    weights /= weights.sum(1, keepdims=True)
    patches = table[1:].reshape(old, old, -1)
    patches = np.einsum('ai,bj,ijc->abc', weights, weights, patches).reshape(new * new, -1)
    found = np.concatenate([table[:1], patches])
    return np.clip(found, table.min(), table.max()) if bounded else found


def by_hand(state: TrainState, like: TrainState) -> TrainState:
    """The same for AdamW, with every array of positions replaced."""

    def one(path, x, new):
        name = sharding.path_name(path)
        if x.shape == new.shape:
            return jax.device_put(x, new.sharding)
        assert name.endswith(POSITIONS), name
        return jax.device_put(interpolated(x, '/nu/' in name).astype(x.dtype), new.sharding)

    return jax.tree.map_with_path(one, jax.device_get(state), like)


def trained(state: TrainState, step, put, size: int, count: int, first: int = 0) -> TrainState:
    for i in range(first, first + count):
        state, _ = step(state, put(small.batch(i, 16, size)))
    return state


def through_a_boundary(oracle: bool = False, **mesh: int) -> TrainState:
    """Ten steps with images of OLD pixels, and ten with NEW."""
    devices = mesh.get('devices', 1)
    others = {k: v for k, v in mesh.items() if k != 'devices'}
    options = {'learning_rate': 1e-3, 'decay': DECAY, **others}
    state, step, put = small.setup(devices, card=card(OLD, patch_dropout=0.0), **options)
    state = trained(state, step, put, OLD, 10)
    like, step, put = small.setup(devices, card=card(NEW, patch_dropout=0.5), **options)
    state = by_hand(state, like) if oracle else resized(state, **mesh)
    return trained(state, step, put, NEW, 10, first=10)


@pytest.fixture(scope='module')
def on_one() -> TrainState:
    return through_a_boundary()


def assert_close(one: TrainState, other: TrainState, tolerance: float) -> None:
    assert int(one.step) == int(other.step)
    for name in 'params', 'ema':
        found, wanted = (rules.paths(jax.device_get(getattr(x, name))) for x in (one, other))
        for path, x in found.items():
            y = wanted[path]
            if path.endswith('qkv/bias'):  # the gradient of the keys' is 0 but for rounding
                x, y = x[::2], y[::2]
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=path)


def test_a_boundary_is_the_interpolation_written_out(on_one):
    assert_close(on_one, through_a_boundary(oracle=True), 1e-6)


@pytest.mark.parametrize(
    'mesh',
    [
        {'devices': 8, 'fsdp': 2, 'tensor': 2},
        pytest.param({'devices': 8}, marks=pytest.mark.slow),
        pytest.param({'devices': 8, 'fsdp': 4}, marks=pytest.mark.slow),
        pytest.param({'devices': 8, 'tensor': 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_boundary_is_the_same_on_every_mesh(mesh, on_one):
    assert_close(on_one, through_a_boundary(**mesh), 1e-5)


def updated(state: TrainState, optimizer, seed: int) -> TrainState:
    """After an update with random gradients."""
    rng = np.random.default_rng(seed)
    grads = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), state.params)
    kept, _ = optimizer.split(state.params)
    grads, _ = optimizer.split(grads)
    run = jax.jit(
        lambda g, s, p: optimizer.update(g, s, p, step=state.step, grad_norm=np.float32(1))
    )
    _, opt_state = run(grads, state.opt_state, kept)
    return dataclasses.replace(state, opt_state=opt_state)


@pytest.mark.parametrize(
    'changes',
    [
        {'name': 'adamw', 'moment_dtype': 'bfloat16'},
        {'name': 'adafactor'},  # its moments are whole before, and factored after
        {'name': 'adafactor', 'min_factored': 8},
        {'name': 'adafactor', 'min_factored': 128, 'momentum': 0.0},
        {'name': 'muon'},
        {'name': 'lion'},
        {'name': 'schedule_free', 'schedule': {'name': 'constant'}},
        {'name': 'adamw', 'freeze': ('lock_image',)},
    ],
    ids=str,
)
def test_every_optimizer_goes_on_after_a_boundary(changes):
    state, _, _ = small.setup(1, card=card(OLD), optimizer=changes)
    model = build.model({'init_logit_scale': 1.0, 'init_logit_bias': None, **card(NEW)})
    optimizer = small.make_optimizer(model, **changes)
    state = updated(state, optimizer, 0)
    before = jax.device_get(state)
    after = resized(state, changes)
    assert np.isinf(after.skip_state['losses']).all()
    table = rules.paths(before.params)[POSITIONS]
    np.testing.assert_allclose(rules.paths(after.params)[POSITIONS], interpolated(table), atol=1e-6)
    if changes['name'] == 'adafactor':
        assert_second_moments(before.opt_state, after.opt_state)
    again = updated(after, optimizer, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(again.opt_state)))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before.opt_state),
        jax.tree.leaves(after.opt_state),
        strict=True,
    ):
        if 'position_embedding' not in sharding.path_name(path):
            np.testing.assert_array_equal(x, y)


def second_moment(opt_state) -> np.ndarray:
    """Adafactor's second moments of positions, multiplied out."""
    found = {
        name.rpartition('/image/position_embedding')[0].rpartition('/')[2]: np.asarray(x)
        for name, x in rules.paths(opt_state).items()
        if name.endswith(POSITIONS)
    }
    row, col, whole = found['v_row'], found['v_col'], found['v']
    if whole.ndim == 2:
        return whole
    product = row[:, None] * col / row.mean()
    return product if product.shape[1] == small.SMALL['width'] else product.T


def assert_second_moments(before, after) -> None:
    wanted = interpolated(second_moment(before), bounded=True)
    found = second_moment(after)
    assert found.shape == wanted.shape
    whole = next(x for name, x in rules.paths(after).items() if name.endswith(f'/v/{POSITIONS}'))
    if whole.ndim == 1:
        wanted = wanted.mean(1, keepdims=True) * wanted.mean(0) / wanted.mean()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
