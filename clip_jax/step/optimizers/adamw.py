"""AdamW, and StableAdamW."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-6,
    moment_dtype: str | None = None,
    update_clip: float = 0.0,
) -> optax.GradientTransformation:
    """Makes AdamW (arXiv 1711.05101, algorithm 2).

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        moment_dtype: dtype in which the first moment is stored; None: that of the parameter.
        update_clip: if not 0, the update of a tensor whose root mean square of gradient over second
            moment's root exceeds this is divided by the excess: 1 for StableAdamW (arXiv
            2304.13013, algorithm 2).
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moment_dtype)
    return optax.chain(_clipped(adam, b2, eps, update_clip) if update_clip else adam, decay, rate)


def _clipped(
    adam: optax.GradientTransformation, b2: float, eps: float, limit: float
) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps, after = adam.update(updates, state, params)
        new: Any = after
        correction = 1 - b2 ** new.count.astype(jnp.float32)

        def one(step: jax.Array, gradient: jax.Array, second: jax.Array) -> jax.Array:
            ratio = jnp.square(gradient) / jnp.maximum(second / correction, eps**2)
            return step / jnp.maximum(1, jnp.sqrt(jnp.mean(ratio)) / limit)

        return jax.tree.map(one, steps, updates, new.nu), new

    return optax.GradientTransformation(adam.init, update)
