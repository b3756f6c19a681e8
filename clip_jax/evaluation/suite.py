"""Benchmark suites: a config file of tasks, run over one or several checkpoints, as one table."""

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax import build, lookup, pretrained, prompts
from clip_jax.data.errors import DataNotFound
from clip_jax.embeddings.identity import card_hash
from clip_jax.evaluation import encoders, evaluate, suite_table
from clip_jax.evaluation.suite_table import DONE, FAILED, MISSING
from clip_jax.models.fingerprint import fingerprint
from clip_jax.places import resolve
from clip_jax.pretrained import Clip
from clip_jax.runtime import atomic, environment, foreign_json
from clip_jax.runtime.messages import one_line
from clip_jax.step import state


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation of a suite.

    Attributes:
        name: name of the task, and of its report's file.
        type: name of the evaluation, a file of evals/.
        data: SPEC of the data set to score.
        scores: names of the report's scores whose mean is shown; the headline if empty.
        source: options of each kind of source.
        options: options of the evaluation.
    """

    name: str
    type: str
    data: str
    scores: Sequence[str]
    source: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """What the report depends on, besides the checkpoint and `text_hash`, as JSON holds it."""
        found = evaluate.settings(self.type, self.options, self.data, self.source)
        return json.loads(json.dumps(found))

    def text_hash(self) -> str:
        """Returns a hash of the class names and templates that the options name, as their files
        and prompt sets are now; '' if the evaluation has none.
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
            # Templates of the data set are part of the data.
            templates = 'plain' if templates == 'auto' else templates
            templates = prompts.templates(templates, key=key)
        content = json.dumps([classes, templates])
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of one task for one checkpoint: a score, or why there is none."""

    state: str
    score: Mapping[str, Any] | None = None  # value, better, unit
    message: str = ''

    @property
    def value(self) -> float | None:
        return self.score['value'] if self.score else None


def tasks(page: Mapping[str, Any]) -> list[Task]:
    """Reads the tasks of a suite.

    Args:
        page: the config: `tasks` by name, each with 'type', 'data', the options of that evaluation
            and, optional, 'score' and 'source' (options of its source); `options` of each kind of
            source, for all tasks; and, optional, `averages` and `robustness` (see suite_table).

    Returns:
        The tasks.

    Raises:
        ValueError: an unknown key, evaluation or option, or no tasks.
    """
    for key in page:
        lookup.check(key, ('tasks', 'options', 'averages', 'robustness'), what='suite')
    if not page.get('tasks'):
        raise ValueError('suite: the config has no tasks; expected tasks by name, each with a type')
    return [_task(name, dict(task), page) for name, task in page['tasks'].items()]


def _task(name: str, task: dict[str, Any], page: Mapping[str, Any]) -> Task:
    what = f'suite: task {name}'
    if not re.fullmatch(r'[\w.-]+', name):
        raise ValueError(f'{what}: expected a name of letters, digits and _ . -, which files allow')
    task = build.given(task)
    for key in ('type', 'data'):
        lookup.check(key, task, what=what)
    evaluation, data = task.pop('type'), task.pop('data')
    scores, own = task.pop('score', ()), task.pop('source', {})
    options = build.source_options(data, page.get('options', {}), own)
    if 'save' in task:
        raise ValueError(
            f'{what}: save: each checkpoint would overwrite the file; use clip-jax eval '
            f'{evaluation}'
        )
    try:
        evaluate.check_options(evaluation, task)
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from None
    scores = (scores,) if isinstance(scores, str) else tuple(scores)
    return Task(name, evaluation, data, scores, options, task)


def run(
    page: Mapping[str, Any],
    models: Sequence[str],
    out: pathlib.Path | None,
    *,
    say: Callable[[str], None],
    dtype: str = 'auto',
    image_options: Mapping[str, Any] | None = None,
    load: Callable[[str], Clip] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Runs all tasks for all checkpoints.

    A report in `out` of the same checkpoint and settings is read, and the task is not run again.

    Args:
        page: the suite's config (see `tasks`).
        models: paths of the checkpoints.
        out: folder for the reports, `CHECKPOINT/TASK.json`; None for none.
        say: takes a line of progress.
        dtype: compute dtype: 'auto', 'float32' or 'bfloat16'.
        image_options: fields of the models' `Preprocess` to change: `gray16`, `max_pixels`.
        load: makes the model of each item of `models`, which are then names of any kind; by default
            it is loaded from its path.

    Returns:
        The table, and whether some task ran and none failed.

    Raises:
        ValueError: the config is wrong, or a path holds no checkpoint.
    """
    suite, began = tasks(page), time.monotonic()
    suite_table.check(page, models)
    slugs = [_slug(model) for model in models]
    if len({*slugs}) < len(slugs):
        raise ValueError(f'--model: {", ".join(models)}: expected different checkpoints')
    if load is None:
        for model in models:  # before the first one runs for hours
            pretrained.find(model)
        load = functools.partial(pretrained.load, dtype=dtype)
    results: list[list[Result]] = []
    parameters: list[int] = []
    for number, (model, slug) in enumerate(zip(models, slugs, strict=True)):
        clip = load(model).with_preprocess(**image_options or {})
        parameters.append(state.count_parameters(clip.variables['params']))
        identity = {
            'model': resolve.pinned(model) or model,
            'fingerprint': fingerprint(clip.variables),
            'card_hash': card_hash(clip.card),
            'compute_dtype': encoders.compute_dtype(clip),
            'image_options': dict(image_options or {}),
        }
        column = []
        for k, task in enumerate(suite, start=1 + number * len(suite)):
            file = out / slug / f'{task.name}.json' if out else None
            result, how = _result(task, clip, identity, file)
            column.append(result)
            shown = suite_table.shown(result.score) if result.score else result.message
            say(f'[{k}/{len(suite) * len(models)}] {task.name}, {model}: {shown}{how}')
        results.append(column)
        del clip  # before the next one needs the memory
    table = suite_table.table(_rows(suite, results), models, page)
    table |= {'versions': environment.versions(), 'seconds': time.monotonic() - began}
    table['parameters'] = parameters
    states = [result.state for column in results for result in column]
    return table, FAILED not in states and DONE in states


