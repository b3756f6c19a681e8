"""Reports as lines on the console."""

from collections.abc import Mapping
from typing import Any


def show(report: Mapping[str, Any]) -> None:
    """Prints a report, one entry per line."""
    for key, value in report.items():
        print(f'{key:20} {one_line(value)}')


def one_line(value: Any) -> str:
    """Returns a value of a report in one line, with rounded numbers."""
    if isinstance(value, Mapping):
        return '; '.join(f'{key} {one_line(x)}' for key, x in value.items()) or 'none'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(one_line, value)) or 'none'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:,}' if type(value) is int else str(value)
