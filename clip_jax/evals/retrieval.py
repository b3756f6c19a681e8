"""Retrieval: from an image to its captions among all captions, and back (arXiv 2103.00020, table
13).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from clip_jax.evals import _embed

AT = (1, 5, 10)
EXAMPLES = 10
BLOCK = 1024


def evaluate(encode_image: Callable, encode_text: Callable, data: Any) -> dict[str, Any]:
    """Returns recall at 1, 5 and 10 in both directions over all images and all their captions.

    From an image, a hit is any of its own captions among the first k; from a caption, its own
    image. What ties with the right one counts as ranked before it.
    """
    image, records = _embed.records(encode_image, data)
    for i, record in enumerate(records):
        if not record.get('texts'):
            raise ValueError(f'evals/retrieval: {data.where(i)} has no caption')
    captions = [text for record in records for text in record['texts']]
    owner = np.repeat(np.arange(len(records)), [len(record['texts']) for record in records])
    text = _embed.texts(encode_text, captions)

    to_text, to_image = _ranks(image, text, owner)
    report = {f'image_to_text/recall@{k}': float(np.mean(to_text <= k)) for k in AT}
    report |= {f'text_to_image/recall@{k}': float(np.mean(to_image <= k)) for k in AT}
    report |= {'images': len(data), 'texts': len(captions)}
    return report | {'similarity': _sample(image, text, owner, captions)}


def _ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (1 is best) of each image's best caption among all texts, and of each text's image
    among all images.
    """
    images, image_place = _embed.distinct(image)
    texts, text_place = _embed.distinct(text)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        # Some rows at a time: memory stays far below images times texts.
        for start in range(0, len(images), BLOCK):
            product = (images[start : start + BLOCK] @ texts.T)[:, text_place]
            inside = (start <= image_place) & (image_place < start + BLOCK)
            rows = np.flatnonzero(inside)
            yield rows, product[image_place[rows] - start], owner[None, :] == rows[:, None]

    own = np.empty(len(text), np.float32)
    for _, similarity, mine in blocks():
        own[mine.any(axis=0)] = similarity.T[mine.T]
    best = np.full(len(image), -np.inf, np.float32)
    np.maximum.at(best, owner, own)

    to_text = np.empty(len(image), int)
    to_image = np.ones(len(text), int)
    # The products are made a second time in the same way: equal vectors tie to the last bit.
    for rows, similarity, mine in blocks():
        to_text[rows] = 1 + ((similarity >= best[rows][:, None]) & ~mine).sum(axis=1)
        to_image += ((similarity >= own[None, :]) & ~mine).sum(axis=0)
    return to_text, to_image


def _sample(image: np.ndarray, text: np.ndarray, owner: np.ndarray, captions: list[str]) -> dict:
    """The similarity matrix of a few images spread over the set with one caption each, for the
    figure.
    """
    chosen = np.linspace(0, len(image) - 1, min(EXAMPLES, len(image))).astype(int)
    first = [int(np.flatnonzero(owner == i)[0]) for i in chosen]
    return {
        'indices': chosen.tolist(),
        'texts': [captions[k] for k in first],
        'matrix': np.round(image[chosen] @ text[first].T, 4).tolist(),
    }
