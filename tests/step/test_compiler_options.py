"""Options of XLA in a config: they reach the compiler, and wrong ones are one line."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.process import environment

from clip_jax.cli import config_file
from clip_jax.planning import abstract_step, gpu
from clip_jax.step import compiler_options
from clip_jax.training import setup

FAST = 'xla_cpu_enable_fast_math'
AUTO = {  # on CPU
    'xla_cpu_prefer_vector_width': 512,
    'xla_cpu_enable_concurrency_optimized_scheduler': False,
}
PROGRAM = Path(__file__).parents[1] / 'support' / 'compile_options.py'


@pytest.mark.parametrize(
    ('text', 'options'),
    [
        ('', {}),
        ('auto', AUTO),
        ('auto  --xla_disable_hlo_passes=a,b', {**AUTO, 'xla_disable_hlo_passes': 'a,b'}),
        (f'{FAST}=True', {FAST: True}),
        (f'{FAST}=true {FAST}=false auto', {FAST: False, **AUTO}),
        ('optimization_level=O1', {'optimization_level': 19}),
    ],
)
def test_options_are_read(text, options):
    assert compiler_options.parse(text, jax.devices()[0], 8) == options


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('xla_no_such=1', "compiler_options: No such compile option: 'xla_no_such'; see docs/sp"),
        (f'{FAST}=7', "While setting option .*'7' is not a valid bool value; see"),
        ('xla_gpu_enable_triton_gemm=false', 'xla_gpu_enable_triton_gemm has no effect here, wher'),
        ('xla_tpu_anything=1', 'xla_tpu_anything has no effect here, where devices are cpu; leave'),
        ('auto,xla_a=1 ', "compiler_options: No such compile option: 'auto,xla_a'"),
        ('fast', "compiler_options: 'fast': expected auto, NAME=VALUE of XLA, or several of these"),
        ('=1', "compiler_options: '=1': expected auto"),
        ('optimization_level=fast', "optimization_level: there is no 'fast'. There are: O0, O1"),
        ('memory_fitting_effort=high', 'compiler_options: a value of the wrong type in {'),
    ],
)
def test_what_the_compiler_does_not_take_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        compiler_options.parse(text, jax.devices()[0], 8)
    assert '\n' not in str(error.value)


def test_auto_is_for_several_gpus():
    chosen = {'xla_gpu_enable_latency_hiding_scheduler': True}
    assert compiler_options.automatic('gpu', 8) == chosen
    assert compiler_options.automatic('gpu', 1) == {}
    assert compiler_options.automatic('tpu', 8) == {}


def test_a_run_and_a_plan_compile_with_them(tiny_config, tmp_path, monkeypatch):
    config = config_file.read(str(tiny_config), ['--config.tokenizer.name=bpe'])
    config.tokenizer.vocab_size = None  # bpe has a fixed one
    monkeypatch.setattr(compiler_options, 'parse', lambda *_: {'xla_no_such': '1'})
    step = abstract_step.step_of(config, jax.devices()[:1], 'float32')
    parts = setup.prepare(config, tmp_path / 'run')
    parts.batches.close()
    flags = jax.ShapeDtypeStruct((1,), 'int32')
    for jitted, arguments in (
        (step.jitted(), (step.state, step.batch)),
        (parts.step, (step.state, step.batch, flags)),
    ):
        with jax.set_mesh(step.mesh), pytest.raises(jax.errors.JaxRuntimeError, match='no_such'):
            jitted.lower(*arguments).compile()


@functools.cache
def compiled(chip: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, chip],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_plugin = pytest.mark.skipif(
    not gpu.installed(),
    reason="needs JAX's CUDA plugin, but no GPU: pip install 'clipax[plan-gpu]'",
)


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['R', 'S'])
def test_auto_computes_while_gradients_travel(kind):
    """XLA does so by itself on H100 and B200, on A100 with `auto` only."""
    where = {'R': 'data', 'S': 'fsdp'}[kind]
    waits = f'{kind}< {kind}>'
    assert waits in compiled('a100')[f'{where}: not combined']
    assert waits not in compiled('a100')[f'{where}: auto, not combined']
    for chip in ('h100', 'b200'):
        assert waits not in compiled(chip)[f'{where}: not combined']


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('chip', ['h100', 'a100', 'b200'])
def test_what_the_documented_options_change(chip):
    found = compiled(chip)
    assert found['data: none'].count('R<') == found['fsdp: none'].count('S<') == 1
    assert found['data: not combined'].count('R<') == found['fsdp: not combined'].count('S<') == 4
    assert found['embedding: none'] == ''
    assert str(128 * 77 * 512) in found['embedding: deterministic']
    assert found['data: deterministic'] == found['data: none']
    assert 'm' in found['data: none'] and 'm' not in found['data: triton']
    assert found['data: O1'] == found['data: auto'] and found['fsdp: O1'] == found['fsdp: auto']
