"""A page of evaluations over one or several checkpoints: one report a line and one table."""

import dataclasses
import hashlib
import inspect
import itertools
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax import build, lookup, pretrained, prompts
from clip_jax.data import sources
from clip_jax.data.errors import DataNotFound
from clip_jax.evaluation import encoders
from clip_jax.pretrained import Clip
from clip_jax.runtime import atomic, environment
from clip_jax.runtime.messages import one_line

DONE, MISSING, FAILED = 'done', 'missing', 'failed'


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation of a suite; `scores` names the numbers of its report whose mean is the score,
    by default the first.
    """

    name: str
    type: str
    data: str
    scores: Sequence[str]
    source: Mapping[str, Mapping[str, Any]]  # options of each kind of source
    options: Mapping[str, Any]  # of the evaluation

    @property
    def settings(self) -> dict[str, Any]:
        """What the report depends on, besides the checkpoint and `text_hash`."""
        settings = {
            'type': self.type,
            'data': self.data,
            'source': {kind: build.given(own) for kind, own in self.source.items()},
            'options': dict(self.options),
        }
        return json.loads(json.dumps(settings))

    def text_hash(self) -> str:
        """A hash of the class names and templates that the options name, as they are now in their
        files and prompt sets; '' if the evaluation has none.
        """
        parameters = inspect.signature(lookup.module('evals', self.type).evaluate).parameters
        if 'templates' not in parameters:
            return ''
        classes, templates, key = (
            self.options.get(name, parameters[name].default)
            for name in ('classes', 'templates', 'key')
        )
        if isinstance(classes, str) and classes not in ('all', 'present'):
            classes = prompts.class_names(classes, key=key)
        if isinstance(templates, str):
            templates = prompts.templates(templates, key=key)
        content = json.dumps([classes, templates])
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a line and a checkpoint; a value that is no share is an int, or above 1."""

    state: str
    value: float | None = None
    message: str = ''


def tasks(page: Mapping[str, Any]) -> list[Task]:
    """Reads a page: `lines`, by name, each with 'eval', 'data' and the options of that evaluation;
    'score' and 'source', options of its source, if it needs them; and `options` of each kind of
    source for all lines.

    ValueError for an unknown evaluation or option.
    """
    for key in page:
        lookup.check(key, ('lines', 'options'), what='suite')
    if not page.get('lines'):
        raise ValueError('suite: the page has no lines; expected lines by name, each with an eval')
    return [_task(name, dict(line), page) for name, line in page['lines'].items()]


def _task(name: str, line: dict[str, Any], page: Mapping[str, Any]) -> Task:
    what = f'suite: line {name}'
    if not re.fullmatch(r'[\w.-]+', name):
        raise ValueError(f'{what}: a name is letters, digits and _ . - only: files are named by it')
    line = build.given(line)
    for key in ('type', 'data'):
        lookup.check(key, line, what=what)
    evaluation, data = line.pop('type'), line.pop('data')
    scores, own = line.pop('score', ()), line.pop('source', {})
    options = {k: dict(v) for k, v in page.get('options', {}).items()}
    for kind in sources.kinds(data):
        options[kind] = {**options.get(kind, {}), **own}
    if 'save' in line:
        raise ValueError(
            f'{what}: save: every checkpoint would replace it; clip-jax eval {evaluation} saves one'
        )
    try:
        build.check_evaluation(evaluation, line)
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from None
    scores = (scores,) if isinstance(scores, str) else tuple(scores)
    return Task(name, evaluation, data, scores, options, line)


def run(
    page: Mapping[str, Any],
    models: Sequence[str],
    out: pathlib.Path | None,
    *,
    say: Callable[[str], None],
    dtype: str = 'auto',
) -> tuple[dict[str, Any], bool]:
    """Runs all lines over all checkpoints, in the arithmetic `dtype`: returns the table, and
    whether something ran and nothing failed.

    In `out` each report is a file, `CHECKPOINT/LINE.json`. What is there of the same checkpoint and
    settings is not run again.
    """
    suite, begun = tasks(page), time.monotonic()
    slugs = [_slug(model) for model in models]
    if len({*slugs}) < len(slugs):
        raise ValueError(f'--model: {", ".join(models)}: expected different checkpoints')
    for model in models:  # before the first one runs for hours
        pretrained.find(model)
    results: list[list[Result]] = []
    for number, (model, slug) in enumerate(zip(models, slugs, strict=True)):
        clip = pretrained.load(model, dtype=dtype)
        identity = {
            'model': model,
            'fingerprint': pretrained.fingerprint(clip.variables),
            'card_hash': encoders.card_hash(clip.card),
            'arithmetic': encoders.compute_dtype(clip),
        }
        column = []
        for k, line in enumerate(suite, start=1 + number * len(suite)):
            file = out / slug / f'{line.name}.json' if out else None
            result, how = _result(line, clip, identity, file)
            column.append(result)
            value = result.value
            shown = f'{value:.4f}' if _is_share(value) else result.message or f'{value:,}'
            say(f'[{k}/{len(suite) * len(models)}] {line.name}, {model}: {shown}{how}')
        results.append(column)
        del clip  # before the next one needs the memory
    table = _table(suite, models, results)
    table |= {'versions': environment.versions(), 'seconds': time.monotonic() - begun}
    states = [result.state for column in results for result in column]
    return table, FAILED not in states and DONE in states


