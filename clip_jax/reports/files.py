"""Reports of evaluations as files: reading them, and where new ones may go."""

import json
import pathlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

from etils import epath

from clip_jax.runtime import atomic, foreign_json


def check(out: pathlib.Path) -> None:
    """Raises ValueError if no report can be written to a path; called before work begins."""
    if out.suffix != '.json':
        raise ValueError(f'--out: {out}: expected a name that ends in .json')
    out = out.expanduser()
    for place in out, out.with_suffix(''):
        if place.exists():
            raise ValueError(f'--out: {place} exists; name a new file')
    atomic.check_place(out, '--out')


def read(path: str | PathLike) -> dict[str, Any]:
    """Reads the report of an evaluation.

    Args:
        path: a JSON file of `clip-jax eval --out`, a suite or a run.

    Returns:
        The report.

    Raises:
        ValueError: there is no such file, or it holds no report.
    """
    path = epath.Path(path)
    if not path.exists():
        raise ValueError(f'{path}: no such file; expected a report of clip-jax eval')
    report = foreign_json.read(path)
    if wrong := _problem(report):
        raise ValueError(f'{path}: not a report of an evaluation ({wrong})')
    return report


def _problem(report: dict[str, Any]) -> str:
    """What keeps an object from being a report, '' if it is one."""
    kinds = {'type': str, 'data': str, 'scores': dict}
    for key, kind in kinds.items():
        if not isinstance(report.get(key), kind):
            return f'"{key}" is {report.get(key)!r:.60}'
    for key in 'options', 'counts', 'info':
        if not isinstance(report.get(key, {}), dict):
            return f'"{key}" is {report[key]!r:.60}'
    for name, score in report['scores'].items():
        if not isinstance(score, dict) or not {'value', 'better', 'unit'} <= {*score}:
            return f'score {name} is {score!r:.60}'
        if 'interval' in score and not _is_interval(score['interval']):
            return f'the interval of score {name} is {score["interval"]!r:.60}'
    return ''


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(x, int | float) for x in value)
    )


def read_folder(folder: str | PathLike) -> dict[str, dict[str, Any]]:
    """Reads the reports of a folder, by name."""
    return {path.stem: read(path) for path in sorted(epath.Path(folder).glob('*.json'))}


def scores(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns every score of reports by name, as `NAME/SCORE`, its key in the metrics of a run."""
    return {
        f'{name}/{key}': score
        for name, report in reports.items()
        for key, score in report['scores'].items()
    }


def as_json(report: Mapping[str, Any]) -> str:
    """Returns JSON with a line per key, and per item of a list of lists or objects."""

    def text(value: Any) -> str:
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            return '[\n  ' + ',\n  '.join(map(text_of_item, value)) + '\n ]'
        return text_of_item(value)

    def text_of_item(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    lines = (f' {text_of_item(key)}: {text(value)}' for key, value in report.items())
    return '{\n' + ',\n'.join(lines) + '\n}\n'
