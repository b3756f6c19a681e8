"""A form of layer normalization for which XLA's GPU backend moves fewer bytes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer normalization of the last axis with float32 statistics, as flax.linen.LayerNorm's.

    From the plain form's gradient, XLA writes the terms of the scale's gradient as a float32 array
    of the size of `x` and reads it again. This has first-order gradients in reverse mode only.

    Args:
        x: [..., width].
        scale: [width].
        bias: [width].
        epsilon: is added to the variance.

    Returns:
        [..., width], in the dtype of `x`.
    """
    centered, inverse = _centered(x, *_statistics(x), epsilon)
    return (centered * (inverse * scale) + bias).astype(x.dtype)


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    return mean, jnp.square(wide - mean).mean(-1, keepdims=True)


def _centered(
    x: jax.Array, mean: jax.Array, variance: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    return x.astype(jnp.float32) - mean, lax.rsqrt(variance + epsilon)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    return layer_norm(x, scale, bias, epsilon), (x, scale)


def _backward(epsilon: float, saved: tuple, gradient: jax.Array) -> tuple:
    x, scale = saved
    # Without the barrier, XLA makes one kernel of the statistics and the terms, and writes these.
    mean, variance = lax.optimization_barrier(_statistics(x))
    centered, inverse = _centered(x, mean, variance, epsilon)
    normalized, gradient = centered * inverse, gradient.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    to_scale, to_bias = (gradient * normalized).sum(rows), gradient.sum(rows)
    scaled = gradient * scale
    along = (scaled * normalized).mean(-1, keepdims=True)
    to_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalized * along)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)
