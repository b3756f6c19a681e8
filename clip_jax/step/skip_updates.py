"""Skips updates with non-finite values or loss spikes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.models import on_cpu

WINDOW = 128  # recent losses that a new one is compared with
REASONS = ('nonfinite', 'spike')  # why an update is skipped
SkipState = dict[str, jax.Array]


def init() -> SkipState:
    """Returns the initial state.

    Returns:
        int32 [] counts of skipped updates: 'nonfinite', 'spike', and 'consecutive', those since the
        last update; and 'losses', float32 [WINDOW], of the last updates, infinity before there are
        as many.
    """
    counts = {name: jnp.zeros((), jnp.int32) for name in (*REASONS, 'consecutive')}
    return {**counts, 'losses': jnp.full(WINDOW, jnp.inf, jnp.float32)}


def should_update(
    skip_state: SkipState, loss: jax.Array, *others: Any, spike: float = 0.0
) -> tuple[jax.Array, SkipState]:
    """Decides whether a step's update is applied.

    It is skipped if the loss or a value in `others` is not finite, and if the loss is more than
    `spike` standard deviations above the mean of the last WINDOW losses.

    Args:
        skip_state: the state before the step.
        loss: the loss of the step, [].
        *others: trees of arrays that have to be finite too.
        spike: number of standard deviations; 0: losses are not compared.

    Returns:
        Whether to apply the update, bool [], and the new state.
    """
    losses = skip_state['losses']
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((loss, others))]).all()
    # Until there are WINDOW losses the limit is NaN, so that the comparison is False.
    limit = jnp.mean(losses) + spike * jnp.std(losses)
    spiked = finite & (loss > limit) if spike else jnp.zeros((), bool)
    ok = finite & ~spiked
    return ok, {
        'nonfinite': skip_state['nonfinite'] + ~finite,
        'spike': skip_state['spike'] + spiked,
        'consecutive': jnp.where(ok, 0, skip_state['consecutive'] + 1),
        'losses': jnp.where(ok, jnp.append(losses[1:], loss), losses),
    }


def apply_if(ok: jax.Array, update: Callable[[], Any], old: Any) -> Any:
    """Returns the tree that `update` makes if `ok`, else the old one."""
    if on_cpu.here():
        # With a select, XLA's CPU backend would copy the moments before it overwrites them.
        return jax.lax.cond(ok, update, lambda: old)
    return jax.tree.map(lambda x, y: jnp.where(ok, x, y), update(), old)
