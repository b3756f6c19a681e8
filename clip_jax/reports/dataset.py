"""Figures of a data set: a contact sheet, and histograms of image sizes and captions."""

import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from clip_jax.reports import _style

COLUMNS = 6
LINES = 3  # of a caption
WIDTH = 30  # characters of a line
# Statistic of an inspection -> axis title, what is counted.
PANELS = {
    'width': ('Width, pixels', 'images'),
    'height': ('Height, pixels', 'images'),
    'aspect': ('Width / height', 'images'),
    'kilobytes': ('Stored image, kB', 'images'),
    'captions': ('Captions per image', 'images'),
    'characters': ('Characters per caption', 'captions'),
}


class Picture(Protocol):
    """An example to show: an image, uint8 [H, W, 3], its captions, and the name of its class."""

    @property
    def image(self) -> np.ndarray: ...

    @property
    def texts(self) -> Sequence[str]: ...

    @property
    def label(self) -> str: ...


def write(
    folder: pathlib.Path,
    report: Mapping[str, Any],
    values: Mapping[str, Sequence[float]],
    pictures: Sequence[Picture],
) -> None:
    """Draws contact_sheet.png and histograms.png, if any record is usable.

    Args:
        folder: where the files go.
        report: the report of data.tools.inspection.inspect, with 'data', the SPEC.
        values: what it measured, by the keys of PANELS.
        pictures: examples that it kept.
    """
    if not pictures:
        return
    count = f'{report["records"]:,} records'
    contact_sheet(
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


@_style.styled
def contact_sheet(
    pictures: Sequence[Picture], path: str | os.PathLike, *, title: str, subtitle: str
) -> None:
    """Draws images in rows of COLUMNS, each above its first caption or its label."""
    rows = -(-len(pictures) // COLUMNS)
    figure = _style.new(2.3 * COLUMNS, 2.62 * rows + 0.85, title, subtitle)
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, picture in enumerate(pictures):
        axes = figure.add_subplot(grid[divmod(i, COLUMNS)])
        # Squares of one size keep captions of neighbors apart.
        axes.imshow(_style.in_square(picture.image), interpolation='antialiased')
        axes.set_axis_off()
        axes.text(
            0.5,
            -0.03,
            _caption(picture),
            transform=axes.transAxes,
            ha='center',
            va='top',
            fontsize=7.5,
            linespacing=1.25,
        )
    _style.save(figure, path)


def _caption(picture: Picture) -> str:
    """The first caption, or the label, in at most LINES lines."""
    text = ' '.join((picture.texts[0] if picture.texts else picture.label).split())
    return '\n'.join(textwrap.wrap(text, WIDTH, max_lines=LINES, placeholder=' …'))


@_style.styled
def histograms(
    values: Mapping[str, Sequence[float]], path: str | os.PathLike, *, title: str, subtitle: str
) -> None:
    """Draws a histogram of each statistic, with its median."""
    shown = [name for name in PANELS if values.get(name)]
    rows = -(-len(shown) // 3)
    figure = _style.new(12.0, 2.7 * rows + 0.85, title, subtitle)
    grid = figure.add_gridspec(rows, 3)
    for i, name in enumerate(shown):
        _histogram(figure.add_subplot(grid[divmod(i, 3)]), values[name], *PANELS[name])
    _style.save(figure, path)


def _histogram(axes: Axes, values: Sequence[float], name: str, counted: str) -> None:
    numbers, median = np.asarray(values, float), float(np.median(values))
    low, high = numbers.min(), numbers.max()
    few = np.all(numbers == np.rint(numbers)) and high - low <= 40
    if few:  # a bar per number, with room beside a single one
        axes.hist(numbers, np.arange(low - 0.5, high + 1).tolist(), rwidth=0.8, color=_style.BLUE)
        axes.set_xlim(min(low, max(0, median - 3)) - 0.5, max(high, median + 3) + 0.5)
    else:
        axes.hist(numbers, 40, color=_style.BLUE, edgecolor='white', linewidth=0.5)
    axes.axvline(median, color=_style.ORANGE, linewidth=1.2)
    axes.set_title(name, pad=6)
    text = f'median {median:,.4g}'
    axes.set_title(text, pad=6, loc='right', color=_style.ORANGE, weight='normal')
    axes.set_ylabel(counted)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=bool(few)))
