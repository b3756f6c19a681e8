"""Adapters in a run (config.lora): what they begin with, and what a checkpoint has of a state."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import sharding
from clip_jax.models import clip
from clip_jax.models.clip import CLIP
from clip_jax.models.fingerprint import fingerprint
from clip_jax.runtime import atomic
from clip_jax.step import lora, rules
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.rules import LORA
from clip_jax.step.state import TrainState


def wanted(config: ConfigDict) -> bool:
    """Whether a run has adapters; ValueError if its other keys do not allow it."""
    ranks = [f'lora.{tower}.rank is {x.rank}' for tower, x in config.lora.items() if x.rank]
    if ranks and not config.init_from:
        raise ValueError(f'{ranks[0]}, which needs init_from, the model that has the adapters')
    if ranks and config.init_state == 'all':
        raise ValueError(
            f'{ranks[0]}, and init_state is all; adapters begin without a state: expected weights'
        )
    return bool(ranks)


def base(start: str, variables: dict[str, Any], workdir: Any) -> dict[str, Any]:
    """Returns what the card says of the model that has the adapters.

    Args:
        start: its absolute path.
        variables: its variables.
        workdir: the run directory, whose path from here to there is noted too.
    """
    local = not (atomic.is_remote(start) or atomic.is_remote(workdir))
    relative = os.path.relpath(start, workdir) if local else ''
    return {'base': start, 'relative': relative, 'fingerprint': fingerprint(variables)}


def added(
    config: ConfigDict,
    card: dict[str, Any],
    variables: dict[str, Any] | None,
    model: CLIP,
    mesh: Mesh,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Adds new adapters to the card and the variables of a run, if it has any.

    Returns:
        The card, the variables, and the shapes of all parameters.
    """
    params = clip.shapes(model)['params']
    found = lora.resolve(config.lora, params, clip.logical_axes(model))
    if found is None:
        return card, variables, params
    assert variables is not None  # `wanted` asks for init_from
    new = jax.device_put(found.init(config.seed), sharding.replicated(mesh))
    variables = {**variables, 'params': {**variables['params'], LORA: new}}
    card = {**card, LORA: {**card[LORA], **found.towers}}
    return card, variables, {**params, LORA: found.abstract()}


def stored(state: TrainState, optimizer: Optimizer) -> TrainState:
    """Returns the part of a state that checkpoints have: of a run with adapters, the parameters
    that are trained.
    """
    if LORA not in state.params:
        return state
    return dataclasses.replace(state, params=optimizer.split(state.params)[0])


def completed(state: TrainState, optimizer: Optimizer) -> Callable[[TrainState], TrainState]:
    """Returns the function that adds to a restored state what checkpoints do not have.

    Args:
        state: a new state, which has it.
        optimizer: the optimizer, which says what is trained.
    """
    teachers = state.teachers
    frozen = optimizer.split(state.params)[1] if LORA in state.params else None

    def complete(restored: TrainState) -> TrainState:
        params = restored.params
        params = params if frozen is None else rules.merge(params, frozen)
        return dataclasses.replace(restored, teachers=teachers, params=params)

    return complete
