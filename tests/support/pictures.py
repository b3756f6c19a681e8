"""Pictures made of random numbers, and their encodings."""

import io

import cv2
import numpy as np
from PIL import Image


def encode(array: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Something with the fall-off of detail that photographs have."""
    image = sum(
        cv2.resize(
            noise(n, n, n).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        / (i + 1)
        for i, n in enumerate((4, 16, 64, 256))
    )
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
