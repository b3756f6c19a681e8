"""Projections to the embedding sizes of teachers: trained beside a model, and no part of it.

The parameters of a train state have them in a sub-tree of their own, `distillation/TEACHER/image`
and `…/text`, so that rules, optimizers and averages treat them as any others.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import sharding
from clip_jax.step.rules import DISTILLATION as NAME

SIDES = ('image', 'text')
Sizes = Mapping[str, tuple[int, int]]  # teacher -> sizes of the student's and its embeddings


def init(sizes: Sizes, key: jax.Array) -> dict[str, Any]:
    """Returns random projections as a sub-tree of parameters, {} if there are none."""
    initializer = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    found = {}
    for i, (name, shape) in enumerate(sorted(sizes.items())):
        keys = jax.random.split(jax.random.fold_in(key, i), len(SIDES))
        made = [{'kernel': initializer(one, shape, jnp.float32)} for one in keys]
        found[name] = dict(zip(SIDES, made, strict=True))
    return {NAME: found} if found else {}


def shapes(sizes: Sizes) -> dict[str, Any]:
    """Returns the shapes and dtypes of what `init` returns."""
    return jax.eval_shape(lambda: init(sizes, jax.random.key(0)))


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into those of the model and the projections by teacher."""
    return {k: v for k, v in params.items() if k != NAME}, dict(params.get(NAME, {}))


def logical_axes(of_model: sharding.LogicalAxes) -> sharding.LogicalAxes:
    """Returns the logical axes of parameters from those of the model's own; projections are not
    sharded.
    """

    def axes(path: str, ndim: int) -> tuple[str | None, ...]:
        return (None,) * ndim if NAME in path.split('/') else tuple(of_model(path, ndim))

    return axes
