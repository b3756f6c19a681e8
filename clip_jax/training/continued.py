"""What a run continues from a checkpoint: its stage, and the position in its data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from clip_jax import checkpoint
from clip_jax.data.fingerprint import fingerprint
from clip_jax.data.sources import Source
from clip_jax.models import clip
from clip_jax.runtime import checksums, multihost
from clip_jax.runtime.messages import Failures
from clip_jax.step import image_size, rules
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.state import TrainState
from clip_jax.training import run_directory, stages
from clip_jax.training.stages import Stage

About = Mapping[str, Any]  # the JSON item of a checkpoint
Newest = tuple[int, About]


def begin(
    config: ConfigDict,
    workdir: epath.Path,
    resolved: Mapping[str, Any],
    find_start: Callable[[ConfigDict], str],
) -> tuple[Stage, Newest | None]:
    """Returns the stage that a run continues with, and its newest checkpoint.

    Args:
        config: the config of the run.
        workdir: the run directory.
        resolved: the config as JSON.
        find_start: the config -> the checkpoint that a new run starts from (setup.find_start).

    Returns:
        The stage; and step and JSON item of the newest checkpoint in `workdir`, None without one.

    Raises:
        ValueError: a stage is wrong, or one that is over has changed.
    """
    found = stages.of(config)
    stages.check(found)
    newest, step = checkpoint.newest_about(workdir), 0
    if newest:
        step, about = newest
        if 'config' in about:
            stages.check_past(about['config'].get('stages', ()), resolved['stages'], step)
        return stages.after(found, step), newest
    if config.init_state == 'all':
        step = int(epath.Path(find_start(config)).name)
    return stages.after(found, step), None


def identity(config: ConfigDict, source: Source) -> dict[str, str]:
    """Returns the SPEC of the training data, and their fingerprint."""
    found = multihost.run_on_primary(lambda: fingerprint(source))
    return {'train': config.data.train, 'fingerprint': found}


def check(
    config: ConfigDict,
    workdir: epath.Path,
    newest: Newest | None,
    data: Mapping[str, str],
    allow_changes: Sequence[str],
) -> None:
    """Checks that data whose path has changed have the same records.

    Args:
        config: the config of the run.
        workdir: the run directory.
        newest: its newest checkpoint, None without one.
        data: the identity of its training data.
        allow_changes: keys of the config that may differ.

    Raises:
        ValueError: the path is another one, and the records are not the same.
    """

    def stored() -> str | None:
        path = workdir / 'config.json'
        return run_directory.read_json(path)['data']['train'] if path.exists() else None

    before, now = multihost.run_on_primary(stored), config.data.train
    if before in (None, now) or run_directory.is_below('data.train', allow_changes):
        return
    if newest is None or newest[1]['data']['fingerprint'] != data['fingerprint']:
        raise ValueError(
            f'{workdir}: holds a run of other data (data.train is {before} there, {now} now, and '
            'its records are not the same); expected the same data, another --workdir, or '
            '--allow-change=data.train to resume with the new value'
        )
    if multihost.is_primary():
        print(f'{workdir}: resumes with data.train {now}, which was {before}: the same records')


def position(about: About, data: Mapping[str, str], batch_size: int) -> dict[str, int] | None:
    """Returns where the input resumes, None for other data, which start at their beginning.

    It is the first batch that has no example twice, which matters only if the batch size has
    changed.
    """
    if not same_data(about, data):
        return None
    return {k: -(-v // batch_size) * batch_size for k, v in about['input'].items()}


def same_data(about: About, data: Mapping[str, str]) -> bool:
    """Whether the data of a checkpoint are those of the run, by their SPEC or fingerprint."""
    return any(about['data'][key] == data[key] for key in data)


def restore(
    read: Callable[[TrainState], TrainState],
    like: TrainState,
    saved: tuple[clip.CLIP, TrainState] | None,
    optimizer: Optimizer,
    size: int,
) -> TrainState:
    """Reads the state of a checkpoint, and interpolates positions if its images had another size.

    Args:
        read: the shapes of a state -> that state.
        like: the shapes of the state to return.
        saved: for images of another size, the model and the shapes of the state there.
        optimizer: the optimizer.
        size: the height and width of images now.
    """
    if saved is None:
        return read(like)
    model, state = saved
    return image_size.resized(read(state), like, model, optimizer, size)


def check_state(folder: epath.Path) -> None:
    """Raises ValueError if a checkpoint has not the whole state of a run, or is corrupt."""
    if not (folder / 'training').exists() or not folder.name.isdecimal():
        raise ValueError(
            f'init_state is all, and {folder} has no state of training, as a model that '
            'clip-jax interpolate wrote; expected the checkpoint of a run, or init_state weights'
        )
    if errors := checksums.verify(folder, only=('training', checkpoint.AVERAGE)):
        raise Failures(f'{folder}: this checkpoint is corrupt', errors)
    if rules.LORA in checkpoint.read_about(folder)['card']:
        raise ValueError(
            f'init_state is all, and {folder} has the state of adapters only; resume its run with '
            '--allow-change=total_steps, or set init_state to weights'
        )
