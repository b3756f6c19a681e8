"""What a run writes while it trains: lines of metrics, and checkpoints."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import checkpoint, metrics, sharding
from clip_jax.data import pipeline
from clip_jax.data.bad_record_log import BadRecordLog
from clip_jax.data.sources import Source
from clip_jax.runtime import environment, multihost
from clip_jax.step import skip_updates
from clip_jax.step.state import TrainState
from clip_jax.step.train_step import CONSECUTIVE_SKIPS, STOP
from clip_jax.training.stages import Stage


class Outputs:
    """The open files and threads of a run; every process calls each method at the same step.

    Args:
        batches: this host's batches.
        source: the training data that they are made of.
        mesh: the devices that they go to.
        schedule: the learning rate of each step.
        card: the model's, saved with every checkpoint.
        writers: (workdir, *, resume_step, config) -> metric writer.
        stage: the stage that they are of.
        data: the identity of the training data, saved with every checkpoint.
        start: the step that the run resumes from, 0 for a new one.
        bad: counts of bad records until then, by kind.
        seconds: how long the run has trained until then.
    """

    def __init__(
        self,
        config: ConfigDict,
        resolved: dict[str, Any],
        workdir: epath.Path,
        checkpoints: checkpoint.Checkpoints,
        *,
        batches: pipeline.TrainIterator,
        source: Source,
        mesh: Mesh,
        schedule: optax.Schedule,
        card: dict[str, Any],
        writers: Sequence[Callable],
        stage: Stage,
        data: dict[str, str],
        start: int = 0,
        bad: dict[str, int] | None = None,
        seconds: float = 0.0,
    ):
        self.saved = start  # the newest step that is saved
        self.blocked: list[float] = []  # seconds that training waited for each save
        self.began = time.monotonic() - seconds
        self._config, self._resolved = config, resolved
        self._schedule, self._card = schedule, card
        self._stage, self._data = stage, data
        self._checkpoints = checkpoints
        self._logged = (start, 0.0)  # step of the last line, seconds waited for input until then
        self.bad_records = BadRecordLog(
            source,
            workdir,
            step=start,
            counts=bad or {},
            max_bad_fraction=config.data.max_bad_fraction,
        )
        self.progress = metrics.Progress(config.total_steps, config.batch_size, start_step=start)
        with contextlib.ExitStack() as stack:  # if one cannot be opened, the others are closed
            opened: list[metrics.Writer] = []
            if multihost.is_primary():
                # Without a checkpoint nothing of an earlier attempt counts, not even its step 0.
                step = start or -1
                opened.append(self.progress)
                jsonl = metrics.JsonlWriter(workdir / 'metrics.jsonl', resume_step=step)
                stack.callback(jsonl.close)
                opened.append(jsonl)
                for create in writers:
                    opened.append(create(workdir, resume_step=step, config=resolved))
                    stack.callback(opened[-1].close)
            self.writer = metrics.MultiWriter(opened)
            self.batches = pipeline.to_device(batches, sharding.over_batch(mesh))
            stack.callback(self.batches.close)
            self._opened = stack.pop_all()

    def log(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """Writes the metrics of a step; ValueError if the last save failed."""
        self._checkpoints.check()
        inner = (STOP, CONSECUTIVE_SKIPS)
        scalars = {k: v.item() for k, v in jax.device_get(numbers).items() if k not in inner}
        skipped = sum(scalars[f'skipped/{reason}'] for reason in skip_updates.REASONS)
        # pyrefly: ignore[bad-argument-type]  # a schedule returns a number here
        scalars['learning_rate'] = float(self._schedule(max(step - 1 - skipped, 0)))
        rate = self.progress.rate(step)
        (last_step, last_waited), waited = self._logged, self.batches.waited
        seconds = (step - last_step) * self._config.batch_size / rate
        scalars |= {'pairs_per_second': rate, 'input_wait': (waited - last_waited) / seconds}
        scalars |= {f'bad_records/{kind}': n for kind, n in self.count_bad(step).items()}
        if self._stage.count > 1:
            scalars['stage'] = self._stage.number
        self.writer.write_scalars(step, scalars)
        self._logged = (step, waited)

    def count_bad(self, step: int) -> dict[str, int]:
        """Returns how many records were replaced until a step, by kind; ValueError if more than
        `data.max_bad_fraction` are bad.
        """
        new, self.batches.bad = self.batches.bad, []
        self.bad_records.add(step, new, seen=self._stage.seen(step))
        return dict(self.bad_records.counts)

    def save(
        self, step: int, state: TrainState, best: dict[int, float], average: Any = None
    ) -> None:
        """Starts to save the state, the card and the input position, in the background; `best` are
        the scores by which checkpoints are kept, `average` is an average of the weights.
        """
        with self.progress.pause():
            began = time.monotonic()
            # A run that resumes from this step finds the metrics until it.
            self.writer.flush()
            about = {
                'bad': self.count_bad(step),
                'card': self._card,
                'config': self._resolved,
                'data': self._data,
                'input': self.batches.get_state(),
                'seconds': time.monotonic() - self.began,
                'versions': environment.versions(),
            }
            self._checkpoints.scores |= best
            self._checkpoints.save(step, state, about, average)
            self.blocked.append(time.monotonic() - began)
            self.saved = step

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; ValueError if it cannot be written."""
        self._checkpoints.wait()

    def saving(self) -> dict[str, float]:
        """How long training waited for the saves of this process, in seconds."""
        if not self.blocked:
            return {'saved': 0}
        return {
            'saved': len(self.blocked),
            'blocked_seconds_median': round(statistics.median(self.blocked), 4),
            'blocked_seconds_max': round(max(self.blocked), 4),
        }

    def close(self) -> None:
        """Stops reading ahead and closes all files."""
        self._opened.close()  # if one fails, the others are closed as well
