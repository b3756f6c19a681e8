"""The program `clip-jax`: usage, help, errors, exit codes, and the log."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.process import clip_jax_command, environment

from clip_jax.cli import _console, _flags, main
from clip_jax.runtime.messages import Failures

COMMANDS = (
    'train',
    'eval',
    'classify',
    'caption',
    'embed',
    'convert',
    'interpolate',
    'models',
    'push',
    'checkpoint',
    'data',
    'plan',
    'plot',
)
ACTIONS = 'inspect', 'verify', 'filter', 'duplicates', 'import'
WRONG = """\

trian
train
train --config=x.py
train --workdir=x
eval --model=x --data=y
embed --model=x --data=y
classify folder:x --model=x --labels=a,b
classify folder:x --model=x --out=x.csv
classify --model=x --labels=a,b --out=x.csv
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
data filter x
data duplicates embeddings:x
plan --config=quickstart
"""


def test_wrong_usage_shows_the_usage(run):
    for arguments in WRONG.splitlines():
        code, _, error = run(*arguments.split())
        assert code == 2, arguments
        assert error.startswith('usage: clip-jax')
        assert 'error: ' in error.splitlines()[-1]


def test_help_explains_with_an_example(run):
    for command in (*COMMANDS, *(f'data {action}' for action in ACTIONS)):
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
        (Failures('wrong', ['a\nb']), 1, 'clip-jax plot: wrong: a b\n'),
        (Failures('two', ['a\nb', 'c']), 1, 'clip-jax plot: two:\n  a b\n  c\n'),
        (ValueError(), 1, 'clip-jax plot: ValueError\n'),
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


def test_twenty_failures_are_twenty_lines(run, monkeypatch):
    failed = [f'file {i}: broken' for i in range(20)]

    def fail(*_):
        raise Failures('x: 20 files are corrupt', failed)

    monkeypatch.setattr(main.COMMANDS['plot'], 'run', fail)
    lines = run('plot')[2].splitlines()
    assert lines == ['clip-jax plot: x: 20 files are corrupt:', *(f'  {one}' for one in failed)]
    many = Failures('x', [str(i) for i in range(1000)]).lines()
    assert len(many) < 200 and many[-1] == f'  and {1000 - len(many) + 2:,} more'
    assert '\n' not in str(Failures('x', failed))
    assert pickle.loads(pickle.dumps(Failures('x', failed))).items == failed


@pytest.mark.parametrize(
    ('rest', 'joined'),
    [
        (['--config.a', '3', '--config.b=4'], ['--config.a=3', '--config.b=4']),
        (['--templates', 'a {} of b', '--x', '-10'], ['--templates=a {} of b', '--x=-10']),
        (['--a', '--b', '3', '4'], ['--a', '--b=3', '4']),
        (['4', '--a=b=c', 'd'], ['4', '--a=b=c', 'd']),
    ],
)
def test_an_option_and_its_value_may_be_two_words(rest, joined):
    assert _flags.joined(rest) == joined


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('3', 3),
        ('["a", "b"]', ['a', 'b']),
        ('cat,dog', 'cat,dog'),
        ('a photo of a {}.', 'a photo of a {}.'),
        ('{}', '{}'),
        ('(' * 10_000, '(' * 10_000),
    ],
)
def test_a_value_that_is_no_literal_is_a_text(value, expected):
    assert [*_flags.assignments([f'--text-exts={value}'])] == [('text_exts', expected)]


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_closed_pipe_ends_a_command_quietly(unbuffered):
    """As `clip-jax ... | head` does: a command that is still printing, and one that was before."""
    program = """
import sys
from clip_jax.cli import main
def run(args, rest):
    print('begins', flush=True)
    sys.stdin.read()  # until the other end of stdout is closed
    print('more' * int(args.out))
    return 0
main.COMMANDS['plot'].run = run
main.console()
"""
    for size in '1', '100000':
        process = subprocess.Popen(
            [sys.executable, '-c', program, 'plot', f'--out={size}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), 'PYTHONUNBUFFERED': unbuffered},
        )
        assert process.stdout.readline() == b'begins\n'
        process.stdout.close()
        process.stdin.close()
        assert (process.wait(60), process.stderr.read()) == (141, b'')
        process.stderr.close()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no device that is full')
def test_output_that_cannot_be_written_is_one_line():
    env = {**environment(), 'PYTHONUNBUFFERED': ''}
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            clip_jax_command('--help'), stdout=full, stderr=subprocess.PIPE, text=True, env=env
        )
    assert done.returncode == 1
    assert done.stderr.startswith('clip-jax: cannot write the output: ')
    assert 'No space left' in done.stderr and done.stderr.count('\n') == 1


def test_without_stdout_a_command_runs(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)
    with pytest.raises(SystemExit) as end:
        main.main(['data', 'inspect'])
    assert end.value.code == 2


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


def test_progress_bars_may_move_the_cursor_up_and_nothing_else(capfd):
    with _console.escaped_output():
        print('one\r\ntwo\x1b[A\x1b[2Jthree\x1b]0;title\x07', file=sys.stderr)
    assert capfd.readouterr().err == 'one\r\ntwo\x1b[A\\x1b[2Jthree\\x1b]0;title\\x07\n'