def _slug(model: str) -> str:
    slug = re.sub(r'[^\w.-]+', '_', model).strip('_')
    return slug if slug.strip('.') else 'model'


def _result(
    task: Task, clip: Clip, identity: Mapping[str, Any], file: pathlib.Path | None
) -> tuple[Result, str]:
    """Reads the result of a task from its report, or runs it; also says which."""
    try:
        settings = {**identity, **task.settings, 'text_hash': task.text_hash()}
        if file and (report := _finished(file, settings)):
            return Result(DONE, _score(task, report)), ' (read)'
        evaluation = evaluate.prepare(
            task.type, task.options, task.data, task.source, embeddings=True
        )
        own = ('fingerprint', 'card_hash', 'image_options', 'text_hash')
        about: dict[str, Any] = {k: v for k, v in settings.items() if k in own}
        report = evaluation.report(clip, path=identity['model'], **about)
        if file:
            atomic.write_json(file, report)
        return Result(DONE, _score(task, report)), f' ({report["seconds"]:,.0f} s)'
    except DataNotFound as error:
        return Result(MISSING, message=one_line(error)), ''
    except Exception as error:  # of any type: the other tasks still run
        if os.environ.get('CLIP_JAX_TRACEBACK'):
            raise
        return Result(FAILED, message=one_line(error)), ''


def _finished(file: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the report of an earlier run with the same settings and weights, wherever the
    checkpoint was then; None if there is none.
    """
    if not file.exists():
        return None
    report = foreign_json.read(file)
    same = all(report.get(k) == v for k, v in settings.items() if k != 'model')
    return report if same else None


def _score(task: Task, report: Mapping[str, Any]) -> dict[str, Any]:
    """The score of a task: the headline of its report, or the mean of those that it names."""
    scores = report['scores']
    names = task.scores or [next(iter(scores))]
    found = [scores[lookup.check(name, scores, what='score')] for name in names]
    if len({(score['better'], score['unit']) for score in found}) > 1:
        raise ValueError(
            f'score: {", ".join(names)} have different units or directions; expected alike'
        )
    mean = {**found[0], 'value': statistics.fmean(score['value'] for score in found)}
    if len(found) > 1:
        mean.pop('interval', None)  # it is that of one score
    return mean


def _rows(suite: Sequence[Task], results: Sequence[Sequence[Result]]) -> list[dict[str, Any]]:
    """The rows of the table, a task each, from the results of each checkpoint."""
    rows: list[dict[str, Any]] = []
    for task, found in zip(suite, zip(*results, strict=True), strict=True):
        # The same evaluation with the same options has the same score for every checkpoint.
        score = next((result.score for result in found if result.score), None)
        rows.append(
            {
                'task': task.name,
                'type': task.type,
                'data': task.data,
                'score': ' and '.join(task.scores),
                'better': score and score['better'],
                'unit': score and score['unit'],
                'values': [result.value for result in found],
                'intervals': [(result.score or {}).get('interval') for result in found],
                'states': [result.state for result in found],
                'messages': [result.message for result in found],
            }
        )
    return rows
