"""Reports as lines on the console; names in the output cannot control the terminal."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from logging import LogRecord
from typing import Any, TextIO

from absl import logging

from clip_jax.runtime.messages import printable


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
            contextlib.redirect_stdout(_Escaped(sys.stdout)),
            contextlib.redirect_stderr(_Escaped(sys.stderr)),
        ):
            yield
    finally:
        logger.removeFilter(_escape)


class _Escaped:
    """A stream whose text is escaped, except line breaks, tabs and what progress bars need."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, keep='\n\r\t'))

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(record: LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), keep='\n\t'), ()
    return True
