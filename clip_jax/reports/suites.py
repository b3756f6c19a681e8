"""The page of a suite: the scores of several models on many tasks, a model against another number,
and the robustness to shifted data.
"""

import math
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib import ticker
from matplotlib.axes import Axes

from clip_jax import lookup
from clip_jax.reports import _style
from clip_jax.reports._dots import draw_dots, foot, legend
from clip_jax.reports.html_report import Row, Section, Table, best, images_of, page
from clip_jax.runtime import foreign_json

PARAMETERS = 'parameters'
MOST_TASKS = 60  # in a figure
NUMBERS = [(float, None)]
TASK = {
    'task': str,
    'type': str,
    'score': str,
    'better': (str, None),
    'unit': (str, None),
    'values': NUMBERS,
    'intervals': [([float], None)],
}
MEAN = {'type': str, 'values': NUMBERS}
AVERAGE = {'name': str, 'values': NUMBERS}
LINE = {'task': str, 'slope': float, 'intercept': float, 'values': NUMBERS}
SCHEMA = {
    'models': [str],
    'tasks': [TASK],
    'means': [MEAN],
    'averages': [AVERAGE],
    'robustness': {'of': str, 'tasks': [LINE]},
    PARAMETERS: [int],
    'versions': {foreign_json.ANY: str},
}
# Tick marks of an axis of the logarithm of the odds.
ODDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
COLUMNS = 3


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the table of a suite.

    Args:
        folder: what `clip-jax eval suite --out` wrote.

    Returns:
        The table (see evaluation/suite.py).

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = epath.Path(folder) / 'suite.json'
    if not path.exists():
        raise ValueError(f'{path}: no such file; expected a folder of clip-jax eval suite --out')
    table = foreign_json.read(path, SCHEMA)
    if wrong := _problem(table):
        raise ValueError(f'{path}: not the table of a suite ({wrong})')
    return table


def _problem(table: dict[str, Any]) -> str:
    """What keeps an object from being the table of a suite, '' if nothing does."""
    lines = table.get('robustness', {}).get('tasks', [])
    parts = {'tasks': TASK, 'means': MEAN, 'averages': AVERAGE}
    rows = [(row, kind) for part, kind in parts.items() for row in table.get(part, [])]
    rows += [(row, LINE) for row in lines]
    for row, kind in rows:
        if missing := {*kind} - {*row, 'intervals'}:
            return f'a row has no "{min(missing)}"'
    if not table.get('models') or not table.get('tasks'):
        return 'it has no "models" or no "tasks"'
    count = len(table['models'])
    lists = [row.get(key) or [None] * count for row, _ in rows for key in ('values', 'intervals')]
    if any(len(one) != count for one in [*lists, table.get(PARAMETERS) or [0] * count]):
        return f'a row has not a value for each of {count} models'
    named = {row['task'] for row in table['tasks']}
    if lines and not {table['robustness'].get('of'), *(line['task'] for line in lines)} <= named:
        return '"robustness" names a task that is not there'
    return ''


