"""JAX's splash attention for long sequences on TPU, interpreted on CPU, against the plain form."""

import functools

import jax
import jax.numpy as jnp
import pytest
from models import test_short_attention as short
from support import libtpu

from clip_jax import sharding
from clip_jax.models import attention, layers, splash_attention
from clip_jax.planning import estimates, hlo, program, roofline, topologies

CASES = [
    # tokens, heads, their size, causal, masked
    (40, 2, 64, False, False, 'float32'),
    (128, 1, 32, True, True, 'float32'),
    (300, 1, 80, False, True, 'bfloat16'),
    (300, 2, 72, True, False, 'bfloat16'),
    (256, 1, 128, True, True, 'bfloat16'),
]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(splash_attention, 'BLOCKS', (256, 128))


@pytest.mark.parametrize(('length', 'heads', 'size', 'causal', 'masked', 'dtype'), CASES)
def test_it_computes_the_plain_form(small_blocks, length, heads, size, causal, masked, dtype):
    """With tokens that fill no block, and several blocks."""
    given = short.inputs(2, length, heads, size, masked, dtype)
    exact = [x if x is None or x.dtype == bool else x.astype(jnp.float32) for x in given]
    found, expected = results('splash', causal, given), results('xla', causal, exact)
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    short.assert_close(found, expected, short.TOLERANCES[dtype])


def results(implementation, causal, given):
    how = functools.partial(short.value_and_gradients, implementation, causal)
    return jax.jit(how, compiler_options=short.QUICKLY)(*given)


@pytest.mark.parametrize('causal', [False, True])
def test_a_query_that_sees_no_key_is_as_in_the_plain_form(small_blocks, causal):
    """It attends to all keys alike, and no logit has a gradient."""
    *arrays, _ = short.inputs(2, 20, 1, 32, False, 'float32')
    mask = jnp.arange(20)[None, None, None] > 5
    given = *arrays, jnp.stack([mask[0], mask[0] & False])
    found, expected = (results(one, causal, given) for one in ('splash', 'xla'))
    short.assert_close(found, expected, 2e-6)


def test_it_runs_on_many_devices(small_blocks):
    given = short.inputs(4, 130, 2, 32, True, 'float32')
    expected = results('xla', True, given)
    with jax.set_mesh(sharding.make_mesh(jax.devices()[:8], fsdp=2, tensor=2)):
        found = results('splash', True, given)
    short.assert_close(found, expected, 2e-6)


def traced(length, implementation, heads=2, size=64, dtype='bfloat16', mask=None):
    x = jax.ShapeDtypeStruct((4, length, heads, size), dtype)
    how = functools.partial(attention.attend, implementation=implementation)
    return jax.make_jaxpr(how)(x, x, x, mask)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size': 136}, 'heads of 136; expected up to 128'),
        ({'dtype': 'float16'}, 'inputs in float16; expected bfloat16 or float32'),
        (
            {'mask': jax.ShapeDtypeStruct((4, 1, 1025, 1025), bool)},
            r'a mask of shape \(4, 1, 1025, 1025\); expected one of keys, \[B, 1, 1, L\]',
        ),
    ],
)
def test_what_it_does_not_take_is_refused_or_computed_by_xla(options, message):
    with pytest.raises(ValueError, match=f'model.attention splash: {message}; choose auto or xla'):
        traced(1025, 'splash', **options)
    with short.a_tpu():
        assert 'pallas_call' not in str(traced(1025, 'auto', **options))


def test_auto_takes_it_where_the_kernel_for_short_sequences_ends():
    with short.a_tpu(data=2, tensor=2):
        short_one, long_one = (str(traced(length, 'auto')) for length in (1024, 1025))
    assert 'short_attention' in short_one and 'splash' not in short_one
    assert 'splash_mha_fwd' in long_one and 'short_attention\n' not in long_one
    assert 'pallas_call' not in str(traced(1025, 'auto'))  # on CPU


