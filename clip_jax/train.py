"""Training: one step, a pure function, and the one loop around it."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import (
    __version__,
    accumulation,
    build,
    checkpoint,
    compiled,
    hosts,
    lookup,
    metrics,
    plots,
    pretrained,
    sharding,
    state,
    tokenizers,
)
from clip_jax.data import pipeline, rows, tally, transforms
from clip_jax.models import clip, layers
from clip_jax.state import TrainState

INTERRUPTED = 130  # the shell's exit code for a program stopped by Ctrl-C


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    normalise: Callable[[jax.Array], jax.Array],
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update on a global batch, and the batch's metrics.

    `batch` is {'image': uint8 [B, H, W, 3], 'tokens': int32 [B, L]}, embedded in `microbatches`
    parts. Pure: every part is an argument.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    batch = {**batch, 'rows': jnp.arange(len(batch['image']), dtype=jnp.int32)}

    def embed(params: dict, buffers: dict, part: dict) -> tuple[tuple, dict]:
        (image, text, _, _), buffers = model.apply(
            {'params': layers.cast(params, model.dtype), **buffers},
            normalise(part['image']),
            part['tokens'],
            train=True,
            rows=part['rows'],
            rngs={'dropout': key},
            mutable=[*buffers],
        )
        return (image, text), buffers

    value, numbers, buffers, grads = accumulation.value_and_grad(
        embed,
        lambda params: model.apply({'params': params}, method='scale_and_bias'),
        loss,
        lambda grads: sharding.constrain_tree(grads, layers.axes),
        state.params,
        state.buffers,
        batch,
        microbatches=microbatches,
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    numbers = {
        'loss': value,
        **numbers,
        'logit_scale': params['logit_scale'],
        'grad_norm': optax.global_norm(grads),
    }
    state = state.replace(step=state.step + 1, params=params, buffers=buffers, opt_state=opt_state)
    return state, numbers


def bind_step(
    model: nn.Module,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    microbatches: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `train_step` with its parts, of state and batch; images are normalised by `mean` and
    `std`.
    """
    return functools.partial(
        train_step,
        model=model,
        loss=loss,
        optimizer=optimizer,
        normalise=functools.partial(transforms.normalise, mean=mean, std=std),
        microbatches=microbatches,
    )


def train(config: ConfigDict, workdir: str | epath.Path) -> int:
    """Trains what the config describes in `workdir`, or goes on where an earlier run of it stopped.

    Returns the exit code: 0 when the run is complete (also if it already was), 130 when Ctrl-C
    stopped it. ValueError for anything wrong in the config, the data or the run directory.
    """
    workdir = epath.Path(workdir).expanduser().resolve()
    resolved = json.loads(config.to_json_best_effort())
    complete = finished(workdir, resolved)
    hosts.wait('finished')  # before anyone writes
    if complete:
        print(f'{workdir}: this run is complete ({config.total_steps:,} steps); nothing to do.')
        print(summary_text(workdir))
        return 0
    if config.compilation_cache:
        jax.config.update('jax_compilation_cache_dir', config.compilation_cache)
    try:
        with contextlib.closing(Run(config, resolved, workdir)) as run:
            if not run.loop():
                return INTERRUPTED
            run.finish()
    except jax.errors.JaxRuntimeError as error:
        if not compiled.is_out_of_memory(error):
            raise
        raise ValueError(
            f'out of memory ({str(error).splitlines()[0]}); a lower batch_size, more microbatches, '
            'model.remat=full or a larger mesh.fsdp needs less; clip-jax plan says how much'
        ) from error
    if hosts.is_first():
        print(summary_text(workdir))
    return 0


