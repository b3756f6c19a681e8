"""Self-contained HTML pages of a run, of several runs compared, and of reports of evaluations.

Images are embedded, and nothing is loaded from a network.
"""

import base64
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from etils import epath

from clip_jax import metrics
from clip_jax.reports import _style, drawing, files
from clip_jax.runtime import foreign_json
from clip_jax.runtime.foreign_json import ANY

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader('clip_jax', 'reports'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
SUMMARY = {'devices': str, 'versions': {ANY: str}}
BEST = 'in blue: the best value of a score'
# Metrics of training that a page shows, apart from the scores of evaluations.
HEADLINE = ('loss', 'pairs', 'pairs_per_second', 'seconds', 'parameters')
COMPARED = ('step', *HEADLINE)
PERCENT = ('input_wait', 'accuracy/image_to_text', 'accuracy/text_to_image')


class Row(NamedTuple):
    """A table row; `best` are the numbers of the cells to highlight."""

    name: str
    cells: Sequence[str]
    best: Sequence[int] = ()


class Table(NamedTuple):
    """A table with a head; columns after the first are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Row]


class Card(NamedTuple):
    """A number in a box, with what it is and, below, a note."""

    label: str
    value: str
    note: str = ''


class Image(NamedTuple):
    """A PNG in base64."""

    name: str
    data: str


class Section(NamedTuple):
    """A box of a page. With a `summary` its table is folded below that word."""

    title: str
    subtitle: str = ''
    cards: Sequence[Card] = ()
    table: Table | None = None
    summary: str = ''
    images: Sequence[Image] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run directory.

    Attributes:
        name: what pages call it.
        config: config.json.
        rows: lines of metrics.jsonl.
        summary: summary.json, {} until the run is complete.
        scores: the scores of its evaluations by their keys in `rows`: value, better, unit.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    scores: dict[str, dict[str, Any]]

    @property
    def step(self) -> int:
        """The last step in the metrics."""
        return max((row['step'] for row in self.rows), default=0)

    @property
    def numbers(self) -> dict[str, float]:
        """The last value of every metric; the summary overrides single steps."""
        last = {}
        for row in self.rows:
            last |= {k: v for k, v in row.items() if k != 'step' and isinstance(v, int | float)}
        numbers = {k: v for k, v in self.summary.items() if isinstance(v, int | float)}
        return {'step': self.step, **last, **numbers}


def read_run(workdir: str | os.PathLike, name: str = '') -> Run:
    """Reads a run directory.

    Args:
        workdir: the directory.
        name: what pages call it, by default the folder's name.

    Returns:
        The run.

    Raises:
        ValueError: it is no run directory, or a file in it is damaged.
    """
    folder = epath.Path(workdir)
    for file in 'config.json', 'metrics.jsonl':
        if not (folder / file).exists():
            raise ValueError(f'{folder}: not a run directory (it has no {file})')
    config = foreign_json.read(folder / 'config.json', {'total_steps': int})
    data = config.get('data')
    if not isinstance(data, dict) or not isinstance(data.get('options'), dict):
        raise ValueError(f'{folder / "config.json"}: not the config of a run (no "data.options")')
    summary = folder / 'summary.json'
    return Run(
        name=name or folder.name,
        config=config,
        rows=metrics.read_jsonl(folder / 'metrics.jsonl'),
        summary=foreign_json.read(summary, SUMMARY) if summary.exists() else {},
        scores=files.scores(files.read_folder(folder / 'evals')),
    )


def read_runs(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads run directories; folders of the same name are called by their path."""
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
    more: Iterable[Section] = (),
) -> str:
    """Makes the page of a run.

    Args:
        run: the run.
        figures: paths of the training curves by '', and of each report's figures by its name.
        reports: the reports of its evaluations, by name.
        more: further sections.

    Returns:
        The HTML.
    """
    total = run.config.get('total_steps', run.step)
    state = 'complete' if run.summary else f'not complete: step {run.step:,} of {total:,}'
    facts = [state, f'{run.step:,} steps']
    facts += [f'{run.summary["devices"]}'] if 'devices' in run.summary else []
    numbers = run.numbers
    headline = [Card(_word(key), _number(run, key)) for key in HEADLINE if key in numbers]
    sections = [Section('Curves', images=images_of(figures.get('', ())))]
    sections += [report_section(name, x, figures.get(name, ())) for name, x in reports.items()]
    sections += more
    last = [Row(_word(key), [_number(run, key)]) for key in numbers]
    config = [Row(key, [_json(value)]) for key, value in flat(run.config).items()]
    sections.append(Section('Numbers', table=Table(['', 'last'], last)))
    sections.append(Section('Config', table=Table(['key', 'value'], config), summary='all keys'))
    versions = run.summary.get('versions', {})
    return page(run.name, ' · '.join(facts), sections, versions, headline)


def compare_page(runs: Sequence[Run], reports: Iterable[Section] = ()) -> str:
    """Makes the page of several runs: final numbers, differences of their configs, and curves.

    Args:
        runs: the runs; none for a page of reports alone.
        reports: sections of `report_section`.

    Returns:
        The HTML.
    """
    sections = []
    if runs:
        sections.append(Section('Final numbers', BEST, table=_final_numbers(runs)))
        sections.append(_differences(runs))
        sections.append(Section('Curves', images=[_curves(runs)]))
    versions = next((run.summary.get('versions', {}) for run in runs if run.summary), {})
    names = ' · '.join(run.name for run in runs)
    return page('Comparison', names, [*sections, *reports], versions)


