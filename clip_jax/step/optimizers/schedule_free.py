"""Schedule-free AdamW."""

from typing import Any

import optax
from optax import contrib


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-6,
    weight_power: float = 2.0,
) -> optax.GradientTransformation:
    """Makes schedule-free AdamW (arXiv 2405.15682, algorithm 1), for the schedule 'constant'.

    Gradients are taken at an interpolation of the iterate and its average; the average is what is
    evaluated and exported.

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        schedule: step -> learning rate, which weights the average.
        b1: weight of the average in the point where gradients are taken.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_power: power of the largest learning rate so far that weights an iterate.
    """
    base = optax.chain(optax.scale_by_adam(b1=0, b2=b2, eps=eps), decay, rate)
    return contrib.schedule_free(base, schedule, b1=b1, weight_lr_power=weight_power)


def average(opt_state: Any, params: Any) -> Any:
    """Returns the average of the iterates."""
    return contrib.schedule_free_eval_params(_find(opt_state), params)


def _find(state: Any) -> Any:
    if isinstance(state, contrib.ScheduleFreeState):
        return state
    found = [_find(x) for x in state] if isinstance(state, tuple) else []
    return next((x for x in found if x is not None), None)