def finished(workdir: epath.Path, resolved: dict[str, Any]) -> bool:
    """Whether `workdir` holds a complete run of this config; ValueError if of another."""
    path = workdir / 'config.json'
    if not path.exists():
        if workdir.is_file() or (workdir.is_dir() and any(workdir.iterdir())):
            raise ValueError(
                f'{workdir}: not empty and no run directory; expected a new or empty folder'
            )
        return False
    there = json.loads(path.read_text())
    if there != resolved:
        raise ValueError(
            f'{workdir}: holds a run of another config ({_difference(there, resolved)}); '
            'expected the same config, or another --workdir'
        )
    return (workdir / 'summary.json').exists()


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Names the first few keys in which two configs differ."""

    def flat(tree: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f'{prefix}{key}.')
            else:
                yield prefix + key, value

    there, here = dict(flat(there)), dict(flat(here))
    keys = [k for k in {**there, **here} if there.get(k, '-') != here.get(k, '-')]
    shown = [f'{k} is {there.get(k, "-")!r} there, {here.get(k, "-")!r} here' for k in keys[:3]]
    return '; '.join(shown) + (f'; and {len(keys) - 3} more' if len(keys) > 3 else '')


class Run:
    """A run directory with everything built that its config names, ready to train."""

    def __init__(self, config: ConfigDict, resolved: dict[str, Any], workdir: epath.Path):
        self.config, self.resolved, self.workdir = config, resolved, workdir
        self.began = time.monotonic()
        _check_counts(config)
        self.mesh = sharding.make_mesh(**config.mesh)
        check_batch(config, self.mesh)
        self.optimizer, self.schedule = build.optimizer(config.optimizer, config.total_steps)
        loss = build.loss(config.loss, self.mesh)
        augment, wanted = rows.Augment(**config.data.augment), rows.Filter(**config.data.filter)
        card_path = workdir / 'card.json'
        begun = card_path.exists()
        source, self.evals = hosts.first_then_others(lambda: _sources(config))
        if begun:
            self.card, variables = json.loads(card_path.read_text()), None
        else:
            self.card, variables = _begin(config, source, self.mesh)
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
        if hosts.is_first():
            print(overview, flush=True)
            for kind, found in source.left_out.items():
                print(f'left out: {found.count:,} {kind}, as {found.examples[0]}', flush=True)
        # Before anything is written: what only an evaluation finds wrong leaves nothing behind.
        self.reports = {} if begun else self.score()

        for path, content in (('config.json', resolved), ('card.json', self.card)):
            _write_json(workdir / path, content)
        self.checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
        self.start, bad = self._resume(iterator)
        self.tally = tally.Tally(
            source, workdir, step=self.start, counts=bad, max_share=config.data.max_bad
        )
        self.batches = pipeline.to_device(iterator, sharding.over_batch(self.mesh))
        self.progress = metrics.Progress(
            config.total_steps, config.batch_size, start_step=self.start
        )
        writers = []
        if hosts.is_first():
            # Without a checkpoint nothing of an earlier attempt counts, not even its step 0.
            written = metrics.default_writer(workdir, resume_step=self.start or -1)
            writers = [self.progress, written]
        self.writer = metrics.MultiWriter(writers)
        # Step of the last line of metrics, and the seconds waited for input until then.
        self.logged = (self.start, 0.0)
        preprocess = self.clip.preprocess
        step = bind_step(
            model,
            loss,
            self.optimizer,
            mean=preprocess.mean,
            std=preprocess.std,
            microbatches=config.microbatches,
        )
        self.step = jax.jit(step, donate_argnums=0)

    def _resume(self, iterator: Any) -> tuple[int, dict[str, int]]:
        """Puts the newest checkpoint, if any, into state and iterator; returns its step, and the
        counts of bad records until then.
        """
        step = self.checkpoints.latest()
        if step is None:
            return 0, {}
        self.state = self.checkpoints.restore(step, self.state)
        about = self.checkpoints.about(step)
        iterator.set_state(about['input'])
        self.began -= about['seconds']
        if hosts.is_first():
            total = self.config.total_steps
            print(f'{self.workdir}: goes on at step {step:,} of {total:,}', flush=True)
        return step, about['bad']

    def loop(self) -> bool:
        """Trains to the last step; returns False if Ctrl-C stopped it before."""
        config, previous = self.config, None
        if self.start == 0:
            # Shows what chance is, and a mistake in an evaluation before hours of training.
            self.report(0, self.reports or self.score())
        with stop_on_interrupt() as stop:
            for step in range(self.start + 1, config.total_steps + 1):
                batch = next(self.batches)
                with jax.set_mesh(self.mesh):
                    self.state, numbers = self.step(self.state, batch)
                jax.block_until_ready(previous)  # one step in flight: Ctrl-C stays prompt
                previous = numbers
                last = step == config.total_steps
                # All have to stop at the same step; to ask at each would cost time.
                stopping = bool(stop)
                if jax.process_count() > 1:
                    stopping = step % config.log_every == 0 and hosts.any_of_all(stopping)
                if last or step % config.log_every == 0:
                    self.log(step, numbers)
                if not last and step % config.eval_every == 0:
                    self.evaluate(step)
                if last or stopping or step % config.checkpoint_every == 0:
                    self.save(step)
                if stopping and not last:
                    self.checkpoints.wait()
                    if hosts.is_first():
                        print(
                            f'stopped at step {step:,} of {config.total_steps:,}; '
                            f'saved in {self.workdir}; the same command goes on from there'
                        )
                    return False
        return True

    def log(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """Writes a step's numbers; ValueError if the loss is no longer a number."""
        scalars = {name: float(value) for name, value in numbers.items()}
        if not math.isfinite(scalars['loss']):
            raise ValueError(
                f'the loss is {scalars["loss"]} at step {step:,}; the newest checkpoint is of step '
                f'{self.checkpoints.latest()}; a lower learning_rate or more warmup_steps may help'
            )
        scalars['learning_rate'] = float(self.schedule(step - 1))
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
        """Runs every evaluation of the config; returns its reports."""
        model = dataclasses.replace(self.clip, variables=self.state.variables)
        return {
            name: evaluate(model.encode_image, model.encode_text, source)
            for name, (evaluate, source) in self.evals.items()
        }

    def report(self, step: int, reports: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Writes the reports of a step to `evals/`, their numbers to the metrics; returns these."""
        scalars = {}
        for name, report in reports.items():
            report = {'data': self.config.evals[name].data, 'step': step, **report}
            _write_json(self.workdir / 'evals' / f'{name}.json', report)
            scalars |= {f'{name}/{k}': v for k, v in report.items() if isinstance(v, float)}
        self.writer.write_scalars(step, scalars)
        return scalars

    def save(self, step: int) -> None:
        """Starts to save the state, with the card and the input position, in the background."""
        with self.progress.pause():
            about = {
                'bad': self.count_bad(step),
                'card': self.card,
                'config': self.resolved,
                'input': self.batches.get_state(),
                'seconds': time.monotonic() - self.began,
                'versions': versions(),
            }
            self.checkpoints.save(self.state, about)

    def finish(self) -> None:
        """Evaluates the trained model, draws figures and writes `summary.json`: the run is
        complete.
        """
        scalars = self.evaluate(self.config.total_steps)
        self.checkpoints.wait()
        if hosts.is_first():
            self.summarise(scalars)
        hosts.wait('summary')

    def summarise(self, scalars: dict[str, float]) -> None:
        """Draws the figures and writes `summary.json`."""
        self.writer.flush()
        load_images = build.image_loader(self.config.data.options)
        figures = plots.write_all(self.workdir, load_images)
        lines = [r for r in metrics.read_jsonl(self.workdir / 'metrics.jsonl') if 'loss' in r]
        summary = {
            **scalars,
            'loss': lines[-1]['loss'],
            'step': self.config.total_steps,
            'pairs': self.config.total_steps * self.config.batch_size,
            'parameters': state.count(self.state.params),
            'seconds': round(time.monotonic() - self.began, 1),
            'pairs_per_second': round(statistics.median(r['pairs_per_second'] for r in lines), 1),
            'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
            'versions': versions(),
            'bad_records': dict(self.tally.counts),
            'figures': [str(p.relative_to(self.workdir)) for p in figures],
        }
        _write_json(self.workdir / 'summary.json', summary)

    def close(self) -> None:
        """Stops reading ahead and closes every file; what is being saved is saved to its end."""
        self.batches.close()
        self.checkpoints.close()
        self.writer.close()


def _check_counts(config: ConfigDict) -> None:
    names = ('batch_size', 'microbatches', 'log_every', 'eval_every', 'checkpoint_every')
    for name in (*names, 'keep_checkpoints'):
        if config[name] < 1:
            raise ValueError(f'{name} is {config[name]}; expected at least 1')


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
    for key in ('eval', 'data'):
        lookup.check(key, options, what=f'config.evals.{name}')
    evaluate = build.evaluation(options.eval, build.given(options, 'eval', 'data'))
    return evaluate, build.source(options.data, config.data.options)


def _begin(config: ConfigDict, source: Any, mesh: Mesh) -> tuple[dict[str, Any], dict | None]:
    """Returns the card of a new run, and the variables that it begins with; None: random ones."""
    if not config.init.path:
        # A vocabulary is trained once.
        return hosts.of_first(lambda: _card(config, source, {})), None
    there, variables = pretrained.read(config.init.path, mesh)
    card = _card(config, source, there)
    size = card['model']['image']['image_size']
    _, variables = clip.with_image_size(there['model'], variables, size)
    wrong = _other_shapes(clip.shapes(clip.from_card(card['model'])), variables)
    if wrong:
        more = f'; and {len(wrong) - 6} more' if len(wrong) > 6 else ''
        raise ValueError(
            f'init.path {config.init.path}: its parameters are not those that config.model '
            f'describes: {"; ".join(wrong[:6])}{more}. Set in config.model only what changes no '
            'parameter, and the image_size'
        )
    return card, pretrained.on_devices(variables, mesh)


def _other_shapes(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Says in what the arrays of two trees differ."""

    def shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        pairs = jax.tree.leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator='/'): x.shape for p, x in pairs}

    there, here = shapes(found), shapes(expected)
    return [
        f'{name} is {there.get(name, "missing")}, expected {here.get(name, "none")}'
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name)
    ]


