"""An exponential moving average of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Average(NamedTuple):
    """How the average follows the parameters.

    Attributes:
        decay: weight of the old average in each step, 0 to 1.
        warmup: whether the decay is at most (1 + step) / (10 + step), so that the average of a
            short run forgets its start.
    """

    decay: float
    warmup: bool = True


def make(decay: float, warmup: bool) -> Average | None:
    """Returns how an average is updated, None for a decay of 0; ValueError if it is wrong."""
    if not 0 <= decay < 1:
        raise ValueError(f'ema.decay is {decay}; expected at least 0 and less than 1 (0: none)')
    return Average(decay, warmup) if decay else None


def update(mean: Any, params: Any, step: jax.Array, average: Average | None) -> Any:
    """Returns the average after a step.

    Args:
        mean: the average before it, a tree of the trained parameters; {} without one.
        params: the trained parameters after the step.
        step: steps made before this one, int32 [].
        average: how it is updated; None: `mean` is returned.
    """
    if average is None:
        return mean
    decay = jnp.float32(average.decay)
    if average.warmup:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mean, params)
