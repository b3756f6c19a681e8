"""Handlers of signals that raise, where what they raise is not lost and crashes nothing."""

import gc
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

AGAIN = 0.02  # seconds until a signal that came at a bad moment is handled

Handler = Callable[[int, FrameType | None], Any]
_waiting: set[int] = set()


def safely(handler: Handler, *, importing: Handler | None = None) -> Handler:
    """Returns a signal handler that calls another one at a moment at which that may raise.

    In finalizers and in callbacks of the garbage collector Python ignores what is raised. In the
    middle of an import it can crash C code that is half initialized, or be turned into another
    error. There the signal is handled a little later.

    Args:
        handler: the handler.
        importing: a handler that does not raise, called in the middle of an import; None: later.
    """

    def handle(number: int, frame: FrameType | None) -> Any:
        if importing is not None and _is_importing(frame):
            return importing(number, frame)
        if _is_importing(frame) or _is_ignored(frame):
            _waiting.add(number)
            signal.signal(signal.SIGALRM, _send_again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return None
        return handler(number, frame)

    return handle


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of Ctrl-C that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of Ctrl-C that ends the process at once with the exit code 130."""
    os.write(2, b'\ninterrupted\n')
    os._exit(130)


def _send_again(number: int, frame: FrameType | None) -> None:
    numbers = [*_waiting]
    _waiting.clear()  # this may be a bad moment too, and they wait again
    for waiting in numbers:
        signal.raise_signal(waiting)


def _is_importing(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False


def _is_ignored(frame: FrameType | None) -> bool:
    callbacks = [getattr(callback, '__code__', None) for callback in gc.callbacks]
    while frame:
        code = frame.f_code
        of_weakref = code.co_filename.endswith('weakref.py') and 'remove' in code.co_name
        if code.co_name == '__del__' or of_weakref or code in callbacks:
            return True
        frame = frame.f_back
    return False
