"""An exclusive lock on an output directory: only one program at a time writes to it."""

import errno
import json
import os
import socket
import threading
import time
from typing import Any

import filelock
from absl import logging
from etils import epath

from clip_jax.runtime import atomic

HEARTBEAT = 10.0  # seconds between two heartbeats of a lease
TIMEOUT = 4 * HEARTBEAT  # seconds without a heartbeat after which a lease has expired
# What file systems without locks report.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Lock:
    """An exclusive lock on a directory.

    On a file system this is a lock of the kernel on a file, which ends with the process, however
    that ends. Object storage and some cluster file systems have no locks. There it is a lease: the
    holder rewrites the file every `heartbeat` seconds, and a lease without heartbeats expires.

    Args:
        folder: the directory.
        what: what writes to it, for messages.
        flag: the option that names another directory, for messages.
        heartbeat: seconds between two heartbeats of a lease.
        timeout: seconds without a heartbeat after which a lease has expired.
    """

    def __init__(
        self,
        folder: epath.Path,
        *,
        what: str = 'training',
        flag: str = '--workdir',
        heartbeat: float = HEARTBEAT,
        timeout: float = TIMEOUT,
    ):
        self._folder, self._path, self._flag = folder, folder / name(what), flag
        self._heartbeat, self._timeout = heartbeat, timeout
        self._created: list[epath.Path] = []
        self._held: filelock.FileLock | Lease | None = None

    def open(self) -> None:
        """Acquires the lock, and creates the directory if it does not exist.

        Raises:
            ValueError: if another program holds it; the message says which.
        """
        if atomic.is_remote(self._folder):
            self._held = self._lease()
            return
        self._created = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        if os.path.islink(self._path):  # never ours: a lock written through it would hit its target
            self._path.unlink()
        lock = filelock.FileLock(self._path, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(_refusal(self._path, self._flag, _read(self._path))) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._held = self._lease()
            return
        self._held = lock
        self._path.write_text(json.dumps(_holder()))

    def _lease(self) -> 'Lease':
        options = {'heartbeat': self._heartbeat, 'timeout': self._timeout}
        return Lease(self._path, flag=self._flag, **options)

    def close(self) -> None:
        """Releases the lock, and removes directories that `open` created if they are empty."""
        if isinstance(self._held, Lease):
            self._held.close()
        elif self._held:
            self._path.unlink(missing_ok=True)  # before another program can lock it
            self._held.release()
        self._held = None
        for path in self._created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        self._created = []


def name(what: str = 'training') -> str:
    """The name of the lock file of `what`."""
    return f'{what}.lock'


class Lease:
    """A lock file that its holder rewrites: the heartbeat.

    Args:
        path: the lock file.
        flag: the option that names another directory, for messages.
        heartbeat: seconds between two heartbeats.
        timeout: seconds without a heartbeat after which a lease has expired.

    Raises:
        ValueError: if another program holds the lease.
    """

    def __init__(self, path: epath.Path, *, flag: str, heartbeat: float, timeout: float):
        self._path, self._flag, self._heartbeat, self._count = path, flag, heartbeat, 0
        self._holder = {**_holder(), 'id': f'{os.getpid()}-{time.time_ns()}'}
        self._closing = threading.Event()
        before = _read(path)
        if before is not None:
            logging.warning(
                '%s exists: its program was killed or still runs; waiting %g s for a heartbeat',
                *(path, timeout),
            )
            end = time.monotonic() + timeout
            while before is not None and time.monotonic() < end:
                time.sleep(heartbeat / 4)
                now = _read(path)
                if now and before and now != before:
                    raise ValueError(_refusal(path, flag, now))
                before = now or (None if now is None else before)
        self._write()
        time.sleep(heartbeat / 4)  # if two start at once, the last one to write holds the lease
        if self._id(_read(path)) != self._holder['id']:
            raise ValueError(_refusal(path, flag, _read(path)))
        self._thread = threading.Thread(target=self._beat, name='lease', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the lease back."""
        self._closing.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closing.wait(self._heartbeat):
            try:
                if (now := _read(self._path)) and self._id(now) != self._holder['id']:
                    # The lease expired and another program holds it: stop before both write.
                    text = _refusal(self._path, self._flag, now)
                    logging.error('%s; this process exits at once', text)
                    logging.flush()
                    os._exit(1)
                self._write()
            except Exception as error:  # the next heartbeat may succeed
                logging.warning('%s: %s', self._path, error)

    def _id(self, text: str | None) -> str:
        return json.loads(text or '{}').get('id', '')

    def _write(self) -> None:
        self._count += 1
        self._path.write_text(json.dumps({**self._holder, 'heartbeats': self._count}))


def _read(path: epath.Path) -> str | None:
    """The content of a lock file, '' while it is being written, None if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _holder() -> dict[str, Any]:
    return {'host': socket.gethostname(), 'process': os.getpid(), 'since': time.ctime()}


def _refusal(path: epath.Path, flag: str, text: str | None) -> str:
    try:
        who = '{host}, process {process}, since {since}'.format(**json.loads(text or ''))
    except (ValueError, KeyError, TypeError):
        who = 'it has just started'
    return (
        f'{path.parent}: another {path.stem} writes to it ({who}); wait until it ends, stop it, '
        f'or name another {flag}'
    )
