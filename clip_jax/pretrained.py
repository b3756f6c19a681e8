"""`load(path)`: from a run directory or a checkpoint to a model that embeds images and texts and
classifies.
"""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import build, checkpoint, prompts, sharding, tokenizers
from clip_jax.data.transforms import Preprocess, normalise
from clip_jax.models.clip import CLIP, shapes, unit


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model with everything that its use needs.

    `variables` is what `model.apply` takes: `{'params': …}`, with a ResNet also `batch_stats`;
    `card` describes architecture, preprocessing and tokenizer.
    """

    model: CLIP
    variables: dict[str, Any]
    card: dict[str, Any]
    tokenizer: Callable[[Sequence[str]], np.ndarray]
    preprocess: Preprocess
    mesh: Mesh
    batch_size: int = 256

    def encode_image(self, images: Any) -> np.ndarray:
        """Embeds images (PIL images, paths, encoded bytes, uint8 arrays [H, W, 3]; one or many):
        unit rows [N, D].
        """
        many = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not many and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        forward = functools.partial(
            _image_rows,
            model=self.model,
            mean=tuple(self.preprocess.mean),
            std=tuple(self.preprocess.std),
        )
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return self._rows(
                forward, images, lambda x: np.stack(list(pool.map(self.preprocess, x)))
            )

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embeds texts: unit rows [N, D], float32."""
        texts = [texts] if isinstance(texts, str) else texts
        return self._rows(functools.partial(_text_rows, model=self.model), texts, self.tokenizer)

    def classify(
        self, images: Any, labels: Sequence[str], *, templates: str | Sequence[str] = 'plain'
    ) -> np.ndarray:
        """Probability of each label for each image: float32 [N, len(labels)], rows sum to 1.

        `templates`: a prompt set's name, or templates such as 'a photo of a {}.'.
        """
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f'labels {labels!r}: expected a list of at least one name')
        classes = prompts.class_vectors(self.encode_text, labels, prompts.templates(templates))
        scale = np.exp(np.asarray(self.variables['params']['logit_scale'], np.float32))
        logits = scale * self.encode_image(images) @ classes.T
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    def _rows(self, forward: Callable, items: Sequence, prepare: Callable) -> np.ndarray:
        """Embeds items batch by batch; each is padded to one of a few sizes, so that few are
        compiled.
        """
        rows = [np.zeros((0, self.model.embed_dim), np.float32)]
        for start in range(0, len(items), self.batch_size):
            inputs = prepare(items[start : start + self.batch_size])
            padding = _bucket(len(inputs), len(self.mesh.devices)) - len(inputs)
            padded = np.pad(inputs, [(0, padding)] + [(0, 0)] * (inputs.ndim - 1))
            padded = jax.device_put(padded, sharding.over_batch(self.mesh))
            rows.append(np.asarray(forward(self.variables, padded))[: len(inputs)])
        return np.concatenate(rows)


def _bucket(n: int, devices: int) -> int:
    """The smallest power of two times the number of devices that holds n rows."""
    size = devices
    while size < n:
        size *= 2
    return size


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std'))
def _image_rows(variables, images, *, model: CLIP, mean: tuple, std: tuple) -> jax.Array:
    return unit(model.apply(variables, normalise(images, mean, std), method='encode_image'))


@functools.partial(jax.jit, static_argnames=('model',))
def _text_rows(variables, tokens, *, model: CLIP) -> jax.Array:
    return unit(model.apply(variables, tokens, method='encode_text'))


def from_card(card: dict[str, Any], variables: dict, model: CLIP, mesh: Mesh) -> Clip:
    """Joins a model and its variables with the tokenizer and the preprocessing that the card
    describes.
    """
    return Clip(
        model=model,
        variables=variables,
        card=card,
        tokenizer=tokenizers.from_card(card['tokenizer']),
        preprocess=Preprocess.from_card(card['preprocess']),
        mesh=mesh,
    )


def load(path: str | pathlib.Path, *, dtype: str = 'float32') -> Clip:
    """Loads a model from a run directory (its newest checkpoint) or from one checkpoint in it.

    `dtype` is the type of arithmetic: 'float32', 'bfloat16', or 'auto' (bfloat16 on accelerators).
    ValueError if there is no checkpoint at `path`.
    """
    folder = checkpoint.find(path)
    card = checkpoint.read_about(folder)['card']
    model = build.model(card['model'], dtype)
    mesh = sharding.make_mesh()
    return from_card(card, checkpoint.read_variables(folder, shapes(model), mesh), model, mesh)
