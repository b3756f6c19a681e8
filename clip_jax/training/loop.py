"""Training: one step, a pure function, and the one loop around it."""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from clip_jax import build, checkpoint, lookup, metrics, pretrained, sharding
from clip_jax.data import bad_record_log, examples, pipeline
from clip_jax.evaluation import encoders
from clip_jax.reports import drawing
from clip_jax.runtime import environment, lock, multihost, preemption, watchdog
from clip_jax.step import skip_updates, state, train_step
from clip_jax.training import hlo, init_from, run_directory


class Stopped(Exception):
    """A run is to stop, for all of its processes at the same step; says for what."""

    def __init__(self, why: int):
        super().__init__(why)
        self.why = why


def train(config: ConfigDict, workdir: str | epath.Path) -> int:
    """Trains what the config describes in `workdir`, or goes on where an earlier run of it stopped.

    Returns the exit code: 0 when the run is complete (also if it already was) or when SIGTERM or a
    notice of the machine stopped it, 130 when Ctrl-C did. ValueError for anything wrong in the
    config, the data or the run directory.
    """
    workdir = checkpoint.absolute(workdir)
    resolved = json.loads(config.to_json_best_effort())
    if multihost.run_on_primary(lambda: run_directory.finished(workdir, resolved)):
        if multihost.is_primary():
            print(f'{workdir}: this run is complete ({config.total_steps:,} steps); nothing to do.')
            print(run_directory.summary_text(workdir))
        return 0
    if config.compilation_cache:
        jax.config.update('jax_compilation_cache_dir', config.compilation_cache)
    with contextlib.ExitStack() as stack:
        held = lock.Lock(workdir)
        stack.callback(held.close)
        multihost.run_on_primary(held.open)
        signals = preemption.StopSignals(alone=jax.process_count() == 1)
        stack.callback(signals.close)
        signals.open()
        dog = watchdog.Watchdog(config.step_timeout)
        stack.callback(dog.stop)
        try:
            run = Run(config, resolved, workdir, signals, dog)
            stack.enter_context(contextlib.closing(run)).go()
        except Stopped as stopped:
            # SIGTERM says that the machine is needed: what was asked for has been done.
            return 0 if stopped.why == preemption.SIGTERM else stopped.why
        except OSError as error:
            if error.filename:
                raise
            # It fails in the middle of writing, and does not say where.
            raise ValueError(
                f'{workdir}: {error.strerror or error}; the checkpoints there are unharmed. With '
                'the cause gone, the same command goes on at the newest'
            ) from error
        except jax.errors.JaxRuntimeError as error:
            if not hlo.is_out_of_memory(error):
                multihost.exit_if_peer_lost(error)  # before anything waits for all processes
                raise
            line = str(error).strip().partition('\n')[0]
            raise ValueError(
                f'out of memory ({line}); a lower batch_size, more microbatches, model.remat=full '
                'or a larger mesh.fsdp needs less; clip-jax plan says how much'
            ) from error
    if multihost.is_primary():
        print(run_directory.summary_text(workdir))
    return 0


