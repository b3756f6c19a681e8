"""What a config will take, before it is run."""

import importlib.util
import json
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from support.runs import command

from clip_jax.cli import config_file
from clip_jax.planning import abstract_step, estimates, fit, hlo, plan, topologies


def count(function, *shapes) -> int:
    return sum(hlo.flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr).values())


def test_flops_are_counted_as_often_as_they_are_done():
    assert count(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    product = jax.jit(lambda x, y: jnp.einsum('bij,bjk->bik', x, y))
    assert count(product, (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=10)[0]

    assert count(loop, (4, 4)) == 10 * 2 * 4**3
    # The gradient of a product is two; what is recomputed is done once more.
    assert count(jax.grad(lambda x: loop(x).sum()), (4, 4)) == 3 * 10 * 2 * 4**3

    def convolve(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), 'SAME')

    assert count(convolve, (2, 3, 8, 8), (5, 3, 3, 3)) == 2 * (2 * 5 * 8 * 8) * (3 * 3 * 3)


PROGRAM = """HloModule step

%condition (p: (s32[], f32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[])) -> (s32[], f32[]) {
  %g = bf16[512]{0} all-reduce(%x), channel_id=7
  %a3 = f32[4,64]{1,0} all-gather(%x3), channel_id=1, metadata={op_name="loss/all_gather"}
  %h = f32[8] fusion(%g), calls=%inner, backend_config={"estimated_cycles":"100"}
  %m = bf16[8] custom-call(%g), custom_call_target="tpu_custom_call", KERNEL
}

%inner (p: f32[8]) -> f32[8] {
  %a4 = f32[8,1024]{1,0} all-gather(%x4), channel_id=1, metadata={op_name="layer/all_gather"}
  %k = f32[8] add(%x, %y), backend_config={"estimated_cycles":"7"}
}

%beside (p: f32[8]) -> f32[8] {
  %a2 = f32[4,64]{1,0:S(1)} all-gather(%x2), channel_id=1, metadata={op_name="loss/all_gather"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[4,64]{1,0} all-gather(%x), channel_id=1, metadata={op_name="loss/all_gather"}
  %f = f32[8] fusion(%a), calls=%beside, backend_config={"estimated_cycles":"5"}
  %b = (bf16[4,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(bf16[4,128]{1,0} %y), channel_id=2
  %c = bf16[32,128]{1,0} all-gather-done(%b)
  %w = (s32[], f32[]) while(%t), condition=%condition, body=%body
  ROOT %d = (f32[], f32[2,2]{1,0}) all-reduce(%e, %f), replica_groups={}
}
"""


KERNEL = (
    'metadata={op_name="jit(f)/jvp()/attention/short/pallas_call" stack_frame_id=11}, '
    'backend_config={"cost_estimate":{"flops":"50","transcendentals":"7"}}'
)


def test_kernels_are_counted_as_often_as_they_run():
    found = hlo.kernels(PROGRAM.replace('KERNEL', KERNEL))
    assert found == {'short': {'count': 12, 'flops': 12 * 50, 'transcendentals': 12 * 7}}
    assert hlo.kernels(PROGRAM.replace('KERNEL', '')) == {}


def test_collectives_and_cycles_are_read_from_a_program():
    """What is in a loop counts as often as it runs; what is done beside other work, once."""
    found = hlo.collectives(PROGRAM)
    gathered = 4 * 4 * 64 + 2 * 32 * 128 + 12 * 4 * 8 * 1024
    assert found['all-gather'] == {'count': 2 + 12, 'mib': gathered / 2**20}
    assert found['all-reduce'] == {'count': 1 + 12, 'mib': (20 + 12 * 1024) / 2**20}
    assert found.keys() == {'all-gather', 'all-reduce'}
    compiled = estimates.of(PROGRAM, topologies.CHIPS['v5e'])['seconds']['compiler']
    kernel = 2 * (512 + 8) / 0.819e12  # unknown: its roofline
    assert compiled == pytest.approx((5 + 12 * 100) / 1.5e9 + 12 * kernel)


def test_a_batch_has_the_texts_of_an_image_that_the_config_asks_for(tiny_config):
    def shape(*data: str) -> tuple[int, ...]:
        flags = [f'--config.data.{one}' for one in data]
        config = config_file.read(str(tiny_config), ['--config.tokenizer.name=bpe', *flags])
        config.tokenizer.vocab_size = None  # bpe has a fixed one
        return abstract_step.step_of(config, jax.devices()[:1], 'float32').batch['tokens'].shape

    assert shape() == (16, 12)
    negatives = 'negative_fields=("x",)', 'hard_negatives=2'
    assert shape('captions_per_image=3', *negatives) == (16, 5, 12)
    assert shape(*negatives) == (16, 3, 12)


def test_a_config_is_planned_for_simulated_devices(clip_jax_cli, tiny_config, tmp_path):
    out = tmp_path / 'plan.json'
    flags = f'--config={tiny_config}', '--topology=local:4', '--config.mesh.fsdp=4'
    # Without scan, the only block computes one token, which MFU does not credit.
    done = clip_jax_cli('plan', *flags, '--config.model.scan=True', f'--out={out}')
    assert done.returncode == 0, done.stderr
    assert 'fits:' in done.stdout and 'mesh slices 1 x data 1 x fsdp 4 x tensor 1' in done.stdout
    report = json.loads(out.read_text())
    assert report['fits'] and report['per_device'] == 4
    memory = report['memory_mib']
    whole = 4 * report['parameters'] / 2**20
    assert memory['parameters'] == pytest.approx(whole / 4, rel=0.2)
    assert memory['optimizer'] == pytest.approx(2 * memory['parameters'], rel=1e-3)
    assert report['needs_mib'] > memory['parameters'] + memory['optimizer']
    # Images need no gradient, and the loss is small.
    assert report['step_tflop'] == pytest.approx(report['model_tflop'], rel=0.2)
    assert report['collectives']


WRONG = [
    (['--topology=v9:4x4'], "there is no 'v9'. Did you mean 'v4'? There are: a100, b200, h100"),
    (['--topology=v5e:many'], 'expected for instance v5e:4x4'),
    (['--topology=local:0'], 'expected local:N'),
    (['--topology=local', '--config.init_from=x'], 'init_from: a plan is of'),
    (['--topology=local', '--search'], 'name one of TPUs or GPUs'),
    (['--topology=local', '--schedules'], '--schedules: this machine has none; name a TPU'),
    (['--topology=h100:8', '--schedules'], '--schedules: h100 has none; name a TPU topology'),
    (['--topology=local', 'more'], "there is no flag 'more'"),
]
# The number of simulated devices is chosen before JAX is imported.
WRONG_FOR_DEVICES = [
    (['--topology=local:3'], 'batch_size 16 is not a multiple of microbatches 1 x 3 devices'),
    (['--topology=local:2', '--config.mesh.fsdp=4'], 'does not divide the 2 devices'),
    (['--topology=local:4', '--config.mesh.slices=3'], 'slices 3 does not divide the 4 devices'),
]


@pytest.mark.parametrize(('flags', 'message'), WRONG)
def test_wrong_input_is_one_line(tiny_config, flags, message):
    with mock.patch.dict(os.environ):  # the command sets variables
        done = command('plan', f'--config={tiny_config}', *flags)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and message in line


@pytest.mark.parametrize(('flags', 'message'), WRONG_FOR_DEVICES)
def test_a_mesh_that_does_not_fit_the_devices_is_one_line(
    clip_jax_cli, tiny_config, flags, message
):
    done = clip_jax_cli('plan', f'--config={tiny_config}', *flags)
    assert done.returncode == 1
    assert message in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'clipax[tpu]'"
)
def test_a_config_is_compiled_for_a_tpu_that_is_not_there(clip_jax_cli, tiny_config, tmp_path):
    out = tmp_path / 'plan.json'
    flags = f'--config={tiny_config}', '--topology=v5e:2x4', '--schedules'
    done = clip_jax_cli('plan', *flags, f'--out={out}')
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report['fits'] and report['devices'] == 8 and report['hbm_mib'] == 16 * 1024
    seconds = report['seconds']
    assert 0 < report['seconds_at_peak'] < seconds['roofline'] < seconds['schedule'] < 1
    assert report['mfu'].keys() == seconds.keys() == {'compiler', 'roofline', 'schedule'}
    # The products of both encoders are found, and so are the schedules of most of the work.
    rows = {(row['part'], row['direction']): row['seconds'] for row in report['parts']}
    for part in ('image attention', 'image MLP', 'text attention', 'text MLP', 'text norms'):
        for direction in ('forward', 'backward'):
            assert rows[part, direction]['schedule'] > rows[part, direction]['roofline']
    assert sum(row['bytes'] for row in report['parts']) > 4 * report['parameters'] / 8
    assert 'MFU' in done.stdout and 'text MLP, backward' in done.stdout


