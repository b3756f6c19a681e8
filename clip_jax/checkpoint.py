"""Checkpoints through Orbax: variables, what training needs besides, and the card, saved together
or not at all, sealed with checksums, and believed only if these hold.

    checkpoints/<step>/variables  training  about  manifest.json

A step is written as `<step>.unsealed`; once all is on disk its manifest is added and it gets its
name. Object storage cannot rename: there the manifest, written last, is the seal.
"""

import contextlib
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.runtime import atomic, checksums, multihost
from clip_jax.runtime.messages import first_few
from clip_jax.step.state import TrainState

FOLDER = 'checkpoints'
UNSEALED, DELETING, QUARANTINED = '.unsealed', '.deleting', '.damaged'
USED = ('variables', 'about')  # what is enough to use the model


class Checkpoints:
    """The folder `checkpoints/` of a run that is being trained.

    `variables` alone are enough to use the model, `training` holds step number, optimizer state,
    random key and the skip rule's state, `about` is JSON: the card, the config, the input position.
    Every process calls each method at the same step.
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
        self.scores: dict[int, float] = {}  # of the steps that were evaluated, for `keep_best`
        self._retention = {
            'last': keep,
            'every': keep_every,
            'best': keep_best,
        }
        self._verify = verify
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                variables=ocp.StandardCheckpointHandler(),
                training=_without_shardings(),
                about=ocp.JsonCheckpointHandler(),
            )
        )
        self._sealing: threading.Thread | None = None
        self._failed: tuple[int, BaseException] | None = None
        if multihost.is_primary():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in _inside(self.folder):
                # Of a process that was killed: never finished, or already given up.
                if UNSEALED in path.name:
                    path.rmtree()
                elif path.name.endswith(DELETING):
                    _delete(path)
                elif path.name.isdecimal() and not _is_sealed(path):
                    _quarantine(path)
                    print(
                        f'{path}: without {checksums.NAME}, kept as *{QUARANTINED}', file=sys.stderr
                    )

    def newest(self) -> tuple[int | None, dict[int, list[str]]]:
        """Returns the newest step that is whole, or None if there is none at all, and what is wrong
        with each newer one, which is renamed and stays.

        ValueError if there are steps and none is whole, or if one cannot be read.
        """
        there = multihost.run_on_primary(lambda: steps(self.folder))
        step, damaged = _newest_valid(self.folder, there, self._errors)
        if multihost.is_primary():
            for wrong in damaged:
                _quarantine(self.folder / str(wrong))
        multihost.barrier('newest')
        return step, damaged

    def _errors(self, step: int) -> list[str]:
        """What is wrong with a step; each process reads its part."""
        folder, part = self.folder / str(step), (jax.process_index(), jax.process_count())
        try:
            mine = {'found': checksums.verify(folder, contents=self._verify, part=part)}
        except Exception as error:  # those of object storage are of many kinds
            mine = {'unreadable': f'{folder}: {error}'}
        said = multihost.all_gather_objects(mine)
        for one in said:
            if 'unreadable' in one:
                # Not damage: an older step would throw away work that is there.
                raise ValueError(f'the checkpoint cannot be read: {one["unreadable"]}')
        return list(dict.fromkeys(error for one in said for error in one['found']))

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Starts to save a state; training may go on while it is written.

        ValueError if the save before could not be written.
        """
        self.wait()
        target = self.folder / (str(step) if atomic.is_remote(self.folder) else f'{step}{UNSEALED}')
        args = ocp.args.Composite(
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
        """Waits until a step is written, adds its checksums, gives it its name, and deletes what
        need not stay.
        """
        try:
            self._orbax.wait_until_finished()
            if multihost.is_primary():
                checksums.write(target)
                if not atomic.is_remote(target):
                    atomic.sync(target)
                    atomic.commit(target, self.folder / str(step))
                self._prune()
        except BaseException as error:  # raised where training looks
            self._failed = step, error

    def _prune(self) -> None:
        there = [step for step in steps(self.folder) if (self.folder / str(step)).is_dir()]
        for step in sorted({*there} - kept(there, self.scores, **self._retention)):
            _delete(self.folder / str(step))

    def check(self) -> None:
        """ValueError if what was saved last could not be written."""
        if self._failed:
            (step, error), self._failed = self._failed, None
            there = steps(self.folder)
            newest = f'that of step {there[0]:,} is unharmed' if there else 'there is none yet'
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f'{self.folder}: the checkpoint of step {step:,} could not be written: {lines[0]}; '
                f'{newest}. With the cause gone (room, permissions), the same command '
                'resumes from there'
            ) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a step into the structure and onto the devices of `like`: a state, or
        its shapes.

        ValueError if keys, shapes or types differ from those of `like`.
        """
        self.wait()
        folder = self.folder / str(step)
        variables = _restore(folder / 'variables', shapes(like.variables))
        training = _restore(folder / 'training', shapes(_training(like)))
        params = variables.pop('params')
        return TrainState(params=params, buffers=variables, **training)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; ValueError if it cannot be written."""
        if self._sealing:
            self._sealing.join()
            self._sealing = None
        self.check()

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the folder."""
        with contextlib.closing(self._orbax):
            self.wait()


def kept(
    there: Sequence[int],
    scores: Mapping[int, float],
    *,
    last: int,
    every: int,
    best: int,
) -> set[int]:
    """Which steps stay: the `last` ones, the first from each multiple of `every` on (0: none), and
    the `best` ones by score, higher being better; of equals the newer, and none that is NaN.
    """
    scored = [step for step in there if not math.isnan(scores.get(step, math.nan))]
    scored.sort(key=lambda step: (scores[step], step))
    # A save may have come later than it was due.
    first = {step // every: step for step in sorted(there, reverse=True) if step >= every > 0}
    return {
        *sorted(there)[-last:],
        *first.values(),
        *(scored[-best:] if best else ()),
    }


def _delete(path: epath.Path) -> None:
    """Deletes a step; says so if it cannot be, since nothing is lost."""
    try:
        if not atomic.is_remote(path) and not path.name.endswith(DELETING):
            # Killed in the middle of it, what is left is not taken for a damaged step.
            path = path.rename(path.with_name(path.name + DELETING))
        path.rmtree()
    except Exception as error:  # somebody reads it, perhaps; of object storage, of many kinds
        print(f'{path} cannot be deleted: {error}', file=sys.stderr, flush=True)


def steps(folder: epath.Path) -> list[int]:
    """The steps that a folder has checkpoints of, whole or not, the newest first."""
    found = [path for path in _inside(folder) if path.name.isdecimal() and _is_sealed(path)]
    return sorted((int(path.name) for path in found), reverse=True)


def _is_sealed(path: epath.Path) -> bool:
    """Whether a save came to its end; on object storage one that did not has a step's name, too."""
    return not atomic.is_remote(path) or any(p.name == checksums.NAME for p in path.iterdir())


