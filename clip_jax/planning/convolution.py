"""The FLOPs of a convolution in a compiled program, from its shapes and its attributes."""

import functools
import re

import numpy as np

USUAL_WINDOW = {'pad': '0_0', 'stride': '1', 'lhs_dilate': '1', 'rhs_dilate': '1'}
Shape = tuple[int, ...]


def flops(line: str, left: Shape, right: Shape, out: Shape) -> int:
    """FLOPs of a convolution; each of its axes is of the batch, of features, or one of a window.

    Args:
        line: the instruction, with `dim_labels` and, where it has one, `window`.
        left: the shape of its input.
        right: of its kernel.
        out: of its output.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', line)
    assert labels, line
    of_left, of_right, of_out = labels.groups()
    axes = [str(axis) for axis in range(len(of_out) - 2)]
    window = re.search(r'window=\{([^}]*)\}', line)
    stated = dict(x.split('=') for x in window[1].split()) if window else {}
    pads, strides, dilates, aparts = (
        stated[what].split('x') if what in stated else [usual] * len(axes)
        for what, usual in USUAL_WINDOW.items()
    )
    total = 2 * out[of_out.index('b')] * out[of_out.index('f')] * right[of_right.index('i')]
    for axis, pad, *numbers in zip(axes, pads, strides, dilates, aparts, strict=True):
        sizes = left[of_left.index(axis)], right[of_right.index(axis)], out[of_out.index(axis)]
        total *= _products(*sizes, int(pad.split('_')[0]), *map(int, numbers))
    return total


@functools.lru_cache(1 << 12)
def _products(
    size: int, window: int, out: int, pad: int, stride: int, dilate: int, apart: int
) -> int:
    """Products along one axis of a convolution, those with padding left out.

    Of a product of matrices in batches, which a TPU has as a convolution over the batch, that
    leaves what is no product with zero.
    """
    at = np.arange(out)[:, None] * stride + np.arange(window) * apart - pad
    return int(((at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)).sum())
