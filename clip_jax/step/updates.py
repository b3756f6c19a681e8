"""Parts of an optimizer: clipping, weight decay, learning rates, the bound on the logit scale."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax import sharding
from clip_jax.step.rules import Settings

MAX_LOGIT_SCALE = math.log(100)  # updates are clipped to it (arXiv 2103.00020, section 2.5)


def clip_by_global_norm(maximum: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients whose global norm exceeds `maximum` down to it.

    `update` takes the norm, if it is known, as `grad_norm`.

    It multiplies by one factor, where optax's divides each number by the norm: a compiler then does
    so where the gradients are read, and writes no clipped gradients to memory.
    """

    def update(updates, state, params=None, *, grad_norm=None, **others):
        del params, others
        norm = optax.global_norm(updates) if grad_norm is None else grad_norm
        factor = jnp.minimum(1, maximum / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    # Optax does not name the argument.
    # pyrefly: ignore[bad-argument-type]
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def add_weight_decay(settings: Settings) -> optax.GradientTransformation:
    """Adds each parameter's weight decay times the parameter to its update."""

    def update(updates, state, params):
        def one(path, step, value):
            decay = _setting(settings, path).weight_decay
            return step + decay * value if decay else step

        return jax.tree.map_with_path(one, updates, params), state

    # Optax has updates whose `params` is optional; this one needs them.
    # pyrefly: ignore[bad-argument-type]
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_rates(settings: Settings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies each update by minus the learning rate of its parameter.

    Args:
        settings: how each parameter is trained.
        schedule: step -> learning rate of parameters without a schedule of their own.
    """

    def update(updates, state, params=None):
        del params
        step = state.count

        def one(path, x):
            own = _setting(settings, path)
            rate = -own.lr_mult * (own.schedule or schedule)(step)
            return x * jnp.asarray(rate, x.dtype)

        updates = jax.tree.map_with_path(one, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(step))

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)


def hold_back(updates: Any, settings: Settings, step: jax.Array) -> Any:
    """Zeroes what belongs to parameters that are trained only from a later step on.

    Args:
        updates: gradients or updates of the trained parameters.
        settings: how each parameter is trained.
        step: updates made so far, int32 [].
    """

    def one(path, x):
        start = _setting(settings, path).unfreeze_at
        return jnp.where(step >= start, x, jnp.zeros_like(x)) if start else x

    return jax.tree.map_with_path(one, updates)


def _setting(settings: Settings, path: Any) -> Any:
    return settings[sharding.path_name(path)]


def bound_logit_scale(maximum: float = MAX_LOGIT_SCALE) -> optax.GradientTransformation:
    """Clips the update of the parameter `logit_scale`, so that it stays at most `maximum`."""

    def update(updates, state, params):
        def bound(path, step, value):
            if path[-1].key != 'logit_scale':
                return step
            return jnp.minimum(value + step, maximum) - value

        return jax.tree.map_with_path(bound, updates, params), state

    # Optax has updates whose `params` is optional; this one needs them.
    # pyrefly: ignore[bad-argument-type]
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
