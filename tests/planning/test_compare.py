"""Two plans side by side."""

import json

import pytest
from support.runs import command

OLD = {
    'topology': 'v5e:2x2',
    'per_device': 128,
    'memory_mib': {'parameters': 600, 'scratch': 8000.5},
    'needs_mib': 9000,
    'seconds': {'compiler': 0.4, 'roofline': 0.2},
    'mfu': {'compiler': 0.2, 'roofline': 0.4},
    'parts': [
        {
            'part': 'image attention',
            'direction': direction,
            'seconds': {'compiler': 0.1, 'roofline': 0.05},
            'bytes': 10**9,
            'share': 0.25,
        }
        for direction in ('forward', 'backward')
    ],
    'unknown': [1],
}
NEW = {
    **OLD,
    'memory_mib': {'parameters': 600, 'scratch': 4000.25, 'host': 7},
    'seconds': {'compiler': 0.3, 'roofline': 0.1, 'schedule': 0.2},
    'parts': [OLD['parts'][0], {**OLD['parts'][1], 'bytes': 10**9 // 2, 'part': 'text MLP'}],
}


def compare(tmp_path, old, new, *flags: str):
    paths = [tmp_path / name for name in ('old.json', 'new.json')]
    for path, plan in zip(paths, (old, new), strict=True):
        path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
    return command('plan', '--compare', *map(str, paths), *flags)


def test_plans_are_compared_by_memory_estimate_and_part(tmp_path):
    done = compare(tmp_path, OLD, NEW)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()]
    values = {name.strip(): (old, new, ratio) for name, old, new, ratio in lines[2:]}
    assert values['memory, MiB: scratch'] == ('8,000.5', '4,000.2', '0.500')
    assert values['memory, MiB: host'] == ('0', '7', '-')
    assert values['compiler, ms'] == ('400', '300', '0.750')
    assert values['compiler, MFU %'] == ('20', '20', '1.000')
    assert values['roofline, ms'] == ('200', '100', '0.500')
    assert values['image attention'] == ('50', '50', '1.000')
    assert values['image attention, backward'] == ('50', '0', '0.000')
    assert values['text MLP, backward'] == ('0', '50', '-')
    assert values['HBM, GB'] == ('2', '1.5', '0.750')
    # Only one of them has schedules.
    assert 'schedule' not in done.stdout


def test_a_plan_that_does_not_fit_is_compared_by_memory(tmp_path):
    none = {key: OLD[key] for key in ('topology', 'per_device', 'memory_mib')}
    done = compare(tmp_path, {**none, 'needs_mib': None}, NEW)
    assert done.returncode == 0, done.stderr
    assert 'MiB: scratch' in done.stdout and 'compiler' not in done.stdout


@pytest.mark.parametrize(
    ('old', 'flags', 'message'),
    [
        ('{', [], 'not valid JSON'),
        (
            {},
            [],
            "old.json: is not a plan: it has no 'topology'; expected a file that clip",
        ),
        ({**OLD, 'per_device': 'many'}, [], "per_device is 'many'; expected an integer"),
        ({**OLD, 'parts': [{'part': 'a'}]}, [], "is not a plan: it has no 'direction'"),
        ({**OLD, 'mfu': {'compiler': '1'}}, [], "mfu: compiler is '1'; expected a number"),
        (OLD, ['--search'], '--search has no effect with --compare; expected two plans only'),
        (OLD, ['--config.batch_size=8'], '--config.batch_size=8 has no effect with --compare'),
    ],
)
def test_wrong_input_is_one_line(tmp_path, old, flags, message):
    done = compare(tmp_path, old, NEW, *flags)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and message in line


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    missing = tmp_path / 'missing.json'
    done = command('plan', '--compare', str(missing), str(missing))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and 'missing.json' in line


def test_a_plan_needs_a_config_and_a_topology():
    done = command('plan', '--topology=local')
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert '--config is missing; expected --config and --topology, or --compare' in line
