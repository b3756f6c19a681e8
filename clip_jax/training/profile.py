"""A trace of some steps of a run, which xprof and TensorBoard open."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from clip_jax.runtime import atomic, multihost

FOLDER = 'profile'
_TRACES = f'{FOLDER}/plugins/profile'  # where xprof and TensorBoard look, below FOLDER


def check(config: Mapping[str, Any], total_steps: int) -> None:
    """Checks that a run has the steps that its config wants to be traced.

    Args:
        config: the config's `profile`.
        total_steps: the steps of the run.

    Raises:
        ValueError: it does not have them.
    """
    first, steps = config['start_step'], config['steps']
    if steps < 1:
        raise ValueError(f'profile.steps is {steps}; expected at least 1')
    if first is None:
        return
    most = total_steps - steps + 1
    if most < 1:
        raise ValueError(
            f'profile.steps is {steps}; expected at most total_steps, which is {total_steps:,}'
        )
    if not 1 <= first <= most:
        raise ValueError(
            f'profile.start_step is {first}; expected 1 to {most:,}, so that {steps} of '
            f'{total_steps:,} steps can be traced from it'
        )


def traces(workdir: epath.Path) -> list[str]:
    """Returns the folders with traces, relative to the run directory."""
    folder = workdir / _TRACES
    if not folder.is_dir():
        return []
    return sorted(f'{_TRACES}/{path.name}' for path in folder.iterdir())


class Window:
    """The steps of a run that are traced, on every process. Those that a run repeats after it
    resumes are traced again.

    Args:
        config: the config's `profile`.
        workdir: the run directory.
    """

    def __init__(self, config: Mapping[str, Any], workdir: epath.Path):
        first = config['start_step']
        self._steps = range(first, first + config['steps']) if first else range(0)
        self._workdir = workdir
        self._began: int | None = None  # the first step of the trace that is being taken
        self._last = 0  # the last step in it
        self._folder: tempfile.TemporaryDirectory | None = None

    @contextlib.contextmanager
    def step(self, step: int, state: Any) -> Iterator[None]:
        """A step, from its input to its dispatch; `state` is what the steps before it computed."""
        if step in self._steps:
            if self._began is None:
                jax.block_until_ready(state)  # they are not in the trace
                self._begin(step)
            self._last = step
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
            yield

    def end(self, step: int, numbers: Any) -> None:
        """Writes the trace if a step is its last; `numbers` are what the step computes."""
        if self._began is not None and step == self._steps[-1]:
            jax.block_until_ready(numbers)
            self.close()

    def close(self) -> None:
        """Ends a trace that is being taken, and writes what it has."""
        if self._began is None:
            return
        name, self._began = f'steps-{self._began}-{self._last}', None
        jax.profiler.stop_trace()
        assert self._folder is not None
        with self._folder as folder:
            # A name of its own for each process: several may run on one machine.
            for trace in pathlib.Path(folder).rglob('*.xplane.pb'):
                file = f'{_TRACES}/{name}/process-{jax.process_index()}.xplane.pb'
                atomic.write(self._workdir / file, trace.read_bytes())
        if multihost.is_primary():
            print(f'{name}: traced in {self._workdir / FOLDER}', flush=True)

    def _begin(self, step: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix='clip_jax-profile-')
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python's would be slow, and hide the rest
        jax.profiler.start_trace(self._folder.name, profiler_options=options)
        self._began = step
