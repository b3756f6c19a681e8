"""SIGTERM and Ctrl-C at any moment of a run: the promised exit code, and no crash."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.process import clip_jax_command, environment, free_port
from support.runs import train, training

# Before the program has begun, the signal's default action ends it.
CODES = {signal.SIGTERM: {0, -signal.SIGTERM}, signal.SIGINT: {0, 130, -signal.SIGINT}}
SLOW = pytest.mark.slow


def start(config: Path, workdir: Path, *more: str) -> subprocess.Popen:
    """Starts a training that compiles everything anew."""
    flags = f'--config={config}', f'--workdir={workdir}', *more
    return subprocess.Popen(
        clip_jax_command('train', *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(alone=False),
    )


def check(process: subprocess.Popen, number: int) -> None:
    out, err = process.communicate(timeout=200)
    assert process.returncode in CODES[number], (process.returncode, err)
    if process.returncode != -signal.SIGINT:  # while Python starts, Ctrl-C has a traceback
        assert 'Traceback' not in err, err
    if 'nothing to save' in err:
        assert 'stopped at step' not in out


def resume(config: Path, workdir: Path, reference: Path) -> None:
    """Resumes a run; it ends as one that was never stopped."""
    done = train(config, workdir)
    assert done.returncode == 0, done.stderr
    assert training(workdir) == training(reference)


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_while_the_first_evaluation_is_compiled(number, tiny_config, tiny_run, tmp_path):
    """Threads compile and read data then, and the interpreter must not be finalized under them."""
    process = start(tiny_config, tmp_path / 'run')
    while 'training a vocabulary' not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == (0 if number == signal.SIGTERM else 130), err
    assert 'Traceback' not in err and 'summary.json' not in out
    said = 'there is nothing to save yet' if number == signal.SIGTERM else 'interrupted'
    assert said in err
    resume(tiny_config, tmp_path / 'run', tiny_run)


@pytest.fixture(scope='module')
def seconds(tiny_config, tmp_path_factory) -> float:
    """The time that a whole run takes."""
    began = time.monotonic()
    assert start(tiny_config, tmp_path_factory.mktemp('whole') / 'run').wait(200) == 0
    return time.monotonic() - began


@SLOW
@pytest.mark.parametrize('number', CODES)
def test_at_a_hundred_moments(number, tiny_config, tiny_run, tmp_path, seconds):
    """From the start of the process to its end; each of the runs then resumes exactly."""
    count = int(os.environ.get('CLIP_JAX_SIGNALS', '100'))
    for k in range(count):
        workdir = tmp_path / str(k)
        process = start(tiny_config, workdir)
        time.sleep(seconds * (k + 0.5) / count)
        process.send_signal(number)
        check(process, number)
        resume(tiny_config, workdir, tiny_run)


def start_two(config: Path, workdir: Path) -> list[subprocess.Popen]:
    more = f'--coordinator=localhost:{free_port()}', '--num-processes=2'
    return [start(config, workdir, *more, f'--process-id={i}') for i in range(2)]


@pytest.fixture(scope='module')
def of_two(tiny_config, tmp_path_factory) -> Path:
    """A run of two processes that is not stopped."""
    workdir = tmp_path_factory.mktemp('of_two') / 'run'
    assert [process.wait(200) for process in start_two(tiny_config, workdir)] == [0, 0]
    return workdir


@SLOW
@pytest.mark.parametrize('number', CODES)
def test_of_two_processes_at_twenty_moments(number, tiny_config, of_two, tmp_path, seconds):
    """Both get the signal, as from a scheduler or a terminal; the run then resumes exactly."""
    for k in range(20):
        workdir = tmp_path / str(k)
        running = start_two(tiny_config, workdir)
        time.sleep(1.5 * seconds * (k + 0.5) / 20)
        for process in running:
            process.send_signal(number)
        for process in running:
            check(process, number)
        assert [process.wait(200) for process in start_two(tiny_config, workdir)] == [0, 0]
        assert training(workdir) == training(of_two)
