"""The watchdog exits a process that hangs: one stalled host blocks all others."""

import faulthandler
import os
import sys
import threading
import time

HUNG = 75  # exit code, EX_TEMPFAIL of sysexits.h: the same command may succeed later
GRACE = 5.0  # seconds after which the interpreter itself must hang


class Watchdog:
    """Exits the process if `finished` is not called every `seconds` between `begin` and `stop`.

    The stacks of all threads go to stderr, and the exit code is HUNG. Nothing is cleaned up, since
    that may hang as well. If a thread holds the GIL, so that this class cannot run, faulthandler's
    timer, a thread of C, prints the stacks and exits with code 1.

    Time counts from the call before the last. A process may finish its part of a step and then
    hang; the others finish that step and wait in the next one. The step before is the last one that
    all finished, so that all exit within `seconds` of it.

    Args:
        seconds: the limit; 0: none.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f'step_timeout is {seconds}; expected seconds, or 0 for no limit')
        self.doing = ''  # the current task, for the message
        self._seconds = seconds
        self._lock = threading.Condition()
        self._finished, self._deadline = 0.0, 0.0
        self._thread: threading.Thread | None = None

    def begin(self, doing: str) -> None:
        """Starts to watch, or restarts the time; `doing` names the task, for the message."""
        self.doing, self._finished = doing, time.monotonic()
        self.finished()
        if self._seconds and not self._thread:
            # JAX aborts a process that lost its coordinator, perhaps earlier: stacks then too.
            # pyrefly: ignore[bad-argument-type]  # a run has a stderr
            faulthandler.enable(sys.__stderr__)
            self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
            self._thread.start()

    def finished(self) -> None:
        """Restarts the time: all processes finished a step together."""
        if self._seconds:
            now = time.monotonic()
            with self._lock:
                self._deadline, self._finished = self._finished + self._seconds, now
            faulthandler.dump_traceback_later(
                max(self._deadline - now, 0) + GRACE,
                exit=True,
                file=sys.__stderr__,  # pyrefly: ignore[bad-argument-type]  # as in `begin`
            )

    def stop(self) -> None:
        """Stops watching."""
        if self._thread:
            with self._lock:
                self._deadline = 0.0
                self._lock.notify()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        with self._lock:
            while self._deadline:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    break
                self._lock.wait(left)
            else:
                return
        print(
            f'{self.doing} took longer than step_timeout, {self._seconds:g} s; the stacks of all '
            'threads of this process:',
            file=sys.stderr,
        )
        faulthandler.dump_traceback(sys.stderr)
        print(
            f'exiting with code {HUNG}, without saving; the same command resumes from the newest '
            'checkpoint',
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG)
