"""Plans for GPUs that are not here."""

import json
import os
import re
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from support.runs import command

from clip_jax.models import cudnn_attention
from clip_jax.planning import estimates, gpu, gpu_program, hlo, topologies

ATTENTION = 'custom_call_target="__cudnn$fmhaSoftmax'
PRODUCT = (
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
    '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]}}}'
)
PROGRAM = f"""HloModule step

%sliced (a: f32[12,100], b: s32[]) -> f32[1,100] {{
  %a = f32[12,100]{{1,0}} parameter(0)
  %b = s32[] parameter(1)
  ROOT %d = f32[1,100]{{1,0}} dynamic-slice(%a, %b, %b), dynamic_slice_sizes={{1,100}}
}}

%stored (a: f32[12,100], b: f32[1,100], c: s32[]) -> f32[12,100] {{
  %a = f32[12,100]{{1,0}} parameter(0)
  %b = f32[1,100]{{1,0}} parameter(1)
  %c = s32[] parameter(2)
  ROOT %u = f32[12,100]{{1,0}} dynamic-update-slice(%a, %b, %c, %c)
}}

%normed (a: f32[12,100]) -> f32[12,100] {{
  %a = f32[12,100]{{1,0}} parameter(0)
  ROOT %n = f32[12,100]{{1,0}} negate(%a)
}}

%body (p: (s32[], f32[12,100])) -> (s32[], f32[12,100]) {{
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[12,100]{{1,0}} get-tuple-element(%p), index=1
  %s = f32[1,100]{{1,0}} fusion(%x, %i), kind=kCustom, calls=%sliced
  %g = f32[1,100]{{1,0}} all-reduce-start(%s), channel_id=7
  %u = f32[12,100]{{1,0}} fusion(%x, %s, %i), kind=kCustom, calls=%stored
  ROOT %t = (s32[], f32[12,100]) tuple(%i, %u)
}}

ENTRY %main (q: bf16[2,16,3,64], x: f32[12,100]) -> f32[12,100] {{
  %q = bf16[2,16,3,64]{{3,2,1,0}} parameter(0)
  %x = f32[12,100]{{1,0}} parameter(1)
  %w = (s32[], f32[12,100]) while(%t), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"12"}}}}
  %n = f32[12,100]{{1,0}} fusion(%x), kind=kCustom, calls=%normed, backend_config={{"kind":"__triton"}}
  %a = (bf16[2,16,3,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), {ATTENTION}"
  %b = (bf16[2,16,3,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), {ATTENTION}Backward"
  %m = bf16[12,8]{{1,0}} parameter(2)
  %k = (f32[12,100]{{1,0}}, s8[999]{{0}}) custom-call(%m, %m), {PRODUCT}
  ROOT %y = f32[12,100]{{1,0}} copy(%x)
}}
"""  # noqa: E501
CHIP = topologies.Chip(60, 989, 1.98, 3.352e12, is_gpu=True)


def test_kernels_are_counted_by_maker():
    """What is in a loop counts as often as it runs, and of an array only the part that is used."""
    found = gpu_program.kernels(PROGRAM, CHIP)
    whole, part, query = 12 * 100 * 4, 100 * 4, 2 * 16 * 3 * 64 * 2
    expected = {
        # A slice is read and written, and so is what is stored; both have an index.
        'XLA': (2 * 12 + 1, 0, 12 * (4 * part + 2 * 4) + 2 * whole),
        'Triton': (1, 0, 2 * whole),
        'cuDNN attention': (2, (4 + 10) * 2 * 16 * 3 * 64 * 16, 2 * 4 * query),
        # Scratch memory of the library does not count.
        'cuBLAS': (1, 2 * 12 * 100 * 8, 2 * 12 * 8 * 2 + whole),
    }
    assert {
        maker: (x['count'], round(x['tflop'] * 1e12), round(x['gb'] * 1e9))
        for maker, x in found.items()
    } == expected
    assert found['Triton']['seconds'] == pytest.approx(2 * whole / 3.352e12)


