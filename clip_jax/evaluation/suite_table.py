"""The table of a suite: a row for each task, their averages, and what did not run.

It is a dict that can be written as JSON:

    models      the checkpoints, whose values are in this order below
    tasks       [{'task', 'type', 'data', 'score', 'better', 'unit', 'values', 'intervals',
                'states', 'messages'}, ...]; a value is None where the state is 'missing' or
                'failed', and an interval where the score has none
    means       [{'type', 'tasks', 'values'}, ...]: of the tasks of each evaluation
    averages    [{'name', 'tasks', 'of', 'values'}, ...]: those that the config asks for, in place
                of `means`: over `tasks` of `of` tasks
    robustness  {'of': task, 'tasks': [{'task', 'slope', 'intercept', 'values'}, ...]}: the
                effective robustness of each checkpoint, and the line on the logit scale that it is
                above; if the config asks for it
    parameters  how many each checkpoint has
"""

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax import lookup
from clip_jax.evaluation import robustness
from clip_jax.runtime import atomic

DONE, MISSING, FAILED = 'done', 'missing', 'failed'

Rows = Sequence[Mapping[str, Any]]


def check(page: Mapping[str, Any], models: Sequence[str]) -> None:
    """Checks what a suite's config says of averages and robustness.

    Args:
        page: the config. `averages` are names of tasks by the name of the average. `robustness` has
            the task `of` the original set, the `tasks` of shifted ones and, optional, the
            `baseline`: those of the checkpoints that the line is fitted to, without it all.
        models: the checkpoints.

    Raises:
        ValueError: a task, a checkpoint or a key is unknown.
    """
    names = page['tasks']
    for average, own in (page.get('averages') or {}).items():
        if isinstance(own, str) or not own:
            raise ValueError(f'suite: averages: {average} is {own!r}; expected names of tasks')
        for name in own:
            lookup.check(name, names, what=f'suite: averages: {average}')
    given = page.get('robustness') or {}
    for key in given:
        lookup.check(key, ('of', 'tasks', 'baseline'), what='suite: robustness')
    if given:
        for key in ('of', 'tasks'):
            lookup.check(key, given, what='suite: robustness')
        for name in (given['of'], *given['tasks']):
            lookup.check(name, names, what='suite: robustness')
        for model in given.get('baseline') or ():
            lookup.check(model, models, what='suite: robustness: baseline')


def table(rows: Rows, models: Sequence[str], page: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the table.

    Args:
        rows: the rows of the tasks.
        models: the checkpoints.
        page: the suite's config (see `check`).

    Returns:
        The table.
    """
    found: dict[str, Any] = {'models': list(models), 'tasks': list(rows)}
    if averages := page.get('averages'):
        found['averages'] = _averages(rows, averages)
    else:
        found['means'] = _means(rows)
    if given := page.get('robustness'):
        found['robustness'] = _robustness(rows, models, given)
    return found


def write(table: Mapping[str, Any], out: pathlib.Path) -> None:
    """Writes the table into a folder, as `suite.json` and `suite.md`."""
    atomic.write_json(out / 'suite.json', table)
    atomic.write(out / 'suite.md', markdown(table))


def shown(score: Mapping[str, Any]) -> str:
    """Returns a score as a line of progress shows it."""
    value = score['value']
    return f'{value:.4f}' if score['unit'] == 'fraction' else f'{value:,.6g}'


def _complete(rows: Rows) -> list[Sequence[float]]:
    """The values of the tasks that every checkpoint has; only fractions have a mean."""
    own = [row['values'] for row in rows if row['unit'] == 'fraction']
    return [values for values in own if all(x is not None for x in values)]


def _mean(values: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*values, strict=True)]


def _means(rows: Rows) -> list[dict[str, Any]]:
    found = []
    for name in dict.fromkeys(row['type'] for row in rows):
        if values := _complete([row for row in rows if row['type'] == name]):
            found.append({'type': name, 'tasks': len(values), 'values': _mean(values)})
    return found


def _averages(rows: Rows, averages: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    found = []
    for name, own in averages.items():
        if values := _complete([row for row in rows if row['task'] in own]):
            about = {'name': name, 'tasks': len(values), 'of': len(own)}
            found.append({**about, 'values': _mean(values)})
    return found


def _robustness(rows: Rows, models: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    values = {row['task']: row['values'] for row in rows}
    original = values[given['of']]
    baseline, found = given.get('baseline') or models, []
    for task in given['tasks']:
        pairs = [*zip(original, values[task], strict=True)]
        known = [
            pair
            for model, pair in zip(models, pairs, strict=True)
            if model in baseline and None not in pair
        ]
        if line := robustness.fit([x for x, _ in known], [y for _, y in known]):
            own = [robustness.effective(*pair, line) for pair in pairs]
            slope, intercept = line
            found.append({'task': task, 'slope': slope, 'intercept': intercept, 'values': own})
    return {'of': given['of'], 'tasks': found}


def markdown(table: Mapping[str, Any]) -> str:
    """Returns the table as Markdown, in percent; below it, what is missing or failed."""
    text = [_row('task', 'type', 'score', *table['models']), '|---|---|---|']
    text[-1] += '--:|' * len(table['models'])
    for task in table['tasks']:
        found = zip(task['values'], task['states'], task['intervals'], strict=True)
        cells = [_cell(value, state, task['unit'], ends) for value, state, ends in found]
        text.append(_row(task['task'], task['type'], task['score'], *cells))
    for mean in table.get('means', ()):
        cells = [_cell(value, DONE, 'fraction') for value in mean['values']]
        text.append(_row(f'**mean of {mean["tasks"]}**', mean['type'], '', *cells))
    for mean in table.get('averages', ()):
        cells = [_cell(value, DONE, 'fraction') for value in mean['values']]
        text.append(_row(f'**{mean["name"]}**, {mean["tasks"]} of {mean["of"]}', '', '', *cells))
    for task in table.get('robustness', {}).get('tasks', ()):
        cells = ['' if value is None else f'{100 * value:+.2f}' for value in task['values']]
        text.append(_row(f'{task["task"]}: effective robustness', '', '', *cells))
    for state, title in (MISSING, 'Not on this machine'), (FAILED, 'Failed'):
        found = [_reasons(task, state, table['models']) for task in table['tasks']]
        if reasons := list(itertools.chain.from_iterable(found)):
            text += ['', f'{title}:', '', *reasons]
    return '\n'.join(text) + '\n'


def _row(*cells: str) -> str:
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def _cell(
    value: float | None, state: str, unit: str | None, ends: Sequence[float] | None = None
) -> str:
    if value is None:
        return state
    if unit != 'fraction':
        return f'{value:,.6g}'
    text = f'{100 * value:.2f}'
    return f'{text} ± {50 * (ends[1] - ends[0]):.2f}' if ends else text


def _reasons(task: Mapping[str, Any], state: str, models: Sequence[str]) -> list[str]:
    """Why a task did not run, one line for all checkpoints with the same message."""
    found: dict[str, list[str]] = {}
    for model, its, message in zip(models, task['states'], task['messages'], strict=True):
        if its == state:
            found.setdefault(message, []).append(model)
    lines = []
    for message, own in found.items():
        which = '' if len(own) == len(models) else f', {", ".join(own)}'
        lines.append(f'* {task["task"]} ({task["data"]}){which}: {message}')
    return lines
