"""What hangs is shown and ended, what only takes its time is not."""

import re
import signal
import subprocess
import sys
import time

import pytest
from support.process import environment

from clip_jax.runtime import watchdog

PROGRAM = """
import re, sys, time
from clip_jax.runtime import watchdog
watchdog.GRACE = 0.5
def asleep():
    time.sleep(60)
def busy():
    re.match('(a+)+$', 'a' * 60 + 'b')  # keeps Python's lock and never ends
dog = watchdog.Watchdog(0.5)
dog.begin('step 1')
for _ in range(8):
    time.sleep(0.125)
    dog.doing = 'step 2'
    dog.finished()
{}
"""


def run(last, program=PROGRAM):
    return subprocess.run(
        [sys.executable, '-c', program.format(last)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )


def test_a_step_that_takes_too_long_ends_the_process_and_shows_where_it_stands():
    done = run('asleep()')
    assert done.returncode == watchdog.HUNG
    assert done.stderr.startswith('step 2 took longer than step_timeout, 0.5 s')
    assert re.search(r'most recent call first.*\n.*in asleep', done.stderr)
    assert done.stderr.endswith('the same command resumes from the newest checkpoint\n')


def test_it_is_counted_from_the_call_before_the_last():
    """Who waited for what another had done before it stood still ends in time all the same."""
    program = """
import time
from clip_jax.runtime import watchdog
dog = watchdog.Watchdog(3)
dog.begin('step 1')
print(time.time(), flush=True)
time.sleep(2.5)
dog.finished()
time.sleep(60)
"""
    done = run('', program)
    ended = time.time()
    assert done.returncode == watchdog.HUNG
    assert 2.9 < ended - float(done.stdout) < 5


def test_even_where_python_itself_cannot_go_on():
    done = run('busy()')
    assert done.returncode == 1
    assert 'Timeout' in done.stderr and 'in busy' in done.stderr


def test_where_jax_ends_the_process_stacks_are_shown_too():
    done = run('import os; os.abort()')
    assert done.returncode == -signal.SIGABRT
    assert 'most recent call first' in done.stderr and 'in _watch' in done.stderr


@pytest.mark.parametrize('last', ['dog.stop(); time.sleep(2)', 'pass'])
def test_what_has_ended_is_not_watched(last):
    done = run(last)
    assert (done.returncode, done.stderr) == (0, '')


def test_without_a_limit_nothing_is_watched():
    dog = watchdog.Watchdog(0.0)
    dog.begin('x')
    time.sleep(0.05)
    dog.stop()
    with pytest.raises(ValueError, match='step_timeout is -1; expected seconds, or 0'):
        watchdog.Watchdog(-1)
