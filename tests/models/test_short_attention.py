"""The attention kernel for short sequences on TPU, interpreted on CPU, against the plain form."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import libtpu, small_training

from clip_jax import sharding
from clip_jax.models import attention, layers, short_attention
from clip_jax.planning import hlo

TOLERANCES = {'float32': 2e-6, 'bfloat16': 2**-7}
# Random programs are compiled once and run once.
QUICKLY = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def inputs(batch, length, heads, size, masked, dtype, seed=0):
    """Query, key, value, the gradient of the output, and a mask, some rows of which hide most."""
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=(batch, length, heads, size)), dtype) for _ in range(4)]
    shown = rng.random((batch, 1, 1, length)) < rng.choice([0.1, 0.9])
    mask = jnp.asarray(shown) if masked else None
    return *arrays, mask


def value_and_gradients(implementation, causal, query, key, value, gradient, mask):
    def output(*qkv):
        return attention.attend(*qkv, mask, causal=causal, implementation=implementation)

    out, pull = jax.vjp(output, query, key, value)
    return out, *pull(gradient)


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        one, other = np.float32(one), np.float32(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def shapes(count: int, fast: int) -> list:
    """Random sizes, the first of them for every run of the tests; the last ones are long, and take
    their queries in several parts.
    """
    rng = random.Random(0)
    found = []
    for i in range(count):
        heads = rng.choice([8, 12] if i % 8 == 7 else [1, 2, 3, 4, 5])
        size = rng.choice([32, 40, 64, 64, 72, 80, 88, 96, 128])
        length = rng.choice([16, 17, 50, 64, 77, rng.randint(16, 150)])
        if i >= count - 4:
            length = rng.choice([577, 729, 1024])
            heads = 1
        shape = (rng.randint(1, 5), length, heads, size)
        how = rng.random() < 0.5, rng.random() < 0.5, ('float32', 'bfloat16')[i % 2]
        marks = pytest.mark.slow if fast <= i < count - 1 else ()
        name = '-'.join(['x'.join(map(str, shape)), *map(str, how)])
        found.append(pytest.param(*shape, *how, id=name, marks=marks))
    return found


@pytest.mark.parametrize(
    ('batch', 'length', 'heads', 'size', 'causal', 'masked', 'dtype'), shapes(40, fast=7)
)
def test_the_kernel_computes_the_plain_form(batch, length, heads, size, causal, masked, dtype):
    given = inputs(batch, length, heads, size, masked, dtype)
    # The plain form in bfloat16 is rounded too: the reference is in float32, of the same numbers.
    exact = [x if x is None or x.dtype == bool else x.astype(jnp.float32) for x in given]
    found, expected = (
        jax.jit(
            functools.partial(value_and_gradients, implementation, causal),
            compiler_options=QUICKLY,
        )(*arrays)
        for implementation, arrays in (('short', given), ('xla', exact))
    )
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    assert_close(found, expected, TOLERANCES[dtype])


def test_a_query_that_sees_no_key_is_as_in_the_plain_form():
    """It attends to all keys alike, and no logit has a gradient."""
    *arrays, _ = inputs(2, 20, 1, 32, False, 'float32')
    mask = jnp.arange(20)[None, None, None] > 5
    mask = jnp.stack([mask[0], mask[0] & False])
    for causal in (False, True):
        found, expected = (
            jax.jit(functools.partial(value_and_gradients, one, causal), compiler_options=QUICKLY)(
                *arrays, mask
            )
            for one in ('short', 'xla')
        )
        assert_close(found, expected, 2e-6)


@pytest.mark.parametrize('shape', [(16,), (1, 16), (1, 1, 16), (2, 1, 1, 16), (1, 1, 1, 16)])
def test_masks_of_keys_broadcast(shape):
    *arrays, _ = inputs(2, 16, 1, 32, False, 'float32')
    mask = jnp.arange(16).reshape((1,) * (len(shape) - 1) + (16,)) % 3 > 0
    mask = jnp.broadcast_to(mask, shape)
    found, expected = (
        attention.attend(*arrays[:3], mask, implementation=x) for x in ('short', 'xla')
    )
    assert_close([found], [expected], 2e-6)


REFUSED = [
    ((2, 8, 2, 64), 'float32', None, '8 tokens; expected 16 to 1024'),
    ((1, 1025, 1, 64), 'float32', None, '1025 tokens; expected 16 to 1024'),
    ((2, 16, 2, 20), 'float32', None, 'heads of 20; expected a multiple of 8 from 32 to 128'),
    ((2, 16, 2, 136), 'float32', None, 'heads of 136; expected a multiple of 8 from 32 to 128'),
    ((2, 16, 2, 64), 'float16', None, 'inputs in float16; expected bfloat16 or float32'),
    ((2, 16, 2, 64), 'float32', (2, 1, 16, 16), r'a mask of shape \(2, 1, 16, 16\); expected one'),
    ((1, 1024, 40, 88), 'float32', None, '40 heads of 88 and 1024 tokens; they do not fit'),
]


@pytest.mark.parametrize(('shape', 'dtype', 'mask', 'message'), REFUSED)
def test_what_the_kernel_does_not_take_is_refused_or_computed_by_xla(shape, dtype, mask, message):
    x = jax.ShapeDtypeStruct(shape, dtype)
    mask = mask and jax.ShapeDtypeStruct(mask, bool)

    def traced(implementation):
        how = functools.partial(attention.attend, implementation=implementation)
        return str(jax.make_jaxpr(how)(x, x, x, mask))

    with pytest.raises(ValueError, match=f'model.attention short: {message}.*; choose auto or xla'):
        traced('short')
    with a_tpu():
        assert 'short_attention' not in traced('auto')


def a_tpu(**axes: int):
    """A mesh of TPUs that are not there, to trace programs for."""
    sizes = {name: axes.get(name, 1) for name in sharding.AXES}
    device = jax.sharding.AbstractDevice('TPU v5 lite', num_cores=1, platform='tpu')
    types = (jax.sharding.AxisType.Auto,) * 4
    mesh = jax.sharding.AbstractMesh(
        tuple(sizes.values()), tuple(sizes), types, abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(('heads', 'size', 'causal'), [(2, 32, True), (1, 80, False)])
def test_a_module_has_the_same_output_and_gradients(monkeypatch, heads, size, causal):
    """Biases too, which the kernel adds; an instance of it with two rows, the last with one."""
    planned = short_attention._plan
    monkeypatch.setattr(short_attention, '_plan', lambda *x: planned(*x)._replace(rows=2))
    rng = np.random.default_rng(0)
    x, slope = (jnp.asarray(rng.normal(size=(5, 20, heads * size)), 'float32') for _ in range(2))
    modules = [
        attention.Attention(heads, causal, 0.1, 0.1, one, jnp.float32, jnp.float32)
        for one in ('short', 'xla')
    ]
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) / 8, 'float32'),
        jax.eval_shape(modules[0].init, jax.random.key(0), x),
    )

    def results(module):
        out, pull = jax.vjp(module.apply, params, x)
        return jax.tree.leaves((out, pull(slope)))

    found, expected = (jax.jit(results, static_argnums=0)(module) for module in modules)
    assert_close(found, expected, 1e-5)


def test_cross_attention_is_refused():
    query, key = jnp.zeros((1, 16, 1, 32)), jnp.zeros((1, 17, 1, 32))
    with pytest.raises(ValueError, match='short: 16 queries and 17 keys; expected as many'):
        attention.attend(query, key, key, implementation='short')


def test_auto_is_the_kernel_on_tpu_and_the_plain_form_elsewhere():
    x = jax.ShapeDtypeStruct((4, 77, 8, 64), jnp.bfloat16)

    def traced(implementation):
        how = functools.partial(attention.attend, causal=True, implementation=implementation)
        return jax.make_jaxpr(how)(x, x, x)

    assert str(traced('auto')) == str(traced('xla')) and 'pallas_call' not in str(traced('auto'))
    with a_tpu(data=2, tensor=2):
        program = traced('auto')
    assert 'pallas_call' in str(program) and 'f32[4,8,77' not in str(program)
    # The FLOPs of a kernel are those of the products that it stands for.
    assert hlo.flops(program.jaxpr) == {'bfloat16': 2 * 2 * 4 * 8 * 77 * 77 * 64}
    assert hlo.flops(traced('xla').jaxpr) == hlo.flops(program.jaxpr)


@pytest.mark.parametrize('remat', ['none', 'dots', 'offload', 'full'])
@pytest.mark.parametrize('scan', [False, True])
def test_rematerialization_runs_no_kernel_twice_that_it_need_not(remat, scan):
    """Two kernels a block, forward and backward; with 'full' the forward one once more."""
    config = layers.TransformerConfig(
        depth=2, heads=1, mlp_dim=8, remat=remat, scan=scan, attention='short'
    )
    model, x = layers.Transformer(config), jnp.ones((2, 16, 32))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    gradient = jax.grad(lambda params: model.apply(params, x).sum())
    text = str(jax.jit(gradient).trace(params).jaxpr)
    blocks = 1 if scan else 2
    assert text.count('name=short_attention_backward') == blocks
    forward = text.count('name=short_attention\n') + text.count('name=short_attention ')
    assert forward == blocks * (2 if remat == 'full' else 1)


CARD = {
    'image': {**small_training.VIT, 'width': 128, 'heads': 2, 'patch_dropout': 0},
    'text': {**small_training.TEXT, 'width': 64, 'heads': 2, 'context_length': 16},
    'embed_dim': 16,
}
SHARDED = {'fsdp': 2, 'tensor': 2}


def train(devices: int, steps: int, card: dict = CARD, **options) -> tuple:
    state, step, put = small_training.setup(devices, card=card, learning_rate=1e-4, **options)
    losses = []
    for i in range(steps):
        data = small_training.batch(i)
        data['tokens'] = np.pad(data['tokens'], ((0, 0), (0, 8)))
        state, numbers = step(state, put(data))
        losses.append(float(numbers['loss']))
    return losses, state


@pytest.mark.parametrize(
    ('devices', 'options', 'steps'),
    [
        pytest.param(1, {'remat': 'dots', 'scan': True}, 3, marks=pytest.mark.slow),
        (8, SHARDED, 3),
        pytest.param(1, {}, 20, marks=pytest.mark.slow),
        pytest.param(8, {}, 20, marks=pytest.mark.slow),
        pytest.param(8, {**SHARDED, 'remat': 'dots', 'scan': True}, 20, marks=pytest.mark.slow),
        pytest.param(8, {**SHARDED, 'remat': 'full'}, 20, marks=pytest.mark.slow),
    ],
)
def test_training_is_that_of_the_plain_form(devices, options, steps):
    found = train(devices, steps, attention='short', **options)
    small_training.assert_same(found, plain(steps))


@functools.cache
def plain(steps: int) -> tuple:
    return train(1, steps, attention='xla')


@pytest.mark.slow
@pytest.mark.parametrize(('devices', 'options'), [(1, {}), (8, {}), (8, SHARDED)])
def test_training_in_bfloat16_is_that_of_the_plain_form(devices, options):
    (found, _), (expected, _) = (
        train(devices, 20, attention=one, dtype='bfloat16', **options) for one in ('short', 'xla')
    )
    np.testing.assert_allclose(found, expected, rtol=2**-7)


def test_heads_that_no_mesh_divides_are_not_sharded():
    *arrays, _ = inputs(4, 16, 1, 32, False, 'float32')
    expected = value_and_gradients('xla', False, *arrays, None)
    with jax.set_mesh(sharding.make_mesh(jax.devices()[:8], fsdp=2, tensor=2)):
        how = functools.partial(value_and_gradients, 'short', False)
        found = jax.jit(how, compiler_options=QUICKLY)(*arrays, None)
    assert_close(found, expected, 2e-6)


def test_derivatives_in_forward_mode_are_refused():
    x = jnp.ones((1, 16, 1, 32))
    with pytest.raises(TypeError, match='forward-mode'):
        jax.jvp(lambda x: attention.attend(x, x, x, implementation='short'), (x,), (x,))


COMPILED = """
import jax, re, sys
from clip_jax.cli import config_file
from clip_jax.planning import abstract_step, topologies

config = config_file.read('clip_vit_b16')
config.batch_size = 16
for tower, depth in (('image', 2), ('text', 2)):
    config.model[tower].depth = depth
planned = topologies.topology(sys.argv[1])
step = abstract_step.step_of(config, planned.devices, 'bfloat16')
with jax.set_mesh(step.mesh):
    text = jax.jit(step.function).lower(step.state, step.batch).compile().as_text()
logits = re.findall(r'f32\\[[0-9,]*(?:197,197|77,77)\\]', text)
print(text.count('custom_call_target="tpu_custom_call"'), sorted({*logits}))
"""


@pytest.mark.slow
@libtpu.needed
@pytest.mark.parametrize('topology', ['v4:2x2x2', 'v5e:2x4', 'v5p:2x2x2', 'v6e:2x4'])
def test_train_steps_for_tpus_have_the_kernel_and_no_logits(topology):
    """Without a TPU: the compiler's is enough."""
    kernels, _, logits = libtpu.output(COMPILED, topology).partition(' ')
    # Forward and backward of both encoders, each a loop over blocks.
    assert int(kernels) >= 4 and logits == '[]'
