"""Checkpoints: saved atomically through Orbax with checksums, and verified before restore.

    checkpoints/<step>/variables  training  about  [average]  manifest.json

A step is written as `<step>.unsealed`. When all files are on disk, its checksums are added as
`manifest.json` and the folder is renamed to `<step>`. Object storage has no rename: there a step
counts only if it has its manifest, which is written last.

Orbax's CheckpointManager is not used: it has no checksums, so it restores corrupt files or fails on
them, where this module falls back to the newest valid step and quarantines the corrupt one.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.places import naming
from clip_jax.runtime import atomic, checksums, multihost, retention
from clip_jax.runtime.messages import Failures, first_few
from clip_jax.step import projections, rules
from clip_jax.step.state import TrainState

FOLDER = naming.CHECKPOINTS
UNSEALED, DELETING, QUARANTINED = '.unsealed', '.deleting', '.damaged'
USED = ('variables', 'about')  # the items that inference needs
AVERAGE = 'average'


class Checkpoints:
    """The checkpoints of a training run; every process calls each method at the same step.

    A step has three items: `variables`, the model's, with adapters only those that are trained;
    `training`, the step number, optimizer state, random key and state of the skip rule; and
    `about`, JSON with the card, the config and the input position. A run with an average of its
    weights has `average` too, that of the parameters that are trained.

    Args:
        workdir: the run directory.
        keep: how many of the newest steps are kept.
        keep_every: also keep the first step at or after each multiple of this; 0: none.
        keep_best: also keep this many steps with the highest `scores`.
        verify: how checksums are verified, as `contents` of `checksums.verify`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int,
        keep_every: int = 0,
        keep_best: int = 0,
        verify: str = 'all',
    ):
        self.folder = epath.Path(workdir) / FOLDER
        self.scores: dict[int, float] = {}  # of evaluated steps, by step, for `keep_best`
        self._retention = {'last': keep, 'every': keep_every, 'best': keep_best}
        self._verify = verify
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                variables=ocp.StandardCheckpointHandler(),
                training=_without_shardings(),
                about=ocp.JsonCheckpointHandler(),
                average=ocp.StandardCheckpointHandler(),
            )
        )
        self._sealing: threading.Thread | None = None
        self._failed: tuple[int, BaseException] | None = None
        if multihost.is_primary():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in inside(self.folder):
                # Left by a process that was killed: incomplete, or about to be deleted.
                if UNSEALED in path.name:
                    path.rmtree()
                elif path.name.endswith(DELETING):
                    _delete(path)
                elif path.name.isdecimal() and not _is_sealed(path):
                    _quarantine(path)
                    logging.warning(
                        '%s: without %s, kept as *%s', path, checksums.NAME, QUARANTINED
                    )

    def newest(self) -> tuple[int | None, dict[int, list[str]]]:
        """Finds the newest valid step, and quarantines newer ones by renaming them.

        Returns:
            The step, None if there are no steps; and the errors of each corrupt step.

        Raises:
            ValueError: if there are steps but none is valid, or if a step cannot be read.
        """
        found = multihost.run_on_primary(lambda: steps(self.folder))
        step, corrupt = _newest_valid(self.folder, found, self._errors)
        if multihost.is_primary():
            for wrong in corrupt:
                _quarantine(self.folder / str(wrong))
        multihost.barrier('newest')
        return step, corrupt

    def _errors(self, step: int) -> list[str]:
        """Verifies a step; each process reads its part of the files."""
        folder, part = self.folder / str(step), (jax.process_index(), jax.process_count())
        try:
            mine = {'errors': checksums.verify(folder, contents=self._verify, part=part)}
        except Exception as error:  # object storage raises many types
            mine = {'unreadable': f'{folder}: {error}'}
        reports = multihost.all_gather_objects(mine)
        for report in reports:
            if 'unreadable' in report:
                # Not corrupt: falling back to an older step would discard a valid one.
                raise ValueError(f'the checkpoint cannot be read: {report["unreadable"]}')
        return list(dict.fromkeys(error for report in reports for error in report['errors']))

    def save(
        self, step: int, state: TrainState, about: dict[str, Any], average: Any = None
    ) -> None:
        """Starts to save a state in the background; training may continue at once.

        Args:
            step: the number of the step.
            state: the train state, sharded in any way.
            about: the JSON item.
            average: an average of the trained parameters; None: there is none.

        Raises:
            ValueError: if this or the previous save failed.
        """
        self.wait()
        target = self.folder / (str(step) if atomic.is_remote(self.folder) else f'{step}{UNSEALED}')
        more = {} if average is None else {AVERAGE: ocp.args.StandardSave(average)}
        args = ocp.args.Composite(
            **more,
            variables=ocp.args.StandardSave(state.variables),
            training=ocp.args.PyTreeSave(_training(state)),
            about=ocp.args.JsonSave(about),
        )
        try:
            self._orbax.save(target, args=args)
        except Exception as error:
            self._failed = step, error
            self.check()
        self._sealing = threading.Thread(target=self._seal, args=(step, target), name='seal')
        self._sealing.start()

    def _seal(self, step: int, target: epath.Path) -> None:
        """Waits until a step is written, adds checksums, renames it, and deletes old steps."""
        try:
            self._orbax.wait_until_finished()
            if multihost.is_primary():
                checksums.write(target)
                if not atomic.is_remote(target):
                    atomic.sync(target)
                    atomic.commit(target, self.folder / str(step))
                self._prune()
        except BaseException as error:  # raised by `check` in the main thread
            self._failed = step, error

    def _prune(self) -> None:
        saved = [step for step in steps(self.folder) if (self.folder / str(step)).is_dir()]
        for step in sorted({*saved} - retention.kept(saved, self.scores, **self._retention)):
            _delete(self.folder / str(step))

    def check(self) -> None:
        """Raises a ValueError if the last save failed."""
        if self._failed:
            (step, error), self._failed = self._failed, None
            saved = steps(self.folder)
            newest = f'that of step {saved[0]:,} is valid' if saved else 'there is no other'
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f'{self.folder}: the checkpoint of step {step:,} could not be written: {lines[0]}; '
                f'{newest}. Free space or fix permissions; the same command then resumes '
                'from there'
            ) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a step.

        Args:
            step: the number of the step.
            like: a state, or its shapes, with the structure, dtypes and shardings to restore to.

        Returns:
            The state.

        Raises:
            ValueError: if keys, shapes or dtypes differ from those of `like`.
        """
        self.wait()
        return restore(self.folder / str(step), like)

    def wait(self) -> None:
        """Waits until all saves are on disk; ValueError if one failed."""
        if self._sealing:
            self._sealing.join()
            self._sealing = None
        self.check()

    def close(self) -> None:
        """Waits until all saves are on disk, then closes Orbax's checkpointer."""
        with contextlib.closing(self._orbax):
            self.wait()


