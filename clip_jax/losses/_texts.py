"""The texts of a batch: captions of images, hard negatives, and prefixes of their embeddings."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from clip_jax.models.clip import l2_normalize

Loss = Callable[[jax.Array, jax.Array, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]


def join(image: jax.Array, text: jax.Array, negatives: jax.Array | None) -> tuple[jax.Array, int]:
    """Puts the texts of each image into one array.

    Args:
        image: embeddings, float [B, D].
        text: captions, float [B, D], or P of each image, float [B, P, D].
        negatives: hard negatives, float [B, N, D], or None.

    Returns:
        Embeddings [B, P + N, D], captions first, and P.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    captions = text[:, None] if text.ndim == 2 else text
    for name, given in {'text': captions, 'negatives': negatives}.items():
        if given is None:
            continue
        wanted = (len(image), *given.shape[1:2], image.shape[-1])
        if given.shape != wanted or (name == 'text' and not given.shape[1]):
            either = '[B, D] or [B, P, D] with P of at least 1' if name == 'text' else '[B, N, D]'
            shape = text.shape if name == 'text' else given.shape
            raise ValueError(
                f'losses: {name} has the shape {[*shape]}; expected {either} for images '
                f'[B, D] = {[*image.shape]}'
            )
    if negatives is None:
        return captions, captions.shape[1]
    return jnp.concatenate([captions, negatives], axis=1), captions.shape[1]


def over_dims(
    loss: Loss,
    dims: Sequence[int],
    image: jax.Array,
    text: jax.Array,
    negatives: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a loss of prefixes of the embeddings (Matryoshka, arXiv 2205.13147).

    Args:
        loss: (image, text, negatives) -> (value, metrics).
        dims: the lengths of the prefixes, increasing; (): the embeddings as they are.
        image: embeddings, float [B, D].
        text: embeddings, float [..., D].
        negatives: embeddings, float [..., D], or None.

    Returns:
        The mean over `dims` of the values of the L2-normalized first coordinates, and the metrics
        of all D coordinates.

    Raises:
        ValueError: if the dims do not increase from at least 1 to at most D.
    """
    listed = isinstance(dims, (tuple, list))
    if listed and not dims:
        return loss(image, text, negatives)
    size = image.shape[-1]
    whole = listed and all(isinstance(d, int) and not isinstance(d, bool) for d in dims)
    if not whole or [*dims] != sorted({*dims}) or dims[0] < 1:
        raise ValueError(
            f'losses: dims is {dims!r}; expected increasing whole numbers, such as (64, 128, 256)'
        )
    if dims[-1] > size:
        raise ValueError(
            f'losses: dims is {dims!r}; expected at most {size}, the size of the embeddings'
        )
    inputs = image, text, negatives
    results = [loss(*jax.tree.map(lambda x, d=d: l2_normalize(x[..., :d]), inputs)) for d in dims]
    if dims[-1] == size:
        metrics = results[-1][1]
    else:
        metrics = loss(*jax.tree.map(jax.lax.stop_gradient, inputs))[1]
    return jnp.mean(jnp.stack([value for value, _ in results])), metrics
