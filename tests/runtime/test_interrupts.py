"""What a handler of a signal raises is neither lost nor raised in the middle of an import."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time

import pytest
from support.process import environment

from clip_jax.runtime import interrupts


@contextlib.contextmanager
def handled(handler):
    before = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGALRM)]
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


def stop(number, frame):
    raise KeyError(number)


def send():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.001)


class Finalized:
    def __del__(self):
        send()


def collect():
    sent = []

    def collected(phase, info):
        if not sent:
            sent.append(phase)
            send()

    gc.callbacks.append(collected)
    try:
        gc.collect()
        time.sleep(5)
    finally:
        gc.callbacks.remove(collected)


def finalize():
    Finalized()
    time.sleep(5)


@pytest.mark.parametrize('place', [send, finalize, collect])
def test_a_signal_raises_wherever_it_comes(place):
    with handled(interrupts.safely(stop)), pytest.raises(KeyError):
        place()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_what_a_plain_handler_raises_is_lost_there():
    with handled(stop):
        Finalized()
        time.sleep(5 * interrupts.AGAIN)


MODULE = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.01)
print('imported')
"""
PROGRAM = """
import signal, time
from clip_jax.runtime import interrupts
signal.signal(signal.SIGINT, interrupts.safely(interrupts.interrupt, importing={importing}))
try:
    import interrupted_module
    time.sleep(5)
except KeyboardInterrupt:
    print('raised')
"""


@pytest.mark.parametrize(
    ('importing', 'code', 'said'),
    [('None', 0, 'imported\nraised\n'), ('interrupts.leave', 130, '')],
)
def test_an_import_is_not_interrupted(tmp_path, importing, code, said):
    (tmp_path / 'interrupted_module.py').write_text(MODULE)
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM.format(importing=importing)],
        capture_output=True,
        text=True,
        env={**environment(), 'PYTHONPATH': f'{environment()["PYTHONPATH"]}:{tmp_path}'},
    )
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert ('interrupted' in done.stderr) == (code == 130)