@pytest.mark.parametrize(
    ('reason', 'mib'),
    [
        ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 18.5G of 15.75G hbm.', 18_944),
        ('… the total memory required for HLO temporaries (2.5G) exceeds available …', 2_560 + 7),
        ('Ran out of memory', None),
    ],
)
def test_what_a_refused_program_needs_is_read(reason, mib):
    assert plan._refused_mib(reason, {'memory_mib': {'parameters': 3, 'optimizer': 4}}) == mib


@pytest.fixture
def chips_of_16_gib(monkeypatch):
    """Plans without compiling: a pair needs 1 MiB, half of that with remat, parameters 4 GiB."""
    planned = []

    def needs(config, topology) -> dict:
        remat = {'none': 1.0, 'dots': 0.7, 'full': 0.5}[config.model.remat]
        pairs = config.batch_size / len(topology.devices) / config.microbatches
        mib = pairs * remat + 4096 / config.mesh.fsdp
        report = {'batch_size': config.batch_size, 'needs_mib': mib, 'fits': mib <= 16384}
        planned.append(report)
        return report

    monkeypatch.setattr(plan, 'plan', needs)
    return planned


def a_config(**changes):
    config = config_file.read('clip_vit_b32')
    config.model.remat = 'none'
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize('start', [1024, 65536, 2**20])
def test_the_largest_batch_is_found_from_below_and_from_above(chips_of_16_gib, start):
    found = fit.search(a_config(batch_size=start), topologies.topology('local'), [].append)
    # 8 devices x 12,288 pairs would fit.
    assert found['batch_size'] == 65536
    assert {x['batch_size'] for x in chips_of_16_gib} >= {65536, 131072}


