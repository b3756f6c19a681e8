"""The reliability diagram of a classifier, from the report of its evaluation."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from clip_jax.reports import _style

PEACH = '#f0bf99'
TICKS = np.linspace(0, 1, 6)


@_style.shows()
def calibration(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws accuracy over confidence, and how often each confidence occurs: report['calibration'],
    rows [low, high, images, mean confidence, accuracy]; beside it with a fitted temperature.

    Source: Guo et al. 2017, arXiv 1706.04599, figures 1 and 4.
    """
    found = report['calibration']
    panels = {"the model's own temperature": found}
    if found.get('fitted'):
        name = f'fitted: logits divided by {found["fitted"]["temperature"]:.3g}'
        panels[name] = found['fitted']
    what = f'{found.get("activation", "softmax")} over the classes'
    subtitle = _style.joined(what, *_style.counts(report, 'images', 'classes'))
    title = f'{_style.title(report)}: calibration'
    figure = _style.new(4.9 * len(panels) + 0.6, 5.6 + _style.HEAD, title, subtitle)
    grid = figure.add_gridspec(2, len(panels), height_ratios=(3.4, 1))
    for k, (name, part) in enumerate(panels.items()):
        rows = np.asarray(part['bins'], float)
        if rows.ndim != 2 or rows.shape[1] != 5:
            raise ValueError(f'calibration figure: bins {rows.shape}; expected rows of 5 numbers')
        above = figure.add_subplot(grid[0, k])
        _diagram(above, rows)
        above.set_title(name, pad=8)
        below = figure.add_subplot(grid[1, k], sharex=above)
        _histogram(below, rows)
    _style.save(figure, path)


def _diagram(axes: Axes, rows: np.ndarray) -> None:
    """Accuracy by confidence, with the gap between both."""
    low, high, counts, confidence, accuracy = rows.T
    middle, width = (low + high) / 2, high - low
    look = {'width': 0.94 * width, 'linewidth': 0}
    axes.bar(middle, accuracy, color=_style.BLUE, label='accuracy', **look)
    gap = confidence - accuracy
    above, below = np.maximum(gap, 0), np.minimum(gap, 0)
    axes.bar(middle, above, bottom=accuracy, color=PEACH, label='overconfident', **look)
    axes.bar(middle, below, bottom=accuracy, color=_style.SKY, label='underconfident', **look)
    diagonal = {'color': _style.INK, 'linewidth': 1, 'linestyle': (0, (4, 3))}
    axes.plot([0, 1], [0, 1], label='calibrated', **diagonal)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=TICKS, yticks=TICKS, ylabel='accuracy')
    for axis in axes.xaxis, axes.yaxis:
        axis.set_major_formatter(_style.per_cent)
    axes.tick_params(axis='x', labelbottom=False)
    axes.legend(loc='upper left')
    error = float(np.sum(counts * np.abs(gap)) / counts.sum())
    box = {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.85}
    text = f'ECE {100 * error:.1f} %'
    place = {'transform': axes.transAxes, 'ha': 'right', 'va': 'bottom'}
    axes.text(0.98, 0.03, text, weight='bold', bbox=box, **place)


def _histogram(axes: Axes, rows: np.ndarray) -> None:
    """The share of images of each confidence, with the means of confidence and accuracy."""
    low, high, counts, confidence, accuracy = rows.T
    share = counts / counts.sum()
    axes.bar((low + high) / 2, share, width=0.94 * (high - low), color=_style.GRAY, linewidth=0)
    means = float(share @ accuracy), float(share @ confidence)
    for mean, color in zip(means, (_style.BLUE, _style.ORANGE), strict=True):
        axes.axvline(mean, color=color, linewidth=1.6)
    axes.yaxis.set_major_formatter(_style.per_cent)
    axes.set(ylabel='images', ylim=(0, 1.15 * share.max()))
    axes.set_xlabel(
        f'confidence; lines: accuracy {100 * means[0]:.1f} %, '
        f'mean confidence {100 * means[1]:.1f} %'
    )
