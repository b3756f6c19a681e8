"""What evaluations get their rows from: a model, or folders of embeddings and the model that made
them.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax import pretrained
from clip_jax.data.embedding_store import Embeddings
from clip_jax.data.sources import Source
from clip_jax.pretrained import Clip


def encoders_for(
    clip: Clip | None, data: Sequence[Source], *, path: str = '', dtype: str = 'auto'
) -> tuple[Callable, Callable]:
    """Returns (encode_image, encode_text) for an evaluation of these sources; `path` names the
    model in errors.

    Without a model all of them are folders of embeddings; captions have their rows there, and other
    texts are embedded by the model that made the folder, loaded with the arithmetic `dtype`.
    ValueError if there is neither, or if the folders are of another model.
    """
    stored = _stored(data)
    check_model(clip, data)
    _check_equal(stored)
    if clip and stored:
        check_source_model(clip, stored[0], path)
    encode_image = clip.encode_image if clip else _no_images
    if not stored:
        return encode_image, clip.encode_text
    load = (lambda: clip) if clip else functools.partial(source_model, stored[0], dtype=dtype)
    return encode_image, _StoredTexts(stored, load)


def check_model(model: Any, data: Sequence[Source]) -> None:
    """ValueError if there is no model and some of the sources have images to be embedded."""
    images = [source for source in data if not isinstance(source, Embeddings)]
    if model is None and images:
        raise ValueError(f'--model must be given: the images of {images[0]} are to be embedded')


def provenance(clip: Clip | None, data: Sequence[Source]) -> dict[str, str]:
    """Returns what a report says of how rows were computed: the `arithmetic`, that of folders of
    embeddings, and the `device` here.
    """
    stored = ' and '.join(sorted({x.description['arithmetic'] for x in _stored(data)}))
    found = {'arithmetic': compute_dtype(clip) if clip else stored}
    if clip and stored:
        found['arithmetic_of_embeddings'] = stored
    return found | {'device': jax.devices()[0].device_kind}


def model_used(clip: Clip | None, encode_text: Callable) -> Clip | None:
    """Returns the model that an evaluation was given, or else loaded to embed texts."""
    return encode_text.model if clip is None and isinstance(encode_text, _StoredTexts) else clip


def compute_dtype(clip: Clip) -> str:
    """The type that a model computes in."""
    return str(np.dtype(clip.model.dtype))


def card_hash(card: Mapping[str, Any]) -> str:
    """Returns 32 hexadecimal digits that differ for any other card."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:32]


def _stored(data: Sequence[Source]) -> list[Embeddings]:
    return [source for source in data if isinstance(source, Embeddings)]


def source_model(source: Embeddings, dtype: str = 'auto') -> Clip:
    """Loads the model that made a folder; ValueError if it is no longer where it was."""
    card = card_hash(source.description['card'])
    return _source_model(source.description['model'], source.fingerprint, card, str(source), dtype)


@functools.lru_cache(2)  # of a search after the other
def _source_model(path: str, fingerprint: str, card: str, folder: str, dtype: str) -> Clip:
    advice = 'give the model that made it as --model=PATH, or model=PATH in Python'
    try:
        clip = pretrained.load(path, dtype=dtype)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{folder}: texts or images must be embedded, and its model cannot be loaded from '
            f'{path} ({error}); {advice}'
        ) from error
    if (pretrained.fingerprint(clip.variables), card_hash(clip.card)) != (fingerprint, card):
        raise ValueError(
            f'{folder}: texts or images must be embedded, and {path} holds another model now; '
            f'{advice}'
        )
    return clip


def check_source_model(clip: Clip, source: Embeddings, path: str = '') -> None:
    """ValueError if a folder of embeddings was not made by this model."""
    found = pretrained.fingerprint(clip.variables)
    if found != source.fingerprint:
        raise ValueError(
            f'{source}: these are embeddings of another model: of {source.description["model"]} '
            f'(fingerprint {source.fingerprint[:8]}), not of {path or "the given one"} '
            f'({found[:8]}). Embed the data with this one, or evaluate that one'
        )
    if card_hash(clip.card) != card_hash(source.description['card']):
        theirs = source.description['card']
        parts = [
            part for part in theirs if card_hash(theirs[part]) != card_hash(clip.card.get(part))
        ]
        raise ValueError(
            f'{source}: these are embeddings of another model: its weights are those of '
            f'{path or "the given one"}, and the card differs in: {", ".join(parts)}. Embed the '
            'data with this one, or evaluate that one'
        )


def _check_equal(stored: Sequence[Embeddings]) -> None:
    def made_by(source: Embeddings) -> tuple[str, str]:
        return source.fingerprint, card_hash(source.description['card'])

    for other in stored[1:]:
        if made_by(other) != made_by(stored[0]):
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
        self.model: Clip | None = None  # what embedded texts that have no rows

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
        self.model = self._load()
        return self.model.encode_text(texts)
