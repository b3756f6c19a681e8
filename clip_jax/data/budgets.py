"""Which number and size of patches each batch of training images has, drawn for each batch."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data import patches
from clip_jax.data.patches import Patches

_DRAW = 0x62756467  # apart from the other random numbers of a seed
Choices = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The budgets and patch sizes of batches with their probabilities.

    Source: NaFlex of SigLIP 2 (arXiv 2502.14786), section 2.4.2, draws a sequence length for each
    batch; FlexiViT (arXiv 2212.08013), section 3.3, a patch size.

    Attributes:
        seed: the seed of the run.
        most: pairs of the number of patches that images are padded to and its probability.
        patch_sizes: pairs of height and width of patches, in pixels, and its probability.
    """

    seed: int
    most: Choices
    patch_sizes: Choices

    def __post_init__(self):
        _check('budgets', self.most)
        _check('patch_sizes', self.patch_sizes)

    def drawn(self, index: int) -> tuple[int, int]:
        """Returns the number and the size of patches of a global batch, the same on all hosts."""
        rng = np.random.default_rng([self.seed % 2**64, index, _DRAW])
        first, second = rng.random(2)
        return _at(self.most, first), _at(self.patch_sizes, second)

    def blank(self, index: int, count: int) -> Patches:
        """Returns `count` black images of a global batch."""
        return patches.blank((count,), *self.drawn(index))

    @property
    def largest(self) -> tuple[int, int]:
        """The largest number and the largest size of patches."""
        return max(x for x, _ in self.most), max(x for x, _ in self.patch_sizes)


def _at(choices: Choices, place: float) -> int:
    """The choice whose share of the range from 0 to 1 has a place."""
    ends = np.cumsum([share for _, share in choices])
    return choices[min(int(np.searchsorted(ends, place, side='right')), len(choices) - 1)][0]


def _check(name: str, choices: Any) -> None:
    right = isinstance(choices, tuple | list) and len(choices) > 0
    right = right and all(
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and type(pair[0]) is int
        and pair[0] > 0
        and isinstance(pair[1], int | float)
        and 0 < pair[1] <= 1
        for pair in choices
    )
    numbers = [pair[0] for pair in choices] if right else []
    total = math.fsum(pair[1] for pair in choices) if right else 0.0
    if not right or len({*numbers}) < len(numbers) or abs(total - 1) > 1e-6:
        raise ValueError(
            f'data.{name} is {choices!r}; expected pairs of a number and its probability, which '
            'add up to 1, such as ((128, 0.25), (256, 0.75))'
        )


def of_model(
    encoder: Any, seed: int, most: Choices, patch_sizes: Choices, max_patches: int | None
) -> Budgets | None:
    """Returns what the batches of a model have; None if it takes images of one size.

    Args:
        encoder: the image encoder.
        seed: the seed of the run.
        most: data.budgets of a config; (): always `max_patches`.
        patch_sizes: data.patch_sizes of a config; (): always that of the model.
        max_patches: that of the preprocessing; None: as many as the encoder has positions.

    Raises:
        ValueError: a value is impossible, or the model takes images of one size.
    """
    if not hasattr(encoder, 'example_images'):
        for name, given in (('budgets', most), ('patch_sizes', patch_sizes)):
            if given:
                raise ValueError(
                    f'data.{name} is {given!r}, and the image encoder takes images of one size; '
                    f'expected () or model.image.name naflex'
                )
        return None
    images = encoder.example_images(1, max_patches, None)
    return Budgets(
        seed,
        tuple(most) or ((images.pixels.shape[1], 1.0),),
        tuple(patch_sizes) or ((images.patch_size, 1.0),),
    )
