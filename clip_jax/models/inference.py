"""What a model that is loaded computes: features of a batch, and probabilities of classes."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import lookup, sharding
from clip_jax.data.preprocess import normalize
from clip_jax.models.clip import CLIP
from clip_jax.models.features import image_features, text_features

ACTIVATIONS = ('auto', 'softmax', 'sigmoid')


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'features', 'where'))
def of_images(
    variables,
    images,
    *,
    model: CLIP,
    mean: tuple,
    std: tuple,
    features: str,
    where: jax.sharding.Sharding,
) -> jax.Array:
    """Returns the features of preprocessed images, float32 [B, ...], with the sharding `where`."""
    found = image_features(model, variables, normalize(images, mean, std), features)
    return jax.lax.with_sharding_constraint(found, where)


@functools.partial(jax.jit, static_argnames=('model', 'features', 'where'))
def of_texts(
    variables, tokens, *, model: CLIP, features: str, where: jax.sharding.Sharding
) -> jax.Array:
    """Returns the features of tokens, float32 [B, ...], with the sharding `where`."""
    found = text_features(model, variables, tokens, features)
    return jax.lax.with_sharding_constraint(found, where)


def is_sigmoid(activation: str, params: Mapping[str, Any]) -> bool:
    """Whether `classify` applies a sigmoid to the logits of a model; ValueError if it cannot."""
    lookup.check(activation, ACTIVATIONS, what='activation')
    if activation == 'sigmoid' and 'logit_bias' not in params:
        raise ValueError(
            "activation is 'sigmoid', but this model has no logit bias, since its loss was a "
            "softmax; expected 'softmax' or 'auto'"
        )
    return activation != 'softmax' and 'logit_bias' in params


def probabilities(
    images: np.ndarray, classes: np.ndarray, params: Mapping[str, Any], *, sigmoid: bool
) -> np.ndarray:
    """The softmax or sigmoid of the scaled cosine similarities, float32 [N, classes]."""
    logits = np.exp(np.asarray(params['logit_scale'], np.float32)) * images @ classes.T
    if sigmoid:
        return np.asarray(jax.nn.sigmoid(logits + np.asarray(params['logit_bias'], np.float32)))
    return np.asarray(jax.nn.softmax(logits, axis=-1))


def sharded(batch: np.ndarray, batch_size: int, mesh: Mesh) -> jax.Array:
    """Pads a batch and shards it over the devices."""
    padding = _bucket(len(batch), batch_size, mesh.size) - len(batch)
    if padding:
        batch = np.pad(batch, [(0, padding)] + [(0, 0)] * (batch.ndim - 1))
    # Every process has the full batch and passes its devices their shards.
    return jax.make_array_from_callback(batch.shape, sharding.over_batch(mesh), batch.__getitem__)


def _bucket(n: int, most: int, devices: int) -> int:
    """Returns the size to pad n examples to: the devices times a power of two, up to `most`."""
    size = devices
    while size < n:
        size *= 2
    return min(size, -(-max(n, most) // devices) * devices)