def write(table: Mapping[str, Any], out: pathlib.Path) -> None:
    """Writes the table into a folder, as `suite.json` and `suite.md`."""
    atomic.write_json(out / 'suite.json', table)
    atomic.write(out / 'suite.md', markdown(table))


def _slug(model: str) -> str:
    slug = re.sub(r'[^\w.-]+', '_', model).strip('_')
    return slug if slug.strip('.') else 'model'


def _result(
    line: Task, clip: Clip, identity: Mapping[str, str], file: pathlib.Path | None
) -> tuple[Result, str]:
    """The result of one line, read from its report if that is there, and how it came about."""
    try:
        settings = {**identity, **line.settings, 'text_hash': line.text_hash()}
        if file and (report := _finished(file, settings)):
            return Result(DONE, _score(line, report)), ' (was there)'
        begun = time.monotonic()
        report = {**settings, **_evaluate(line, clip)}
        seconds = report['seconds'] = time.monotonic() - begun
        if file:
            atomic.write_json(file, report)
        return Result(DONE, _score(line, report)), f' ({seconds:,.0f} s)'
    except DataNotFound as error:
        return Result(MISSING, message=one_line(error)), ''
    except Exception as error:  # of any type: the other lines are to run
        if os.environ.get('CLIP_JAX_TRACEBACK'):
            raise
        return Result(FAILED, message=one_line(error)), ''


def _evaluate(line: Task, clip: Clip) -> dict[str, Any]:
    evaluate = build.evaluation(line.type, line.options, line.source, embeddings=True)
    source = build.source(line.data, line.source, embeddings=True)
    opened = [source, *evaluate.sources.values()]
    report = evaluate(*encoders.encoders_for(clip, opened), source)
    return report | encoders.provenance(clip, opened)


def _finished(file: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier run with the same settings and weights, wherever these lay; None if
    there is none.
    """
    if not file.exists():
        return None
    report = json.loads(file.read_text())
    same = all(report.get(k) == v for k, v in settings.items() if k != 'model')
    return report if same else None


def _score(line: Task, report: Mapping[str, Any]) -> float:
    numbers = {k: v for k, v in report.items() if type(v) in (int, float) and k != 'seconds'}
    if not line.scores:
        return next(v for v in numbers.values() if isinstance(v, float))
    found = [numbers[lookup.check(name, numbers, what='score')] for name in line.scores]
    return found[0] if len(found) == 1 else statistics.fmean(found)


def _is_share(value: float | None) -> bool:
    return isinstance(value, float) and value <= 1


def _table(
    suite: Sequence[Task], models: Sequence[str], results: Sequence[Sequence[Result]]
) -> dict[str, Any]:
    rows = []
    for line, found in zip(suite, zip(*results, strict=True), strict=True):
        score = ' and '.join(line.scores)
        row = {'line': line.name, 'type': line.type, 'data': line.data, 'score': score}
        values = [result.value for result in found]
        states = [result.state for result in found]
        messages = [result.message for result in found]
        rows.append({**row, 'values': values, 'states': states, 'messages': messages})
    means = []
    for name in dict.fromkeys(line.type for line in suite):
        # Over the same lines in every column; ranks have no mean with shares.
        own = [row['values'] for row in rows if row['type'] == name]
        complete = [values for values in own if all(map(_is_share, values))]
        if complete:
            values = [statistics.fmean(column) for column in zip(*complete, strict=True)]
            means.append({'type': name, 'lines': len(complete), 'values': values})
    return {'models': list(models), 'lines': rows, 'means': means}


def markdown(table: Mapping[str, Any]) -> str:
    """The table for people, in percent, and what is missing or failed below it."""

    def row(*cells: str) -> str:
        return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'

    def percent(value: float | None, state: str = DONE) -> str:
        if _is_share(value):
            return f'{100 * value:.2f}'
        return state if value is None else f'{value:,}'

    rule = '|---|---|---|' + '--:|' * len(table['models'])
    text = [row('line', 'type', 'score', *table['models']), rule]
    for line in table['lines']:
        cells = map(percent, line['values'], line['states'])
        text.append(row(line['line'], line['type'], line['score'], *cells))
    for mean in table['means']:
        name = f'mean of {mean["lines"]}'
        text.append(row(f'**{name}**', mean['type'], '', *map(percent, mean['values'])))
    for state, title in (MISSING, 'Not on this machine'), (FAILED, 'Failed'):
        found = [_told(line, state, table['models']) for line in table['lines']]
        if told := list(itertools.chain.from_iterable(found)):
            text += ['', f'{title}:', '', *told]
    return '\n'.join(text) + '\n'


def _told(line: Mapping[str, Any], state: str, models: Sequence[str]) -> list[str]:
    """What is said of a line that did not run, once for all checkpoints with the same message."""
    found: dict[str, list[str]] = {}
    for model, its, message in zip(models, line['states'], line['messages'], strict=True):
        if its == state:
            found.setdefault(message, []).append(model)
    told = []
    for message, own in found.items():
        where = '' if len(own) == len(models) else f', {", ".join(own)}'
        told.append(f'* {line["line"]} ({line["data"]}){where}: {message}')
    return told
