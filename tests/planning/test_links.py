"""What goes over slow links, and what a device does meanwhile."""

import importlib.util
import json

import pytest

from clip_jax.planning import links, program

ALL_REDUCE = '%r = f32[256]{0} all-reduce(%x), channel_id=1, '


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
        ('replica_groups={}', [[0, 1, 2, 3]]),
        ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
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


def plan_of(clip_jax_cli, config, tmp_path, *flags) -> dict:
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
    assert over['all-reduce']['mib'] <= 1.1 * parameters
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


@needs_libtpu
@pytest.mark.slow
def test_only_gradients_and_embeddings_cross_slices_of_tpus(clip_jax_cli, tiny_config, tmp_path):
    flags = '--topology=v5e:2x2', '--config.mesh.slices=2', '--config.mesh.fsdp=4'
    report = plan_of(clip_jax_cli, tiny_config, tmp_path, *flags)
    assert report['devices'] == 8 and report['mesh']['slices'] == 2
    check_slow_axis(report)
    assert report['overlapped']['with_work'] > 0
