"""Reports and errors as lines on the console; names in the output cannot control the terminal."""

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Iterator, Mapping
from logging import LogRecord
from typing import IO, Any, TextIO

from absl import logging

from clip_jax.runtime import messages
from clip_jax.runtime.messages import printable

CLOSED = 141  # exit code where nobody reads the output any more: 128 + SIGPIPE, as of a shell


def show(report: Mapping[str, Any]) -> None:
    """Prints a report, one entry per line."""
    for key, value in report.items():
        print(f'{key:20} {printable(one_line(value))}')


def one_line(value: Any) -> str:
    """Returns a value of a report in one line, with rounded numbers."""
    if isinstance(value, Mapping):
        return '; '.join(f'{key} {one_line(x)}' for key, x in value.items()) or 'none'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(one_line, value)) or 'none'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:,}' if type(value) is int else str(value)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escapes what would control the terminal in all that is printed and logged.

    Names of files and classes may hold escape sequences, or bytes that no terminal can show.
    """
    logger = logging.get_absl_logger()
    logger.addFilter(_escape)
    try:
        with (
            contextlib.redirect_stdout(_escaped(sys.stdout)),
            contextlib.redirect_stderr(_escaped(sys.stderr)),
        ):
            yield
    finally:
        logger.removeFilter(_escape)


def _escaped(stream: TextIO | None) -> Any:
    return stream and _Escaped(stream)  # a program without a console has no streams


_UP = '\x1b[A'


class _Escaped:
    """A stream whose text is escaped, except line breaks, tabs and what progress bars need."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        # Nested progress bars of TFDS move the cursor up.
        lines = (printable(line, keep='\n\r\t') for line in text.split(_UP))
        return self._stream.write(_UP.join(lines))

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(record: LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), keep='\n\t'), ()
    return True


def report_error(command: str, error: Exception) -> int:
    """Prints an error: one line or a list if input was bad, a traceback if we have a bug.

    Args:
        command: the command that failed.
        error: what it raised.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError) and any(map(_is_closed, (sys.stdout, sys.stderr))):
        return CLOSED
    if os.environ.get('CLIP_JAX_TRACEBACK') or not isinstance(error, (ValueError, OSError)):
        traceback.print_exception(error)
    else:
        print(f'clip-jax {command}:', '\n'.join(messages.lines_of(error)), file=sys.stderr)
    return 1


@contextlib.contextmanager
def output_checked() -> Iterator[None]:
    """Exits with a code of its own if the output cannot be written: without a word when nobody
    reads it any more, as after `| head`, with one line when the disk is full.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()  # an error at the interpreter's exit could not be handled
    except OSError as error:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED)
        print(f'clip-jax: cannot write the output: {messages.one_line(error)}', file=sys.stderr)
        sys.exit(1)


def _is_closed(stream: IO) -> bool:
    """Whether a stream is a pipe without a reader."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # there is none, or it is no file, as in a notebook
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
