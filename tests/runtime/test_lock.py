"""One training a run directory, however the last one ended."""

import contextlib
import errno
import fcntl
import os
import threading
import time

import pytest
from etils import epath
from support.process import lock_holder

from clip_jax.runtime import lock


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / 'runs/one')


def test_a_second_one_is_refused_and_told_who_was_first(folder):
    with lock_holder(folder) as process:
        with pytest.raises(ValueError, match=rf'another training writes to it .*{process.pid}'):
            lock.Lock(folder).open()
        process.kill()
    # The kernel has let go of it, though nobody tidied up.
    with contextlib.closing(lock.Lock(folder)) as held:
        held.open()
        assert (folder / lock.name()).exists()
    assert not (folder / lock.name()).exists()


def test_a_link_in_its_place_is_not_followed(folder, tmp_path):
    (tmp_path / 'mine').write_text('mine')
    folder.mkdir(parents=True)
    os.symlink(tmp_path / 'mine', folder / lock.name())
    with contextlib.closing(lock.Lock(folder)) as held:
        held.open()
        assert '"process"' in (folder / lock.name()).read_text()
    assert (tmp_path / 'mine').read_text() == 'mine'


def test_it_leaves_no_folder_behind_that_it_made(folder):
    held = lock.Lock(folder)
    held.open()
    held.close()
    assert not folder.exists() and not folder.parent.exists()
    held.open()
    (folder / 'config.json').write_text('{}')
    held.close()
    assert [path.name for path in folder.iterdir()] == ['config.json']


def lease(folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / lock.name()
    return contextlib.closing(lock.Lease(path, flag='--out', heartbeat=0.05, timeout=0.4))


def test_on_object_storage_heartbeats_keep_others_away(folder):
    with lease(folder), pytest.raises(ValueError, match='another training writes to it'):
        lease(folder)
    assert not (folder / lock.name()).exists()


def test_on_object_storage_a_lease_without_heartbeats_expires(folder, caplog):
    folder.mkdir(parents=True)
    (folder / lock.name()).write_text('{"id": "dead", "host": "x", "process": 1, "since": "y"}')
    began = time.monotonic()
    with lease(folder):
        assert 0.4 <= time.monotonic() - began < 5
        assert 'waiting 0.4 s' in caplog.text
        first = (folder / lock.name()).read_text()
        time.sleep(0.3)
        assert (folder / lock.name()).read_text() != first


def test_a_process_whose_lease_expired_exits_when_another_holds_it(folder, caplog, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, '_exit', lambda code: ended.set())
    with lease(folder):
        (folder / lock.name()).write_text('{"id": "new", "host": "x", "process": 1, "since": "y"}')
        assert ended.wait(5)
    assert 'another training writes to it (x, process 1, since y)' in caplog.text
    assert 'this process exits at once' in caplog.text


def test_a_heartbeat_that_fails_is_not_the_last(folder, caplog, monkeypatch):
    with lease(folder) as held:
        written = held._write
        monkeypatch.setattr(held, '_write', lambda: 1 / 0)  # object storage has errors of its own
        time.sleep(0.2)
        monkeypatch.setattr(held, '_write', written)
        before = (folder / lock.name()).read_text()
        time.sleep(0.3)
        assert (folder / lock.name()).read_text() != before
    assert 'division by zero' in caplog.text


def test_file_systems_without_locks_get_a_lease(folder, monkeypatch):

    def no_lock(*args):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', no_lock)
    options = {'heartbeat': 0.05, 'timeout': 0.2}
    with contextlib.closing(lock.Lock(folder, **options)) as held:
        held.open()
        with pytest.raises(ValueError, match='another training writes to it'):
            lock.Lock(folder, **options).open()
    assert not folder.exists()
