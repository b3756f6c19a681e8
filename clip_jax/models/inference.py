"""What surrounds a forward pass: padded and sharded batches, and probabilities of classes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import lookup, sharding

ACTIVATIONS = ('auto', 'softmax', 'sigmoid')


def is_sigmoid(activation: str, params: Mapping[str, Any]) -> bool:
    """Whether `classify` applies a sigmoid to the logits of a model; ValueError if it cannot."""
    lookup.check(activation, ACTIVATIONS, what='activation')
    if activation == 'sigmoid' and 'logit_bias' not in params:
        raise ValueError(
            "activation is 'sigmoid', but this model has no logit bias, since its loss was a "
            "softmax; expected 'softmax' or 'auto'"
        )
    return activation != 'softmax' and 'logit_bias' in params


def scale(params: Mapping[str, Any]) -> np.ndarray:
    """The factor of a model's cosine similarities, float32 []."""
    return np.exp(np.asarray(params['logit_scale'], np.float32))


def probabilities(
    images: np.ndarray, classes: np.ndarray, params: Mapping[str, Any], *, sigmoid: bool
) -> np.ndarray:
    """The softmax or sigmoid of the scaled cosine similarities, float32 [N, classes]."""
    logits = scale(params) * images @ classes.T
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
