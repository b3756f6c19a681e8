"""Stages of a run: parts of its steps with an image size, batch, data or rate of their own.

A run of several stages is a sequence of resumed runs: each stage ends with a checkpoint, and the
next one begins from the newest. So it does not matter whether a process was killed there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from clip_jax import build, lookup, sharding
from clip_jax.data import examples, sources
from clip_jax.data.shuffle import GlobalShuffle
from clip_jax.data.sources import parts_of
from clip_jax.models import clip
from clip_jax.runtime import multihost
from clip_jax.training import config_schema

# What a stage may change besides data.augment, with its type.
KEYS: dict[str, type] = {
    'batch_size': int,
    'microbatches': int,
    'optimizer.learning_rate': float,
    'data.train': str,
    'data.budgets': tuple,
    'data.patch_sizes': tuple,
    'model.image.image_size': int,
    'model.image.patch_dropout': float,
}
IMAGE, AUGMENT = 'model.image.', 'data.augment.'

# What else than its own type a value may be.
_WIDER: dict[Any, tuple[type, ...]] = {float: (int, float), tuple: (list, tuple)}


class Stage(NamedTuple):
    """The steps from `first` + 1 to `last` of a run.

    Attributes:
        number: 1 for the first stage.
        count: the number of stages.
        config: the config of the run with the values of this stage, and without `stages`.
        image: the fields of the image encoder that are of this stage.
        pairs: pairs that the stages before it see.
    """

    number: int
    count: int
    first: int
    last: int
    config: ConfigDict
    image: dict[str, Any]
    pairs: int

    def seen(self, step: int) -> int:
        """Returns the number of pairs until a step of this stage."""
        return self.pairs + (step - self.first) * self.config.batch_size

    def adapted(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the card of the run with the image size and patch dropout of this stage."""
        image = {**card['model']['image'], **self.image}
        model = {**card['model'], 'image': image}
        return {**card, 'model': model, 'preprocess': _sized(card['preprocess'], image)}

    def __str__(self) -> str:
        size = {'batch_size': self.config.batch_size, **self.image}
        values = ', '.join(f'{k} {v}' for k, v in size.items())
        return (
            f'stage {self.number} of {self.count}: {self.last - self.first:,} steps after '
            f'step {self.first:,}, {values}'
        )


