"""Adafactor, as big_vision trains with it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    b2_max: float = 0.999,
    decay_exponent: float = 0.8,
    min_factored: int = 32,
    eps: float = 1e-30,
    update_clip: float = 0.0,
    momentum: float = 0.9,
    moment_dtype: str = 'bfloat16',
) -> optax.GradientTransformation:
    """Makes Adafactor (arXiv 1804.04235) in the form of Scaling Vision Transformers (arXiv
    2106.04560, section 3.4): a bound on the decay of the second moment, a momentum in bfloat16, and
    no scaling by the parameter.

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        b2_max: bound on the decay of the second moment, which is ``1 - t ** -decay_exponent``.
        decay_exponent: how fast that decay rises.
        min_factored: the second moment is factored where a tensor's two longest axes have at least
            this length.
        eps: added to squared gradients.
        update_clip: bound on the root mean square of a tensor's update; 0: none.
        momentum: decay of the first moment; 0: none is kept.
        moment_dtype: dtype in which the first moment is stored.
    """

    def b2(step: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(b2_max, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -exponent)

    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=decay_exponent,
            min_dim_size_to_factor=min_factored,
            epsilon=eps,
            decay_rate_fn=b2,
        ),
        optax.clip_by_block_rms(update_clip) if update_clip else optax.identity(),
        optax.ema(momentum, debias=False, accumulator_dtype=moment_dtype)
        if momentum
        else optax.identity(),
        decay,
        rate,
    )