@pytest.mark.parametrize(
    ('called', 'operands', 'result'),
    [
        ('Forward', 'xw', 'y'),
        ('BiasActivationForward', 'xwb', 'y'),
        ('BackwardInput', 'yw', 'x'),
        ('BackwardFilter', 'xy', 'w'),
    ],
)
def test_convolutions_of_cudnn_are_counted(called, operands, result):
    """The gradients have as many products as the convolution; none is with padding."""
    types = {'x': 'bf16[2,8,8,3]', 'w': 'bf16[4,3,3,3]', 'y': 'bf16[2,4,4,4]', 'b': 'f32[4]'}
    parameters = [f'  %{name} = {types[name]} parameter({i})' for i, name in enumerate(operands)]
    call = f'custom-call({", ".join(f"%{name}" for name in operands)})'
    labels = 'window={size=3x3 pad=1_1x1_1 stride=2x2}, dim_labels=b01f_o01i->b01f'
    lines = [
        'ENTRY %main () -> () {',
        *parameters,
        f'  ROOT %c = ({types[result]}, u8[9]) {call}, {labels}, '
        f'custom_call_target="__cudnn$conv{called}"',
        '}',
    ]
    (found,) = gpu_program.kernels('\n'.join(lines), CHIP).items()
    along_one_axis = 2 + 3 + 3 + 3  # the first window reaches into the padding
    assert found[0] == 'cuDNN' and found[1]['count'] == 1
    assert round(found[1]['tflop'] * 1e12) == 2 * (2 * 4 * 3) * along_one_axis**2


def test_of_the_estimates_there_is_a_roofline_only():
    found = estimates.of(PROGRAM, CHIP)
    total = sum(x['seconds'] for x in gpu_program.kernels(PROGRAM, CHIP).values())
    assert found['seconds'] == {'roofline': pytest.approx(total)}


def test_products_of_cudnn_are_counted(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91200)
    x = jax.ShapeDtypeStruct((2, 15, 3, 64), jnp.bfloat16)

    def loss(x):
        return cudnn_attention.attend(x, x, x, causal=True).astype(jnp.float32).sum()

    found = hlo.flops(jax.make_jaxpr(jax.grad(loss))(x).jaxpr)
    assert found == {'bfloat16': 2 * (2 + 5) * (2 * 16 * 3 * 64) * 16}


def test_jax_takes_a_part_of_the_memory(monkeypatch):
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    h100 = gpu.GPUS['h100']
    assert h100.usable_gib == pytest.approx(0.75 * 79.1, rel=1e-3)
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
    assert h100.usable_gib == pytest.approx(0.9 * 79.1, rel=1e-3)


@pytest.mark.parametrize('share', ['most', '', '0', '0.0', '-0.5', '1.5', 'nan', '75%'])
def test_a_wrong_part_of_the_memory_is_one_line(monkeypatch, share):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', share)
    with pytest.raises(ValueError, match=r'expected a fraction such as 0\.9'):
        _ = gpu.GPUS['h100'].usable_gib


@pytest.mark.parametrize('count', ['', '0', '9', '12', 'x', '4x4', '-8'])
def test_a_wrong_number_of_gpus_is_one_line(count):
    with pytest.raises(ValueError, match=r'expected 1 to 8 GPUs .* for instance h100:8'):
        topologies.topology(f'h100:{count}')


def test_what_to_install_is_said(monkeypatch, tiny_config):
    monkeypatch.setattr(gpu, 'PLUGIN', 'not_here.plugin')
    with mock.patch.dict(os.environ):
        done = command('plan', f'--config={tiny_config}', '--topology=h100:8')
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "need JAX's CUDA plugin, but no GPU: pip install 'clipax[plan-gpu]'" in line


@pytest.mark.slow
@pytest.mark.skipif(
    not gpu.installed(),
    reason="needs JAX's CUDA plugin, but no GPU: pip install 'clipax[plan-gpu]'",
)
@pytest.mark.parametrize(('topology', 'devices'), [('h100:8', 8), ('b200:16', 16), ('a100:1', 1)])
def test_a_config_is_compiled_for_gpus_that_are_not_there(
    clip_jax_cli, tiny_config, tmp_path, topology, devices
):
    out = tmp_path / 'plan.json'
    sizes = [
        f'--config.model.{tower}.{size}'
        for tower in ('image', 'text')
        for size in ('width=64', 'heads=2')
    ]
    flags = f'--topology={topology}', '--config.model.scan=True', *sizes
    done = clip_jax_cli('plan', f'--config={tiny_config}', *flags, f'--out={out}')
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report['fits'] and report['devices'] == devices
    kernels = report['gpu_kernels']
    assert {'cuDNN attention', 'cuBLAS', 'XLA'} <= kernels.keys()
    assert bool(report['collectives']) == (devices > 1)
    assert kernels['cuBLAS']['tflop'] > 0
    assert re.search(r'^cuDNN attention +\d+ kernels', done.stdout, re.MULTILINE)
    assert 'roofline' in done.stdout