def _sized(preprocess: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    return {**preprocess, 'size': image['image_size']}


def of(config: ConfigDict) -> list[Stage]:
    """Returns the stages of a run, one without a change if its config has none.

    Raises:
        ValueError: a stage has an unknown key or a value of another type, the steps of all do not
            add up to `total_steps`, or a field of the model is set in some stages only.
    """
    total = config.total_steps
    if not config.stages:
        return [Stage(1, 1, 0, total, config, {}, 0)]
    entries = [_checked(i, entry, config) for i, entry in enumerate(config.stages)]
    if (found := sum(entry['steps'] for entry in entries)) != total:
        raise ValueError(
            f'stages: their steps add up to {found:,}; expected total_steps, {total:,}'
        )
    varied = sorted({key for entry in entries for key in entry if key.startswith(IMAGE)})
    stages: list[Stage] = []
    first = pairs = 0
    for i, entry in enumerate(entries):
        own = ConfigDict(config.to_dict()).unlock()
        own.stages = ()
        for key, value in entry.items():
            if key != 'steps':
                _set(own, key, value)
        for key in varied:
            if _get(own, key) is None:
                raise ValueError(
                    f'stages[{i}]: without {key}, which another stage sets; expected it in every '
                    f'stage, or config.{key}'
                )
        image = {key.removeprefix(IMAGE): _get(own, key) for key in varied}
        last = first + entry['steps']
        stages.append(Stage(i + 1, len(entries), first, last, own.lock(), image, pairs))
        first, pairs = last, stages[-1].seen(last)
    return stages


def numbered(config: ConfigDict, number: int) -> ConfigDict:
    """Returns the config of a stage by its number, from 1; ValueError if there is none."""
    found = of(config)
    if not config.stages or not 1 <= number <= len(found):
        raise ValueError(
            f'--stage is {number}; expected 1 to {len(config.stages)}, the stages of the config'
            if config.stages
            else f'--stage is {number}, and the config has no stages; leave it out'
        )
    return found[number - 1].config


def check_none(config: ConfigDict) -> None:
    """Raises ValueError if a config has stages: what reads it takes that of one stage."""
    if config.get('stages'):
        raise ValueError(
            f'config.stages has {len(config.stages)} stages; expected a config without stages. '
            'clip-jax train trains all, clip-jax plan takes one with --stage=N'
        )


def _checked(number: int, entry: Any, config: ConfigDict) -> dict[str, Any]:
    """A stage of the config; ValueError if a key or the type of a value is wrong."""
    what = f'stages[{number}]'
    if not hasattr(entry, 'items'):
        raise ValueError(f"{what} is {entry!r}; expected keys and values, as {{'steps': 100}}")
    entry = dict(entry)
    types = {'steps': int, **KEYS}
    types |= {f'{AUGMENT}{name}': type(x) for name, x in config.data.augment.items()}
    for key, value in entry.items():
        expected = types[lookup.check(key, types, what=what)]
        allowed = _WIDER.get(expected, (expected,))
        wrong = isinstance(value, bool) and expected is not bool
        if wrong or not isinstance(value, allowed):
            names = {int: 'an integer', float: 'a number', str: 'a text', tuple: 'a tuple'}
            raise ValueError(
                f'{what}: {key} is {value!r}; expected {names.get(expected, "True or False")}'
            )
        if expected is int and value < 1:
            raise ValueError(f'{what}: {key} is {value}; expected at least 1')
    if 'steps' not in entry:
        raise ValueError(f'{what} has no steps; expected an integer')
    return entry


def _get(config: ConfigDict, key: str) -> Any:
    for name in key.split('.'):
        config = config[name]
    return config


def _set(config: ConfigDict, key: str, value: Any) -> None:
    path, _, name = key.rpartition('.')
    tree = _get(config, path) if path else config
    tree[name] = value


def after(stages: Sequence[Stage], step: int) -> Stage:
    """Returns the stage that follows a step; the last one after all of them."""
    return next((stage for stage in stages if step < stage.last), stages[-1])


def check_past(stages: Sequence[Mapping[str, Any]], now: Sequence[Any], step: int) -> None:
    """Raises ValueError if stages differ in what they were until a step. Data may have moved.

    Args:
        stages: `stages` of the config of a checkpoint.
        now: those of the config of the run that resumes from it.
        step: the step of the checkpoint.
    """
    if _until(stages, step) != _until(now, step):
        raise ValueError(
            f'stages: step {step:,} was made with other ones; expected the same stages until '
            'there. Only later ones can change'
        )


def _until(stages: Sequence[Mapping[str, Any]], step: int) -> list[tuple[int, dict[str, Any]]]:
    """The last step, at most `step`, and the changes of each stage that began before `step`."""
    found: list[tuple[int, dict[str, Any]]] = []
    last = 0
    for entry in stages or ({'steps': step},):
        if last >= step:
            break
        last += entry['steps']
        own = {k: v for k, v in entry.items() if k not in ('steps', 'data.train')}
        if found and found[-1][1] == own:  # one stage, split
            found.pop()
        found.append((min(last, step), own))
    return found


def check(stages: Sequence[Stage]) -> None:
    """Checks what the config of each stage says of its batches and data; nothing is opened.

    Raises:
        ValueError: a value cannot be used; the message says in which stage.
    """
    for stage in stages:
        config = stage.config
        try:
            config_schema.check(config)
            mesh = sharding.make_mesh(**build.given(config.mesh, 'shard_optimizer'))
            sharding.check_batch(config.batch_size, config.microbatches, mesh)
            sources.check(config.data.train)
            examples.Augment(**config.data.augment)
        except ValueError as error:
            raise _named(stage, error) from None


def check_later(stages: Sequence[Stage], now: Stage, card: Mapping[str, Any]) -> None:
    """Checks the stages after one: that their models can be made from it, and their data exist.

    Args:
        stages: all stages.
        now: the stage that is trained now.
        card: its card.

    Raises:
        ValueError: a stage cannot be trained; the message says which.
    """
    train = now.config.data.train
    for stage in stages[now.number :]:
        try:
            check_model(stage, card)
            if stage.config.data.train != train:
                multihost.primary_first(lambda stage=stage: _check_data(stage.config))
        except ValueError as error:
            raise _named(stage, error) from None


def check_model(stage: Stage, card: Mapping[str, Any]) -> None:
    """Raises ValueError if the model of a card cannot become that of a stage."""
    model = clip.from_card(card['model'])
    fields = stage.adapted(card)['model']
    size = fields['image']['image_size']
    jax.eval_shape(
        lambda variables: clip.with_image_size(card['model'], variables, size)[1],
        clip.shapes(model),
    )
    clip.from_card(fields)


def _check_data(config: ConfigDict) -> None:
    source = build.source(config.data.train, config.data.options.to_dict())
    GlobalShuffle(parts_of(source), config.batch_size, config.seed)


def _named(stage: Stage, error: ValueError) -> ValueError:
    where = f'stages[{stage.number - 1}]: ' if stage.count > 1 else ''
    return ValueError(f'{where}{error}')
