"""Nearest-neighbor search in a folder of embeddings, by text or image, in blocks."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from clip_jax import pretrained
from clip_jax.data.embedding_store import DESCRIPTION, Embeddings
from clip_jax.embeddings import identity, source_model
from clip_jax.pretrained import Clip

BLOCK = 65_536  # embeddings that are compared at a time


class Hit(NamedTuple):
    """A record of the embedded data.

    Attributes:
        score: cosine similarity of its image and the query.
        where: its place, a path or a shard and a name.
        record: its index in the data.
        texts: its captions.
        label: its class, or None.
    """

    score: float
    where: str
    record: int
    texts: list[str]
    label: int | None


def search(
    folder: str | os.PathLike,
    query: Any,
    k: int = 10,
    *,
    model: str | os.PathLike | Clip | None = None,
) -> list[Hit] | list[list[Hit]]:
    """Finds the images nearest to a text or an image by cosine similarity.

    Args:
        folder: a folder of embeddings that `clip-jax embed` wrote.
        query: a text (str), or an image: a pathlib.Path, a PIL image, encoded bytes or a uint8
            array [H, W, 3]. A list or tuple of these is several queries.
        k: how many records to return.
        model: the model that made the embeddings, or its path; by default it is loaded from where
            it was then, and stays in memory.

    Returns:
        The `k` records with the highest similarity, best first; equal ones in the order of the
        data. For several queries, such a list for each.

    Raises:
        ValueError: if the folder is not complete, has pre_projection features, or was made by
            another model.
    """
    if k < 1:
        raise ValueError(f'k is {k}; expected at least 1')
    many = isinstance(query, (list, tuple))
    queries = query if many else [query]
    for one in queries:
        _check_query(one)
    source = _opened(os.fspath(folder), _description(os.fspath(folder)))
    if source.description.features != 'embedding':
        raise ValueError(
            f'{source}: holds {source.description.features} features, which cannot be compared '
            'with texts; write a folder with clip-jax embed --features=embedding'
        )
    if not queries:
        return []
    dim = source.description.dim or None
    scores, places = _nearest(source, _embed(queries, _model(source, model), dim), k)
    hits = [
        [_hit(source, float(score), int(i)) for score, i in zip(*found, strict=True)]
        for found in zip(scores, places, strict=True)
    ]
    return hits if many else hits[0]


@functools.lru_cache(4)
def _opened(folder: str, description: bytes) -> Embeddings:
    """Opens a folder, cached until its description changes."""
    return Embeddings(folder)


def _description(folder: str) -> bytes:
    file = epath.Path(folder).expanduser() / DESCRIPTION
    return file.read_bytes() if file.exists() else b''


def _check_query(query: Any) -> None:
    if isinstance(query, str) and Path(query).suffix and os.path.isfile(query):
        raise ValueError(
            f'query {query!r} is the name of a file; to search with that image, give '
            f'pathlib.Path({query!r})'
        )


def _model(source: Embeddings, model: str | os.PathLike | Clip | None) -> Clip:
    if model is None:
        return source_model.source_model(source)
    clip = model if isinstance(model, Clip) else pretrained.load(os.fspath(model), dtype='auto')
    identity.check_source_model(clip, source, '' if isinstance(model, Clip) else os.fspath(model))
    return clip


def _embed(queries: Sequence[Any], clip: Clip, dim: int | None) -> np.ndarray:
    """L2-normalized embeddings [N, D] of texts and images."""
    embeddings = np.empty((len(queries), dim or clip.model.embed_dim), np.float32)
    texts = [i for i, query in enumerate(queries) if isinstance(query, str)]
    images = [i for i, query in enumerate(queries) if not isinstance(query, str)]
    embeddings[texts] = clip.encode_text([queries[i] for i in texts], dim=dim)
    embeddings[images] = clip.encode_image([queries[i] for i in images], dim=dim)
    return embeddings


def _nearest(source: Embeddings, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the highest cosine similarities [N, k] and the indices of their images."""
    best = np.full((len(queries), 0), -np.inf, np.float32)
    numbers = np.zeros((len(queries), 0), np.int64)
    for first, _, embeddings in source.blocks():
        for start in range(0, len(embeddings), BLOCK):
            block = np.asarray(embeddings[start : start + BLOCK], np.float32)
            lengths = np.linalg.norm(block, axis=1)  # not exactly 1 in half precision
            cosines = queries @ block.T / lengths
            places = np.arange(first + start, first + start + len(block))
            found = _best(cosines, np.broadcast_to(places, cosines.shape), k)
            best, numbers = (
                np.concatenate(both, axis=1) for both in zip((best, numbers), found, strict=True)
            )
            best, numbers = _best(best, numbers, k)
    return best, numbers


def _best(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest per query, largest first; equal ones stay in order."""
    if scores.shape[1] > k:
        # Only scores from the k-th largest on are sorted; of equal ones, the first are kept.
        least = np.partition(scores, -k, axis=1)[:, -k, None]
        wanted = (scores >= least).any(axis=0)
        scores, numbers = scores[:, wanted], numbers[:, wanted]
    order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def _hit(source: Embeddings, score: float, i: int) -> Hit:
    record = source.record(i)
    return Hit(score, record['where'], record['record'], record['texts'] or [], record['label'])