def restore(folder: epath.Path, like: TrainState) -> TrainState:
    """Reads the state in the folder of a step; see Checkpoints.restore."""
    variables = _restore(folder / 'variables', shapes(like.variables))
    training = _restore(folder / 'training', shapes(_training(like)))
    params = {**variables.pop('params'), **training.pop('beside', {})}
    ema = _restore(folder / AVERAGE, shapes(like.ema)) if like.ema else {}
    return TrainState(params=params, buffers=variables, ema=ema, **training)


def _delete(path: epath.Path) -> None:
    """Deletes a step; a failure is only logged, since nothing is lost."""
    try:
        if not atomic.is_remote(path) and not path.name.endswith(DELETING):
            # So that a partly deleted step is not mistaken for a corrupt one.
            path = path.rename(path.with_name(path.name + DELETING))
        path.rmtree()
    except Exception as error:  # somebody may read it; object storage raises many types
        logging.warning('%s cannot be deleted: %s', path, error)


def steps(folder: epath.Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, valid or not, newest first."""
    found = [path for path in inside(folder) if path.name.isdecimal() and _is_sealed(path)]
    return sorted((int(path.name) for path in found), reverse=True)


def _is_sealed(path: epath.Path) -> bool:
    """Whether a save was completed; on object storage an incomplete one also has its final name."""
    return not atomic.is_remote(path) or any(p.name == checksums.NAME for p in path.iterdir())


def described(corrupt: Mapping[int, Sequence[str]]) -> list[str]:
    """Returns a line for each corrupt step: its first error, and how many more there are."""
    return [
        f'step {step:,}: {errors[0]}' + (f' and {len(errors) - 1} more' if errors[1:] else '')
        for step, errors in corrupt.items()
    ]


def absolute(path: str | os.PathLike) -> epath.Path:
    """Returns an absolute path; a path on object storage is one already."""
    path = epath.Path(path)
    return path if atomic.is_remote(path) else path.expanduser().resolve()


def find(path: str | os.PathLike) -> epath.Path:
    """Finds a checkpoint for inference.

    Args:
        path: one checkpoint, a run directory, or its folder of checkpoints.

    Returns:
        The folder of the newest checkpoint with valid variables; corrupt newer ones are logged.

    Raises:
        ValueError: if there is none.
    """
    path = absolute(path)
    if not path.exists():
        raise ValueError(
            f'{path}: no such file or folder; expected a run directory or a checkpoint'
        )
    if is_checkpoint(path):
        if errors := checksums.verify(path, only=USED):
            raise Failures(f'{path}: this checkpoint is corrupt', errors)
        return path
    folder = path if path.name == FOLDER else path / FOLDER
    step, corrupt = _newest_with(folder, USED)
    if corrupt:
        text = '; '.join(described(corrupt))
        logging.warning('%s: corrupt: %s; using step %d', folder, text, step)
    if step is not None:
        return folder / str(step)
    inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else 'a file'
    raise ValueError(
        f'{path}: no checkpoint found; expected a run directory with {FOLDER}/<step>, '
        f'or one such folder; found {inside}'
    )


def _newest_with(
    folder: epath.Path, items: tuple[str, ...]
) -> tuple[int | None, dict[int, list[str]]]:
    """The newest step with these items valid, and the errors of newer ones."""
    return _newest_valid(
        folder, steps(folder), lambda step: checksums.verify(folder / str(step), only=items)
    )


def _newest_valid(
    folder: epath.Path, found: Sequence[int], verify: Callable[[int], list[str]]
) -> tuple[int | None, dict[int, list[str]]]:
    """The first valid step, None if there are no steps, and the errors of those before it.

    ValueError if there are steps but none is valid.
    """
    corrupt: dict[int, list[str]] = {}
    for step in found:
        errors = verify(step)
        if not errors:
            return step, corrupt
        corrupt[step] = errors
    if corrupt:
        raise Failures(f'{folder}: no valid checkpoint', described(corrupt))
    return None, {}


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is one checkpoint, valid or not."""
    return any((path / name).exists() for name in (checksums.NAME, *USED))


def newest_about(workdir: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """Returns the newest step whose JSON item is valid, and that item; None without checkpoints.

    Raises:
        ValueError: if there are checkpoints but none is valid.
    """
    folder = workdir / FOLDER
    step = multihost.run_on_primary(lambda: _newest_with(folder, ('about',))[0])
    return None if step is None else (step, read_about(folder / str(step)))


def read_about(path: epath.Path) -> dict[str, Any]:
    """Reads the JSON item of a checkpoint."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path / 'about')


def read_variables(path: epath.Path, like: Any, mesh: Mesh) -> dict[str, Any]:
    """Reads the variables of a checkpoint, replicated on every device of a mesh.

    Args:
        path: the folder of the checkpoint.
        like: the expected shapes and dtypes.
        mesh: the device mesh.

    Returns:
        Flax variables.

    Raises:
        ValueError: if keys, shapes or dtypes differ from those of `like`.
    """
    everywhere = sharding.replicated(mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like
    )
    return _restore(path / 'variables', shapes)


def read_average(path: epath.Path, variables: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Reads the averaged weights of a checkpoint, replicated on every device of a mesh.

    Args:
        path: the folder of the checkpoint.
        variables: its variables; parameters that are not averaged stay as they are there.
        mesh: the device mesh.

    Raises:
        ValueError: the checkpoint has no average, or that of another model.
    """
    if not (path / AVERAGE).exists():
        raise ValueError(
            f'{path}: has no average of the weights; expected a run with ema.decay, or with an '
            'optimizer that averages'
        )
    if errors := checksums.verify(path, only=(AVERAGE,)):
        raise Failures(f'{path}: the average of the weights is corrupt', errors)
    return {**variables, 'params': _updated(path / AVERAGE, variables['params'], mesh)}


def read_trained(path: epath.Path, variables: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Reads the variables of a checkpoint that has only those that are trained.

    Args:
        path: the folder of the checkpoint.
        variables: all variables; what the checkpoint does not have stays as it is there.
        mesh: the device mesh, on every device of which they are replicated.

    Raises:
        ValueError: the arrays have other shapes or dtypes.
    """
    return _updated(path / 'variables', variables, mesh)


def _updated(path: epath.Path, whole: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A tree with the arrays that one item of a checkpoint has of it."""
    known, everywhere = rules.paths(whole), sharding.replicated(mesh)
    tree = ocp.StandardCheckpointHandler().metadata(path).tree

    def like(key: tuple, found: Any) -> jax.ShapeDtypeStruct:
        x = known.get(sharding.path_name(key), found)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    return rules.update(whole, _restore(path, jax.tree.map_with_path(like, tree)))


def differences(found: Any, expected: Any) -> list[str]:
    """Lists the arrays in which two trees differ by key, shape or dtype."""

    def arrays(tree: Any) -> dict[str, str]:
        flat = ocp.tree.to_flat_dict(tree)
        return {'/'.join(key): f'{x.dtype} {tuple(x.shape)}' for key, x in flat.items()}

    actual, wanted = arrays(found), arrays(expected)
    return [
        f'{name} is {actual.get(name, "missing")}, expected {wanted.get(name, "none")}'
        for name in sorted({**actual, **wanted})
        if actual.get(name) != wanted.get(name)
    ]


def _without_shardings() -> ocp.PyTreeCheckpointHandler:
    """A handler that does not write sharding files.

    They serve programs that restore without naming shardings, and take nearly a third of the CPU
    time of a save.
    """
    handler = ocp.type_handlers.ArrayHandler(enable_write_sharding_file=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _restore(path: epath.Path, shapes: Any) -> Any:
    """Reads one item of a checkpoint; Orbax itself would silently cast other dtypes."""
    handler = ocp.StandardCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        # The checkpointer's own method warns that there is no file of other metadata.
        if wrong := differences(handler.metadata(path).tree, shapes):
            shown = first_few(wrong, separator='; ')
            raise ValueError(f'{path}: not the arrays of this model: {shown}')
        return checkpointer.restore(path, args=ocp.args.StandardRestore(shapes))


def _training(state: TrainState) -> dict[str, Any]:
    _, found = projections.split(state.params)
    return {
        'step': state.step,
        'opt_state': state.opt_state,
        'rng': state.rng,
        'skip_state': state.skip_state,
        # What is trained beside the model.
        **({'beside': {projections.NAME: found}} if found else {}),
    }


def shapes(tree: Any) -> Any:
    """Returns shapes, dtypes and shardings of all arrays of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def inside(folder: epath.Path) -> list[epath.Path]:
    """Lists a folder, [] if it does not exist: on object storage empty folders do not exist.

    OSError if it cannot be read, so that it is not mistaken for an empty one.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _quarantine(path: epath.Path) -> None:
    """Renames a corrupt step, so that its number is free and nothing is lost."""
    aside, count = path.with_name(path.name + QUARANTINED), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f'{path.name}{QUARANTINED}-{count}')
    path.rename(aside)