@pytest.mark.parametrize(
    ('start', 'changes'),
    [
        ({'batch_size': 8 * 16_000}, {'model.remat': 'dots'}),
        ({'batch_size': 8 * 24_000}, {'model.remat': 'full'}),
        ({'batch_size': 8 * 40_000}, {'model.remat': 'full', 'microbatches': 2}),
        ({'batch_size': 8 * 24_000, 'model.remat': 'full'}, {'microbatches': 2}),
        (
            {'batch_size': 8 * 16_000, 'loss.implementation': 'dense'},
            {'loss.implementation': 'gather', 'model.remat': 'dots'},
        ),
    ],
)
def test_the_first_remedy_that_helps_is_named(chips_of_16_gib, start, changes):
    """Not one that the config has already, or one that takes back what it has."""
    config = a_config(**start)
    found, report = fit.remedy(config, topologies.topology('local'), [].append)
    assert found == changes and report['fits']
    assert len(chips_of_16_gib) == 1 + [*fit.remedies(config, 8)].index(changes)


@pytest.mark.slow
def test_what_cannot_hold_the_parameters_is_not_compiled(chips_of_16_gib):
    """H/14 has 986 million parameters; with gradients and AdamW's state, 14.7 GiB."""
    config = config_file.read('clip_vit_h14')
    config.update_from_flattened_dict({'mesh.fsdp': 1, 'batch_size': 8 * 1024})
    planned = topologies.Planned(
        'like v5e', jax.devices(), topologies.CHIPS['v5e']._replace(hbm_gib=14)
    )
    found, _ = fit.remedy(config, planned, [].append)
    assert found == {'mesh.fsdp': 8} and len(chips_of_16_gib) == 1


def test_where_nothing_helps_that_is_said(chips_of_16_gib):
    config = a_config(batch_size=8 * 400_000)
    assert fit.remedy(config, topologies.topology('local'), [].append) is None
