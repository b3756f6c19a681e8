"""Matrix products of dense layers, in the form that the device's libraries take fastest."""

import math
from typing import Any

import jax
from jax import lax

from clip_jax import sharding


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """A product of activations and a kernel over the last axes of one and the first of the other.

    On CPU it is a product of two matrices: of a gradient over several axes, XLA's CPU backend makes
    transposed copies first, which take longer than the product. Elsewhere it is
    jax.lax.dot_general, since merging axes may move data on devices with tiled memory.

    Args:
        x: [..., *features].
        kernel: [*features, *outputs].
        dimension_numbers: as in jax.lax.dot_general.
        **options: as in jax.lax.dot_general.

    Returns:
        [..., *outputs].
    """
    (over, batch) = dimension_numbers
    count = len(over[0])
    last = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    mapped = tuple(tuple(a % n.ndim for a in axes) for axes, n in zip(over, (x, kernel)))
    if sharding.platform() != 'cpu' or mapped != last or any(batch):
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    rows, features = x.shape[: x.ndim - count], x.shape[x.ndim - count :]
    outputs = kernel.shape[count:]
    flat = x.reshape(math.prod(rows), math.prod(features))
    matrix = kernel.reshape(math.prod(features), math.prod(outputs))
    product = lax.dot_general(flat, matrix, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*rows, *outputs)
