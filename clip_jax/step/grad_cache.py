"""Gradients of the loss over a whole batch, of which only a part is embedded at a time.

Every pair stays a negative of every other, unlike where gradients of small batches are added up
(GradCache, arXiv 2101.06983; BASIC, arXiv 2111.10050, section 4).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Embed = Callable[[Any, Any, Any], tuple[tuple[jax.Array, jax.Array], Any]]


def value_and_grad(
    embed: Embed,
    numbers: Callable[[Any], tuple],
    loss: Callable,
    constrain: Callable[[Any], Any],
    params: Any,
    buffers: Any,
    batch: Any,
    *,
    microbatches: int,
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """Returns loss, metrics, buffers and gradients of a batch, embedded in `microbatches` parts.

    `embed(params, buffers, batch) -> ((image, text), buffers)` must draw the same random numbers
    for the same rows each time: it is called twice, the second time for the gradients, which
    `constrain` lays out. `numbers(params)` are scale and bias. Statistics of a batch
    normalization are those of a part, and running averages are updated once a part.
    """
    if microbatches == 1:

        def objective(params: Any) -> tuple[jax.Array, tuple]:
            (image, text), new = embed(params, buffers, batch)
            value, metrics = loss(image, text, *numbers(params))
            return value, (metrics, new)

        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, (metrics, buffers)), grads = gradient(params)
        return value, metrics, buffers, constrain(grads)

    def split(x: jax.Array) -> jax.Array:
        # Part i has rows i, i + parts, …: of every device as many, so that none has to be moved.
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    parts = jax.tree.map(split, batch)
    image, text = map(join, lax.map(lambda part: embed(params, buffers, part)[0], parts))
    values, to_params = jax.vjp(numbers, params)
    of_rows = jax.value_and_grad(
        lambda image, text, values: loss(image, text, *values), argnums=(0, 1, 2), has_aux=True
    )
    (value, metrics), (d_image, d_text, d_values) = of_rows(image, text, values)

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        grads, buffers = carry
        batch, d_rows = part
        _, backward, buffers = jax.vjp(lambda p: embed(p, buffers, batch), params, has_aux=True)
        grads = constrain(jax.tree.map(jnp.add, grads, *backward(d_rows)))
        return (grads, buffers), None

    start = constrain(*to_params(d_values)), buffers
    (grads, buffers), _ = lax.scan(add, start, (parts, (split(d_image), split(d_text))))
    return value, metrics, buffers, grads
