"""Forms of computations that XLA's CPU backend runs faster; elsewhere they change nothing."""

import functools
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
    product = _product((args, tuple(options.items())), rows_by_features, matrix)
    return product.reshape(*rows, *outputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(options: tuple, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[rows, features] x [features, outputs]; `options` are others of jax.lax.dot_general."""
    args, named = options
    return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), *args, **dict(named))


@_product.defjvp
def _product_jvp(options: tuple, inputs: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (to_x, to_kernel) = inputs, tangents
    if x.shape[0] > kernel.shape[0] > kernel.shape[1]:
        # So the kernel's gradient, the transpose of this, is computed as [outputs, features]: XLA's
        # CPU backend takes 0.7 of the time if the longer side comes last.
        args, named = options
        swapped = to_kernel.T / _one(kernel).T
        along_kernel = lax.dot_general(x, swapped, (((1,), (1,)), ((), ())), *args, **dict(named))
    else:
        along_kernel = _product(options, x, to_kernel)
    return _product(options, x, kernel), _product(options, to_x, kernel) + along_kernel


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The depthwise convolution as a sum of shifted images.

    XLA's CPU backend takes 10 to 15 times as long for a convolution with as many groups as
    features (of 7 x 7, float32, 2 virtual Intel Xeon cores), and 4 to 10 times for its gradient.

    Args:
        x: [B, H, W, C].
        kernel: [height, width, 1, C], of odd sizes; zeros are around the image.

    Returns:
        [B, H, W, C].
    """
    (rows, columns), (height, width) = kernel.shape[:2], x.shape[1:3]
    around = (rows // 2, rows // 2), (columns // 2, columns // 2)
    padded = jnp.pad(x, ((0, 0), *around, (0, 0)))
    parts = [
        padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(rows)
        for j in range(columns)
    ]
    return sum(parts[1:], parts[0])


def computed_once(x: jax.Array) -> jax.Array:
    """Returns `x`; on CPU it and its gradient are computed once, however many operations read them.

    XLA's CPU backend computes sums again in every loop that reads them, such as the residual stream
    in all later blocks, so that time grows faster than depth. It does not repeat divisions, hence
    one by a 1 that the compiler does not know; jax.lax.optimization_barrier is removed too early.
    """
    if not here():
        return x
    return x / _one(x)


@jax.custom_jvp
def gradient_computed_once(x: jax.Array) -> jax.Array:
    """As computed_once, for the gradient only."""
    return x


@gradient_computed_once.defjvp
def _gradient_computed_once(inputs: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = inputs, tangents
    return x, tangent / _one(x)


def _one(x: jax.Array) -> jax.Array:
    """Ones of the shape of `x`, which the compiler does not know to be ones."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), f'int{8 * x.dtype.itemsize}')
    return jnp.clip(bits, 1, 1).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer normalization whose sums are products with a vector.

    XLA's CPU backend takes longer for reductions, and repeats what it fuses with them.

    Args:
        x: float32 [..., width].
        scale: float32 [width].
        bias: float32 [width].
        epsilon: added to the variance.

    Returns:
        The same shape.

    Source: Layer Normalization (arXiv 1607.06450), section 3.
    """
    rows = x.reshape(-1, x.shape[-1])
    return _layer_norm(epsilon, rows, scale[None], bias[None]).reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _layer_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _normalized(x, epsilon)[0] * scale + bias


@_layer_norm.defjvp
def _layer_norm_jvp(epsilon: float, inputs: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = inputs
    to_x, to_scale, to_bias = tangents
    y, inverse_std = _normalized(x, epsilon)
    # Products, so that their transposes, the sums of the backward pass, are products too.
    every_row = jnp.ones((len(x), 1), x.dtype)
    centered = to_x * scale - _mean(to_x) @ scale
    along_y = y * (_mean(y * to_x) @ scale)
    tangent = inverse_std * (centered - along_y) + y * (every_row @ to_scale) + every_row @ to_bias
    return y * scale + bias, tangent


def _normalized(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    centered = x - _mean(x)
    inverse_std = lax.rsqrt(_mean(centered**2) + epsilon)
    return centered * inverse_std, inverse_std


def _mean(x: jax.Array) -> jax.Array:
    """The mean of each row: [rows, columns] -> [rows, 1]."""
    return x @ jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype)
