"""Ranks of captions for each image, and of images for each caption."""

from typing import Any

import numpy as np

from clip_jax.evals import _embed, _intervals, _similarity, score

AT = (1, 5, 10)  # of recall


def of(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks all captions for each image, and all images for each caption.

    What ties with the right one counts as ranked before it; an image's own captions do not count.

    Args:
        image: embeddings [N, D] of `on_grid`.
        text: embeddings of captions [M, D] of `on_grid`.
        owner: the image of each caption, int [M]; each image has at least one.

    Returns:
        The rank (1 is best) of each image's best caption, int [N], and of each caption's image,
        int [M].
    """
    own = np.concatenate(
        [_similarity.of_pairs(image[owner[part]], text[part]) for part in _parts(len(text))]
    )
    best = np.full(len(image), -np.inf)
    np.maximum.at(best, owner, own)
    over_images, over_texts = _similarity.count_at_least(image, text, best, own)
    # Similarities are exact. The count includes the positive, and all of an image's captions that
    # tie with its best one.
    mine = np.bincount(owner[own == best[owner]], minlength=len(image))
    return over_images - mine + 1, over_texts


def recall(found: np.ndarray, owner: np.ndarray) -> dict[str, Any]:
    """Makes the score that is the fraction of queries with a positive among the first results.

    Args:
        found: which queries have one, bool [N].
        owner: the image of each query, int [N]; for the interval, images are drawn with all their
            queries.

    Returns:
        The score.
    """
    hits, sizes = np.bincount(owner, found).astype(int), np.bincount(owner)
    return score(np.mean(found), interval=_intervals.of_clusters(hits, sizes))


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _embed.CHUNK) for start in range(0, count, _embed.CHUNK)]
