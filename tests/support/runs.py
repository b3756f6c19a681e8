"""Runs of `clip-jax`, in this process or in one of their own, and what they leave."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from clip_jax import metrics
from support.process import clip_jax_command, environment


class Done(NamedTuple):
    """How a command ended, as subprocess.CompletedProcess has it."""

    returncode: int | None
    stdout: str
    stderr: str


def command(*arguments: object) -> Done:
    """Runs `clip-jax ARGUMENTS` in this process, to its end."""
    from clip_jax.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def copied_until(run: Path, workdir: Path, step: int) -> Path:
    """Copies a complete run to `workdir` as it was when it had saved a step; returns `workdir`."""
    shutil.copytree(run, workdir)
    for folder in (workdir / 'checkpoints').iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    (workdir / 'summary.json').unlink()
    return workdir


def train(config: Path, workdir: Path, *changes: str) -> Done:
    """Trains in this process; `changes` are config keys with their values."""
    flags = [f'--config.{change}' for change in changes]
    return command('train', f'--config={config}', f'--workdir={workdir}', *flags)


def rows(workdir: Path) -> list[dict]:
    """The lines of the metrics of a run."""
    path = workdir / 'metrics.jsonl'
    return metrics.read_jsonl(path) if path.exists() else []


def training(workdir: Path) -> list[dict]:
    """What training computed at each step, without what depends on the clock."""
    clock = {'pairs_per_second', 'input_wait'}
    found = [row for row in rows(workdir) if 'loss' in row]
    return [{k: v for k, v in row.items() if k not in clock} for row in found]


def summary(workdir: Path) -> dict:
    """The summary of a complete run."""
    return json.loads((workdir / 'summary.json').read_text())


class Process:
    """A `clip-jax train` that can be stopped; its output goes to files."""

    def __init__(self, workdir: Path, config: Path, *more: str, **options):
        # Evaluating at each step takes time, so that a signal arrives between two steps, and
        # changes nothing in training. Checkpoints are written at 5 and 10.
        changes = '--config.eval_every=1', '--config.checkpoint.every=5', *more
        flags = f'--config={config}', f'--workdir={workdir}', *changes
        self.workdir = workdir
        self.out, self.err = workdir.with_suffix('.out'), workdir.with_suffix('.err')
        with self.out.open('w') as out, self.err.open('w') as err:
            self.process = subprocess.Popen(
                clip_jax_command('train', *flags),
                stdout=out,
                stderr=err,
                env=environment(),
                **options,
            )

    def until(self, text: str) -> None:
        """Waits until there is a text in stderr; AssertionError if the process ends before."""
        end = time.monotonic() + 200
        while text not in self.err.read_text():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.005)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> 'End':
        """Waits for the end of the process and says what there is then."""
        code = self.process.wait(200)
        steps = [row['step'] for row in training(self.workdir)]
        saved = [int(path.name) for path in (self.workdir / 'checkpoints').iterdir()]
        out, err = self.out.read_text(), self.err.read_text()
        return End(code, steps, max(saved, default=0), out, err)


class End(NamedTuple):
    """What a process left: exit code, logged steps, newest checkpoint, its output."""

    code: int
    steps: list[int]
    saved: int
    out: str
    err: str
