"""Ends a process that hangs: on a pod one host that stands still has all others wait for ever."""

import faulthandler
import os
import sys
import threading
import time

HUNG = 75  # exit code, EX_TEMPFAIL of sysexits.h: the same command may go on
GRACE = 5.0  # seconds after which the interpreter itself is taken to hang


class Watchdog:
    """From `begin` to `stop`, `finished` has to be called at least every `seconds`; 0: it need not.

    If it is not, the stacks of all threads go to stderr and the process ends with the exit code
    HUNG, without cleaning up: whatever hangs would hang there as well. Where not even this class
    gets to run, since a thread keeps Python's lock, the interpreter's own timer does the same with
    exit code 1.

    The time is counted from the call before the last. A process may do its part of a step and then
    stand still; others finish that step and wait in the next. The step before they finished while
    it still lived: counted from there, they end within `seconds` of its last sign of life.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f'step_timeout is {seconds}; expected seconds, or 0 for no limit')
        self.doing = ''  # what the process does, for the message
        self._seconds = seconds
        self._lock = threading.Condition()
        self._finished, self._deadline = 0.0, 0.0
        self._thread: threading.Thread | None = None

    def begin(self, doing: str) -> None:
        """Begins to watch, or to count anew: what follows has nothing to do with what was."""
        self.doing, self._finished = doing, time.monotonic()
        self.finished()
        if self._seconds and not self._thread:
            # JAX aborts a process whose coordinator is silent, perhaps sooner: stacks then, too.
            faulthandler.enable(sys.__stderr__)
            self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
            self._thread.start()

    def finished(self) -> None:
        """Says that something is done that takes all processes."""
        if self._seconds:
            now = time.monotonic()
            with self._lock:
                self._deadline, self._finished = self._finished + self._seconds, now
            faulthandler.dump_traceback_later(
                max(self._deadline - now, 0) + GRACE, exit=True, file=sys.__stderr__
            )

    def stop(self) -> None:
        """Watches no more."""
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
            f'{self.doing} took longer than step_timeout, {self._seconds:g} s; where each thread '
            'of this process stands:',
            file=sys.stderr,
        )
        faulthandler.dump_traceback(sys.stderr)
        print(
            f'this process ends with exit code {HUNG}, and nothing more is saved; the same command '
            'resumes from the newest checkpoint',
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG)
