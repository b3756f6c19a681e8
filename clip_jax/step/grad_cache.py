"""GradCache: exact full-batch contrastive gradients from micro-batches.

Only a micro-batch is embedded at a time, yet all pairs of the batch are each other's negatives,
unlike with gradient accumulation over small batches (GradCache, arXiv 2101.06983; BASIC, arXiv
2111.10050, section 4).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Embed = Callable[[Any, Any, Any], tuple[tuple[jax.Array, ...], Any]]


def value_and_grad(
    embed: Embed,
    others: Callable[[Any], tuple],
    loss: Callable,
    constrain: Callable[[Any], Any],
    params: Any,
    buffers: Any,
    batch: Any,
    *,
    microbatches: int,
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """Computes the loss of a batch and its gradients.

    Batch normalization uses the statistics of a micro-batch, and running averages are updated once
    for each.

    Args:
        embed: (params, buffers, batch) -> (embeddings, buffers), of images and texts [B, …, D],
            or any other arrays [B, ...] by which examples enter the loss. It is called twice for
            each micro-batch and must draw the same random numbers both times.
        others: params -> (scale, bias), the other inputs of the loss; and projections, if any.
        loss: (*embeddings, *others) -> (value, metrics).
        constrain: constrains the sharding of gradients.
        params: the parameters.
        buffers: the other variables of the model.
        batch: a tree of arrays [B, ...].
        microbatches: the number of micro-batches; it divides B.

    Returns:
        The loss, its metrics, the new buffers, and the gradients with respect to `params`.
    """
    if microbatches == 1:

        def objective(params: Any) -> tuple[jax.Array, tuple]:
            embeddings, new = embed(params, buffers, batch)
            value, metrics = loss(*embeddings, *others(params))
            return value, (metrics, new)

        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, (metrics, buffers)), grads = gradient(params)
        return value, metrics, buffers, constrain(grads)

    parts = split(batch, microbatches)
    embeddings = join(lax.map(lambda part: embed(params, buffers, part)[0], parts))
    inputs, inputs_backward = jax.vjp(others, params)
    loss_gradient = jax.value_and_grad(
        lambda embeddings, inputs: loss(*embeddings, *inputs), argnums=(0, 1), has_aux=True
    )
    (value, metrics), (d_embeddings, d_inputs) = loss_gradient(embeddings, inputs)

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        grads, buffers = carry
        batch, d_embeddings = part
        _, backward, buffers = jax.vjp(lambda p: embed(p, buffers, batch), params, has_aux=True)
        grads = constrain(jax.tree.map(jnp.add, grads, *backward(d_embeddings)))
        return (grads, buffers), None

    start = constrain(*inputs_backward(d_inputs)), buffers
    (grads, buffers), _ = lax.scan(add, start, (parts, split(d_embeddings, microbatches)))
    return value, metrics, buffers, grads


def split(batch: Any, microbatches: int) -> Any:
    """Splits a tree of arrays [B, ...] into micro-batches [microbatches, B / microbatches, ...].

    Micro-batch i has the examples i, i + microbatches, …: as many of every device, so that nothing
    is resharded.
    """
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch
    )


def join(parts: Any) -> Any:
    """Undoes `split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
