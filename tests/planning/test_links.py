"""What goes over slow links, and what a device does meanwhile."""

import importlib.util
import json

import pytest

from clip_jax.planning import hlo, links, program

ALL_REDUCE = '%r = f32[256]{0} all-reduce(%x), channel_id=1, '


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
        ('replica_groups={}', [[0, 1, 2, 3]]),
        ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4,'b'=1] {'a':(2)2,'b'}", [[0, 1], [2, 3]]),
        ('source_target_pairs={{0,1},{1,0}}, metadata={op_name="x"}', [[0, 1], [1, 0]]),
        ('to_apply=%sum', []),
    ],
)
def test_groups_of_devices_are_read(text, expected):
    assert links.groups(ALL_REDUCE + text, 4) == expected


# Two slices of two devices: as one program, and as libtpu has it, a program of a slice.
GROUPS = """ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8,1024]{1,0} all-gather(%x), replica_groups=[2,2]<=[4], dimensions={0}
  %b = f32[1024]{0} all-reduce(%y), replica_groups={{0,2},{1,3}}, to_apply=%add
  %c = f32[512]{0} collective-permute(%z), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}
"""
NAMES = 'frontend_attributes={_xla_megascale_target="{1,2}x{0:1}",_xla_megascale_transfer_type='
TRANSFERS = f"""ENTRY %main (p: f32[8]) -> f32[8] {{
  %a = f32[8,1024]{{1,0}} all-gather(%x), replica_groups={{{{0,1}}}}, dimensions={{0}}
  %r = (f32[1024]{{0}}, u32[], token[]) recv(%t), channel_id=4, {NAMES}"ALL_REDUCE"}}
  %s = (f32[1024]{{0}}, u32[], token[]) send(%y, %t), channel_id=3, {NAMES}"ALL_REDUCE"}}
  %f = f32[8] fusion(%a), kind=kLoop, calls=%inner
  %sd = token[] send-done(%s), channel_id=3
  %rd = (f32[1024]{{0}}, token[]) recv-done(%r), channel_id=4
}}
"""


def test_collectives_over_slices_are_counted_apart():
    kib = 1 / 1024
    assert links.over_slices(program.read(GROUPS), 2, 4) == {
        'all-reduce': {'count': 1, 'mib': 4 * kib},
        'collective-permute': {'count': 1, 'mib': 2 * kib},
    }
    assert links.over_slices(program.read(TRANSFERS), 2, 4) == {
        'all-reduce': {'count': 1, 'mib': 4 * kib}
    }


STARTED = """ENTRY %main (p: f32[8]) -> f32[8] {
  %g = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={}
  %async-collective-start.1 = (f32[8]{0}, u32[]) fusion(%y), kind=kCustom, calls=%wrapped
  %t = u32[] get-tuple-element(%async-collective-start.1), index=1
  %async-collective-done.1 = f32[16]{0} fusion(%t), kind=kCustom, calls=%wrapped_done
  %f = f32[8] fusion(%z), kind=kLoop, calls=%inner
  %gd = f32[16]{0} all-gather-done(%g)
  %r = f32[8]{0} all-reduce(%f), replica_groups={}, to_apply=%add
}
"""


def test_collectives_count_as_overlapped_if_a_device_computes_until_they_end():
    assert links.overlapped(program.read(STARTED)) == {'asynchronous': 2, 'with_work': 1}
    assert links.overlapped(program.read(TRANSFERS)) == {'asynchronous': 1, 'with_work': 1}
    assert links.overlapped(program.read(GROUPS)) == {'asynchronous': 0, 'with_work': 0}


PARTS = """ENTRY %main (p: f32[8]) -> f32[8] {
  %f = f32[8] fusion(%a), kind=kCustom, calls=%first
  %h = f32[8] fusion(%f), kind=kCustom, calls=%second
  %b = f32[16]{0} all-gather(%y), channel_id=3, metadata={op_name="mul"}
  %c = f32[16]{0} all-gather(%z), channel_id=4, metadata={op_name="mul"}
  %s = f32[16]{0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
}

%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %r = f32[64]{0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = f32[16]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={16}
}

%first (p: f32[8]) -> f32[8] {
  %a1 = f32[8]{0} all-gather(%x1), channel_id=2, frontend_attributes={chain_id="7"}
}

%second (p: f32[8]) -> f32[8] {
  %a2 = f32[8]{0} all-gather(%x2), channel_id=2, frontend_attributes={chain_id="7"}
}
"""


