"""Figures of curation: the scores that a filter saw, and pairs of near-duplicates."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clip_jax.reports import _style

COLUMNS = 3  # of pairs
SIDE = 288  # pixels of an image of a pair


class Pair(NamedTuple):
    """Two images to show beside each other.

    Attributes:
        removed: the image that is left out, uint8 [H, W, 3].
        other: the image that it duplicates.
        cosine: the cosine similarity of their embeddings.
        names: what both are called.
        note: what the figure adds to the cosine.
    """

    removed: np.ndarray
    other: np.ndarray
    cosine: float
    names: tuple[str, str]
    note: str = ''


@_style.styled
def scores(report: Mapping[str, Any], path: str | os.PathLike, *, title: str) -> None:
    """Draws the histogram of the scores in a report of `embeddings.filter`, those of the records
    that are kept in another color.
    """
    edges = np.array(report['histogram']['edges'])
    counts, lowest = report['histogram']['counts'], report['lowest_kept_score']
    kept = f'{report["counts"]["kept"]:,} of {report["counts"]["scored"]:,} records'
    subtitle = f'{kept} kept ({100 * report["kept_share"]:.3g} %), from a score of {lowest:.4f}'
    figure = _style.new(8.0, 4.2, title, subtitle)
    axes = figure.add_subplot()
    width = np.diff(edges)
    axes.bar(edges[:-1], counts, width, align='edge', color=_style.SKY, label='left out')
    above = edges[1:] > lowest
    starts = np.maximum(edges[:-1], lowest)[above]  # one bin may be of both
    axes.bar(
        starts,
        np.array(counts)[above],
        (edges[1:][above] - starts),
        align='edge',
        color=_style.BLUE,
        label='kept',
    )
    axes.axvline(lowest, color=_style.ORANGE, linewidth=1.2)
    axes.set_xlabel('CLIP score: cosine similarity of image and caption')
    axes.set_ylabel('records')
    axes.legend(loc='upper right')
    _style.save(figure, path)


@_style.styled
def pairs(found: Sequence[Pair], path: str | os.PathLike, *, title: str, subtitle: str) -> None:
    """Draws pairs of images side by side, each with its cosine similarity and the names of both."""
    columns = min(COLUMNS, len(found))
    lines = math.ceil(len(found) / columns)
    figure = _style.new(max(4.4 * columns, 8.0), 2.7 * lines + _style.HEAD, title, subtitle)
    grid = figure.add_gridspec(lines, columns)
    for k, pair in enumerate(found):
        axes = figure.add_subplot(grid[divmod(k, columns)])
        _style.picture(axes, _side_by_side(pair))
        names = _style.short('   ·   '.join(pair.names), 60)
        axes.set_title(names, fontsize=8, weight='normal', pad=3)
        at = {'transform': axes.transAxes, 'ha': 'left', 'va': 'top', 'fontsize': 8.5}
        text = f'cosine {pair.cosine:.4f}{pair.note}'
        axes.text(0, -0.03, text, color=_style.ORANGE, **at)
    _style.save(figure, path)


def _side_by_side(pair: Pair) -> np.ndarray:
    """Both images of a pair in one, each in a square of SIDE pixels."""
    squares = [
        np.asarray(Image.fromarray(_style.in_square(image)).resize((SIDE, SIDE)))
        for image in (pair.removed, pair.other)
    ]
    return np.concatenate(
        [squares[0], np.full((SIDE, SIDE // 24, 3), 255, np.uint8), squares[1]], 1
    )
