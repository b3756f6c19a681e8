"""Figures of a data set: a contact sheet of its pictures, and how their numbers are spread."""

import os
import pathlib
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.data.tools.inspection import Picture

COLUMNS = 6
LINES = 3  # of a caption
LINE = 30  # characters of one
BAR, MARK, GRAY = '#0072B2', '#D55E00', '#6b6b6b'
# What a survey's values are called, and what is counted.
PANELS = {
    'width': ('Width, pixels', 'pictures'),
    'height': ('Height, pixels', 'pictures'),
    'aspect': ('Width / height', 'pictures'),
    'kilobytes': ('Stored image, kB', 'pictures'),
    'captions': ('Captions of a picture', 'pictures'),
    'characters': ('Characters of a caption', 'captions'),
}


def write(
    folder: pathlib.Path,
    report: Mapping[str, Any],
    values: Mapping[str, Sequence[float]],
    pictures: Sequence[Picture],
    style: Mapping[str, Any],
) -> None:
    """Draws contact_sheet.png and histograms.png of what survey.inspect returns, if any record of
    it can be used; `style` are matplotlib's settings.
    """
    if not pictures:
        return
    count = f'{report["records"]:,} records'
    with matplotlib.rc_context(dict(style)), warnings.catch_warnings():
        # The font has no signs of some languages: boxes stand for them.
        warnings.filterwarnings('ignore', 'Glyph')
        contact(
            pictures,
            folder / 'contact_sheet.png',
            title=report['data'],
            subtitle=f'{len(pictures)} of {count}, each with its first caption or its label',
        )
        histograms(
            values,
            folder / 'histograms.png',
            title=report['data'],
            subtitle=f'{report["sample"]:,} of {count}, evenly spread',
        )


def contact(
    pictures: Sequence[Picture], path: str | os.PathLike, *, title: str, subtitle: str
) -> None:
    """Draws pictures in rows of COLUMNS, each above its first caption or its label."""
    rows = -(-len(pictures) // COLUMNS)
    figure = _figure(2.3 * COLUMNS, 2.62 * rows + 0.85, title, subtitle)
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, picture in enumerate(pictures):
        axes = figure.add_subplot(grid[divmod(i, COLUMNS)])
        # All in squares of one size: where one ends, its neighbor's caption does not begin.
        axes.imshow(in_square(picture.image), interpolation='antialiased')
        axes.set_axis_off()
        axes.text(
            0.5,
            -0.03,
            _short(picture),
            transform=axes.transAxes,
            ha='center',
            va='top',
            fontsize=7.5,
            linespacing=1.25,
        )
    figure.savefig(path, dpi=130)


def _short(picture: Picture) -> str:
    """The first caption, or the label, in at most LINES lines."""
    text = ' '.join((picture.texts[0] if picture.texts else picture.label).split())
    return '\n'.join(textwrap.wrap(text, LINE, max_lines=LINES, placeholder=' …'))


def in_square(image: np.ndarray) -> np.ndarray:
    """An image, uint8 [H, W] or [H, W, 3], on the bottom of a white square, above its words."""
    image = np.asarray(image)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    left = (side - width) // 2
    square[side - height :, left : left + width] = image
    return square


def histograms(
    values: Mapping[str, Sequence[float]], path: str | os.PathLike, *, title: str, subtitle: str
) -> None:
    """Draws how each of the values of a survey is spread, with its median."""
    shown = [what for what in PANELS if values.get(what)]
    rows = -(-len(shown) // 3)
    figure = _figure(12.0, 2.7 * rows + 0.85, title, subtitle)
    grid = figure.add_gridspec(rows, 3)
    for i, what in enumerate(shown):
        _histogram(figure.add_subplot(grid[divmod(i, 3)]), values[what], *PANELS[what])
    figure.savefig(path, dpi=130)


def _histogram(axes: Axes, values: Sequence[float], name: str, counted: str) -> None:
    values, median = np.asarray(values, float), float(np.median(values))
    low, high = values.min(), values.max()
    few = np.all(values == np.rint(values)) and high - low <= 40
    if few:  # a bar for each number, and room beside a single one
        axes.hist(values, np.arange(low - 0.5, high + 1), rwidth=0.8, color=BAR)
        axes.set_xlim(min(low, max(0, median - 3)) - 0.5, max(high, median + 3) + 0.5)
    else:
        axes.hist(values, 40, color=BAR, edgecolor='white', linewidth=0.5)
    axes.axvline(median, color=MARK, linewidth=1.2)
    axes.set_title(name, pad=6)
    axes.set_title(f'median {median:,.4g}', pad=6, loc='right', color=MARK, weight='normal')
    axes.set_ylabel(counted)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=bool(few)))


def _figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """A figure (in inches) with two lines of head."""
    figure = Figure(figsize=(width, height), facecolor='white', layout='constrained')
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.72 / height), w_pad=0.1, h_pad=0.08)
    figure.text(0.12 / width, 1 - 0.12 / height, title, fontsize=14, weight='bold', va='top')
    figure.text(0.12 / width, 1 - 0.43 / height, subtitle, fontsize=10, color=GRAY, va='top')
    return figure
