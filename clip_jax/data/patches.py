"""Images of any aspect ratio as patches: how many fit into a budget, and padding to it."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

# The search for the scale of an image ends at this precision, and begins with this largest scale.
_PRECISION, _LARGEST = 1e-5, 100.0


@functools.partial(jax.tree_util.register_dataclass, data_fields=('pixels', 'grid'), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Patches:
    """Images cut into patches, row by row, and padded to the same number of patches.

    Attributes:
        pixels: [B, L, size, size, 3]; uint8, or float after normalization. An image has its first
            rows * columns of the L patches, and padding after them.
        grid: int32 [B, 2], the rows and columns of patches of each image.
    """

    pixels: Any
    grid: Any

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def patch_size(self) -> int:
        """Height and width of a patch, in pixels."""
        return self.pixels.shape[-2]


def blank(shape: tuple[int, ...], most: int, patch_size: int) -> Patches:
    """Returns black images with a leading `shape` of at most `most` patches, without any yet."""
    pixels = np.zeros((*shape, most, patch_size, patch_size, 3), np.uint8)
    return Patches(pixels, np.zeros((*shape, 2), np.int32))


@functools.lru_cache(maxsize=4096)
def fitted(height: int, width: int, patch_size: int, most: int) -> tuple[int, int]:
    """Returns the largest height and width to resize an image to that fit into a budget.

    Each side is scaled alike and then rounded up to a multiple of the patch size.

    Args:
        height: the height of the image in pixels.
        width: its width in pixels.
        patch_size: height and width of patches in pixels.
        most: the largest number of patches.

    Source: SigLIP 2 (arXiv 2502.14786), section 2.4.2; the search is that of big_vision and of
        transformers, whose results depend on its precision.
    """

    def at(scale: float) -> tuple[int, int]:
        sides = (math.ceil(side * scale / patch_size) for side in (height, width))
        rows, columns = (max(1, side) for side in sides)
        return rows * patch_size, columns * patch_size

    low, high = _PRECISION / 10, _LARGEST
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        rows, columns = (side // patch_size for side in at(middle))
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    return at(low)


def put(image: np.ndarray, into: Patches) -> None:
    """Cuts an image, uint8 [H, W, 3] with sides that are multiples of the patch size, into patches
    that are written to one blank image.
    """
    size = into.patch_size
    rows, columns = image.shape[0] // size, image.shape[1] // size
    cut = image.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    into.pixels[: rows * columns] = cut.reshape(-1, size, size, 3)
    into.grid[:] = rows, columns


def stacked(images: Sequence[Any]) -> Any:
    """Stacks preprocessed images, arrays or Patches without a batch axis, to a batch of them."""
    return jax.tree.map(lambda *rows: np.stack(rows), *images)
