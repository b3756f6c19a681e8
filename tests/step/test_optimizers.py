"""Every optimizer against NumPy in float64 over 20 steps; clipping, decay, and the logit scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.small_training import OPTIMIZER, batch, setup

from clip_jax import build, lookup
from clip_jax.models import clip
from clip_jax.step import rules, updates

RATE, DECAY = 0.01, 0.1
CONSTANT = {'learning_rate': RATE, 'warmup_steps': 0, 'schedule': {'name': 'constant'}}
PLAIN = {**OPTIMIZER, **CONSTANT, 'weight_decay': DECAY, 'grad_clip_norm': 0.0}


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


def make(tree, **changes):
    return build.optimizer({**PLAIN, **changes}, tree, 100)


def adam_direction(g, state, t, b1=0.9, b2=0.98, eps=1e-6):
    state['m'] = b1 * state.get('m', 0) + (1 - b1) * g
    state['v'] = b2 * state.get('v', 0) + (1 - b2) * g * g
    return state['m'] / (1 - b1**t) / (np.sqrt(state['v'] / (1 - b2**t)) + eps)


def adamw(p, g, state, t, decay):
    return p - RATE * (adam_direction(g, state, t) + decay * p)


def stable_adamw(p, g, state, t, decay):
    u = adam_direction(g, state, t)
    v = state['v'] / (1 - 0.98**t)
    rms = np.sqrt(np.mean(g * g / np.maximum(v, 1e-12)))
    return p - RATE * (u / max(1, rms) + decay * p)


def lion(p, g, state, t, decay):
    del t
    m = state.get('m', np.zeros_like(g))
    state['m'] = 0.99 * m + 0.01 * g
    return p - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * p)


def sgd(p, g, state, t, decay, nesterov=False):
    del t
    state['m'] = g + 0.9 * state.get('m', 0)
    return p - RATE * ((g + 0.9 * state['m'] if nesterov else state['m']) + decay * p)


def lamb(p, g, state, t, decay):
    u = adam_direction(g, state, t, b2=0.999) + decay * p
    norms = np.linalg.norm(p), np.linalg.norm(u)
    return p - RATE * (norms[0] / norms[1] if all(norms) else 1) * u


def adafactor(p, g, state, t, decay):
    b2 = min(0.999, 1 - t**-0.8)
    square = g * g + 1e-30
    if p.ndim > 1 and sorted(p.shape)[-2] >= 4:
        state['row'] = b2 * state.get('row', 0) + (1 - b2) * square.mean(1, keepdims=True)
        state['column'] = b2 * state.get('column', 0) + (1 - b2) * square.mean(0, keepdims=True)
        second = state['row'] * state['column'] / state['row'].mean()
    else:
        state['v'] = b2 * state.get('v', 0) + (1 - b2) * square
        second = state['v']
    state['m'] = 0.9 * state.get('m', 0) + 0.1 * g / np.sqrt(second)
    return p - RATE * (state['m'] + decay * p)


def schedule_free(p, g, state, t, decay):
    z, x = state.get('z', p), state.get('x', p)
    state['v'] = 0.98 * state.get('v', 0) + 0.02 * g * g
    z = z - RATE * (g / (np.sqrt(state['v'] / (1 - 0.98**t)) + 1e-6) + decay * p)
    x = (1 - 1 / t) * x + z / t
    state.update(z=z, x=x)
    return 0.9 * x + 0.1 * z


CASES = {
    'adamw': (adamw, {}),
    'adamw, update_clip': (stable_adamw, {'update_clip': 1.0}),
    'lion': (lion, {}),
    'sgd': (sgd, {}),
    'sgd, nesterov': (functools.partial(sgd, nesterov=True), {'nesterov': True}),
    'lamb': (lamb, {}),
    'adafactor': (adafactor, {'min_factored': 4, 'moment_dtype': 'float32'}),
    'schedule_free': (schedule_free, {}),
}


@pytest.mark.parametrize('case', CASES)
def test_20_steps_are_those_of_numpy(case):
    oracle, options = CASES[case]
    rng = np.random.default_rng(0)
    tree = {
        'kernel': rng.normal(size=(6, 5)).astype(np.float32),
        'bias': rng.normal(size=7).astype(np.float32),
    }
    optimizer = make(tree, name=case.partition(',')[0], **options)
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    expected = {name: x.astype(np.float64) for name, x in tree.items()}
    memory = {name: {} for name in tree}
    for t in range(1, 21):
        grads = {k: (rng.normal(size=x.shape) * 3).astype(np.float32) for k, x in tree.items()}
        change, state = update(grads, state, tree, step=t - 1)
        tree = optax.apply_updates(tree, change)
        for name, g in grads.items():
            decay = DECAY if name == 'kernel' else 0.0
            g = g.astype(np.float64)
            expected[name] = oracle(expected[name], g, memory[name], t, decay)
    for name, x in tree.items():
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=2e-5)
    if optimizer.average:
        for name, x in optimizer.average(state, tree).items():
            np.testing.assert_allclose(x, memory[name]['x'], rtol=0, atol=2e-5)


def test_muon_orthogonalizes_the_matrices_of_blocks_and_is_adamw_elsewhere():
    rng = np.random.default_rng(0)
    shapes = {'qkv': (8, 3, 2, 4), 'out': (2, 4, 8)}
    block = {
        'attention': {name: {'kernel': rng.normal(size=s)} for name, s in shapes.items()},
        'mlp': {'in': {'kernel': rng.normal(size=(8, 16)), 'bias': rng.normal(size=16)}},
    }
    tree = {'image': {'transformer': {'block_0': block}}, 'image_projection': {'kernel': 1.0}}
    tree['image_projection']['kernel'] = rng.normal(size=(8, 4))
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    muon, adam = make(tree, name='muon', weight_decay=0.0), make(tree, weight_decay=0.0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)
    found, _ = muon.update(grads, muon.init(tree), tree, step=jnp.int32(0))
    other, _ = adam.update(grads, adam.init(tree), tree, step=jnp.int32(0))
    for name in ('image_projection', 'image/transformer/block_0/mlp/in/bias'):
        same = [x for k, x in rules.paths(found).items() if k.startswith(name)]
        wanted = [x for k, x in rules.paths(other).items() if k.startswith(name)]
        assert same
        jax.tree.map(np.testing.assert_array_equal, same, wanted)
    inside = found['image']['transformer']['block_0']
    qkv = np.asarray(inside['attention']['qkv']['kernel'], np.float64).reshape(8, 3, 8)
    matrices = [
        *np.moveaxis(qkv, 1, 0),
        np.asarray(inside['attention']['out']['kernel']).reshape(8, 8),
        np.asarray(inside['mlp']['in']['kernel']),
    ]
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False)
        wanted = RATE * 0.2 * np.sqrt(max(matrix.shape))
        # Five Newton-Schulz iterations leave singular values between about 0.7 and 1.2.
        assert 0.3 * wanted < values.min() and values.max() < 1.3 * wanted
    direct = optax.contrib.muon(RATE, weight_decay=0.0)
    matrix = {'w': tree['image']['transformer']['block_0']['mlp']['in']['kernel']}
    gradient = {'w': grads['image']['transformer']['block_0']['mlp']['in']['kernel']}
    expected, _ = direct.update(gradient, direct.init(matrix), matrix)
    ratio = matrices[-1] / np.asarray(expected['w'])
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)


# Those whose state has other shapes than the parameters; the others are slow tests.
UNUSUAL = ('adafactor', 'muon')
ANY = [
    pytest.param(name, marks=() if name in UNUSUAL else pytest.mark.slow)
    for name in lookup.names('step.optimizers')
]


@pytest.mark.parametrize('name', ANY)
def test_every_optimizer_trains_on_any_mesh(name):
    def steps(devices, **mesh):
        state, step, put = setup(devices, optimizer={'name': name}, learning_rate=1e-4, **mesh)
        losses = []
        for i in range(3):
            state, numbers = step(state, put(batch(i)))
            losses.append(float(numbers['loss']))
        return losses, state.params

    losses, tree = steps(1)
    others, other = steps(8, fsdp=2, tensor=2, shard_optimizer=True)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    # Where a gradient is 0 but for rounding, as that of a key's bias, its sign or what Adafactor,
    # without an epsilon, divides by its own size, differs.
    tolerance = {'lion': 1e-4, 'adafactor': 1e-4, 'muon': 2e-5}.get(name, 1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), tree, other)


def test_moments_can_be_stored_in_bfloat16():
    tree = {'kernel': jnp.ones((4, 4))}
    for name in ('adamw', 'lion', 'sgd', 'adafactor'):
        state = make(tree, name=name, moment_dtype='bfloat16').init(tree)
        assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state)), name


def test_weight_decay_spares_biases_norms_and_the_logit_scale():
    before = params()
    optimizer = make(before, learning_rate=0.1, weight_decay=0.2)
    zeros = jax.tree.map(jnp.zeros_like, before)
    found, _ = optimizer.update(zeros, optimizer.init(before), before, step=jnp.int32(0))
    moved = jax.tree.map(lambda x: bool(jnp.any(x != 0)), found)
    assert moved == {
        'image': {
            'dense': {'kernel': True, 'bias': False},
            'norm': {'scale': False, 'bias': False},
            'position_embedding': True,
        },
        'text': {'token_embedding': {'embedding': True}},
        'logit_scale': False,
    }
    assert found['image']['dense']['kernel'][0, 0] == pytest.approx(-0.1 * 0.2)


def test_logit_scale_stops_at_100_and_can_come_back():
    tree = params()
    optimizer = make(tree, learning_rate=1.0)
    state = optimizer.init(tree)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    for value in [3.0, 4.0, updates.MAX_LOGIT_SCALE, updates.MAX_LOGIT_SCALE]:
        grads = zeros | {'logit_scale': jnp.float32(-1)}
        change, state = optimizer.update(grads, state, tree, step=jnp.int32(0))
        tree = optax.apply_updates(tree, change)
        assert tree['logit_scale'] == pytest.approx(value, abs=1e-4)
        assert jnp.exp(tree['logit_scale']) <= 100 * (1 + 1e-6)
    for _ in range(20):
        grads = zeros | {'logit_scale': jnp.float32(1)}
        change, state = optimizer.update(grads, state, tree, step=jnp.int32(0))
        tree = optax.apply_updates(tree, change)
    assert tree['logit_scale'] < updates.MAX_LOGIT_SCALE - 1


@pytest.mark.parametrize(('maximum', 'expected'), [(1.0, 1.0), (0.0, 10.0)])
def test_gradients_are_clipped_by_their_global_norm(maximum, expected):
    """A gradient of norm 10 counts as one of norm 1; SGD's step shows it."""
    tree = params()
    optimizer = make(
        tree, name='sgd', momentum=0.0, grad_clip_norm=maximum, weight_decay=0.0, learning_rate=1.0
    )
    grads = jax.tree.map(jnp.ones_like, tree)
    grads = jax.tree.map(lambda g: 10 * g / optax.global_norm(grads), grads)
    found, _ = optimizer.update(grads, optimizer.init(tree), tree, step=jnp.int32(0))
    assert optax.global_norm(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('size', [0.0, 0.3, 7.0])
def test_clipping_agrees_with_optax(size):
    grads = jax.tree.map(lambda x: size * x / optax.global_norm(params()), params())
    ours, theirs = updates.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    found, _ = ours.update(grads, ours.init(grads))
    wanted, _ = theirs.update(grads, theirs.init(grads))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    halved, _ = ours.update(grads, ours.init(grads), grad_norm=jnp.float32(2.0))
    np.testing.assert_allclose(halved['logit_scale'], grads['logit_scale'] / 2, rtol=1e-6)


def test_every_parameter_of_a_model_is_known_to_decay_or_not():
    """A new kind of parameter must be put on one side on purpose."""
    small = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}
    text = {'name': 'transformer', 'vocab_size': 9, 'context_length': 4, 'eot_id': 3, **small}
    names = set()
    for pool in ('cls', 'mean', 'map'):
        image = {'name': 'vit', 'image_size': 16, 'patch_size': 8, 'pool': pool, **small}
        shapes = clip.shapes(build.model({'image': image, 'text': text, 'embed_dim': 8}))
        names |= {path[-1].key for path, _ in jax.tree.leaves_with_path(shapes)}
    assert names - set(rules.DECAYED) == {'scale', 'bias', 'logit_scale'}


def test_an_optimizer_of_your_own(tmp_path, monkeypatch):
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'toy_optimizer.py').write_text(
        'import optax\n'
        'def create(decay, rate, *, strength):\n'
        '    return optax.chain(optax.scale(strength), decay, rate)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    tree = {'kernel': jnp.ones(2)}
    optimizer = make(tree, name='methods.toy_optimizer', strength=2.0, weight_decay=0.0)
    found, _ = optimizer.update(tree, optimizer.init(tree), tree, step=jnp.int32(0))
    np.testing.assert_allclose(found['kernel'], -RATE * 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r'methods\.toy_optimizer: strength must be given'):
        make(tree, name='methods.toy_optimizer')
