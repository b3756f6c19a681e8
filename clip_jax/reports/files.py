"""The report of an evaluation as files: `x.json` and its figures in the folder `x` beside it."""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from clip_jax.reports import drawing
from clip_jax.runtime import atomic


def check(out: pathlib.Path) -> None:
    """ValueError if a report cannot be written to a path: before anything is computed."""
    if out.suffix != '.json':
        raise ValueError(f'--out: {out}: expected a name that ends in .json')
    out = out.expanduser()
    for place in out, out.with_suffix(''):
        if place.exists():
            raise ValueError(f'--out: {place} exists; name a new file')
    atomic.check_place(out, '--out')


def write(
    report: Mapping[str, Any], out: pathlib.Path, load_images: drawing.LoadImages
) -> list[pathlib.Path]:
    """Writes a report and its figures, all or nothing; returns the paths, the report's first."""
    out = out.expanduser()
    temporary = tempfile.mkdtemp(
        prefix=f'.{out.name}.', suffix='.partial', dir=atomic.existing_parent(out)
    )
    work = pathlib.Path(temporary)
    try:
        folder = work / 'figures'
        drawn = drawing.write_report(report, load_images, lambda name: folder / f'{name}.png')
        (work / 'report').write_text(as_json(report))
        out.parent.mkdir(parents=True, exist_ok=True)
        if drawn:
            folder.rename(out.with_suffix(''))
        (work / 'report').rename(out)
    finally:
        shutil.rmtree(work)
    return [out, *(out.with_suffix('') / path.name for path in drawn)]


def as_json(report: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and one for each item of a list of lists or objects."""

    def text(value: Any) -> str:
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            return '[\n  ' + ',\n  '.join(map(text_of_item, value)) + '\n ]'
        return text_of_item(value)

    def text_of_item(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    lines = (f' {text_of_item(key)}: {text(value)}' for key, value in report.items())
    return '{\n' + ',\n'.join(lines) + '\n}\n'
