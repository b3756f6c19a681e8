"""The interface of metric writers, and a writer that passes everything on to several others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

UPLOAD_EVERY = 60.0  # seconds between two uploads to object storage, which cannot append


class Writer:
    """The interface of a metric writer; each method does nothing unless it is overridden."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers by name: Python, NumPy or JAX scalars."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images by name, each uint8 [H, W, 3] or [N, H, W, 3]."""

    def flush(self) -> None:
        """Returns when everything written so far is stored safely."""

    def close(self) -> None:
        """Flushes, and closes files and connections; the writer cannot be used afterwards."""


class MultiWriter(Writer):
    """Passes everything on to several writers.

    Args:
        writers: metric writers, ours or clu's.
    """

    def __init__(self, writers: Sequence[Any]):
        self._writers = list(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def to_python(scalars: Mapping[str, Any]) -> dict[str, Any]:
    """Converts scalars to Python numbers.

    Args:
        scalars: numbers by name: Python, NumPy or JAX scalars, or arrays of one element.

    Returns:
        Python numbers by name.

    Raises:
        ValueError: if an array has more than one element.
    """
    found = {}
    for name, value in scalars.items():
        if np.size(value) != 1:
            raise ValueError(
                f'metric {name!r} has shape {np.shape(value)}, expected one number: '
                'reduce it before it is written'
            )
        found[name] = np.asarray(value).item()
    return found


def split_images(images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits batches of images: [N, H, W, 3] under NAME gives N images NAME/0, NAME/1, ..."""
    found = {}
    for name, array in images.items():
        if np.ndim(array) == 4:
            found |= {f'{name}/{i}': image for i, image in enumerate(array)}
        else:
            found[name] = array
    return found