def test_its_products_count():
    """Those of 1,280 tokens, to which 1,025 are padded."""
    x = jax.ShapeDtypeStruct((4, 1025, 2, 64), jnp.bfloat16)

    def gradients(x):
        output = functools.partial(attention.attend, implementation='auto')
        return jax.grad(lambda x: output(x, x, x).astype(jnp.float32).sum())(x)

    with short.a_tpu(data=4):
        jaxpr = jax.make_jaxpr(gradients)(x).jaxpr
    assert hlo.flops(jaxpr)['bfloat16'] == (2 + 3 + 4) * 2 * 4 * 2 * 1280 * 1280 * 64


def test_its_roofline_is_that_of_its_operands():
    rows = 'bf16[4,2,1280,64]{3,2,1,0:T(8,128)(2,1)}'
    text = f"""HloModule step

ENTRY %main (q: bf16[4,2,1280,64]) -> bf16[4,2,1280,64] {{
  %mask = s8[1,1,1]{{2,1,0:T(4,128)(4,1)}} parameter(1)
  %q = {rows} parameter(0)
  ROOT %k = {rows} custom-call(%mask, %q, %q, %q), custom_call_target="tpu_custom_call", \
metadata={{op_name="jit(step)/attention/splash_mha_fwd_residuals/pallas_call"}}
}}
"""
    compiled = program.read(text)
    kernel = next(run for run in compiled.runs() if run.instruction.is_kernel)
    assert roofline.flops(compiled, kernel) == 2 * 2 * 4 * 2 * 1280 * 1280 * 64
    assert roofline.traffic(compiled, kernel) == 4 * 2 * 4 * 2 * 1280 * 128 + 512
    found = estimates.of(text, topologies.CHIPS['v5e'])['seconds']
    assert found['compiler'] == found['roofline'] > 0


@pytest.mark.parametrize('remat', ['none', 'dots', 'offload', 'full'])
def test_rematerialization_runs_no_kernel_twice_that_it_need_not(remat):
    """With 'full' the forward one once more."""
    config = layers.TransformerConfig(
        depth=2, heads=1, mlp_dim=8, remat=remat, scan=True, attention='splash'
    )
    model, x = layers.Transformer(config), jnp.ones((2, 16, 32))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    gradient = jax.grad(lambda params: model.apply(params, x).sum())
    found = [*kernels(jax.jit(gradient).trace(params).jaxpr)]
    assert sorted(x.split('_')[2] for x in found) == [
        'dkv',
        'dq',
        *['fwd'] * (2 if remat == 'full' else 1),
    ]


def kernels(jaxpr):
    """Those whose results are used."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call':
            yield equation.params['name']
        elif equation.outvars:
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from kernels(inner)


COMPILED = """
import re, sys
import jax, jax.numpy as jnp
from clip_jax import sharding
from clip_jax.models import attention
from clip_jax.planning import topologies

mesh, kernels = sharding.make_mesh(topologies.topology(sys.argv[1]).devices, tensor=2), []
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data', None, 'tensor'))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
for length, size, causal, dtype in (
    (1025, 64, False, 'bfloat16'), (2048, 128, True, 'float32'), (2305, 80, True, 'bfloat16')
):
    x = jax.ShapeDtypeStruct((8, length, 4, size), dtype, sharding=place)
    mask = jax.ShapeDtypeStruct((8, 1, 1, length), bool, sharding=rows) if causal else None

    def loss(x, mask):
        out = attention.attend(x, x, x, mask, causal=causal, implementation='auto')
        return out.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.value_and_grad(loss)).lower(x, mask).compile().as_text()
    kernels.append(text.count('custom_call_target="tpu_custom_call"'))
    assert not re.findall(rf'f32\\[[0-9,]*{length},{length}\\]', text)
print(*kernels)
"""


@pytest.mark.slow
@libtpu.needed
@pytest.mark.parametrize('topology', ['v4:2x2x2', 'v5e:2x4', 'v5p:2x2x2', 'v6e:2x4'])
def test_it_compiles_for_tpus(topology):
    """Without a TPU: the compiler's is enough. Forward, gradient of queries, of keys and values."""
    assert libtpu.output(COMPILED, topology) == '3 3 3'