def as_text(damaged: Mapping[int, Sequence[str]]) -> str:
    """What is wrong with some steps, in one line."""
    return '; '.join(
        f'step {step:,}: {found[0]}' + (f' and {len(found) - 1} more' if found[1:] else '')
        for step, found in damaged.items()
    )


def absolute(path: str | os.PathLike) -> epath.Path:
    """Returns a path that is whole, whatever the folder of the program, also on object storage."""
    path = epath.Path(path)
    return path if atomic.is_remote(path) else path.expanduser().resolve()


def find(path: str | epath.Path) -> epath.Path:
    """Returns the checkpoint folder that a path means: one itself, or the newest of a run directory
    whose variables are whole; newer ones that are not are named on stderr.

    ValueError if there is none.
    """
    path = absolute(path)
    if not path.exists():
        raise ValueError(
            f'{path}: there is no such file or folder; expected a run directory or a checkpoint'
        )
    if is_checkpoint(path):
        if found := checksums.verify(path, only=USED):
            raise ValueError(f'{path}: this checkpoint is not whole: {"; ".join(found)}')
        return path
    folder = path if path.name == FOLDER else path / FOLDER
    step, damaged = _newest_with(folder, USED)
    if damaged:
        text = f'{as_text(damaged)}; step {step:,} is taken instead'
        print(f'{folder}: not whole: {text}', file=sys.stderr)
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
    """`_newest_whole` of which these items are looked at alone."""
    return _newest_valid(
        folder, steps(folder), lambda step: checksums.verify(folder / str(step), only=items)
    )


def _newest_valid(
    folder: epath.Path, there: Sequence[int], errors_of: Callable[[int], list[str]]
) -> tuple[int | None, dict[int, list[str]]]:
    """The first of some steps that is valid, None where there are no steps, and the errors of those
    before it; ValueError if none is valid.
    """
    damaged: dict[int, list[str]] = {}
    for step in there:
        found = errors_of(step)
        if not found:
            return step, damaged
        damaged[step] = found
    if damaged:
        raise ValueError(f'{folder}: no checkpoint is whole: {as_text(damaged)}')
    return None, {}


class Entry(NamedTuple):
    """What lies in a folder of checkpoints: a step, or under another name what is none."""

    path: epath.Path
    step: int | None
    errors: list[str]
    bytes: int
    written: float  # seconds since 1970


