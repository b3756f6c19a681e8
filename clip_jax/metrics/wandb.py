"""Weights & Biases; needs `pip install 'clipax[wandb]'`."""

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax.metrics._writer import Writer, split_images, to_python
from clip_jax.runtime import atomic, foreign_json

RUN_FILE = 'wandb.json'  # in the run directory: the id of its W&B run


def create(
    workdir: str | os.PathLike,
    *,
    resume_step: int,
    config: Mapping[str, Any],
    project: str = 'clip_jax',
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
) -> Writer:
    """Starts the W&B run of a run directory, or resumes it by its id.

    Args:
        workdir: the run directory.
        resume_step: the step that training resumes from, -1 for a new run.
        config: the training config, shown with the W&B run.
        project: the W&B project.
        entity: a user or team; by default that of the login.
        name: the name of the W&B run; by default that of the run directory.
        group: a group of W&B runs.
        tags: tags of the W&B run.
        mode: online, offline or disabled; by default $WANDB_MODE, or online.

    Raises:
        ValueError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"metric writer wandb: cannot import wandb ({error}); pip install 'clipax[wandb]'"
        ) from None
    workdir = epath.Path(workdir)
    run = wandb.init(
        id=_run_id(workdir, resume_step),
        resume='allow',
        dir=None if atomic.is_remote(workdir) else str(workdir),
        config=dict(config),
        project=project,
        entity=entity,
        name=name or workdir.name,
        group=group,
        tags=list(tags),
        mode=mode,
    )
    return WandbWriter(run, wandb.Image)


def _run_id(workdir: epath.Path, resume_step: int) -> str:
    """The id of the run directory's W&B run; a new one if training starts anew."""
    path = workdir / RUN_FILE
    if resume_step >= 0 and path.exists():
        return foreign_json.read(path, {'id': str})['id']
    run_id = secrets.token_hex(4)
    atomic.write_json(path, {'id': run_id})
    return run_id


class WandbWriter(Writer):
    """Logs to a W&B run.

    W&B accepts no step twice. Steps that a resumed W&B run already has, because training was
    interrupted after them and before a checkpoint, are left out: training repeats them exactly.

    Args:
        run: a W&B run.
        image: makes an image of W&B from uint8 [H, W, 3].
    """

    def __init__(self, run: Any, image: Any):
        self._run, self._image = run, image
        self._first = run.starting_step  # 0 for a new run, else the step after the last

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._log(step, to_python(scalars))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._log(step, {k: self._image(np.asarray(v)) for k, v in split_images(images).items()})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._first:
            self._run.log(values, step=int(step))
