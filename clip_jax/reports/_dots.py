"""Scores of several models side by side, and the legend of models below a figure."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import lines as lines_of
from matplotlib.figure import Figure

from clip_jax.reports import _style

Cell = tuple[float | None, Sequence[float] | None]  # a score and the ends of its interval
LENGTH = 60  # characters of a model's name
LINE = 0.18  # inches of a line of the legend


def draw_dots(
    names: Sequence[str],
    models: Mapping[str, Sequence[Cell]],
    path: str | os.PathLike,
    *,
    title: str,
    subtitle: str,
) -> None:
    """Draws a line for each score with a dot for each model, and its interval.

    Args:
        names: what the scores are called.
        models: their values by model, fractions of 1; None for a model that lacks one.
        path: the PNG file to write.
        title: of the figure.
        subtitle: of the figure.
    """
    count, step = len(models), min(0.16 * len(models) + 0.16, 0.6)
    below = foot(count)
    height = max(1.6, step * len(names) + 0.6) + _style.HEAD + below
    figure = _style.new(8.4, height, title, subtitle, below)
    axes = figure.add_subplot()
    for k, cells in enumerate(models.values()):
        places = [n + ((k + 0.5) / count - 0.5) * 0.7 for n in range(len(names))]
        known = [(p, v, x) for p, (v, x) in zip(places, cells, strict=True) if v is not None]
        places, values, intervals = zip(*known, strict=True) if known else ([], [], [])
        lengths = _style.whiskers(values, intervals)
        look: dict[str, Any] = {**_style.look(k), 'linestyle': 'none', 'markersize': 5.5}
        axes.errorbar(values, places, xerr=lengths, elinewidth=1.4, capsize=2.5, **look)
    axes.set_yticks(range(len(names)), [_style.short(name, 34) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis='y', length=0, labelcolor=_style.INK)
    axes.xaxis.set_major_formatter(_style.per_cent)
    axes.margins(x=0.08)
    some = any(interval for cells in models.values() for _, interval in cells)
    axes.set_xlabel('score with its 95 % interval' if some else 'score')
    legend(figure, models)
    _style.save(figure, path)


def foot(count: int) -> float:
    """The inches below a figure for the legend of so many models."""
    return LINE * count + 0.16


def legend(figure: Figure, models: Sequence[str] | Mapping[str, object]) -> None:
    """Writes the legend of models into the foot of a figure."""
    handles = [
        lines_of.Line2D([], [], linestyle='none', **_style.look(k)) for k in range(len(models))
    ]
    # The end of a path says more than its beginning.
    names = [name if len(name) <= LENGTH else f'…{name[-LENGTH + 1 :]}' for name in models]
    figure.legend(handles, names, loc='lower left', borderaxespad=0.3)