def entries(path: str | epath.Path, *, contents: str) -> Iterator[Entry]:
    """What a run directory, its folder of checkpoints, or one checkpoint holds, the newest step
    first and what is no step last; `contents` says how closely it is looked at, as for
    checksums.verify.

    ValueError if there is nothing.
    """
    path = absolute(path)
    if not path.exists():
        raise ValueError(f'{path}: there is no such file or folder; expected a run directory')
    if is_checkpoint(path):
        found = [path]
    else:
        folder = path if path.name == FOLDER else path / FOLDER
        known = re.compile(rf'\d+({UNSEALED}.*|{DELETING}|{QUARANTINED}.*)?')
        names = sorted(p.name for p in _inside(folder) if known.fullmatch(p.name))
        names.sort(key=lambda name: -int(name) if name.isdigit() else 1)
        found = [folder / name for name in names]
    if not found:
        raise ValueError(f'{path}: no checkpoint found; expected a run directory with {FOLDER}/')
    for one in found:
        try:
            entry = _entry(one, contents)
        except FileNotFoundError:
            if one.exists() and (one.name.isdigit() or one == path):
                raise
            continue  # a training beside this writes it, or deletes it
        if one.exists():
            yield entry


def _entry(path: epath.Path, contents: str) -> Entry:
    stat = checksums.stat(path / checksums.NAME if (path / checksums.NAME).exists() else path)
    return Entry(
        path=path,
        step=int(path.name) if path.name.isdigit() else None,
        errors=checksums.verify(path, contents=contents),
        bytes=checksums.size(path) if path.is_dir() else stat.bytes,
        written=stat.written,
    )


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is one checkpoint, whole or not."""
    return any((path / name).exists() for name in (checksums.NAME, *USED))


def newest_card(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the card in the newest checkpoint whose JSON part is whole, None where there is no
    checkpoint. ValueError if there are some and none is whole.
    """
    folder = workdir / FOLDER
    step = multihost.run_on_primary(lambda: _newest_with(folder, ('about',))[0])
    return None if step is None else read_about(folder / str(step))['card']


def read_about(path: epath.Path) -> dict[str, Any]:
    """Reads the JSON part of a checkpoint folder."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path / 'about')


def read_variables(path: epath.Path, like: Any, mesh: Mesh) -> dict[str, Any]:
    """Reads the variables of a checkpoint folder onto every device; `like` says their shapes and
    types.

    ValueError if keys, shapes or types differ from those of `like`.
    """
    everywhere = sharding.replicated(mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like
    )
    return _restore(path / 'variables', shapes)


def differences(found: Any, expected: Any) -> list[str]:
    """Says in which arrays, by key, shape or type, two trees differ."""

    def arrays(tree: Any) -> dict[str, str]:
        flat = ocp.tree.to_flat_dict(tree)
        return {'/'.join(key): f'{x.dtype} {tuple(x.shape)}' for key, x in flat.items()}

    there, here = arrays(found), arrays(expected)
    return [
        f'{name} is {there.get(name, "missing")}, expected {here.get(name, "none")}'
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name)
    ]


def first_of(wrong: Sequence[str], count: int = 6) -> str:
    """The first few of many things that are wrong, in one line."""
    return first_few(wrong, count, separator='; ')


def _without_shardings() -> ocp.PyTreeCheckpointHandler:
    """What writes arrays, and not how they lay on devices: that is for programs that read them
    without saying how, and takes nearly a third of the processor's time of writing them.
    """
    handler = ocp.type_handlers.ArrayHandler(enable_write_sharding_file=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _restore(path: epath.Path, shapes: Any) -> Any:
    """Reads one item of a checkpoint; Orbax itself would cast another type without a word."""
    handler = ocp.StandardCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        # The checkpointer's own method warns that there is no file of what is beside the arrays.
        if wrong := differences(handler.metadata(path).tree, shapes):
            raise ValueError(f'{path}: not the arrays of this model: {first_of(wrong)}')
        return checkpointer.restore(path, args=ocp.args.StandardRestore(shapes))


def _training(state: TrainState) -> dict[str, Any]:
    return {
        'step': state.step,
        'opt_state': state.opt_state,
        'rng': state.rng,
        'skip_state': state.skip_state,
    }


def shapes(tree: Any) -> Any:
    """Shapes, types and shardings of all arrays of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _inside(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; on object storage there is no folder where nothing lies. OSError if it
    cannot be read, which is not to look as if there were nothing.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _quarantine(path: epath.Path) -> None:
    """Renames a damaged step, so that its number is free and nothing of it is lost."""
    aside, count = path.with_name(path.name + QUARANTINED), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f'{path.name}{QUARANTINED}-{count}')
    path.rename(aside)
