"""The two encoders of an evaluation: a model's, or stored embeddings in their place."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from clip_jax.data.embedding_store import Embeddings
from clip_jax.data.sources import Source
from clip_jax.embeddings import identity
from clip_jax.evals import Logits, TextEncoder
from clip_jax.models import inference, matryoshka


class Model(identity.Model, Protocol):
    """A model that embeds images and texts; `pretrained.Clip` is one."""

    @property
    def model(self) -> Any:
        """The Flax module; its `dtype` is the compute dtype."""

    def encode_image(self, images: Any, *, features: str = 'embedding') -> np.ndarray:
        """Embeds images: float32 [N, D], of unit length unless `features` says otherwise."""

    def encode_text(self, texts: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """Embeds texts: float32 [N, D], of unit length."""


# Loads the model that made a folder of embeddings.
Load = Callable[[Embeddings], Model]


def encoders_for(
    clip: Model | None, data: Sequence[Source], *, path: str = '', load: Load | None = None
) -> tuple[Callable, Callable]:
    """Chooses what embeds the images and texts of some data sets.

    Captions of a folder of embeddings are looked up in it. Other texts are embedded by `clip`, or
    else by the model that made the folder, which is loaded when the first such text comes.

    Args:
        clip: the model, or None where all data sets are folders of embeddings.
        data: the data sets.
        path: where the model was loaded from, for messages.
        load: loads the model that made a folder; without it, only captions can be embedded where
            there is no model.

    Returns:
        (encode_image, encode_text); evals.logits_of(encode_text) are those of the model.

    Raises:
        ValueError: there are images and no model, or a folder was made by another model.
    """
    stored = _stored(data)
    check_model(clip, data)
    identity.check_same_model(stored)
    if clip and stored:
        identity.check_source_model(clip, stored[0], path)
    encode_image = clip.encode_image if clip else _no_images
    if not stored:
        # pyrefly: ignore[missing-attribute]  # `check_model` found one
        return encode_image, TextEncoder(clip.encode_text, functools.partial(_logits, clip))
    if clip and (dim := stored[0].description.dim):
        encode_image = functools.partial(_cut_images, clip.encode_image, dim)

    def load_model() -> Model:
        if clip:
            return clip
        if load:
            return load(stored[0])
        raise ValueError(f'--model must be given: {stored[0]} has no embedding of some text')

    return encode_image, _StoredTexts(stored, load_model, clip)


def check_model(model: Any, data: Sequence[Source]) -> None:
    """Raises ValueError if there is no model and some of the data sets have images to embed."""
    images = [source for source in data if not isinstance(source, Embeddings)]
    if model is None and images:
        raise ValueError(f'--model must be given: the images of {images[0]} must be embedded')


def provenance(clip: Model | None, data: Sequence[Source]) -> dict[str, str]:
    """Returns how embeddings were computed: `compute_dtype` and `device`; with a model and stored
    embeddings also `compute_dtype_of_embeddings`.
    """
    stored = ' and '.join(sorted({x.description.compute_dtype for x in _stored(data)}))
    found = {'compute_dtype': compute_dtype(clip) if clip else stored}
    if clip and stored:
        found['compute_dtype_of_embeddings'] = stored
    return found | {'device': jax.devices()[0].device_kind}


def model_used(clip: Model | None, encode_text: Callable) -> Model | None:
    """Returns the model of an evaluation: the given one, or the one loaded to embed texts."""
    return encode_text.model if clip is None and isinstance(encode_text, _StoredTexts) else clip


def compute_dtype(clip: Model) -> str:
    """Returns the dtype that a model computes in."""
    return str(np.dtype(clip.model.dtype))


def _logits(clip: Any) -> Logits | None:
    """What makes logits of the model's similarities, as `Clip.classify` does; None without it."""
    params = clip.variables.get('params', {})
    if 'logit_scale' not in params:
        return None
    scale = float(inference.scale(params))
    if inference.is_sigmoid('auto', params):
        return Logits(scale, float(np.asarray(params['logit_bias'], np.float32)))
    return Logits(scale)


def _stored(data: Sequence[Source]) -> list[Embeddings]:
    return [source for source in data if isinstance(source, Embeddings)]


def _no_images(images: Any, *, features: str = 'embedding') -> np.ndarray:
    raise ValueError('--model must be given: images must be embedded')


def _cut_images(
    encode_image: Callable, dim: int, images: Any, *, features: str = 'embedding'
) -> np.ndarray:
    rows = encode_image(images, features=features)
    return matryoshka.first(rows, dim) if features == 'embedding' else rows


class _StoredTexts:
    """Embeds texts: captions are looked up in folders, others need the model."""

    def __init__(self, stored: Sequence[Embeddings], load: Callable[[], Model], clip: Model | None):
        self._stored, self._load, self._clip = stored, load, clip
        self.model: Model | None = None  # set once a text needed it

    @functools.cached_property
    def _embeddings(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for source in self._stored:
            if source.description.captions != 'embedding':
                continue
            for text, embedding in zip(*source.texts(), strict=True):
                found.setdefault(text, embedding)
        return found

    def __call__(self, texts: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """Returns unit-length embeddings, float32 [N, D]."""
        many = not isinstance(texts, (str, np.ndarray)) and len(texts)
        if many and all(text in self._embeddings for text in texts):
            return np.stack([self._embeddings[text] for text in texts])
        self.model = self._load()
        dim = self._stored[0].description.dim
        return matryoshka.first(self.model.encode_text(texts), dim or None)

    def logits(self) -> Logits | None:
        """Returns the logits of the model that made the folders, None if they are not known."""
        if model := self._clip or self.model:
            return _logits(model)
        description = self._stored[0].description
        # The folder has the factor, if the model had one, but not the value of a bias.
        biased = description.card.get('model', {}).get('init_logit_bias') is not None
        return None if biased or not description.scale else Logits(description.scale)
