"""One folder, one program that fills it: who writes there says so, and a second one is refused."""

import errno
import json
import os
import socket
import sys
import threading
import time
from typing import Any, TextIO

from etils import epath

from clip_jax.runtime import atomic

RENEW = 10.0  # seconds between two signs of life of who holds a directory on object storage
SILENT = 4 * RENEW  # seconds without one after which it is taken to be dead


class Lock:
    """The right to write into a folder; `open` takes it or raises ValueError, which says `what`
    writes there and which `flag` names another folder.

    On a file system it is the kernel's lock of a file, which ends with the process, however it
    ends. Object storage has none, nor have some file systems of clusters: there the file is
    rewritten all the time, and who finds one that does not change for SILENT seconds takes its
    place.
    """

    def __init__(self, folder: epath.Path, *, what: str = 'training', flag: str = '--workdir'):
        self._folder, self._path, self._flag = folder, folder / name(what), flag
        self._made: list[epath.Path] = []
        self._held: TextIO | _Lease | None = None

    def open(self) -> None:
        """Takes the folder, and makes it if need be; ValueError if another program has it."""
        if atomic.is_remote(self._folder):
            self._held = self._lease()
            return
        self._made = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._held = _lock_file(self._path, self._flag)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            self._held = self._lease()

    def _lease(self) -> '_Lease':
        return _Lease(self._path, flag=self._flag, renew=RENEW, silent=SILENT)

    def close(self) -> None:
        """Lets go of it, and removes the folders that `open` made and nothing has come into."""
        if self._held:
            if not isinstance(self._held, _Lease):
                self._path.unlink(missing_ok=True)  # before others can lock it
            self._held.close()
            self._held = None
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        self._made = []


def name(what: str = 'training') -> str:
    """The name of the file that says that `what` writes in its folder."""
    return f'{what}.lock'


def _lock_file(path: epath.Path, flag: str) -> TextIO:
    """Opens a file of which nobody else holds the lock, and locks it."""
    import fcntl

    while True:
        file = open(path, 'a+')  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()
            file.close()
            raise ValueError(_refusal(path, flag, text)) from None
        except OSError:
            file.close()
            raise
        # Who held it before may have removed the file in between: then it is another one's.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
            return file
        file.close()


class _Lease:
    """A file that its holder rewrites every `renew` seconds."""

    def __init__(self, path: epath.Path, *, flag: str, renew: float, silent: float):
        self._path, self._flag, self._renew, self._count = path, flag, renew, 0
        self._me = {**_me(), 'id': f'{os.getpid()}-{time.time_ns()}'}
        self._closing = threading.Event()
        before = self._read()
        if before:
            print(
                f'{path} was left by a program that was killed, or is alive: waiting '
                f'{silent:g} s for a sign of life',
                file=sys.stderr,
                flush=True,
            )
            end = time.monotonic() + silent
            while before and time.monotonic() < end:
                time.sleep(renew / 4)
                if (now := self._read()) and now != before:
                    raise ValueError(_refusal(path, flag, now))
                before = now
        self._write()
        time.sleep(renew / 4)  # two that start at once: the one that wrote last has it
        if self._id(self._read()) != self._me['id']:
            raise ValueError(_refusal(path, flag, self._read()))
        self._thread = threading.Thread(target=self._live, name='lease', daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._closing.wait(self._renew):
            try:
                if (now := self._read()) and self._id(now) != self._me['id']:
                    # Silent for so long that another has begun: two writers would spoil all.
                    text = f'{_refusal(self._path, self._flag, now)}; this process ends at once'
                    print(text, file=sys.stderr, flush=True)
                    os._exit(1)
                self._write()
            except Exception as error:  # the next sign of life may get through
                print(f'{self._path}: {error}', file=sys.stderr, flush=True)

    def _id(self, text: str) -> str:
        return json.loads(text or '{}').get('id', '')

    def _read(self) -> str:
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return ''

    def _write(self) -> None:
        self._count += 1
        self._path.write_text(json.dumps({**self._me, 'signs': self._count}))


def _me() -> dict[str, Any]:
    return {'host': socket.gethostname(), 'process': os.getpid(), 'since': time.ctime()}


def _refusal(path: epath.Path, flag: str, text: str) -> str:
    try:
        who = '{host}, process {process}, since {since}'.format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        who = 'one that has just begun'
    return (
        f'{path.parent}: another {path.stem} writes there ({who}); '
        f'wait for its end, stop it, or name another {flag}'
    )
