"""What keeps one bad batch from spoiling a run: an update that is not finite, or follows a loss far
above the last ones, is not made.
"""

from typing import Any

import jax
import jax.numpy as jnp

WINDOW = 128  # losses that a new one is compared with

REASONS = ('nonfinite', 'spike')  # reasons why an update is not made

SkipState = dict[str, jax.Array]


def init() -> SkipState:
    """The state of a new run: int32 counts of the skipped updates, `consecutive` of them up to now,
    and the last losses of those made, float32 [WINDOW], infinity where there was none yet.
    """
    counts = {name: jnp.zeros((), jnp.int32) for name in (*REASONS, 'consecutive')}
    return {**counts, 'losses': jnp.full(WINDOW, jnp.inf, jnp.float32)}


def should_update(
    skip_state: SkipState, loss: jax.Array, *others: Any, spike: float = 0.0
) -> tuple[jax.Array, SkipState]:
    """Returns whether the update of a step is to be made, bool [], and the memory after it.

    It is not if the loss or any number in `others`, trees of arrays, is not finite, nor, with
    `spike` above 0, if the loss lies more than so many standard deviations above the mean of the
    last WINDOW.
    """
    losses = skip_state['losses']
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((loss, others))]).all()
    # NaN, the deviation of infinity, which compares as False, until there are WINDOW losses.
    limit = jnp.mean(losses) + spike * jnp.std(losses)
    spiked = finite & (loss > limit) if spike else jnp.zeros((), bool)
    ok = finite & ~spiked
    return ok, {
        'nonfinite': skip_state['nonfinite'] + ~finite,
        'spike': skip_state['spike'] + spiked,
        'consecutive': jnp.where(ok, 0, skip_state['consecutive'] + 1),
        'losses': jnp.where(ok, jnp.append(losses[1:], loss), losses),
    }


def select(ok: jax.Array, new: Any, old: Any) -> Any:
    """The new tree, or the old one if the update is not to be made."""
    return jax.tree.map(lambda x, y: jnp.where(ok, x, y), new, old)