def test_parts_of_a_collective_count_once_and_others_of_its_size_and_name_too():
    assert hlo.collectives(PARTS) == {
        'all-gather': {'count': 3, 'mib': 4 * (8 + 2 * 16) / 2**20},
        'reduce-scatter': {'count': 1, 'mib': 4 * 64 / 2**20},
    }


def plan_of(clip_jax_cli, config, tmp_path, *flags) -> dict:
    tmp_path.mkdir(exist_ok=True)
    out = tmp_path / 'plan.json'
    done = clip_jax_cli('plan', f'--config={config}', f'--out={out}', *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    report['said'] = done.stdout
    return report


def check_slow_axis(report: dict) -> None:
    """Gradients are reduced once, sharded as parameters are, and no parameter is gathered."""
    over, parameters = report['over_slices'], report['memory_mib']['parameters']
    embeddings = report['batch_size'] * 128 * 4 / 2**20
    assert over['all-gather']['mib'] <= embeddings
    # Vectors and, on CPU, tables of embeddings are reduced whole.
    assert 0 < over['all-reduce']['mib'] <= 1.5 * parameters
    assert over.keys() <= {'all-gather', 'all-reduce', 'reduce-scatter'}
    assert over.get('reduce-scatter', {'mib': 0})['mib'] <= embeddings
    assert 'over slices: all-reduce' in report['said']


def test_only_gradients_and_embeddings_cross_simulated_slices(clip_jax_cli, tiny_config, tmp_path):
    flags = '--topology=local:8', '--config.mesh.slices=2', '--config.mesh.fsdp=4'
    report = plan_of(clip_jax_cli, tiny_config, tmp_path, *flags)
    assert report['mesh'] == {'slices': 2, 'data': 1, 'fsdp': 4, 'tensor': 1}
    check_slow_axis(report)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'clipax[tpu]'"
)


# So wide that what TPUs pad an array with does not count.
WIDE = [
    f'--config.model.{encoder}.{size}'
    for encoder in ('image', 'text')
    for size in ('width=256', 'mlp_dim=1024')
]


@needs_libtpu
@pytest.mark.slow
def test_only_gradients_and_embeddings_cross_slices_of_tpus(clip_jax_cli, tiny_config, tmp_path):
    flags = '--topology=v5e:2x2', '--config.mesh.slices=2', '--config.mesh.fsdp=4'
    report = plan_of(clip_jax_cli, tiny_config, tmp_path, *flags, *WIDE)
    assert report['devices'] == 8 and report['mesh']['slices'] == 2
    check_slow_axis(report)
    assert report['overlapped']['with_work'] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_sharded_update_scatters_gradients_and_gathers_updates(
    clip_jax_cli, tiny_config, tmp_path
):
    whole, sharded = (
        plan_of(clip_jax_cli, tiny_config, tmp_path / x, '--topology=v5e:2x2', flag, *WIDE)
        for x, flag in (
            ('whole', '--config.mesh.shard_optimizer=False'),
            ('sharded', '--config.mesh.shard_optimizer=True'),
        )
    )
    a, b = whole['memory_mib'], sharded['memory_mib']
    assert b['parameters'] == a['parameters'] and b['optimizer'] < 0.4 * a['optimizer']
    gathered = [x['collectives']['all-gather']['mib'] for x in (whole, sharded)]
    assert gathered[1] - gathered[0] == pytest.approx(a['parameters'], rel=0.2)
    # In bfloat16, as the gradients are.
    scattered = sharded['collectives']['reduce-scatter']['mib']
    assert scattered > 0.4 * a['parameters']


@needs_libtpu
@pytest.mark.slow
def test_offloaded_activations_leave_the_memory_of_a_tpu(clip_jax_cli, tiny_config, tmp_path):
    deep = '--topology=v5e:2x2', '--config.model.image.depth=4', '--config.batch_size=4096'
    deep += ('--config.model.scan=True',)
    dots, offload = (
        plan_of(clip_jax_cli, tiny_config, tmp_path / x, *deep, f'--config.model.remat={x}')
        for x in ('dots', 'offload')
    )
    assert offload['memory_mib']['scratch'] < 0.8 * dots['memory_mib']['scratch']
