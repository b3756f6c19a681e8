"""Retrieval of captions by images and of images by captions (CLIP, arXiv 2103.00020, table 13)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evals import _embed, _paired, _ranks, _similarity, score

EXAMPLES = 10
QUERIES = 6  # of each direction
RESULTS = 5


def evaluate(encode_image: Callable, encode_text: Callable, data: Source) -> dict[str, Any]:
    """Ranks all captions for each image, and all images for each caption.

    For an image, any of its captions is a positive; for a caption, its image is. Ties count as
    ranked before the positive. The median of an even number of ranks is the lower middle one.

    Args:
        encode_image: images -> unit-length embeddings, float32 [N, D].
        encode_text: texts -> unit-length embeddings, float32 [N, D].
        data: a data set with captions.

    Returns:
        The report. Scores: recall at 1, 5 and 10 and the median rank (1 is best), in both
        directions; intervals of the recall are over images with all their captions.

    Raises:
        ValueError: a record has no caption.
    """
    image, records = _embed.records(encode_image, data)
    for i, record in enumerate(records):
        if not record.get('texts'):
            raise ValueError(f'evals/retrieval: {data.where(i)} has no caption')
    captions = [text for record in records for text in record['texts']]
    owner = np.repeat(np.arange(len(records)), [len(record['texts']) for record in records])
    image = _similarity.on_grid(image)
    text = _similarity.on_grid(_embed.texts(encode_text, captions))

    to_text, to_image = _ranks.of(image, text, owner)
    both = {'image_to_text': to_text, 'text_to_image': to_image}
    # Images are resampled, each with all its captions.
    owners = {'image_to_text': np.arange(len(image)), 'text_to_image': owner}
    scores = {
        f'{way}/recall@{k}': _ranks.recall(ranks <= k, owners[way])
        for way, ranks in both.items()
        for k in _ranks.AT
    }
    scores |= {
        f'{way}/median_rank': score(_median(ranks), better='lower', unit='rank')
        for way, ranks in both.items()
    }
    return {
        'scores': scores,
        'counts': {'images': len(data), 'texts': len(captions)},
        'correct': {
            'image_to_text/recall@1': _paired.packed(
                to_text <= 1, [record['texts'] for record in records]
            )
        },
        'similarity': _sample(image, text, owner, captions),
        'queries': _queries(image, text, owner, captions, to_text, to_image),
    }


def _median(ranks: np.ndarray) -> int:
    return int(np.sort(ranks)[(len(ranks) - 1) // 2])


def _sample(image: np.ndarray, text: np.ndarray, owner: np.ndarray, captions: list[str]) -> dict:
    """The similarity matrix of a few images spread over the data set with a caption each."""
    chosen = _spread(len(image), EXAMPLES)
    first = np.searchsorted(owner, chosen)
    return {
        'indices': chosen.tolist(),
        'texts': [captions[k] for k in first],
        'matrix': np.round(_similarity.matrix(image[chosen], text[first]), 4).tolist(),
    }


def _queries(
    image: np.ndarray,
    text: np.ndarray,
    owner: np.ndarray,
    captions: list[str],
    to_text: np.ndarray,
    to_image: np.ndarray,
) -> dict[str, list[dict[str, Any]]]:
    """A few queries of each direction, with their rank and the nearest results: (caption or index
    of an image, cosine, whether it is a positive).
    """
    images, texts = _spread(len(image), QUERIES), _spread(len(text), QUERIES)
    found: dict[str, list[dict[str, Any]]] = {'image_to_text': [], 'text_to_image': []}
    for i in images.tolist():
        (cosines,) = _similarity.matrix(image[[i]], text)
        top = [[captions[k], c, bool(owner[k] == i)] for k, c in _nearest(cosines)]
        found['image_to_text'].append({'index': i, 'rank': int(to_text[i]), 'top': top})
    for k in texts.tolist():
        (cosines,) = _similarity.matrix(text[[k]], image)
        top = [[i, c, bool(owner[k] == i)] for i, c in _nearest(cosines)]
        own = {'text': captions[k], 'index': int(owner[k]), 'rank': int(to_image[k])}
        found['text_to_image'].append({**own, 'top': top})
    return found


def _nearest(cosines: np.ndarray) -> list[tuple[int, float]]:
    """The RESULTS highest cosines with their indices, highest first."""
    places = np.argsort(-cosines, kind='stable')[:RESULTS]
    return [(int(k), round(float(cosines[k]), 4)) for k in places]


def _spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(most, count)).astype(int)
