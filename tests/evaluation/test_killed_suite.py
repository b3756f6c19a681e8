"""A suite that is killed goes on where it was, and ends with the same table."""

import json
import subprocess
import time

import pytest
from support import wds_sets
from support.process import clip_jax_command, environment
from support.runs import command

PAGE = """
from ml_collections import ConfigDict

def get_config():
    sets = ('a', 'b', 'c', 'd')
    tasks = {{name: {{'type': 'zeroshot', 'data': f'wds:{sets}/{{name}}'}} for name in sets}}
    return ConfigDict({{'tasks': tasks, 'averages': {{'all': sets}}}})
"""


@pytest.mark.slow
def test_a_killed_suite_resumes_and_ends_with_the_same_table(tiny_run, tmp_path):
    for seed, name in enumerate('abcd'):
        wds_sets.classes(tmp_path / 'sets' / name, 280 + 7 * seed)
    page = tmp_path / 'page.py'
    page.write_text(PAGE.format(sets=tmp_path / 'sets'))
    arguments = 'eval', 'suite', f'--suite={page}', f'--model={tiny_run}'
    out = tmp_path / 'killed'
    process = subprocess.Popen(
        clip_jax_command(*arguments, f'--out={out}'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    end = time.monotonic() + 200
    while len(finished := [*out.glob('*/*.json')]) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    assert process.wait(100) == -9 and len(finished) < 4 and not (out / 'suite.json').exists()
    tables = []
    for folder in out, tmp_path / 'whole':
        done = command(*arguments, f'--out={folder}')
        assert done.returncode == 0, done.stderr
        read = len(finished) if folder == out else 0
        assert read <= done.stderr.count('(read)') < 4 if read else '(read)' not in done.stderr
        table = json.loads((folder / 'suite.json').read_text())
        tables.append((done.stdout.partition('\nin ')[0], table['tasks'], table['averages']))
    assert tables[0] == tables[1]
