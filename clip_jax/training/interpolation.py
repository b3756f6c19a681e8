"""Interpolation of the weights of two checkpoints (WiSE-FT, arXiv 2109.01903)."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from clip_jax import build, checkpoint, pretrained, sharding
from clip_jax.pretrained import Clip, loaded
from clip_jax.runtime import atomic
from clip_jax.runtime.messages import first_few

# Fields of a card's model that say how parameters begin, or matter in training only.
TRAINING = ('init_logit_scale', 'init_logit_bias', 'layer_scale', 'patch_dropout')


class Pair:
    """Two checkpoints of the same architecture, tokenizer and preprocessing, in host memory.

    Args:
        a: path of the one, as for `clip_jax.load`.
        b: path of the other.

    Raises:
        ValueError: a checkpoint cannot be read, or the two differ in more than their parameters.
    """

    def __init__(self, a: str | os.PathLike, b: str | os.PathLike):
        self.paths = os.fspath(a), os.fspath(b)
        (mine, one), (theirs, other) = map(pretrained.read, self.paths)
        # As they are read back: tuples are lists.
        self._card, card = (json.loads(json.dumps(x)) for x in (mine, theirs))
        self._check(card, one, other)
        self._a, self._b = (jax.tree.map(np.asarray, x) for x in (one, other))

    def _check(self, card: Mapping[str, Any], one: Any, other: Any) -> None:
        """Raises ValueError if the two cards or the shapes of the arrays differ."""
        wrong = [
            f'{name} is {mine} in {self.paths[0]} and {theirs} in {self.paths[1]}'
            for name, mine, theirs in _differences(self._card, card)
        ]
        if not wrong:
            wrong = checkpoint.differences(other, one)
        if wrong:
            raise ValueError(
                f'{self.paths[0]} and {self.paths[1]} cannot be interpolated: '
                f'{first_few(wrong, 3, separator="; ")}; expected checkpoints of the same '
                'architecture, tokenizer and preprocessing, such as a model and one that was '
                'fine-tuned from it'
            )

    def card(self, alpha: float) -> dict[str, Any]:
        """Returns the card of the model at `alpha`, which says what it was made of."""
        a, b = (
            p if atomic.is_remote(p) else os.path.abspath(os.path.expanduser(p)) for p in self.paths
        )
        return {**self._card, 'interpolated': {'a': a, 'b': b, 'alpha': alpha}}

    def variables(self, alpha: float) -> dict[str, Any]:
        """Returns (1 - alpha) A + alpha B, float32; at 0 and 1 equal to A and B bit for bit."""
        check_alpha(alpha)
        if alpha in (0, 1):  # a sum changes the sign of zeros
            return jax.tree.map(np.copy, self._b if alpha else self._a)
        of_a, of_b = np.float32(1 - alpha), np.float32(alpha)
        return jax.tree.map(lambda x, y: np.asarray(of_a * x + of_b * y), self._a, self._b)

    def clip(self, alpha: float, *, dtype: str = 'float32', mesh: Mesh | None = None) -> Clip:
        """Returns the model at `alpha`; `dtype` and `mesh` as for `clip_jax.load`."""
        mesh = mesh or sharding.make_mesh()
        model = build.model(self._card['model'], dtype)
        variables = pretrained.on_devices(self.variables(alpha), mesh)
        return loaded.from_card(self._card, variables, model, mesh)


def interpolate(
    a: str | os.PathLike,
    b: str | os.PathLike,
    alpha: float,
    *,
    dtype: str = 'float32',
    mesh: Mesh | None = None,
) -> Clip:
    """Loads the model whose weights lie between those of two checkpoints.

    Args:
        a: path of the one checkpoint, as for `clip_jax.load`; for example the zero-shot model.
        b: path of the other, for example the same model after fine-tuning.
        alpha: the weight of `b`, from 0 to 1: all variables, also the logit scale, are
            (1 - alpha) A + alpha B in float32.
        dtype: the compute dtype, as for `clip_jax.load`.
        mesh: the devices that embed; by default all devices of all processes.

    Returns:
        The `Clip`.

    Raises:
        ValueError: `alpha` is not from 0 to 1, a checkpoint cannot be read, or the two have other
            architectures, tokenizers or preprocessing.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv 2109.01903).
    """
    check_alpha(alpha)
    return Pair(a, b).clip(alpha, dtype=dtype, mesh=mesh)


def check_alpha(alpha: Any) -> None:
    """Raises ValueError if a weight is no number from 0 to 1."""
    number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not number or not 0 <= alpha <= 1:
        raise ValueError(f'alpha is {alpha!r}; expected a number from 0 (all of A) to 1 (all of B)')


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The names in which two cards differ, with both values in short."""
    parts = ('model', 'tokenizer', 'preprocess')
    mine, theirs = (
        traverse_util.flatten_dict({k: card[k] for k in parts}, sep='.', keep_empty_nodes=True)
        for card in (one, other)
    )
    return [
        (name, f'{mine.get(name, "missing")!r:.40}', f'{theirs.get(name, "missing")!r:.40}')
        for name in {**mine, **theirs}
        if name.rpartition('.')[2] not in TRAINING
        and mine.get(name, 'missing') != theirs.get(name, 'missing')
    ]