def report_file_section(path: str | os.PathLike) -> Section:
    """Makes the section of a report and of the figures that `clip-jax eval --out` wrote beside it.

    Args:
        path: the report, a JSON file.

    Returns:
        The section.

    Raises:
        ValueError: there is no report at `path`.
    """
    report = files.read(path)
    return report_section(epath.Path(path).stem, report, drawing.drawn_beside(path, report))


def report_section(
    name: str, report: Mapping[str, Any], figures: Sequence[str | os.PathLike] = ()
) -> Section:
    """Makes a section of an evaluation: its scores, counts and figures.

    Args:
        name: name of the report.
        report: the report.
        figures: paths of its figures.

    Returns:
        The section.
    """
    about = [f'{key}: {report[key]}' for key in ('model', 'data', 'step') if report.get(key)]
    if report.get('options'):
        about.append('options: ' + ', '.join(f'{k}={v}' for k, v in report['options'].items()))
    facts = {k: f'{v:,}' for k, v in report.get('counts', {}).items()}
    facts |= {k: _info(v) for k, v in report.get('info', {}).items() if v not in ('', [])}
    return Section(
        f'{name}: {report["type"]}',
        ' · '.join(about),
        cards=[_card(name, score) for name, score in report['scores'].items()],
        table=Table(['', ''], [Row(_word(k), [text]) for k, text in facts.items()]),
        summary='counts',
        images=images_of(figures),
    )


def _card(name: str, score: Mapping[str, Any]) -> Card:
    interval = _style.interval_text(score)
    return Card(_word(name), _style.score_text(score), interval and f'95 %: {interval}')


def _info(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.4g}'
    return value if isinstance(value, str) else _json(value)


def _final_numbers(runs: Sequence[Run]) -> Table:
    """The last numbers of runs, a column each."""
    scores: dict[str, dict[str, Any]] = {}
    for run in runs:
        scores = run.scores | scores
    numbers = [run.numbers for run in runs]
    keys = dict.fromkeys(key for own in numbers for key in own if key in COMPARED or key in scores)
    rows = [Row('', ['complete' if run.summary else 'not complete' for run in runs])]
    for key in keys:
        cells = [_number(run, key, scores) if key in run.numbers else '—' for run in runs]
        values = [own.get(key, math.nan) for own in numbers]
        rows.append(Row(_word(key), cells, best(values, scores.get(key))))
    return Table(['', *(run.name for run in runs)], rows)


def best(values: Sequence[float], score: Mapping[str, Any] | None) -> list[int]:
    """Returns which of several values of a score are the best: [] where all are equal, or where
    they are no score.
    """
    known = {value for value in values if math.isfinite(value)}
    if not score or len(known) < 2:
        return []
    top = (max if score['better'] == 'higher' else min)(known)
    return [i for i, value in enumerate(values) if value == top]


def _differences(runs: Sequence[Run]) -> Section:
    title = 'Differences of the configs'
    configs = [flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    missing = object()
    rows = []
    for key in keys:
        values = [config.get(key, missing) for config in configs]
        if any(value != values[0] for value in values):
            rows.append(Row(key, ['—' if v is missing else _json(v) for v in values]))
    if not rows:
        return Section(title, 'none')
    return Section(title, table=Table(['', *(run.name for run in runs)], rows))


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted keys, as `--config.KEY` names them."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
    return found


def _curves(runs: Sequence[Run]) -> Image:
    scores = {key: score for run in runs for key, score in run.scores.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / 'compared.png'
        drawing.compared({run.name: run.rows for run in runs}, path, scores=scores)
        (image,) = images_of([path])
    return image


def _word(key: str) -> str:
    key = 'time' if key == 'seconds' else key
    return key.replace('_', ' ').replace('/', ' · ')


def _number(run: Run, key: str, scores: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A number of a run as text; `scores` are those of its evaluations."""
    value, score = run.numbers[key], (run.scores if scores is None else scores).get(key)
    if not math.isfinite(value):
        return str(value)
    if score or key in PERCENT:
        return _style.score_text({'unit': 'fraction', **(score or {}), 'value': value})
    if key == 'seconds':
        minutes, seconds = divmod(round(value), 60)
        return f'{minutes:,} min {seconds} s' if minutes else f'{value:.1f} s'
    if value == int(value):
        return f'{int(value):,}'
    return f'{value:,.1f}' if abs(value) >= 100 else f'{value:.4g}'


def images_of(paths: Iterable[str | os.PathLike]) -> list[Image]:
    """Reads PNG files to show in a section."""
    places = list(map(epath.Path, paths))
    return [Image(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in places]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def page(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    versions: Mapping[str, str],
    headline: Sequence[Card] = (),
) -> str:
    """Makes a page of sections.

    Args:
        title: of the page.
        subtitle: below it.
        sections: the boxes.
        versions: versions of packages, for the last line.
        headline: numbers above all sections.

    Returns:
        The HTML.
    """
    footer = ' · '.join(f'{name} {version}' for name, version in versions.items())
    return ENVIRONMENT.get_template('html_report.html.j2').render(
        title=title, subtitle=subtitle, headline=headline, sections=sections, footer=footer
    )
