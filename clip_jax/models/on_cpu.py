"""Forms of computations that XLA's CPU backend runs faster; elsewhere they change nothing."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def here() -> bool:
    """Whether the program is traced for CPU."""
    # As sharding.platform, which would make the chain of imports too long.
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.platform if device else jax.default_backend()) == 'cpu'


def dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, *args: Any, **options: Any
) -> jax.Array:
    """The product of a dense layer, on CPU as one of two matrices.

    For the gradient of a product over several axes, XLA's CPU backend makes transposed copies of
    its inputs, which take longer than the product. Merging axes is not free on other devices.

    Args:
        x: [..., *features].
        kernel: [*features, *outputs].
        dimension_numbers: of jax.lax.dot_general: the last axes of `x` with the first of `kernel`.
        *args: others of jax.lax.dot_general.
        **options: others of jax.lax.dot_general.

    Returns:
        [..., *outputs].
    """
    if not here():
        return lax.dot_general(x, kernel, dimension_numbers, *args, **options)
    count = len(dimension_numbers[0][0])
    rows, features = x.shape[: x.ndim - count], kernel.shape[:count]
    outputs = kernel.shape[count:]
    rows_by_features = x.reshape(math.prod(rows), math.prod(features))
    matrix = kernel.reshape(math.prod(features), math.prod(outputs))
    product = lax.dot_general(rows_by_features, matrix, (((1,), (0,)), ((), ())), *args, **options)
    return product.reshape(*rows, *outputs)


def computed_once(x: jax.Array) -> jax.Array:
    """Returns `x`; on CPU it and its gradient are computed once, however many operations read them.

    XLA's CPU backend computes sums again in every loop that reads them, such as the residual stream
    in all later blocks, so that time grows faster than depth. It does not repeat divisions, hence
    one by a 1 that the compiler does not know; jax.lax.optimization_barrier is removed too early.
    """
    if not here():
        return x
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), f'int{8 * x.dtype.itemsize}')
    return x / jnp.clip(bits, 1, 1).astype(x.dtype)