def _card(config: ConfigDict, source: Any, init: dict[str, Any]) -> dict[str, Any]:
    """The card of a run; `init` is that of the checkpoint that it begins from, {} without one."""
    tokenizer = (
        tokenizers.from_card(init['tokenizer'])
        if init.get('tokenizer')
        else build.tokenizer(config.tokenizer, source)
    )
    architecture = build.architecture(
        config.model, tokenizer, init.get('model'), loss=config.loss.name
    )
    image_size = architecture['image']['image_size']
    preprocess = build.preprocess(config.preprocess, image_size, init.get('preprocess'))
    card = {'model': architecture, 'preprocess': preprocess.card, 'tokenizer': tokenizer.card}
    return json.loads(json.dumps(card))  # as it will be read back: tuples are lists


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    found = {name: importlib.metadata.version(name) for name in names}
    return {'clip_jax': __version__, 'python': platform.python_version(), **found}


def summary_text(workdir: epath.Path) -> str:
    """The last numbers of a complete run and where things lie, for people."""
    summary = json.loads((workdir / 'summary.json').read_text())
    lines = [f'{name:44} {v:.4f}' for name, v in summary.items() if isinstance(v, float)]
    if summary['bad_records']:
        counts = rows.as_text(summary['bad_records'])
        lines.append(f'records replaced by others: {counts}; bad_records-*.jsonl names them')
    places = ['summary.json', 'card.json', 'metrics.jsonl', 'checkpoints/', *summary['figures']]
    return '\n'.join([*lines, f'in {workdir}: {", ".join(places)}'])


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[list]:
    """Turns the first Ctrl-C into an entry in the list it yields; a second interrupts at once."""
    stop: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)
        print('\nCtrl-C: saving after this step; once more to stop at once', file=sys.stderr)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _write_json(path: epath.Path, content: Any) -> None:
    """Writes a file whole or not at all, once for all hosts."""
    if not hosts.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n')
    partial.replace(path)