def numbers(table: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Returns what models can be compared by: the values of every task, mean and average, and the
    numbers of parameters where the table has them.
    """
    found = {row['task']: row['values'] for row in table['tasks']}
    found |= {f'mean/{row["type"]}': row['values'] for row in table.get('means', ())}
    found |= {row['name']: row['values'] for row in table.get('averages', ())}
    return found | ({PARAMETERS: table[PARAMETERS]} if table.get(PARAMETERS) else {})


def axes_of(table: Mapping[str, Any], x: str | None, y: str | None) -> tuple[str, str] | None:
    """Chooses the numbers of the scatter plot.

    Args:
        table: the table.
        x: what is asked for, a name of `numbers`; None for the parameters, or for the first task
            where all models have the same.
        y: the same; None for the first average or mean.

    Returns:
        Both names; None if nothing is asked for and there are no two.

    Raises:
        ValueError: a name is unknown.
    """
    known = numbers(table)
    for flag, name in (('--x', x), ('--y', y)):
        if name is not None:
            lookup.check(name, known, what=flag)
    tasks = [row['task'] for row in table['tasks']]
    means = [name for name in known if name not in (*tasks, PARAMETERS)]
    y = y or next((name for name in reversed(means) if name != x), None) or tasks[-1]
    sizes = len({*known.get(PARAMETERS, ())}) > 1
    x = x or (PARAMETERS if sizes and y != PARAMETERS else tasks[0])
    return None if x == y or len(table['models']) < 2 else (x, y)


def suite_page(
    table: Mapping[str, Any], name: str, *, x: str | None = None, y: str | None = None
) -> str:
    """Makes the page of a suite.

    Args:
        table: the table.
        name: what the page calls the suite.
        x: the number that models are drawn over (see `axes_of`).
        y: the number that is drawn over it.

    Returns:
        The HTML.

    Raises:
        ValueError: x or y is not a number of the table.
    """
    chosen = axes_of(table, x, y)
    sections = [Section('Scores', 'in blue: the best model of a task', table=_scores(table))]
    with tempfile.TemporaryDirectory() as folder:
        place = epath.Path(folder)
        drawn = []
        if any(row['unit'] == 'fraction' for row in table['tasks']):
            tasks(table, place / 'tasks.png')
            drawn.append(place / 'tasks.png')
        if chosen:
            scatter(table, *chosen, place / 'models.png')
            drawn.append(place / 'models.png')
        sections.append(Section('Models', images=images_of(drawn)))
        if lines := table.get('robustness', {}).get('tasks'):
            robustness(table, place / 'robustness.png')
            images = images_of([place / 'robustness.png'])
            sections.append(
                Section('Robustness', ABOUT, table=_effective(table, lines), images=images)
            )
    count = f'{len(table["models"])} models · {len(table["tasks"])} tasks'
    return page(name, count, sections, table.get('versions', {}))


ABOUT = (
    'effective robustness in points: accuracy above the line that is fitted to the logits of the '
    'accuracies of the baseline models (Taori et al. 2020, arXiv 2007.00644)'
)


def _scores(table: Mapping[str, Any]) -> Table:
    rows = []
    for row in table['tasks']:
        score = {'better': row['better'] or 'higher', 'unit': row['unit'] or 'fraction'}
        intervals = row.get('intervals') or [None] * len(row['values'])
        cells = [_cell(score, *one) for one in zip(row['values'], intervals, strict=True)]
        known = [math.nan if value is None else value for value in row['values']]
        name = f'{row["task"]} · {row["score"]}' if row['score'] else row['task']
        rows.append(Row(name, cells, best(known, score)))
    score = {'better': 'higher', 'unit': 'fraction'}
    for row in table.get('means', []) + table.get('averages', []):
        name = row['name'] if 'name' in row else f'mean of {row["type"]}'
        cells = [_cell(score, value, None) for value in row['values']]
        rows.append(Row(name, cells, best(row['values'], score)))
    return Table(['', *table['models']], rows)


def _cell(score: Mapping[str, Any], value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return '—'
    text = _style.score_text({**score, 'value': value})
    if not interval or score['unit'] != 'fraction':
        return text
    half = 50 * (interval[1] - interval[0])
    return f'{text.removesuffix(" %")} ± {half:.1f} %'


def _effective(table: Mapping[str, Any], lines: list[dict[str, Any]]) -> Table:
    rows = []
    for line in lines:
        cells = ['—' if value is None else f'{100 * value:+.1f}' for value in line['values']]
        rows.append(Row(line['task'], cells))
    return Table(['', *table['models']], rows)


@_style.styled
def tasks(table: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws the score of each model on each task whose score is a fraction, with its interval.

    Args:
        table: the table of a suite.
        path: the PNG file to write.
    """
    rows = [row for row in table['tasks'] if row['unit'] == 'fraction'][:MOST_TASKS]
    count = len(table['models'])
    intervals = [row.get('intervals') or [None] * count for row in rows]
    found = {
        model: [(row['values'][k], ends[k]) for row, ends in zip(rows, intervals, strict=True)]
        for k, model in enumerate(table['models'])
    }
    subtitle = _style.joined(f'{count} models', f'{len(rows)} of {len(table["tasks"])} tasks')
    names = [row['task'] for row in rows]
    draw_dots(names, found, path, title='Scores by task', subtitle=subtitle)


@_style.styled
def scatter(table: Mapping[str, Any], x: str, y: str, path: str | os.PathLike) -> None:
    """Draws a number of each model over another one.

    Args:
        table: the table of a suite.
        x: a name of `numbers`.
        y: a name of `numbers`.
        path: the PNG file to write.
    """
    known, units = numbers(table), {row['task']: row['unit'] for row in table['tasks']}
    models = table['models']
    below = foot(len(models))
    height, what = 4.2 + _style.HEAD + below, f'{len(models)} models'
    figure = _style.new(7.4, height, _style.short(f'{y} over {x}', 60), what, below)
    axes = figure.add_subplot()
    for k, (across, up) in enumerate(zip(known[x], known[y], strict=True)):
        if across is not None and up is not None:
            axes.plot(across, up, **_style.look(k), markersize=7, linestyle='none')
    for name, axis, scale in (x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale):
        if name == PARAMETERS:
            scale('log')
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(_parameters)
            axis.set_minor_formatter(ticker.NullFormatter())
        elif units.get(name, 'fraction') == 'fraction':
            axis.set_major_formatter(_style.per_cent)
    axes.margins(0.08)
    axes.set(xlabel=_style.short(x, 60), ylabel=_style.short(y, 40))
    legend(figure, models)
    _style.save(figure, path)


@_style.styled
def robustness(table: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws the accuracy on shifted data over that on the original data, both as logits, with the
    fitted line and the line of equal accuracy: a panel for each shifted task.

    Args:
        table: the table of a suite, with `robustness`.
        path: the PNG file to write.

    Source: Taori et al. 2020, arXiv 2007.00644, figure 1.
    """
    original, lines = table['robustness']['of'], table['robustness']['tasks']
    known, models = numbers(table), table['models']
    columns = min(COLUMNS, len(lines))
    rows = math.ceil(len(lines) / columns)
    below = foot(len(models))
    height = 3.6 * rows + _style.HEAD + below
    title = 'Robustness to shifted data'
    subtitle = _style.joined(f'{len(models)} models', 'axes of logits')
    figure = _style.new(max(4.2 * columns, 6.4), height, title, subtitle, below)
    grid = figure.add_gridspec(rows, columns)
    for k, line in enumerate(lines):
        axes = figure.add_subplot(grid[divmod(k, columns)])
        _shifted(axes, known[original], known[line['task']], line)
        axes.set_title(_style.short(line['task'], 40), pad=8)
        axes.set_xlabel(_style.short(original, 40))
    legend(figure, models)
    _style.save(figure, path)


def _shifted(
    axes: Axes, across: list[float | None], up: list[float | None], line: Mapping[str, Any]
) -> None:
    """A panel of `robustness`; what is 0 or 1 has no logit and is left out."""
    points = [
        (k, x, y)
        for k, (x, y) in enumerate(zip(across, up, strict=True))
        if x is not None and y is not None and min(x, y) > 0 and max(x, y) < 1
    ]
    axes.set_xscale('logit')
    axes.set_yscale('logit')
    inside = [value for _, *pair in points for value in pair] or [0.5]
    odds = np.log(np.array(inside) / (1 - np.array(inside)))
    ends = np.array([odds.min() - 0.4, odds.max() + 0.4])
    along = np.linspace(ends[0], ends[1], 50)
    gray = {'color': _style.GRAY, 'linewidth': 1, 'linestyle': (0, (4, 3))}
    axes.plot(_probability(along), _probability(along), label='equal accuracy', **gray)
    fitted = _probability(line['slope'] * along + line['intercept'])
    axes.plot(_probability(along), fitted, color=_style.INK, linewidth=1.2, label='fit')
    for k, x, y in points:
        axes.plot(x, y, **_style.look(k), markersize=7, linestyle='none')
    low, high = _probability(ends)
    axes.set(xlim=(low, high), ylim=(low, high))
    ticks = _spread([tick for tick in ODDS if low <= tick <= high])
    for axis in axes.xaxis, axes.yaxis:
        axis.set_major_locator(ticker.FixedLocator(ticks))
        axis.set_major_formatter(_style.per_cent)
        axis.set_minor_locator(ticker.NullLocator())
    axes.legend(loc='upper left')


def _parameters(value: float, _: float | None = None) -> str:
    return f'{value / 1e9:g}B' if value >= 1e9 else f'{value / 1e6:g}M'


def _spread(ticks: list[float]) -> list[float]:
    """At most seven of some ticks, evenly spread."""
    return ticks[:: max(1, math.ceil(len(ticks) / 7))]


def _probability(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
