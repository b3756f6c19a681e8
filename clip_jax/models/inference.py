"""What a model that is loaded computes: embeddings of a batch, and probabilities of classes."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import lookup, sharding
from clip_jax.data.preprocess import normalize
from clip_jax.models.clip import CLIP, l2_normalize

ACTIVATIONS = ('auto', 'softmax', 'sigmoid')


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'features', 'where'))
def image_features(
    variables,
    images,
    *,
    model: CLIP,
    mean: tuple,
    std: tuple,
    features: str,
    where: jax.sharding.Sharding,
) -> jax.Array:
    """Returns the features of preprocessed images, float32 [B, D], with the sharding `where`."""
    images = normalize(images, mean, std)
    if features == 'pre_projection':
        found = cast(jax.Array, model.apply(variables, images, method=_pre_projection))
        found = found.astype(np.float32)
    else:
        found = cast(jax.Array, model.apply(variables, images, method='encode_image'))
        found = l2_normalize(found)
    return jax.lax.with_sharding_constraint(found, where)


def _pre_projection(model: CLIP, images: jax.Array) -> jax.Array:
    return model.image(images)


@functools.partial(jax.jit, static_argnames=('model', 'where'))
def text_embeddings(variables, tokens, *, model: CLIP, where: jax.sharding.Sharding) -> jax.Array:
    """Returns the embeddings of tokens, float32 [B, D], with the sharding `where`."""
    embeddings = cast(jax.Array, model.apply(variables, tokens, method='encode_text'))
    return jax.lax.with_sharding_constraint(l2_normalize(embeddings), where)


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


def sharded(batch: Any, batch_size: int, mesh: Mesh) -> Any:
    """Pads a batch, an array or a tree of arrays, and shards it over the devices."""
    padding = _bucket(len(batch), batch_size, mesh.size) - len(batch)

    def one(x: np.ndarray) -> jax.Array:
        if padding:
            x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        # Every process has the full batch and passes its devices their shards.
        return jax.make_array_from_callback(x.shape, sharding.over_batch(mesh), x.__getitem__)

    return jax.tree.map(one, batch)


def _bucket(n: int, most: int, devices: int) -> int:
    """Returns the size to pad n examples to: the devices times a power of two, up to `most`."""
    size = devices
    while size < n:
        size *= 2
    return min(size, -(-max(n, most) // devices) * devices)
