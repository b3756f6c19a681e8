"""The evaluations of a run: when they are due, their reports, and the scores of each step."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from clip_jax import lookup, metrics
from clip_jax.evaluation import evaluate
from clip_jax.evaluation.evaluate import Evaluation
from clip_jax.metrics import Writer
from clip_jax.pretrained import Clip
from clip_jax.runtime import multihost
from clip_jax.runtime.preemption import Preempted, StopSignals
from clip_jax.runtime.watchdog import Watchdog
from clip_jax.step import lora, rules
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.state import TrainState
from clip_jax.training import run_directory

AVERAGE = '_average'  # what the name of an evaluation of the averaged weights ends with
Reports = Mapping[str, Mapping[str, Any]]  # name in config.evals -> report


class Evaluations:
    """Runs what `config.evals` names on the model that is being trained.

    `best` are the scores of `config.checkpoint.best_metric` by step, for `keep_best`; negated where
    lower is better. If the run has an average of the weights, every evaluation also runs on that,
    as NAME_average.
    """

    def __init__(
        self,
        config: ConfigDict,
        clip: Clip,
        evals: Mapping[str, Evaluation],
        workdir: epath.Path,
        signals: StopSignals,
        watchdog: Watchdog,
        optimizer: Optimizer,
    ):
        self.best: dict[int, float] = {}
        self._config, self._clip, self._evals, self._workdir = config, clip, evals, workdir
        self._signals, self._watchdog, self._optimizer = signals, watchdog, optimizer

    def run(self, state: TrainState) -> Reports:
        """Runs every evaluation; returns the reports. Preempted if the run should stop."""
        optimizer, path = self._optimizer, str(self._workdir)
        variables = {'': state.variables}
        average = optimizer.averaged(state.params, state.opt_state, state.ema)
        if average is not None:
            params = rules.merge(average, optimizer.split(state.params)[1])
            variables[AVERAGE] = dataclasses.replace(state, params=params).variables
        if adapters := self._clip.card.get(rules.LORA):
            variables = {suffix: lora.merged(of, adapters) for suffix, of in variables.items()}
        reports = {}
        for name, evaluation in self._evals.items():
            for suffix, of in variables.items():
                model = dataclasses.replace(self._clip, variables=of, on_batch=self._on_batch)
                reports[f'{name}{suffix}'] = evaluation.report(model, path=path)
        return reports

    def _on_batch(self) -> None:
        """Resets the watchdog; Preempted if a host was asked to stop."""
        self._watchdog.doing = 'an evaluation'
        stop = multihost.all_reduce_max(self._signals.stop)
        self._watchdog.finished()
        if stop:
            raise Preempted(stop)

    def check_best(self, scores: Iterable[str]) -> None:
        """ValueError if checkpoints are kept by a metric that no evaluation gives."""
        if self._config.checkpoint.keep_best:
            metric = self._config.checkpoint.best_metric or ''
            lookup.check(metric, scores, what='checkpoint.best_metric')

    def write(self, step: int, reports: Reports, writer: Writer) -> dict[str, float]:
        """Writes the reports of a step to `evals/` and their scores to the metrics; returns the
        scores.
        """
        for name, report in reports.items():
            path = self._workdir / 'evals' / f'{name}.json'
            run_directory.write_json(path, {**report, 'step': step})
        scores = evaluate.values(reports)
        writer.write_scalars(step, scores)
        self._note_best([{'step': step, **scores}], reports)
        return scores

    def due(self, step: int) -> bool:
        """Whether the run resumes at a step whose evaluations were cut short: a step is saved
        before it is evaluated.
        """
        config = self._config
        inside = 0 < step < config.total_steps and step % config.eval_every == 0
        return bool(
            config.evals and inside and not multihost.run_on_primary(lambda: self._recorded(step))
        )

    def _recorded(self, step: int) -> bool:
        names = tuple(f'{name}/' for name in self._config.evals)
        lines = metrics.read_jsonl(self._workdir / 'metrics.jsonl')
        return any(
            line['step'] == step and any(key.startswith(names) for key in line) for line in lines
        )

    def recall(self, step: int) -> None:
        """Reads the scores until a step from the metrics, for `keep_best`; ValueError if the
        evaluations gave others than `best_metric`.
        """
        lines = metrics.read_jsonl(self._workdir / 'metrics.jsonl')
        lines = [line for line in lines if line['step'] <= step]
        names = tuple(f'{name}{x}/' for name in self._evals for x in ('', AVERAGE))
        if scores := {k: v for line in lines for k, v in line.items() if k.startswith(names)}:
            self.check_best(scores)
            name = self._config.checkpoint.best_metric.partition('/')[0]
            path = self._workdir / 'evals' / f'{name}.json'
            self._note_best(lines, {name: json.loads(path.read_text())})

    def _note_best(self, lines: list[dict[str, Any]], reports: Reports) -> None:
        metric = self._config.checkpoint.best_metric
        if found := {line['step']: line[metric] for line in lines if metric in line}:
            name, _, score = metric.partition('/')
            sign = 1 if reports[name]['scores'][score]['better'] == 'higher' else -1
            self.best |= {step: sign * value for step, value in found.items()}