class Run:
    """A run directory with everything built that its config names, ready to train."""

    def __init__(
        self,
        config: ConfigDict,
        resolved: dict[str, Any],
        workdir: epath.Path,
        signals: preemption.StopSignals,
        dog: watchdog.Watchdog,
    ):
        self.config, self.resolved, self.workdir = config, resolved, workdir
        self.signals, self.watchdog = signals, dog
        self.began = time.monotonic()
        _check_counts(config)
        self.mesh = sharding.make_mesh(**config.mesh)
        check_batch(config, self.mesh)
        self.optimizer, self.schedule = build.optimizer(config.optimizer, config.total_steps)
        loss = build.loss(config.loss, self.mesh)
        augment, wanted = (
            examples.Augment(**config.data.augment),
            examples.Filter(**config.data.filter),
        )
        source, self.evals = multihost.primary_first(lambda: _sources(config))
        # Not card.json, which has no checksum. Without a checkpoint a run begins at its origin.
        self.card, variables = checkpoint.newest_card(workdir), None
        begun = self.card is not None
        if not begun:
            self.card, variables = init_from.begin(config, source, self.mesh)
        execution = build.execution(config.model)
        model = build.model(self.card['model'], config.model.dtype, **execution)
        self.state = state.create(
            model, self.optimizer, seed=config.seed, mesh=self.mesh, variables=variables
        )
        del variables
        # Without variables: they change, and a second copy would stay on the devices.
        self.clip = pretrained.from_card(self.card, {}, model, self.mesh)
        iterator = pipeline.train_iterator(
            source,
            self.clip.tokenizer,
            batch_size=config.batch_size,
            seed=config.seed,
            image_size=self.clip.preprocess.size,
            augment=augment,
            filter=wanted,
            caption=config.data.caption,
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        overview = parameter_overview.get_parameter_overview(self.state.params, include_stats=False)
        if multihost.is_primary():
            print(overview, flush=True)
            for kind, found in source.left_out.items():
                print(f'left out: {found.count:,} {kind}, as {found.examples[0]}', flush=True)
        self.watchdog.begin('the first evaluation' if not begun else 'checking the checkpoints')
        # Before anything is written: what only an evaluation finds wrong leaves nothing behind.
        self.reports = {} if begun else self.score()
        if not begun:
            _check_best(config.checkpoint, self.numbers(self.reports))

        for path, content in (('config.json', resolved), ('card.json', self.card)):
            run_directory.write_json(workdir / path, content)
        options = {k: v for k, v in config.checkpoint.items() if k not in ('every', 'best_metric')}
        self.checkpoints = checkpoint.Checkpoints(workdir, **options)
        self.start, bad = self._resume(iterator)
        # The step begun, the newest one that all hosts finished, and the newest that is saved.
        self.at = self.finished = self.saved = self.start
        self._flags: tuple[int, Any] = (-1, None)
        self.blocked: list[float] = []  # seconds that training stood still for each save
        self.tally = bad_record_log.BadRecordLog(
            source, workdir, step=self.start, counts=bad, max_share=config.data.max_bad_fraction
        )
        self.batches = pipeline.to_device(iterator, sharding.over_batch(self.mesh))
        self.progress = metrics.Progress(
            config.total_steps, config.batch_size, start_step=self.start
        )
        writers = []
        if multihost.is_primary():
            # Without a checkpoint nothing of an earlier attempt counts, not even its step 0.
            written = metrics.default_writer(workdir, resume_step=self.start or -1)
            writers = [self.progress, written]
        self.writer = metrics.MultiWriter(writers)
        # Step of the last line of metrics, and the seconds waited for input until then.
        self.logged = (self.start, 0.0)
        preprocess = self.clip.preprocess
        step = train_step.bind_step(
            model,
            loss,
            self.optimizer,
            mean=preprocess.mean,
            std=preprocess.std,
            microbatches=config.microbatches,
            spike=config.skip_updates.loss_spike_std,
        )
        self.step = jax.jit(train_step.with_stop(step), donate_argnums=0)

    def _resume(self, iterator: Any) -> tuple[int, dict[str, int]]:
        """Puts the newest checkpoint, if any, into state and iterator; returns its step, and the
        counts of bad records until then.
        """
        step, damaged = self.checkpoints.newest()
        if damaged and multihost.is_primary():
            text = checkpoint.as_text(damaged)
            print(
                f'{self.workdir}: not whole, kept as *{checkpoint.QUARANTINED}: {text}', flush=True
            )
        if step is None:
            return 0, {}
        self.watchdog.begin(f'reading step {step:,}')
        like, self.state = checkpoint.shapes(self.state), None  # devices may not hold two of it
        self.state = self.checkpoints.restore(step, like)
        about = checkpoint.read_about(self.checkpoints.folder / str(step))
        iterator.set_state(about['input'])
        self.began -= about['seconds']
        if self.config.checkpoint.keep_best:
            multihost.run_on_primary(lambda: self._recall_scores(step))
        if multihost.is_primary():
            total = self.config.total_steps
            print(f'{self.workdir}: goes on at step {step:,} of {total:,}', flush=True)
        return step, about['bad']

    def _recall_scores(self, step: int) -> None:
        """Tells the checkpoints the scores until a step; ValueError if evaluations gave others than
        the one that is asked for.
        """
        rows = metrics.read_jsonl(self.workdir / 'metrics.jsonl')
        rows = [row for row in rows if row['step'] <= step]
        names = tuple(f'{name}/' for name in self.evals)
        if scores := {k: v for row in rows for k, v in row.items() if k.startswith(names)}:
            _check_best(self.config.checkpoint, scores)
        self.note_scores(rows)

    def go(self) -> None:
        """Trains to the last step and evaluates; Stopped, with all saved, if it ends before."""
        self.signals.graceful = True
        try:
            self.evaluate_first()
            self.loop()
            self.finish()
        except Stopped:
            self.watchdog.begin('the last save')
            if self.at > self.saved:
                self.save(self.at)
            self.checkpoints.wait()
            multihost.barrier(
                'saved'
            )  # the first makes the checksums; who has ended is not to miss it
            if multihost.is_primary():
                step, total = self.at, self.config.total_steps
                where = f'; saved in {self.workdir}' if self.saved else ', before the first'
                print(
                    f'stopped at step {step:,} of {total:,}{where}; '
                    'the same command goes on from there'
                )
            raise

    def evaluate_first(self) -> None:
        """Makes the evaluations of the step at which this process begins, where they are due."""
        if self.start == 0:
            # Shows what chance is, and a mistake in an evaluation before hours of training.
            self.report(0, self.reports or self.score())
            return
        # A step is saved before it is evaluated: an evaluation may have been cut short.
        inside = self.start < self.config.total_steps
        due = self.evals and inside and self.start % self.config.eval_every == 0
        if due and not multihost.run_on_primary(lambda: self.evaluated(self.start)):
            self.evaluate(self.start)

    def evaluated(self, step: int) -> bool:
        """Whether the metrics have the numbers of the evaluations of a step."""
        names = tuple(f'{name}/' for name in self.config.evals)
        rows = metrics.read_jsonl(self.workdir / 'metrics.jsonl')
        return any(
            row['step'] == step and any(key.startswith(names) for key in row) for row in rows
        )

    def loop(self) -> None:
        """Trains to the last step; Stopped if it is to end before."""
        config, previous, due = self.config, None, False
        self.watchdog.begin('the first step')
        for step in range(self.start + 1, config.total_steps + 1):
            self.watchdog.doing = f'step {step:,}'
            batch = next(self.batches)
            with jax.set_mesh(self.mesh):
                self.state, numbers = self.step(self.state, batch, self.stop_flags())
            # One step in flight: what is asked for from outside is noticed soon.
            stop = self.settle(step - 1, previous)
            previous, self.at = numbers, step
            last = step == config.total_steps
            if last or step % config.log_every == 0:
                self.log(step, numbers)
            due = due or step % config.checkpoint.every == 0
            # Where updates cannot be made, what may be at fault is not to replace what was good.
            if last or stop or (due and not numbers[train_step.CONSECUTIVE_SKIPS]):
                self.save(step)
                due = False
            if stop and not last:
                raise Stopped(stop)
            if not last and step % config.eval_every == 0:
                self.evaluate(step)

    def stop_flags(self) -> jax.Array:
        """What this host wants to stop for, once for each of its devices."""
        why = self.signals.stop
        if self._flags[0] != why:
            mesh = self.mesh
            over_all = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            mine = np.full(len(mesh.local_devices), why, np.int32)
            self._flags = why, jax.make_array_from_process_local_data(over_all, mine)
        return self._flags[1]

    def settle(self, step: int, numbers: dict[str, jax.Array] | None) -> int:
        """Waits for a step; returns what all hosts are to stop for, 0 for nothing.

        ValueError if too many updates in a row could not be made.
        """
        if numbers is None:
            return 0
        stop, in_row = jax.device_get(
            (numbers[train_step.STOP], numbers[train_step.CONSECUTIVE_SKIPS])
        )
        self.note_finished(step)
        if in_row >= self.config.skip_updates.max_consecutive:
            self.checkpoints.wait()
            newest = f'of step {self.saved:,}' if self.saved else 'none yet'
            raise ValueError(
                f'{in_row} updates in a row, until step {step:,}, were not made '
                '(skip_updates.max_consecutive '
                f'{self.config.skip_updates.max_consecutive}): the loss is '
                f'{float(numbers["loss"]):g}, the '
                f'norm of its gradient {float(numbers["grad_norm"]):g}; the newest checkpoint is '
                f'{newest}; a lower learning_rate or more warmup_steps may help'
            )
        return int(stop)

    def note_finished(self, step: int) -> None:
        """Tells the watchdog, once, that all hosts finished a step."""
        if step > self.finished:
            self.finished = step
            self.watchdog.finished()

    def log(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """Writes a step's numbers; ValueError if the save before could not be written."""
        self.checkpoints.check()
        inner = (train_step.STOP, train_step.CONSECUTIVE_SKIPS)
        scalars = {k: v.item() for k, v in jax.device_get(numbers).items() if k not in inner}
        self.note_finished(step)
        skipped = sum(scalars[f'skipped/{kind}'] for kind in skip_updates.REASONS)
        scalars['learning_rate'] = float(self.schedule(max(step - 1 - skipped, 0)))
        rate = self.progress.rate(step)
        (last_step, last_waited), waited = self.logged, self.batches.waited
        seconds = (step - last_step) * self.config.batch_size / rate
        scalars |= {'pairs_per_second': rate, 'input_wait': (waited - last_waited) / seconds}
        scalars |= {f'bad_records/{kind}': n for kind, n in self.count_bad(step).items()}
        self.writer.write_scalars(step, scalars)
        self.logged = (step, waited)

    def count_bad(self, step: int) -> dict[str, int]:
        """Returns how many records gave way to others until a step, by kind; ValueError if it is
        too many.
        """
        new, self.batches.troubles = self.batches.troubles, []
        self.tally.add(step, new, seen=step * self.config.batch_size)
        return dict(self.tally.counts)

    def evaluate(self, step: int) -> dict[str, float]:
        """Runs every evaluation of the config; returns its numbers, leaves reports in `evals/`."""
        with self.progress.pause():
            return self.report(step, self.score())

    def score(self) -> dict[str, dict[str, Any]]:
        """Runs every evaluation of the config; returns its reports. Stopped if it is to end."""
        model = dataclasses.replace(
            self.clip, variables=self.state.variables, on_batch=self.on_batch
        )
        reports = {}
        for name, (evaluate, source) in self.evals.items():
            began = time.monotonic()
            report = evaluate(model.encode_image, model.encode_text, source)
            reports[name] = report | {'seconds': time.monotonic() - began}
        return reports

    def on_batch(self) -> None:
        """Shows the watchdog that an evaluation is alive; Stopped if a host is to stop."""
        self.watchdog.doing = 'an evaluation'
        stop = multihost.all_reduce_max(self.signals.stop)
        self.watchdog.finished()
        if stop:
            raise Stopped(stop)

    def numbers(self, reports: dict[str, dict[str, Any]]) -> dict[str, float]:
        """The numbers of reports, by the names that they have in the metrics."""
        return {
            f'{name}/{key}': value
            for name, report in reports.items()
            for key, value in report.items()
            if isinstance(value, float) and key != 'seconds'
        }

    def report(self, step: int, reports: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Writes the reports of a step to `evals/`, their numbers to the metrics; returns these."""
        for name, report in reports.items():
            entry = self.resolved['evals'][name]
            options = build.given(entry, 'type', 'data')
            report = {'data': entry['data'], 'options': options, 'step': step, **report}
            report |= encoders.provenance(self.clip, []) | {'versions': environment.versions()}
            run_directory.write_json(self.workdir / 'evals' / f'{name}.json', report)
        scalars = self.numbers(reports)
        self.writer.write_scalars(step, scalars)
        self.note_scores([{'step': step, **scalars}])
        return scalars

    def note_scores(self, rows: list[dict[str, Any]]) -> None:
        """Tells the checkpoints which steps are how good."""
        metric = self.config.checkpoint.best_metric
        found = {row['step']: row[metric] for row in rows if metric in row}
        self.checkpoints.scores |= found

    def save(self, step: int) -> None:
        """Starts to save the state, with the card and the input position, in the background."""
        with self.progress.pause():
            jax.block_until_ready(self.state)
            self.note_finished(step)
            began = time.monotonic()
            # What was written until here has to be there when a run goes on here.
            self.writer.flush()
            about = {
                'bad': self.count_bad(step),
                'card': self.card,
                'config': self.resolved,
                'input': self.batches.get_state(),
                'seconds': time.monotonic() - self.began,
                'versions': environment.versions(),
            }
            self.checkpoints.save(step, self.state, about)
            self.blocked.append(time.monotonic() - began)
            self.saved = step

    def finish(self) -> None:
        """Evaluates the trained model, draws figures and writes `summary.json`: the run is
        complete.
        """
        scalars = self.evaluate(self.config.total_steps)
        self.watchdog.begin('the last save')
        self.checkpoints.wait()
        self.watchdog.stop()
        multihost.run_on_primary(lambda: self.summarize(scalars))

    def summarize(self, scalars: dict[str, float]) -> None:
        """Draws the figures and writes `summary.json`."""
        self.writer.flush()
        load_images = build.image_loader(self.config.data.options)
        figures = drawing.write_all(self.workdir, load_images)
        lines = [r for r in metrics.read_jsonl(self.workdir / 'metrics.jsonl') if 'loss' in r]
        loss = lines[-1]['loss'] if lines else math.nan  # somebody removed them
        rates = [row['pairs_per_second'] for row in lines] or [0.0]
        summary = {
            **scalars,
            'loss': loss if math.isfinite(loss) else None,
            'step': self.config.total_steps,
            'pairs': self.config.total_steps * self.config.batch_size,
            'parameters': state.count_parameters(self.state.params),
            'seconds': round(time.monotonic() - self.began, 1),
            'pairs_per_second': round(statistics.median(rates), 1),
            'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
            'versions': environment.versions(),
            'bad_records': dict(self.tally.counts),
            'skipped_updates': {
                kind: int(self.state.skip_state[kind]) for kind in skip_updates.REASONS
            },
            'checkpoints': self.saving(),
            'figures': [str(p.relative_to(self.workdir)) for p in figures],
        }
        run_directory.write_json(self.workdir / 'summary.json', summary)

    def saving(self) -> dict[str, float]:
        """How long training stood still for the saves of this process, in seconds."""
        if not self.blocked:
            return {'saved': 0}
        return {
            'saved': len(self.blocked),
            'blocked_seconds_median': round(statistics.median(self.blocked), 4),
            'blocked_seconds_max': round(max(self.blocked), 4),
        }

    def close(self) -> None:
        """Stops reading ahead and closes every file; what is being saved is saved to its end."""
        with contextlib.ExitStack() as stack:  # whichever of them fails, the others close too
            for close in (self.writer.close, self.checkpoints.close, self.batches.close):
                stack.callback(close)


def _check_counts(config: ConfigDict) -> None:
    counts = {name: config[name] for name in ('batch_size', 'microbatches', 'log_every')}
    counts |= {
        'eval_every': config.eval_every,
        'skip_updates.max_consecutive': config.skip_updates.max_consecutive,
    }
    counts |= {f'checkpoint.{name}': config.checkpoint[name] for name in ('every', 'keep')}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f'{name} is {count}; expected at least 1')
    for name in ('keep_every', 'keep_best'):
        if config.checkpoint[name] < 0:
            raise ValueError(f'checkpoint.{name} is {config.checkpoint[name]}; expected 0 or more')
    if config.skip_updates.loss_spike_std < 0:
        raise ValueError(
            'skip_updates.loss_spike_std is '
            f'{config.skip_updates.loss_spike_std}; expected 0 or more'
        )
    lookup.check(config.checkpoint.best_mode, ('max', 'min'), what='checkpoint.best_mode')
    lookup.check(config.checkpoint.verify, ('all', 'sampled'), what='checkpoint.verify')


def _check_best(config: ConfigDict, numbers: dict[str, float]) -> None:
    """ValueError if the best checkpoints are to stay and no evaluation gives their metric."""
    if config.keep_best:
        lookup.check(config.best_metric or '', numbers, what='checkpoint.best_metric')


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError if a part of the batch cannot be dealt out evenly over the devices."""
    if config.batch_size % (config.microbatches * mesh.size):
        raise ValueError(
            f'batch_size {config.batch_size} is not a multiple of microbatches '
            f'{config.microbatches} x {mesh.size} devices'
        )


def _sources(config: ConfigDict) -> tuple[Any, dict[str, tuple[Callable, Any]]]:
    """The training data, and the evaluations with theirs."""
    source = build.source(config.data.train, config.data.options)
    return source, {name: _evaluation(name, x, config) for name, x in config.evals.items()}


def _evaluation(name: str, options: ConfigDict, config: ConfigDict) -> tuple[Callable, Any]:
    """One entry of `config.evals`: the evaluation with its options, and its source."""
    for key in ('type', 'data'):
        lookup.check(key, options, what=f'config.evals.{name}')
    own = build.given(options, 'type', 'data')
    evaluate = build.evaluation(options.type, own, config.data.options)
    return evaluate, build.source(options.data, config.data.options)
