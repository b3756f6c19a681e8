"""The exact GELU, in a form that is cheaper than JAX's, and more accurate in bfloat16."""

import math

import jax
import jax.numpy as jnp


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x / 2 (1 + erf(x / sqrt 2)).

    It is computed in float32 and rounded once, as PyTorch does; jax.nn.gelu rounds in between, and
    its erfc takes longer.

    Args:
        x: floating point, any shape.

    Returns:
        The same shape and dtype.

    Source: Gaussian Error Linear Units (arXiv 1606.08415), section 2.
    """
    half = x.astype(jnp.float32) / 2
    return (half + half * jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5))).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(
    inputs: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = inputs, tangents
    wide = x.astype(jnp.float32)
    density = jnp.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    if x.dtype.itemsize == 2:
        cdf = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    else:  # where it shows, the sum loses a quarter of a unit in the last place
        cdf = 0.5 * jax.lax.erfc(-wide * math.sqrt(0.5))
    # The slope in the dtype of x is all that the backward pass keeps.
    slope = (cdf + wide * density).astype(x.dtype)
    return gelu(x), slope * tangent
