"""One self-contained HTML page of a run, of several compared, and of reports of evaluations: the
pictures are in it, and it asks for nothing from a network.
"""

import base64
import dataclasses
import html
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from clip_jax import metrics
from clip_jax.reports import drawing

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #222; font: 15px/1.5 system-ui, 'Segoe UI', Helvetica,
  Arial, 'DejaVu Sans', sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; margin: 0; }
h2 { font-size: 19px; margin: 0 0 4px; }
.under { color: #6b6b6b; margin: 0 0 16px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e3e5e8; border-radius: 8px; padding: 20px 22px;
  margin-top: 20px; }
img { display: block; max-width: 100%; height: auto; margin: 14px auto 0; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.card { border: 1px solid #e3e5e8; border-radius: 8px; padding: 10px 16px; min-width: 120px; }
.card b { display: block; font-size: 23px; font-weight: 600; color: #0072b2; }
.card span { color: #6b6b6b; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #ececec;
  vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.best { font-weight: 600; color: #0072b2; }
code { font: 13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
summary { cursor: pointer; color: #0072b2; margin-top: 14px; }
footer { color: #6b6b6b; font-size: 13px; margin-top: 24px; }
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says of itself."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    summary: dict[str, Any]  # {} while it is not complete

    @property
    def step(self) -> int:
        """The last step that has a line."""
        return max((row['step'] for row in self.rows), default=0)

    @property
    def numbers(self) -> dict[str, float]:
        """The last of each number, of the summary before those of single steps."""
        last = {}
        for row in self.rows:
            last |= {k: v for k, v in row.items() if k != 'step' and isinstance(v, int | float)}
        numbers = {k: v for k, v in self.summary.items() if isinstance(v, int | float)}
        return {'step': self.step, **last, **numbers}


def read_run(workdir: str | os.PathLike, name: str = '') -> Run:
    """Reads a run directory; ValueError if it is none."""
    folder = epath.Path(workdir)
    for file in 'config.json', 'metrics.jsonl':
        if not (folder / file).exists():
            raise ValueError(f'{folder}: no run directory (it has no {file})')
    config = _read_dict(folder / 'config.json', 'the config')
    data = config.get('data')
    if not isinstance(data, dict) or not isinstance(data.get('options'), dict):
        raise ValueError(f'{folder / "config.json"}: not the config of a run (no "data.options")')
    summary = folder / 'summary.json'
    return Run(
        name=name or folder.name,
        config=config,
        rows=metrics.read_jsonl(folder / 'metrics.jsonl'),
        summary=_read_dict(summary, 'the summary') if summary.exists() else {},
    )


def _read_dict(path: epath.Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f'{path}: not {what} of a run (no JSON: {error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: not {what} of a run (expected a dict, found {content!r:.60})')
    return content


def read_runs(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads run directories; each is called by its folder, or by its path where two are called
    alike.
    """
    names = [epath.Path(workdir).name for workdir in workdirs]
    if len({*map(str, workdirs)}) < len(workdirs):
        raise ValueError(f'--workdir: {", ".join(map(str, workdirs))}: expected different ones')
    alike = len({*names}) < len(names)
    return [
        read_run(workdir, str(workdir) if alike else name)
        for workdir, name in zip(workdirs, names, strict=True)
    ]


def run_page(
    run: Run,
    figures: Mapping[str, Sequence[epath.Path]],
    reports: Mapping[str, Mapping[str, Any]],
    more: Iterable[str] = (),
) -> str:
    """The page of a run: its numbers, its figures (those of reports by name, the curves by ''), and
    `more` sections.
    """
    total = run.config.get('total_steps', run.step)
    state = 'complete' if run.summary else f'not complete: step {run.step:,} of {total:,}'
    facts = [state, f'{run.step:,} steps']
    facts += [f'{run.summary["devices"]}'] if 'devices' in run.summary else []
    headline = _headline(run)
    body = [
        f'<h1>{_escaped(run.name)}</h1>',
        f'<p class="under">{_escaped(" · ".join(facts))}</p>',
        _cards(headline),
        _section('Curves', '', [_image(path) for path in figures.get('', ())]),
    ]
    for name, report in reports.items():
        body.append(report_section(name, report, figures.get(name, ())))
    body += more
    final = _table(['', 'last'], [[_word(k), _number(k, v)] for k, v in run.numbers.items()])
    config = _table(['key', 'value'], [[k, _json(v)] for k, v in flat(run.config).items()])
    body.append(_section('Numbers', '', [final]))
    body.append(_section('Config', '', [f'<details><summary>all keys</summary>{config}</details>']))
    return _page(run.name, body, run.summary.get('versions', {}))


def compare_page(runs: Sequence[Run], reports: Iterable[str] = ()) -> str:
    """The page of runs compared: final numbers, what their configs differ in, curves over each
    other; then sections of `of_report`.
    """
    names = [run.name for run in runs]
    body = ['<h1>Comparison</h1>', f'<p class="under">{_escaped(" · ".join(names))}</p>']
    if runs:
        body.append(_section('Final numbers', _BEST, [_numbers_of(runs)]))
        body.append(_section('What the configs differ in', '', [_differences(runs)]))
        body.append(_section('Curves', '', [_image_of_curves(runs)]))
    versions = next((run.summary.get('versions', {}) for run in runs if run.summary), {})
    return _page('Comparison', [*body, *reports], versions)


def report_file_section(path: str | os.PathLike) -> str:
    """The section of a report and of the figures that `clip-jax eval --out` wrote beside it."""
    path = epath.Path(path)
    report = drawing.read_report(path)
    drawn = [path.with_suffix('') / f'{name}.png' for name in drawing.figures(report)]
    return report_section(path.stem, report, [figure for figure in drawn if figure.exists()])


def report_section(
    name: str, report: Mapping[str, Any], figures: Sequence[str | os.PathLike] = ()
) -> str:
    """A section of a page: an evaluation's numbers and figures."""
    about = [f'{key}: {report[key]}' for key in ('model', 'data', 'step') if report.get(key)]
    if report.get('options'):
        about.append('options: ' + ', '.join(f'{k}={v}' for k, v in report['options'].items()))
    scores = {k: v for k, v in report.items() if isinstance(v, float) and k != 'seconds'}
    scores |= {k: v for k, v in report.items() if k.endswith('median_rank')}
    counts = {k: v for k, v in report.items() if type(v) is int and k not in (*scores, 'step')}
    rows = [[_word(k), _number(k, v)] for k, v in counts.items()]
    body = [_cards([(_word(k), _number(k, v)) for k, v in scores.items()])]
    body += (
        [f'<details><summary>counts</summary>{_table(["", ""], rows)}</details>'] if rows else []
    )
    body += [_image(path) for path in figures]
    return _section(f'{name}: {report.get("type", "")}', ' · '.join(about), body)


_BEST = 'in blue: the best of a line of scores'
# Of the numbers of single steps, those that say how a run ended.
_OF_STEPS = ('loss', 'pairs_per_second')


def _headline(run: Run) -> list[tuple[str, str]]:
    keys = ('loss', 'pairs', 'pairs_per_second', 'seconds', 'parameters')
    numbers = run.numbers
    return [(_word(key), _number(key, numbers[key])) for key in keys if key in numbers]


def _numbers_of(runs: Sequence[Run]) -> str:
    """A table of final numbers, a column a run."""
    kept = [{k: v for k, v in run.numbers.items() if _kept(k)} for run in runs]
    keys = list(dict.fromkeys(key for numbers in kept for key in numbers))
    rows, best = [], []
    for key in keys:
        values = [numbers.get(key) for numbers in kept]
        rows.append([_word(key), *(_number(key, v) if v is not None else '—' for v in values)])
        scores = [v for v in values if v is not None and math.isfinite(v)]
        rises = metrics.is_score(key) and len(set(scores)) > 1
        best.append([rises and v is not None and v == max(scores) for v in values])
    states = ['complete' if run.summary else 'not complete' for run in runs]
    rows.insert(0, ['', *states])
    best.insert(0, [False] * len(runs))
    return _table(['', *(run.name for run in runs)], rows, best)


def _kept(key: str) -> bool:
    more = ('step', 'pairs', 'seconds', 'parameters')
    return metrics.is_score(key) or key in more or key in _OF_STEPS


def _differences(runs: Sequence[Run]) -> str:
    configs = [flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    missing = object()
    rows = []
    for key in keys:
        values = [config.get(key, missing) for config in configs]
        if any(value != values[0] for value in values):
            rows.append([key, *('—' if v is missing else _json(v) for v in values)])
    if not rows:
        return '<p>nothing</p>'
    return _table(['', *(run.name for run in runs)], rows)


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """The leaves of nested dicts by dotted keys, as `--config.KEY` names them."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
    return found


def _image_of_curves(runs: Sequence[Run]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / 'compared.png'
        drawing.compared({run.name: run.rows for run in runs}, path)
        return _image(path)


def _word(key: str) -> str:
    key = 'time' if key == 'seconds' else key
    return key.replace('_', ' ').replace('/', ' · ')


def _number(key: str, value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if key == 'seconds':
        minutes, seconds = divmod(round(value), 60)
        return f'{minutes:,} min {seconds} s' if minutes else f'{value:.1f} s'
    share = isinstance(value, float) and 0 <= value <= 1
    if share and key not in ('loss', 'learning_rate', 'grad_norm'):
        return f'{100 * value:.1f} %' if value >= 0.001 or not value else f'{100 * value:.2g} %'
    if isinstance(value, int) or (abs(value) >= 100 and value == int(value)):
        return f'{int(value):,}'
    return f'{value:,.1f}' if abs(value) >= 100 else f'{value:.4g}'


def _cards(items: Sequence[tuple[str, str]]) -> str:
    cards = (
        f'<div class="card"><b>{_escaped(v)}</b><span>{_escaped(k)}</span></div>' for k, v in items
    )
    return f'<div class="cards">{"".join(cards)}</div>' if items else ''


def _section(title: str, under: str, body: Sequence[str]) -> str:
    under = f'<p class="under">{_escaped(under)}</p>' if under else ''
    return f'<section><h2>{_escaped(title)}</h2>{under}{"".join(body)}</section>'


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[Sequence[bool]] = ()
) -> str:
    """Rows of texts; all columns but the first are numbers."""
    cells = ''.join(f'<th{" class=n" if i else ""}>{_escaped(x)}</th>' for i, x in enumerate(head))
    lines = [f'<tr>{cells}</tr>']
    for number, (first, *rest) in enumerate(rows):
        marks = best[number] if best else [False] * len(rest)
        cells = ''.join(
            f'<td class="n{" best" if mark else ""}">{_escaped(x)}</td>'
            for x, mark in zip(rest, marks, strict=True)
        )
        lines.append(f'<tr><td>{_escaped(first)}</td>{cells}</tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _image(path: str | os.PathLike) -> str:
    path = epath.Path(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{_escaped(path.stem)}" src="data:image/png;base64,{data}">'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    return html.escape(text)


def _page(title: str, body: Sequence[str], versions: Mapping[str, str]) -> str:
    foot = ' · '.join(f'{name} {version}' for name, version in versions.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>{_escaped(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><main>{"".join(body)}<footer>{_escaped(foot)}</footer></main></body></html>\n'
    )
