"""Signals and notices of the machine are heard, and only as long as someone listens."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from support.google_cloud import machine  # noqa: F401
from support.process import environment

from clip_jax.runtime import preemption


@contextlib.contextmanager
def listening(alone=True, graceful=True):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.closing(preemption.StopSignals(alone=alone)) as heard:
        heard.open()
        heard.graceful = graceful
        yield heard
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_the_first_ctrl_c_asks_and_the_second_interrupts(capfd):
    with listening() as heard:
        send(signal.SIGINT)
        assert heard.stop == preemption.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert 'Ctrl-C: saving after this step; once more' in capfd.readouterr().err


def test_sigterm_asks_however_often(capfd):
    with listening() as heard:
        for _ in range(3):
            send(signal.SIGTERM)
        assert heard.stop == preemption.SIGTERM
        send(signal.SIGINT)
        assert heard.stop == preemption.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_before_there_is_anything_to_save_both_end_at_once():
    with listening(graceful=False), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with listening(graceful=False), pytest.raises(SystemExit) as ended:
        send(signal.SIGTERM)
    assert ended.value.code == 0
    # One of several has to wait for the others.
    with listening(alone=False, graceful=False) as heard:
        send(signal.SIGTERM)
        assert heard.stop == preemption.SIGTERM


ONE_OF_SEVERAL = """
import ctypes, os, signal, threading, time
from clip_jax.runtime import preemption

def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
preemption.watch()
preemption.hold()
"""


def one_of_several(program):
    """Runs the rest of a program in a process that is one of several."""
    program = [sys.executable, '-c', ONE_OF_SEVERAL + program]
    return subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=60)


def test_sigterm_before_the_run_stops_it_and_after_it_is_ignored():
    done = one_of_several("""
send(signal.SIGTERM)
heard = preemption.StopSignals(alone=False)
heard.open()
print(heard.stop == preemption.SIGTERM)
heard.close()
send(signal.SIGTERM)
send(signal.SIGINT)
print('exits')
""")
    assert done.stdout == 'True\nexits\n' and done.returncode == 0, done.stderr
    assert done.stderr.count('SIGTERM: saving after this step') == 1


@pytest.mark.parametrize('opened', [False, True])
def test_ctrl_c_ends_one_of_several_that_waits_in_c_and_has_nothing_to_save(opened):
    done = one_of_several(f"""
heard = preemption.StopSignals(alone=False)
if {opened}:
    heard.open()
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
library.pthread_mutex_init(mutex, None)
for _ in range(2):
    library.pthread_mutex_lock(mutex)  # the second one waits, also after a signal
""")
    assert done.returncode == 130 and done.stderr == '\ninterrupted\n', done


def test_the_process_that_the_others_talk_to_exits_last():
    began = time.monotonic()
    done = one_of_several("""
preemption.exit_last()
try:
    send(signal.SIGINT)
except KeyboardInterrupt:
    threading.Event().wait(20)
""")
    assert done.returncode == 130 and done.stderr == '\ninterrupted\n', done
    assert 1 <= time.monotonic() - began < 15


def test_ctrl_c_asks_one_of_several_that_has_something_to_save():
    done = one_of_several("""
heard = preemption.StopSignals(alone=False)
heard.open()
heard.graceful = True
send(signal.SIGINT)
print(heard.stop)
""")
    assert done.stdout == '130\n' and 'once more to stop at once' in done.stderr, done


def test_a_command_that_may_die_of_signals_handles_those_that_were_held():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        preemption.hold()
        send(signal.SIGTERM)
        assert heard == []
        preemption.release()
        assert heard == [signal.SIGTERM]
        send(signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ('key', 'harmless', 'value'),
    [
        ('preempted', 'FALSE ', 'TRUE'),
        ('maintenance-event', 'MIGRATE_ON_HOST_MAINTENANCE', 'TERMINATE_ON_HOST_MAINTENANCE'),
    ],
)
def test_a_notice_of_the_machine_is_as_sigterm(machine, capfd, key, harmless, value):  # noqa: F811
    with listening() as heard:
        machine[key] = harmless
        time.sleep(0.3)
        assert heard.stop == 0
        machine[key] = value
        end = time.monotonic() + 10
        while not heard.stop and time.monotonic() < end:
            time.sleep(0.01)
        assert heard.stop == preemption.SIGTERM
    assert f'this machine will be preempted ({key}: {value})' in capfd.readouterr().err


def test_other_machines_are_not_asked(monkeypatch):
    monkeypatch.delenv('GCE_METADATA_HOST', raising=False)
    assert not preemption.on_google_cloud()
