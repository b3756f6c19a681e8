"""Preemption: Ctrl-C, SIGTERM and the notices of Google Cloud ask a run to save and stop."""

import http.client
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import FrameType
from typing import Any

from clip_jax.runtime import interrupts

SIGINT, SIGTERM = 130, 143  # exit codes of a shell for programs ended by these signals
# https://docs.cloud.google.com/compute/docs/metadata/predefined-metadata-keys: what a machine is
# told before it is preempted or stopped for maintenance.
NOTICES = {'preempted': ('TRUE',), 'maintenance-event': ('TERMINATE_ON_HOST_MAINTENANCE',)}
METADATA_HOST = 'metadata.google.internal'
WAIT = 300  # seconds after which a request to the metadata server is repeated
# Of a process that `watch` made one of several:
_held: list[int] = []  # signals that came while no run could take them
_before_hold: Any = None  # the handler of SIGTERM
_ctrl_c_exits: Callable[[], bool] | None = None
_exit_delay = 0.0  # seconds from Ctrl-C to the exit


class Preempted(Exception):
    """A run was asked to stop; all of its processes stop at the same step, with all saved.

    Args:
        signal: SIGTERM (also for a notice of the machine) or SIGINT.
    """

    def __init__(self, signal: int):
        super().__init__(f'stopped by {"Ctrl-C" if signal == SIGINT else "SIGTERM"}')
        self.signal = signal


def watch() -> None:
    """Lets Ctrl-C end this process, one of several, at once as long as it has nothing to save.

    All processes get Ctrl-C at the same time. One that exits later than another, since it waits for
    it in C++, where Python's handlers do not run, would be aborted by JAX: so a thread exits.
    """
    global _ctrl_c_exits
    _ctrl_c_exits = lambda: True  # noqa: E731
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_exit_at_ctrl_c, args=(read,), daemon=True).start()


def exit_last() -> None:
    """Lets the other processes exit before this one, which they talk to: JAX aborts those that
    still run when it is gone, and a thread may have to wait for Python's lock.
    """
    global _exit_delay
    _exit_delay = 1.0


def _let_ctrl_c_exit(when: Callable[[], bool]) -> bool:
    """Changes when the thread of `watch` exits; False if there is none."""
    global _ctrl_c_exits
    if _ctrl_c_exits is None:
        return False
    _ctrl_c_exits = when
    return True


def _exit_at_ctrl_c(signals: int) -> None:
    while number := os.read(signals, 1):
        if number[0] == signal.SIGINT and _ctrl_c_exits and _ctrl_c_exits():
            time.sleep(_exit_delay)
            interrupts.leave(number[0], None)


def hold() -> None:
    """Notes SIGTERM, for one process of several, until a run takes it.

    The processes of a run stop together: none may die of a signal that another one only notes.
    """
    global _before_hold
    _before_hold = signal.signal(signal.SIGTERM, _hold)


def release() -> None:
    """Undoes `hold` for a command that may die of SIGTERM, and raises one that came."""
    if _before_hold is not None:
        signal.signal(signal.SIGTERM, _before_hold)
    while _held:
        signal.raise_signal(_held.pop())


def _hold(number: int, frame: FrameType | None) -> None:
    _held.append(number)


class StopSignals:
    """While it is open, SIGINT, SIGTERM or a notice of the machine sets `stop`.

    `stop` is 0, SIGTERM or SIGINT. A second Ctrl-C interrupts at once, and so does the first while
    `graceful` is False, when there is nothing to save. SIGTERM then exits with code 0.

    Args:
        alone: whether the run has only this process; others exit together with the rest.
    """

    def __init__(self, *, alone: bool) -> None:
        self.stop, self.graceful = 0, False
        self._asked = False  # by Ctrl-C
        self._alone = alone
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        """Installs the signal handlers, and on Google Cloud watches the metadata server. Signals
        that were held are handled now.
        """
        for number in signal.SIGINT, signal.SIGTERM:
            before = signal.signal(number, interrupts.safely(self._handle))
            # None: not set from Python, as by jax.distributed.
            self._before[number] = signal.SIG_DFL if before is None else before
        _let_ctrl_c_exit(lambda: not self.graceful)
        while _held:
            signal.raise_signal(_held.pop())
        if on_google_cloud():
            for key, words in NOTICES.items():
                threading.Thread(target=self._listen, args=(key, words), daemon=True).start()

    def close(self) -> None:
        """Restores the previous signal handlers. One of several processes ignores both signals from
        then on: the others wait for it at exit.
        """
        several = _let_ctrl_c_exit(lambda: False)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if several else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            if self._alone and not self.graceful:
                self._take(SIGTERM, 'SIGTERM: there is nothing to save yet; exiting')
                sys.exit(0)
            self._take(SIGTERM, 'SIGTERM: saving after this step, then exiting')
        elif self._asked or not self.graceful:
            raise KeyboardInterrupt
        else:
            self._asked = True
            self._take(SIGINT, 'Ctrl-C: saving after this step; once more to stop at once')

    def _take(self, stop: int, text: str) -> None:
        self.stop = max(self.stop, stop)
        # Not print: a signal may interrupt another print.
        os.write(2, f'\n{text}\n'.encode())

    def _listen(self, key: str, words: tuple[str, ...]) -> None:
        """Waits until a key of the metadata server has one of some values."""
        last = ''
        while self._before:
            try:
                value, last = _metadata(f'instance/{key}', last)
            except (OSError, http.client.HTTPException):
                threading.Event().wait(5)
                continue
            if value in words:
                self._take(SIGTERM, f'this machine will be preempted ({key}: {value}): saving')
                return


def on_google_cloud() -> bool:
    """Whether this machine belongs to Google Cloud."""
    if os.environ.get('GCE_METADATA_HOST'):
        return True
    try:
        with open('/sys/class/dmi/id/product_name') as file:
            return file.read().strip() in ('Google', 'Google Compute Engine')
    except OSError:
        return False


def _metadata(key: str, last: str) -> tuple[str, str]:
    """Returns a value and its ETag once that differs from `last`, or after WAIT seconds."""
    host = os.environ.get('GCE_METADATA_HOST', METADATA_HOST)
    wait = f'?wait_for_change=true&timeout_sec={WAIT}&last_etag={last}' if last else ''
    request = urllib.request.Request(
        f'http://{host}/computeMetadata/v1/{key}{wait}', headers={'Metadata-Flavor': 'Google'}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not through a proxy
    with direct.open(request, timeout=WAIT + 60) as answer:
        return answer.read().decode().strip(), answer.headers.get('ETag', '')
