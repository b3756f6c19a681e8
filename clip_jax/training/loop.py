"""The training loop."""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from clip_jax import build, checkpoint, metrics
from clip_jax.evaluation import evaluate
from clip_jax.models import attention_choice
from clip_jax.runtime import environment, lock, messages, multihost
from clip_jax.runtime.preemption import Preempted, StopSignals
from clip_jax.runtime.watchdog import Watchdog
from clip_jax.step import rules, skip_updates
from clip_jax.step.state import TrainState, count_parameters
from clip_jax.step.train_step import CONSECUTIVE_SKIPS, STOP
from clip_jax.training import adapters, continued, profile, run_directory, setup, stages
from clip_jax.training.evaluations import Evaluations
from clip_jax.training.outputs import Outputs
from clip_jax.training.setup import Parts


def train(
    config: ConfigDict, workdir: str | epath.Path, *, allow_changes: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains a model, or resumes the run in `workdir` from its newest valid checkpoint.

    Args:
        config: the training config; configs/default.py describes every key.
        workdir: the run directory, a local folder or one on object storage; new, empty, or of a run
            of the same config.
        allow_changes: keys of the config that may differ from a run in `workdir`: `total_steps`, to
            extend it (the learning rate then follows the new schedule), `batch_size`, `data`,
            `loss` and `optimizer`, or keys below them. Others, which say how and where but not
            what is computed, may always change.

    Returns:
        The content of `summary.json`: the last scores and loss, speed, counts, and versions. A run
        that was complete already returns it at once.

    Raises:
        Preempted: SIGTERM, Ctrl-C or a notice of the machine stopped it, and all is saved; the same
            call resumes it.
        ValueError: a value of the config, the data or the run directory is not usable.
    """
    environment.keep_freed_memory()
    workdir = checkpoint.absolute(workdir)
    resolved = _stored(config)
    if multihost.run_on_primary(
        lambda: run_directory.is_complete(workdir, resolved, allow_changes)
    ):
        _say(f'{workdir}: this run is complete ({config.total_steps:,} steps); nothing to do.')
        return _summary(workdir)
    if config.compilation_cache:
        jax.config.update('jax_compilation_cache_dir', config.compilation_cache)
    with contextlib.ExitStack() as stack:
        held = lock.Lock(workdir)
        stack.callback(held.close)
        multihost.run_on_primary(held.open)
        signals = StopSignals(alone=jax.process_count() == 1)
        stack.callback(signals.close)
        signals.open()
        watchdog = Watchdog(config.step_timeout)
        stack.callback(watchdog.stop)
        with _explained(workdir):
            again = False
            while True:
                with contextlib.ExitStack() as opened:
                    run = Run(config, resolved, workdir, allow_changes, signals, watchdog, again)
                    if _run(run, opened):
                        break
                again = True
            return _summary(workdir)  # signals are still heard: the processes talk once more


class Run(NamedTuple):
    """What holds for all stages of a run in this process."""

    config: ConfigDict
    resolved: dict[str, Any]  # the config, as it is stored
    workdir: epath.Path
    allow_changes: Sequence[str]
    signals: StopSignals
    watchdog: Watchdog
    again: bool  # whether a stage has ended in this process


def _run(run: Run, stack: contextlib.ExitStack) -> bool:
    """Sets up the stage that comes next, trains it, and finishes it; returns whether it was the
    last. `stack` closes what is opened.
    """
    resolved, workdir, watchdog, signals = run.resolved, run.workdir, run.watchdog, run.signals
    stage, newest = continued.begin(run.config, workdir, resolved, setup.find_start)
    config = stage.config
    parts = setup.prepare(config, workdir, stage)
    stack.callback(parts.batches.close)
    stages.check_later(stages.of(run.config), stage, parts.clip.card)
    data = continued.identity(config, parts.source)
    continued.check(run.config, workdir, newest, data, run.allow_changes)
    if not run.again:
        _describe(config, parts)
    if stage.count > 1:
        _say(str(stage))
    evals = Evaluations(
        config, parts.clip, parts.evals, workdir, signals, watchdog, parts.optimizer
    )
    watchdog.begin('checking the checkpoints' if parts.resumes else 'the first evaluation')
    # Before anything is written: an error that only an evaluation finds leaves nothing behind.
    reports = {} if parts.resumes else evals.run(parts.state)
    if not parts.resumes:
        evals.check_best(evaluate.values(reports))
    run_directory.write_json(workdir / 'config.json', resolved)
    run_directory.write_json(workdir / 'card.json', parts.clip.card)
    run_directory.write_addresses(workdir, resolved)
    options = {k: v for k, v in config.checkpoint.items() if k not in ('every', 'best_metric')}
    checkpoints = checkpoint.Checkpoints(workdir, **options)
    stack.callback(checkpoints.close)
    step = _newest(workdir, checkpoints)
    if stage.count > 1 and newest and newest[0] != step:
        return False  # it is corrupt, and the one before it may be of another stage
    state, start, about = _restored(config, parts, workdir, checkpoints, watchdog, data, step)
    if start and config.checkpoint.keep_best:
        multihost.run_on_primary(lambda: evals.recall(start))
    outputs = Outputs(
        config,
        resolved,
        workdir,
        checkpoints,
        batches=parts.batches,
        source=parts.source,
        mesh=parts.mesh,
        schedule=parts.optimizer.schedule,
        card=parts.clip.card,
        writers=parts.writers,
        stage=stage,
        data=data,
        **about,
    )
    stack.callback(outputs.close)
    window = profile.Window(config.profile, workdir)
    stack.callback(window.close)
    loop = Loop(stage, parts, state, start, evals, outputs, watchdog, signals, window)
    signals.graceful = True
    try:
        if start == 0 or reports:
            # What chance scores, and mistakes in an evaluation, show before hours of training.
            evals.write(start, reports or evals.run(loop.state), outputs.writer)
        elif evals.due(start):
            loop.evaluate(start)
        loop.steps()
        if stage.number < stage.count:
            loop.end_stage()
            return False
        scores = loop.evaluate(config.total_steps)
        watchdog.begin('the last save')
        checkpoints.wait()
        watchdog.stop()
    except Preempted:
        watchdog.begin('the last save')
        loop.save_unsaved()
        checkpoints.wait()
        multihost.barrier('saved')  # process 0 writes the checksums; no process exits before that
        saved = f'saved in {workdir}' if outputs.saved else 'before the first'
        _say(
            f'stopped at step {loop.at:,} of {config.total_steps:,}, {saved}; the same command '
            'resumes from there'
        )
        raise
    multihost.run_on_primary(lambda: _summarize(stage, workdir, loop, scores))
    return True


class Loop:
    """The state of a run, and the steps that change it.

    `at` is the last step that was dispatched. JAX runs asynchronously: one step is in flight while
    the next is prepared, so that a request to stop is seen within a step.
    """

    def __init__(
        self,
        stage: stages.Stage,
        parts: Parts,
        state: TrainState,
        start: int,
        evals: Evaluations,
        outputs: Outputs,
        watchdog: Watchdog,
        signals: StopSignals,
        window: profile.Window,
    ):
        self.state, self.at = state, start
        self.outputs = outputs
        self.mesh, self._config, self._step = parts.mesh, stage.config, parts.step
        self._optimizer = parts.optimizer
        self._evals, self._watchdog, self._signals = evals, watchdog, signals
        self._window, self._stage = window, stage
        self._finished = start  # the newest step that all hosts finished
        self._flags: tuple[int, Any] = (-1, None)

    def steps(self) -> None:
        """Trains to the last step of the stage; Preempted, with all saved, if it should stop."""
        config, previous, due = self._config, None, False
        self._watchdog.begin('the first step')
        for step in range(self.at + 1, self._stage.last + 1):
            self._watchdog.doing = f'step {step:,}'
            with self._window.step(step, self.state):
                batch = next(self.outputs.batches)
                with jax.set_mesh(self.mesh):
                    self.state, numbers = self._step(self.state, batch, self._stop_flags())
            self._window.end(step, numbers)
            stop = self._wait_for(step - 1, previous)
            previous, self.at = numbers, step
            last = step == self._stage.last
            if last or step % config.log_every == 0:
                self.outputs.log(step, numbers)
                self._note_finished(step)
            due = due or step % config.checkpoint.every == 0
            # Do not overwrite good checkpoints while updates are being skipped.
            if last or stop or (due and not numbers[CONSECUTIVE_SKIPS]):
                self._save(step)
                due = False
            if stop and step < config.total_steps:
                raise Preempted(stop)
            # The next stage evaluates its model at its first step.
            if not last and step % config.eval_every == 0:
                self.evaluate(step)

    def end_stage(self) -> None:
        """Waits for the last save of the stage, and frees the devices for the next one; Preempted
        if the run should stop.
        """
        self._watchdog.begin('the last save of a stage')
        self.outputs.wait()
        multihost.barrier('stage')  # process 0 writes the checksums; no process continues before
        if stop := multihost.all_reduce_max(self._signals.stop):
            raise Preempted(stop)
        jax.tree.map(lambda x: x.delete(), self.state)

    def evaluate(self, step: int) -> dict[str, float]:
        """Runs every evaluation of the config; returns the scores."""
        with self.outputs.progress.pause():
            return self._evals.write(step, self._evals.run(self.state), self.outputs.writer)

    def save_unsaved(self) -> None:
        """Saves the last step, unless it is saved already."""
        if self.at > self.outputs.saved:
            self._save(self.at)

    def _save(self, step: int) -> None:
        jax.block_until_ready(self.state)
        self._note_finished(step)
        state = self.state
        average = self._optimizer.averaged(state.params, state.opt_state, state.ema)
        stored = adapters.stored(state, self._optimizer)
        self.outputs.save(step, stored, self._evals.best, average)

    def _stop_flags(self) -> jax.Array:
        """The request to stop of this host, int32, 0 for none, once for each of its devices."""
        signal = self._signals.stop
        if self._flags[0] != signal:
            self._flags = signal, _on_all_devices(signal, self.mesh)
        return self._flags[1]

    def _wait_for(self, step: int, numbers: dict[str, jax.Array] | None) -> int:
        """Waits until a step is finished; returns the signal that all hosts agree to stop for, 0
        for none. ValueError if too many updates in a row were skipped.
        """
        if numbers is None:
            return 0
        stop, skipped = jax.device_get((numbers[STOP], numbers[CONSECUTIVE_SKIPS]))
        self._note_finished(step)
        most = self._config.skip_updates.max_consecutive
        if skipped >= most:
            self.outputs.wait()
            saved = self.outputs.saved
            raise ValueError(
                f'{skipped} updates in a row, until step {step:,}, were skipped '
                f'(skip_updates.max_consecutive {most}): the loss is {float(numbers["loss"]):g}, '
                f'the norm of its gradient {float(numbers["grad_norm"]):g}; the newest checkpoint '
                f'is {f"of step {saved:,}" if saved else "none yet"}; a lower learning_rate or '
                'more warmup_steps may help'
            )
        return int(stop)

    def _note_finished(self, step: int) -> None:
        """Tells the watchdog, once, that all hosts finished a step."""
        if step > self._finished:
            self._finished = step
            self._watchdog.finished()


def _on_all_devices(number: int, mesh: Mesh) -> jax.Array:
    """An int32 array with one element for each device, which has this process's number."""
    over_all = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    local = np.full(len(mesh.local_devices), number, np.int32)
    return jax.make_array_from_process_local_data(over_all, local)


def _newest(workdir: epath.Path, checkpoints: checkpoint.Checkpoints) -> int | None:
    """The step of the newest valid checkpoint, None without one; says which are corrupt."""
    step, corrupt = checkpoints.newest()
    if corrupt:
        text = '; '.join(checkpoint.described(corrupt))
        _say(f'{workdir}: corrupt, kept as *{checkpoint.QUARANTINED}: {text}')
    return step


def _restored(
    config: ConfigDict,
    parts: Parts,
    workdir: epath.Path,
    checkpoints: checkpoint.Checkpoints,
    watchdog: Watchdog,
    data: dict[str, str],
    step: int | None,
) -> tuple[TrainState, int, dict[str, Any]]:
    """The state to begin with, its step, and what a checkpoint says besides; the input position is
    restored too. Without a valid checkpoint these are the new state and step 0.
    """
    if step is None:
        return _started(config, parts, watchdog, data)
    if step > config.total_steps:
        raise ValueError(
            f'total_steps is {config.total_steps:,}, and {workdir} is at step {step:,} already'
        )
    watchdog.begin(f'reading step {step:,}')
    restore = _emptied(parts)
    about = checkpoint.read_about(checkpoints.folder / str(step))
    state = restore(lambda like: checkpoints.restore(step, like))
    if position := continued.position(about, data, config.batch_size):
        parts.batches.set_state(position)
    _say(f'{workdir}: resumes from step {step:,} of {config.total_steps:,}')
    return state, step, {'start': step, 'bad': about['bad'], 'seconds': about['seconds']}


def _started(
    config: ConfigDict, parts: Parts, watchdog: Watchdog, data: dict[str, str]
) -> tuple[TrainState, int, dict[str, Any]]:
    """The state of a new run, its step, and what Outputs needs to know of it."""
    if config.init_state == 'weights':
        return parts.state, 0, {}
    folder = epath.Path(parts.start)
    continued.check_state(folder)
    about, step = checkpoint.read_about(folder), int(folder.name)
    if step >= config.total_steps:
        raise ValueError(
            f'total_steps is {config.total_steps:,}, and init_from is at step {step:,}; with '
            f'init_state all expected more than {step:,}'
        )
    watchdog.begin(f'reading step {step:,} of {config.init_from}')
    restore = _emptied(parts)
    try:
        state = restore(lambda like: checkpoint.restore(folder, like))
    except ValueError as error:
        raise ValueError(
            f'{error}; init_state all needs the optimizer, the rules and the average of init_from, '
            'or set init_state to weights'
        ) from None
    input, now = 'its data from their start', _stored(config)
    position = continued.position(about, data, config.batch_size)
    if position and about['config']['seed'] == now['seed']:
        parts.batches.set_state(position)
        input = 'its data from where that run was'
    _say(f'begins at step {step:,} with the state of {folder}, and reads {input}')
    return state, step, {'start': step, 'bad': {}, 'seconds': 0.0}


def _emptied(parts: Parts) -> Callable[[Callable[[TrainState], TrainState]], TrainState]:
    """Deletes the arrays of a new state that a checkpoint has, since the devices may not have room
    for two. Returns the function that restores a state; it is given how one is read by its shapes.
    """
    complete = adapters.completed(parts.state, parts.optimizer)
    new = dataclasses.replace(adapters.stored(parts.state, parts.optimizer), teachers={})
    like = checkpoint.shapes(new)
    jax.tree.map(lambda x: x.delete(), new)
    size = parts.clip.preprocess.size

    def restore(read: Callable[[TrainState], TrainState]) -> TrainState:
        return complete(continued.restore(read, like, parts.saved, parts.optimizer, size))

    return restore


def _stored(config: ConfigDict) -> dict[str, Any]:
    """A config as a checkpoint stores it."""
    return json.loads(config.to_json_best_effort())


def _describe(config: ConfigDict, parts: Parts) -> None:
    with jax.set_mesh(parts.mesh):
        pairs = config.batch_size // config.microbatches
        attention = attention_choice.describe(parts.clip.model, pairs)
    if jax.default_backend() == 'cpu' and parts.clip.model.dtype == jnp.bfloat16:
        _say('model.dtype bfloat16 is slower than float32 on CPU; auto chooses float32 there')
    overview = parameter_overview.get_parameter_overview(parts.state.params, include_stats=False)
    _say(overview)
    _say(_trained(config, parts))
    _say(attention)
    for kind, found in parts.source.skipped.items():
        _say(f'skipped: {found.count:,} {kind}, for example {found.examples[0]}')


def _trained(config: ConfigDict, parts: Parts) -> str:
    """The table of what is trained."""
    optimizer, peak_at = parts.optimizer, config.optimizer.warmup_steps
    return rules.table(parts.state.params, optimizer.settings, optimizer.schedule, peak_at)


def _summarize(
    stage: stages.Stage, workdir: epath.Path, loop: Loop, scores: dict[str, float]
) -> None:
    """Draws the figures and writes `summary.json`: the run is complete."""
    config = stage.config
    outputs = loop.outputs
    outputs.writer.flush()
    drawn = _draw(config, workdir) if config.figures else []
    lines = [line for line in metrics.read_jsonl(workdir / 'metrics.jsonl') if 'loss' in line]
    loss = lines[-1]['loss'] if lines else math.nan  # somebody removed them
    rates = [line['pairs_per_second'] for line in lines] or [0.0]
    skipped = loop.state.skip_state
    summary = {
        **scores,
        'loss': loss if math.isfinite(loss) else None,
        'step': config.total_steps,
        'pairs': stage.seen(config.total_steps),
        'parameters': count_parameters(loop.state.variables['params']),
        'seconds': round(time.monotonic() - outputs.began, 1),
        'pairs_per_second': round(statistics.median(rates), 1),
        'devices': f'{loop.mesh.size} x {jax.devices()[0].device_kind}',
        'versions': environment.versions(),
        'bad_records': dict(outputs.bad_records.counts),
        'skipped_updates': {reason: int(skipped[reason]) for reason in skip_updates.REASONS},
        'checkpoints': outputs.saving(),
        'figures': [str(path.relative_to(workdir)) for path in drawn],
        'profile': profile.traces(workdir),
    }
    run_directory.write_json(workdir / 'summary.json', summary)


def _draw(config: ConfigDict, workdir: epath.Path) -> list[epath.Path]:
    # matplotlib takes a third of the time of all imports, and is needed here alone.
    from clip_jax.reports import drawing

    load_images = build.image_loader(config.data.options, max_pixels=config.data.max_pixels)
    return drawing.write_all(workdir, load_images)


def _summary(workdir: epath.Path) -> dict[str, Any]:
    summary = multihost.run_on_primary(lambda: run_directory.read_json(workdir / 'summary.json'))
    _say(run_directory.summary_text(workdir, summary))
    return summary


@contextlib.contextmanager
def _explained(workdir: epath.Path) -> Iterator[None]:
    """Turns errors of the disk and of device memory into a ValueError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        # It failed in the middle of a write, and does not say where.
        raise ValueError(
            f'{workdir}: {error.strerror or error}; its checkpoints are intact. With the cause '
            'removed, the same command resumes from the newest'
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if not messages.is_out_of_memory(error):
            multihost.exit_if_peer_lost(error)  # before anything waits for all processes
            raise
        line = str(error).strip().partition('\n')[0]
        raise ValueError(
            f'out of memory ({line}); a lower batch_size, more microbatches, model.remat=full '
            'or a larger mesh.fsdp needs less; clip-jax plan says how much'
        ) from error


def _say(text: str) -> None:
    if multihost.is_primary():
        print(text, flush=True)
