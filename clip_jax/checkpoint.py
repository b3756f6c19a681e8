"""Checkpoints through Orbax: variables, what training needs besides, and the card, saved together
or not at all.
"""

import re
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.state import TrainState

FOLDER = 'checkpoints'


class Checkpoints:
    """The folder `checkpoints/` of a run: `<step>/variables`, `<step>/training`, `<step>/about`.

    `variables` alone are enough to use the model, `training` holds step number, optimizer state and
    random key, `about` is JSON: the card, the config, the input position.
    """

    def __init__(self, workdir: epath.Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            workdir / FOLDER,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Starts to save a state; training may go on while it is written."""
        training = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave(training),
                about=ocp.args.JsonSave(about),
            ),
        )

    def about(self, step: int) -> dict[str, Any]:
        """Reads the JSON part of a checkpoint: card, config, input position."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)['about']

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a step into the structure and onto the devices of `like`."""
        training = {'step': like.step, 'opt_state': like.opt_state, 'rng': like.rng}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_shapes(like.variables)),
                training=ocp.args.StandardRestore(_shapes(training)),
            ),
        )
        buffers = restored['variables']
        params = buffers.pop('params')
        return TrainState(params=params, buffers=buffers, **restored['training'])

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the folder."""
        self._manager.close()


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def find(path: str | epath.Path) -> epath.Path:
    """Returns the checkpoint folder that a path means: one itself, or a run directory's newest."""
    path = epath.Path(path).expanduser().resolve()
    if not path.exists():
        raise ValueError(
            f'{path}: there is no such file or folder; expected a run directory or a checkpoint'
        )
    if (path / 'variables').is_dir() and (path / 'about').is_dir():
        return path
    folder = path if path.name == FOLDER else path / FOLDER
    steps = [p for p in folder.glob('*') if re.fullmatch(r'\d+', p.name)] if folder.is_dir() else []
    if not steps:
        inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else 'a file'
        raise ValueError(
            f'{path}: no checkpoint found; expected a run directory with {FOLDER}/<step>, '
            f'or one such folder; found {inside}'
        )
    return max(steps, key=lambda p: int(p.name))


def read_about(path: epath.Path) -> dict[str, Any]:
    """Reads the JSON part of a checkpoint folder."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path / 'about')


def read_variables(path: epath.Path, like: Any, mesh: Mesh) -> dict[str, Any]:
    """Reads the variables of a checkpoint folder onto every device; `like` says their shapes and
    types.
    """
    everywhere = sharding.replicated(mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / 'variables', shapes)
