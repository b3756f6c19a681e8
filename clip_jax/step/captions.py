"""The captioning loss beside the contrastive one, or alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.models.clip import CLIP, captioned


@dataclasses.dataclass(frozen=True)
class Captioning:
    """How a model with a caption decoder is trained.

    The captioning loss is the mean cross-entropy of the next token over all tokens of the batch but
    the first of each text and padding (CoCa, arXiv 2205.01917, section 3.2).

    Attributes:
        weight: factor of the captioning loss in the total.
        contrastive: factor of the contrastive loss; 0: no embeddings are computed, and the text
            encoder only if the decoder reads its output.
        parallel: share of the captions that are predicted in parallel (CapPa, arXiv 2306.07915,
            section 3).
    """

    weight: float = 2.0
    contrastive: float = 1.0
    parallel: float = 0.0

    @property
    def call(self) -> dict[str, Any]:
        """What a call of the model needs besides, so that it returns what `captioned` does."""
        contrastive = self.contrastive > 0
        return {'method': captioned, 'parallel': self.parallel, 'contrastive': contrastive}

    def added(self, loss: Callable) -> Callable:
        """Returns the loss of what the model returns.

        Args:
            loss: (image, text, *others) -> (value, metrics).

        Returns:
            (image, text, sums, *others) -> (value, metrics), or without a contrastive loss
            (sums, *others) -> (value, metrics), with the sums of decoder.caption_sums.
        """

        def alone(sums: jax.Array, *others: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, count, right = jnp.sum(sums, axis=0)
            count = jnp.maximum(count, 1)  # a batch of empty texts
            value, accuracy = total / count, right / count
            return self.weight * value, {
                'caption/loss': value,
                'caption/perplexity': jnp.exp(value),
                'caption/accuracy': accuracy,
            }

        def both(
            image: jax.Array, text: jax.Array, sums: jax.Array, *others: Any
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            contrastive, metrics = loss(image, text, *others)
            value, of_captions = alone(sums)
            found = {**metrics, 'contrastive': contrastive, **of_captions}
            return self.contrastive * contrastive + value, found

        return both if self.contrastive else alone


def make(config: Mapping[str, Any], model: CLIP, *, teachers: bool = False) -> Captioning | None:
    """Makes what a config's `captioning` describes; None for a model without a decoder.

    Args:
        config: weight, contrastive and parallel.
        model: the model.
        teachers: whether there are teachers, which need embeddings.

    Raises:
        ValueError: a value is impossible, or does not fit the model.
    """
    for name, value in config.items():
        if not (isinstance(value, int | float) and value >= 0):
            raise ValueError(f'captioning.{name} is {value!r}; expected a number, at least 0')
    if model.decoder is None:
        return None
    captioning = Captioning(**config)
    if not captioning.weight:
        raise ValueError(
            'captioning.weight is 0; expected more than 0, or a model without a decoder'
        )
    if captioning.parallel > 1:
        raise ValueError(f'captioning.parallel is {captioning.parallel}; expected at most 1')
    if captioning.parallel and not model.decoder.parallel:
        raise ValueError(
            f'captioning.parallel is {captioning.parallel}; it needs model.decoder.parallel'
        )
    if teachers and not captioning.contrastive:
        raise ValueError(
            'captioning.contrastive is 0; expected more than 0 with distillation, which needs '
            'embeddings'
        )
    return captioning
