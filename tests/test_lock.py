"""One training a run directory, however the last one ended."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from support.process import environment

from clip_jax.runtime import lock

HOLD = """
import sys, time
from etils import epath
from clip_jax import lock
held = lock.Lock(epath.Path(sys.argv[1]))
held.open()
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / 'runs/one')


def holder(folder):
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout.readline() == 'held\n'
    return process


def test_a_second_one_is_refused_and_told_who_was_first(folder):
    with holder(folder) as process:
        with pytest.raises(ValueError, match=rf'another training writes there .*{process.pid}'):
            lock.Lock(folder).open()
        process.kill()
    # The kernel has let go of it, though nobody tidied up.
    with contextlib.closing(lock.Lock(folder)) as held:
        held.open()
        assert (folder / lock.name()).exists()
    assert not (folder / lock.name()).exists()


def test_it_leaves_no_folder_behind_that_it_made(folder):
    held = lock.Lock(folder)
    held.open()
    held.close()
    assert not folder.exists() and not folder.parent.exists()
    held.open()
    (folder / 'config.json').write_text('{}')
    held.close()
    assert [path.name for path in folder.iterdir()] == ['config.json']


def lease(folder, renew=0.05, silent=0.4):
    folder.mkdir(parents=True, exist_ok=True)
    return contextlib.closing(
        lock._Lease(folder / lock.name(), flag='--out', renew=renew, silent=silent)
    )


def test_on_object_storage_signs_of_life_keep_others_away(folder, capsys):
    with lease(folder), pytest.raises(ValueError, match='another training writes there'):
        lease(folder)
    assert not (folder / lock.name()).exists()


def test_on_object_storage_silence_gives_it_to_the_next(folder, capsys):
    folder.mkdir(parents=True)
    (folder / lock.name()).write_text('{"id": "dead", "host": "x", "process": 1, "since": "y"}')
    began = time.monotonic()
    with lease(folder):
        assert 0.4 <= time.monotonic() - began < 5
        assert 'waiting 0.4 s for a sign of life' in capsys.readouterr().err
        first = (folder / lock.name()).read_text()
        time.sleep(0.3)
        assert (folder / lock.name()).read_text() != first


def test_who_was_silent_for_too_long_ends_when_another_has_begun(folder, capsys, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, '_exit', lambda code: ended.set())
    with lease(folder):
        (folder / lock.name()).write_text('{"id": "new", "host": "x", "process": 1, "since": "y"}')
        assert ended.wait(5)
    said = capsys.readouterr().err
    assert 'another training writes there (x, process 1, since y)' in said
    assert 'this process ends at once' in said


def test_a_sign_of_life_that_fails_is_not_the_last(folder, capsys, monkeypatch):
    with lease(folder) as held:
        written = held._write
        monkeypatch.setattr(held, '_write', lambda: 1 / 0)  # object storage has errors of its own
        time.sleep(0.2)
        monkeypatch.setattr(held, '_write', written)
        before = (folder / lock.name()).read_text()
        time.sleep(0.3)
        assert (folder / lock.name()).read_text() != before
    assert 'division by zero' in capsys.readouterr().err


def test_file_systems_without_locks_get_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr(lock, 'RENEW', 0.05)
    monkeypatch.setattr(lock, 'SILENT', 0.2)

    def no_lock(*args):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', no_lock)
    with contextlib.closing(lock.Lock(folder)) as held:
        held.open()
        with pytest.raises(ValueError, match='another training writes there'):
            lock.Lock(folder).open()
    assert not folder.exists()
