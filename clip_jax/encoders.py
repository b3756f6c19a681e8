"""What evaluations get their rows from: a model, or folders of embeddings and the model that made
them.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import pretrained
from clip_jax.data.embeddings import Embeddings
from clip_jax.data.sources import Source
from clip_jax.pretrained import Clip


def for_evaluation(model: str | Clip | None, data: Sequence[Source]) -> tuple[Callable, Callable]:
    """Returns (encode_image, encode_text) for an evaluation of these sources.

    Without a model all of them are folders of embeddings; captions have their rows there, and other
    texts are embedded by the model that made the folder. ValueError if there is neither, or if the
    folders are of another model.
    """
    stored = [source for source in data if isinstance(source, Embeddings)]
    if model is None and len(stored) < len(data):
        images = next(source for source in data if source not in stored)
        raise ValueError(f'--model must be given: the images of {images} are to be embedded')
    _check_equal(stored)
    named = isinstance(model, (str, pathlib.Path))
    clip = pretrained.load(model, dtype='auto') if named else model
    if clip and stored:
        check_maker(clip, stored[0], str(model) if named else '')
    encode_image = clip.encode_image if clip else _no_images
    if not stored:
        return encode_image, clip.encode_text
    load = (lambda: clip) if clip else functools.partial(maker, stored[0])
    return encode_image, _StoredTexts(stored, load)


def maker(source: Embeddings) -> Clip:
    """Loads the model that made a folder; ValueError if it is no longer where it was."""
    return _maker(source.description['model'], source.fingerprint, str(source))


@functools.lru_cache(2)  # of a search after the other
def _maker(path: str, fingerprint: str, folder: str) -> Clip:
    advice = 'give the model that made it as --model=PATH, or model=PATH in Python'
    try:
        clip = pretrained.load(path, dtype='auto')
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{folder}: texts or images must be embedded, and its model cannot be loaded from '
            f'{path} ({error}); {advice}'
        ) from error
    if pretrained.fingerprint(clip.variables) != fingerprint:
        raise ValueError(
            f'{folder}: texts or images must be embedded, and {path} holds another model now; '
            f'{advice}'
        )
    return clip


def check_maker(clip: Clip, source: Embeddings, path: str = '') -> None:
    """ValueError if a folder of embeddings was not made by this model."""
    found = pretrained.fingerprint(clip.variables)
    if found != source.fingerprint:
        raise ValueError(
            f'{source}: these are embeddings of another model: of {source.description["model"]} '
            f'(fingerprint {source.fingerprint[:8]}), not of {path or "the given one"} '
            f'({found[:8]}). Embed the data with this one, or evaluate that one'
        )


def _check_equal(stored: Sequence[Embeddings]) -> None:
    for other in stored[1:]:
        if other.fingerprint != stored[0].fingerprint:
            raise ValueError(
                f'{stored[0]} and {other} are embeddings of different models: of '
                f'{stored[0].description["model"]} and of {other.description["model"]}'
            )


def _no_images(images: Any, *, features: str = 'embedding') -> np.ndarray:
    raise ValueError('--model must be given: images are to be embedded')


class _StoredTexts:
    """Embeds texts: captions have their rows in folders, others need the model."""

    def __init__(self, stored: Sequence[Embeddings], load: Callable[[], Clip]):
        self._stored, self._load = stored, load

    @functools.cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for source in self._stored:
            for text, row in zip(*source.texts(), strict=True):
                found.setdefault(text, row)
        return found

    def __call__(self, texts: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """Returns unit rows, float32 [N, D]."""
        known = not isinstance(texts, (str, np.ndarray)) and all(t in self._rows for t in texts)
        if known and len(texts):
            return np.stack([self._rows[text] for text in texts])
        return self._load().encode_text(texts)
