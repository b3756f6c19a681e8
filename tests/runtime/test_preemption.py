"""Signals and notices of the machine are heard, and only as long as someone listens."""

import contextlib
import os
import signal
import time

import pytest
from support.google_cloud import machine  # noqa: F401

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


@pytest.fixture
def held():
    """Signals are held, as they are once several processes are connected."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    preemption.hold()
    yield
    for number, handler in before:
        signal.signal(number, handler)
    preemption._held.clear()


def test_one_of_several_processes_stops_for_a_signal_that_came_before_the_run(held, capfd):
    send(signal.SIGTERM)
    with listening(alone=False, graceful=False) as heard:
        assert heard.stop == preemption.SIGTERM
    assert 'SIGTERM: saving' in capfd.readouterr().err
    send(signal.SIGTERM)  # after the run it must not die either: others wait for it at exit


def test_ctrl_c_before_the_run_interrupts_when_it_begins_and_twice_at_once(held):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), listening(alone=False, graceful=False):
        pass


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
