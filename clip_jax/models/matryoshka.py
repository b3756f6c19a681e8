"""Embeddings by their first coordinates, for models trained with a Matryoshka loss
(arXiv 2205.13147).
"""

import numpy as np


def check(dim: int | None, width: int, *, features: str = 'embedding') -> None:
    """Raises a ValueError if embeddings have no first `dim` coordinates.

    Args:
        dim: the number of coordinates; None: all.
        width: the number that embeddings have.
        features: what is cut; only 'embedding' can be.
    """
    if dim is None:
        return
    if features != 'embedding':
        raise ValueError(
            f'dim is {dim} and features {features!r}; only embeddings can be cut: leave dim out, '
            "or take features='embedding'"
        )
    if type(dim) is not int or not 1 <= dim <= width:
        raise ValueError(
            f'dim is {dim!r}; expected an integer from 1 to {width:,}, the size of the embeddings'
        )


def first(embeddings: np.ndarray, dim: int | None) -> np.ndarray:
    """Returns the first `dim` coordinates of embeddings, L2-normalized again.

    Args:
        embeddings: float32 [N, D].
        dim: the number of coordinates; None: all, unchanged.

    Returns:
        float32 [N, dim].
    """
    if dim is None or dim == embeddings.shape[1]:
        return embeddings
    cut = embeddings[:, :dim]
    # A model that is not trained for it may give zeros, whose direction is not known.
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.maximum(lengths, np.finfo(np.float32).tiny)
