"""The program `clip-jax`: usage, help, errors, exit codes, and the log."""

import logging
import subprocess
import sys

import pytest
from support.process import environment

from clip_jax.cli import main

COMMANDS = ('train', 'eval', 'embed', 'convert', 'checkpoint', 'data', 'plan', 'plot')
WRONG = """\

trian
train
train --config=x.py
train --workdir=x
eval --model=x --data=y
embed --model=x --data=y
convert x y
convert x --layout=open_clip
checkpoint list
checkpoint repair x
data
data export
data inspect
data verify --out=x
data import x
data import x y
plan --config=quickstart
"""


def test_wrong_usage_shows_the_usage(run):
    for arguments in WRONG.splitlines():
        code, _, error = run(*arguments.split())
        assert code == 2, arguments
        assert error.startswith('usage: clip-jax')
        assert 'error: ' in error.splitlines()[-1]


def test_help_explains_with_an_example(run):
    for command in (*COMMANDS, 'data inspect', 'data verify', 'data import'):
        code, text, _ = run(*command.split(), '--help')
        assert code == 0
        examples = text.partition('example')[2]
        assert f'  clip-jax {command} ' in examples
        assert max(map(len, text.splitlines())) <= 100
        for example in examples.partition('\nOptions')[0].split('  clip-jax ')[1:]:
            assert example.startswith(command)


def test_help_knows_every_command(run):
    text = run('--help')[1]
    assert set(main.COMMANDS) == set(COMMANDS)
    assert all(f'    {command} ' in text for command in COMMANDS)


def test_help_and_usage_errors_are_quick():
    program = """
import sys
from clip_jax.cli import main
for arguments in '--help', 'train --help', 'data import --help', 'eval --help', 'eval':
    try:
        main.main(arguments.split())
    except SystemExit:
        pass
print('imported:', {'jax', 'numpy', 'flax', 'grain', 'tensorflow_datasets'} & {*sys.modules})
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.splitlines()[-1] == 'imported: set()', done.stderr


def test_a_fresh_process_prints_one_line_too(clip_jax_cli, tiny_config, tmp_path):
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}'
    done = clip_jax_cli('train', *flags, '--config.loss.name=softmx')
    assert done.returncode == 1
    assert done.stderr.startswith("clip-jax train: losses: there is no 'softmx'. Did you mean")
    assert done.stderr.count('\n') == 1
    assert [*tmp_path.iterdir()] == []


def test_a_traceback_can_be_asked_for(run, monkeypatch, tmp_path):
    monkeypatch.setenv('CLIP_JAX_TRACEBACK', '1')
    code, _, error = run('plot', f'--workdir={tmp_path}')
    assert code == 1 and error.startswith('Traceback') and 'run directory' in error


@pytest.mark.parametrize(
    ('raised', 'code', 'message'),
    [
        (KeyboardInterrupt(), 130, 'interrupted\n'),
        (ValueError('two\nlines'), 1, 'clip-jax plot: two lines\n'),
        (OSError('no space'), 1, 'clip-jax plot: no space\n'),
        (RuntimeError('a bug'), 1, 'RuntimeError: a bug\n'),
    ],
)
def test_exit_codes_of_errors(run, monkeypatch, raised, code, message):
    def fail(*_):
        raise raised

    monkeypatch.setattr(main.COMMANDS['plot'], 'run', fail)
    ended, _, error = run('plot')
    assert ended == code and error.endswith(message)
    assert error.startswith('Traceback') == isinstance(raised, RuntimeError)


@pytest.mark.parametrize(
    ('path', 'level', 'shown'),
    [
        (main.__file__, logging.INFO, True),
        ('/lib/grain/python/x.py', logging.WARNING, True),
        ('/lib/grain/python/x.py', logging.INFO, False),
        ('/lib/orbax/checkpoint/x.py', logging.ERROR, False),
    ],
)
def test_log_records_that_are_shown(path, level, shown):
    record = logging.LogRecord('absl', level, path, 1, 'text', (), None)
    assert main._is_for_users(record) == shown
