"""The benchmarks for accelerators run, each within its time, and name what was not measured."""

import importlib.util
import json
import re
import subprocess
import sys
import time

import pytest
from support.process import ROOT, environment

from clip_jax.cli import config_file

FOLDER = ROOT / 'experiments' / 'benchmarks'


@pytest.fixture(scope='module')
def device():
    spec = importlib.util.spec_from_file_location('device', FOLDER / 'device.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(device, tmp_path, monkeypatch):
    """Runs a piece whose script is the given program, with a limit of seconds."""
    monkeypatch.setattr(device, 'HERE', tmp_path)

    def run(program: str, seconds: float = 60) -> dict:
        (tmp_path / 'piece.py').write_text(program)
        return device.run(device.Piece('a piece', 60, 'piece.py', []), seconds)

    return run


TABLE = "print('JAX\\n\\n| name |  |\\n|---|---|\\n| a | 1 |\\n| b | 2 |', flush=True)\n"
ROWS = [{'name': 'a', '': '1'}, {'name': 'b', '': '2'}]


def test_a_piece_is_read(script, device):
    report = script(TABLE)
    assert (report['status'], report['notes'], report['rows']) == ('done', ['JAX'], ROWS)
    text = device.markdown({'devices': 1, 'kind': 'GPU', 'jax': '0'}, [report])
    assert '## a piece\n' in text and '| name |  |\n|---|---|\n| a | 1 |\n| b | 2 |' in text


def test_what_a_piece_had_before_its_time_was_up_stays(script, monkeypatch):
    began = time.monotonic()
    report = script(TABLE + 'import time; time.sleep(100)', seconds=5)
    assert (report['status'], report['rows']) == ('cut after 5 s', ROWS)
    assert time.monotonic() - began < 50


def test_a_piece_that_fails_says_why(script, device):
    report = script(TABLE + 'raise MemoryError("no room")')
    assert (report['status'], report['rows']) == ('failed: MemoryError: no room', ROWS)
    text = device.markdown({'devices': 1, 'kind': 'GPU', 'jax': '0'}, [report])
    assert 'failed: MemoryError: no room.' in text


def test_what_does_not_run_is_named(device):
    piece = device.Piece('a piece', 60, 'no_such.py', [], 'torch is not installed')
    assert device.run(piece, 60)['status'] == 'not measured: torch is not installed'
    piece = piece._replace(missing='')
    assert device.run(piece, 2)['status'] == 'not measured: the time is up'


@pytest.mark.parametrize('platform', ['gpu', 'tpu', 'cpu'])
@pytest.mark.parametrize('tiny', [True, False])
def test_every_piece_has_a_script_and_a_config(device, platform, tiny):
    description = {'platform': platform, 'devices': 4, 'bytes_limit': 16 * 2**30}
    found = device.pieces(description, tiny)
    assert len({piece.name for piece in found}) == len(found) == 10
    for piece in found:
        assert (FOLDER / piece.script).is_file()
        page = [word for word in piece.arguments if word.startswith('--config=')]
        changes = [word for word in piece.arguments if word.startswith('--config.')]
        if piece.script in ('train_step.py', 'overlap.py', 'save.py'):
            config = config_file.read(str(ROOT / page[0].removeprefix('--config=')), changes)
            assert config.batch_size % 4 == 0 and config.batch_size <= 1024
        if '--vary' in piece.arguments:
            for word in piece.arguments[piece.arguments.index('--vary') + 1 :]:
                key, _, values = word.partition('=')
                for value in values.split(','):
                    config_file.read('default', [f'--config.{key}={value}'])


@pytest.mark.slow
def test_all_pieces_run_on_a_cpu(tmp_path):
    command = ['bash', str(FOLDER / 'device.sh'), f'--out={tmp_path}']
    path = f'{sys.prefix}/bin:/usr/bin:/bin'
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), 'PATH': path}, timeout=580
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / 'device.json').read_text())
    assert content['device']['platform'] == 'cpu'
    for report in content['pieces']:
        missing = report['status'].startswith('not measured: ')
        assert missing or report['status'] == 'done', report
        assert missing or report['rows'], report
    assert {report['name'] for report in content['pieces'] if 'rows' not in report} <= {
        'open_clip',
        'deterministic',
    }
    assert (tmp_path / 'device.md').read_text() in done.stdout


@pytest.mark.slow
def test_both_searches_for_near_duplicates_find_the_same_groups():
    arguments = '--rows=9000', '--width=64', '--repeats=1'
    done = subprocess.run(
        [sys.executable, FOLDER / 'duplicates.py', *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert 'NumPy computed 100.0% of the pairs' in done.stdout
    found = re.search(r'Duplicates: (\d+); the same groups: True', done.stdout)
    assert found and 60 < int(found[1]) < 180
