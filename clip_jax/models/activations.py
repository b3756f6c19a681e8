"""The exact GELU, in a form that is cheaper and more accurate in bfloat16 than JAX's."""

import math

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x / 2 (1 + erf(x / sqrt 2)).

    In dtypes of 16 bits it is computed in float32 and rounded once, as PyTorch does; jax.nn.gelu
    rounds in between, and its erfc takes longer on accelerators. In float32 it is jax.nn.gelu.

    Args:
        x: floating point, any shape.

    Returns:
        The same shape and dtype.

    Source: Gaussian Error Linear Units (arXiv 1606.08415), section 2.
    """
    return _rounded_once(x) if x.dtype.itemsize == 2 else jax.nn.gelu(x, approximate=False)


@jax.custom_jvp
def _rounded_once(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * _cdf(wide)).astype(x.dtype)


@_rounded_once.defjvp
def _rounded_once_jvp(
    inputs: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = inputs, tangents
    wide = x.astype(jnp.float32)
    density = jnp.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    # The slope in 16 bits is what the backward pass keeps: half of the memory of float32.
    slope = (_cdf(wide) + wide * density).astype(x.dtype)
    return _rounded_once(x), slope * tangent


def _cdf(x: jax.Array) -> jax.Array:
    """The cumulative distribution function of the normal distribution."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
