"""Figures of scores from the reports of evaluations: per class and group, confusion, sweeps."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from clip_jax.reports import _style

BARS = 40  # of more classes, the best and the worst half as many
NUMBERED = 16  # classes of a confusion matrix whose cells have room for numbers


@_style.shows()
def per_class(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the score of each class, best first: report['per_class'], [name, examples, score]; of
    many classes the best and the worst.
    """
    rows = sorted(report['per_class'], key=lambda row: -row[2])
    height = max(0.21 * (_places(rows)[-1] + 1) + _style.HEAD + 0.7, 2.6)
    figure = _style.new(8.4, height, f'{_style.title(report)} by class', _style.subtitle(report))
    axes = figure.add_subplot()
    mean = float(np.mean([score for _, _, score in rows]))
    _bars(axes, rows, lambda value: _style.BLUE if value >= mean else _style.ORANGE)
    axes.axvline(mean, color=_style.INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(f'{_style.score_of_class(report)}; dashed: the mean of all, {100 * mean:.1f} %')
    _style.save(figure, path)


@_style.shows()
def groups(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the score of each group, with its interval and the worst one marked: report['groups'],
    {title: [[group, examples, value(, low, high)], ...]}; of many groups the best and the worst.
    """
    tables = {title: list(rows) for title, rows in report['groups'].items() if rows}
    for title, rows in tables.items():
        if len(rows) > BARS:
            tables[title] = sorted(rows, key=lambda row: -row[2])
    heights = [0.26 * (_places(rows)[-1] + 1) + 0.85 for rows in tables.values()]
    title = f'{_style.title(report)} by group'
    figure = _style.new(8.4, sum(heights) + _style.HEAD, title, _style.subtitle(report))
    grid = figure.add_gridspec(len(tables), 1, height_ratios=heights)
    for k, (name, rows) in enumerate(tables.items()):
        axes = figure.add_subplot(grid[k])
        values = [row[2] for row in rows]
        worst, gap = min(values), max(values) - min(values)
        marked = worst if gap else None
        _bars(axes, rows, lambda v, worst=marked: _style.ORANGE if v == worst else _style.BLUE)
        axes.set_title(_style.short(name, 60), pad=8)
        gaps = f'worst group {100 * worst:.1f} %, {100 * gap:.1f} points below the best'
        axes.set_xlabel(gaps if gap else 'all groups are equal')
    _style.save(figure, path)


def _places(rows: Sequence) -> np.ndarray:
    """The places of bars; those of more than BARS rows have a gap in the middle."""
    numbers = np.arange(min(len(rows), BARS))
    return numbers + (numbers >= BARS // 2) * (len(rows) > BARS)


def _bars(axes: Axes, rows: Sequence[Sequence], color: Callable[[float], str]) -> None:
    """Draws rows [name, examples, value], maybe with the ends of an interval, from the top; of more
    than BARS the first and the last.
    """
    shown = rows if len(rows) <= BARS else [*rows[: BARS // 2], *rows[-BARS // 2 :]]
    places = _places(rows)
    names, counts, values = zip(*(row[:3] for row in shown), strict=True)
    axes.barh(places, values, color=[color(value) for value in values], height=0.74)
    axes.set_yticks(places, [_style.short(str(name), 34) for name in names])
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.set_xlim(0, 1.13)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(_style.per_cent)
    axes.tick_params(axis='y', length=0, labelcolor=_style.INK)
    axes.grid(axis='y', visible=False)
    intervals = [row[3:5] if len(row) > 4 and None not in row[3:5] else None for row in shown]
    if any(intervals):
        lengths = _style.whiskers(values, intervals)
        axes.errorbar(values, places, xerr=lengths, fmt='none', ecolor=_style.INK, elinewidth=1)
    for place, value, count, ends in zip(places, values, counts, intervals, strict=True):
        text = f' {100 * value:.0f} %  of {count:,}'
        # The dashed line passes behind the words.
        white = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.3}
        at = max(value, ends[1] if ends else value)
        axes.text(at, place, text, va='center', fontsize=7, color=_style.GRAY, bbox=white)
    if len(rows) > BARS:
        axes.text(0.01, BARS // 2, f'… {len(rows) - BARS} more …', va='center', fontsize=8)


@_style.shows()
def confusion(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the confusion matrix: report['confusion'], rows are the true classes."""
    names = [_style.short(name, 26) for name in report['confusion']['classes']]
    matrix = np.asarray(report['confusion']['matrix'], float)
    count, total = len(names), report['confusion'].get('of', len(names))
    if matrix.shape != (count, count):
        raise ValueError(f'confusion figure: a matrix {matrix.shape} does not fit {count} classes.')
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if count < total:
        what = f'the {count} of {total:,} classes that are confused most often'
    else:
        what = f'{total:,} classes, {int(matrix.sum()):,} images'
    cell = max(0.2, min(0.5, 7 / count))
    small = 8.5 if count <= NUMBERED else 7
    side = cell * count + 0.0085 * small * max(map(len, names)) + 0.5  # with the names of classes
    figure = _style.new(max(side + 1.4, 6), side + _style.HEAD + 0.1, 'Confusion matrix', what)
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(share, cmap='Blues', vmin=0, vmax=1, edgecolors='white', linewidth=0.6)
    axes.set_aspect('equal')
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    middle = np.arange(count) + 0.5
    axes.set_xticks(middle, names, rotation=90, fontsize=small)
    axes.set_yticks(middle, names, fontsize=small)
    axes.tick_params(length=0, labelcolor=_style.INK)
    axes.set(xlabel='predicted class', ylabel='true class')
    if count <= NUMBERED:
        _numbers(axes, matrix, share)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(_style.per_cent)
    bar.set_label('fraction of the true class')
    _style.save(figure, path)


def _numbers(axes: Axes, matrix: np.ndarray, share: np.ndarray) -> None:
    for i, j in np.argwhere(matrix > 0):
        color = 'white' if share[i, j] > 0.6 else _style.INK
        text = f'{int(matrix[i, j])}'
        axes.text(j + 0.5, i + 0.5, text, ha='center', va='center', fontsize=7, color=color)


@_style.shows()
def sweep(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the score on validation of each C that a linear probe tried: report['sweep'], [C,
    score]; report['info']['C'] is marked.
    """
    values, scores = zip(*sorted(row[:2] for row in report['sweep']), strict=True)
    subtitle = f'{len(values)} values tried on the validation split'
    figure = _style.new(7.4, 3.7 + _style.HEAD, f'{_style.title(report)}: choice of C', subtitle)
    axes = figure.add_subplot()
    axes.plot(values, scores, color=_style.BLUE, marker='o', markersize=4)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    chosen = report.get('info', {}).get('C')
    if chosen:
        axes.axvline(chosen, color=_style.ORANGE, linewidth=1.2)
        axes.annotate(
            f'chosen: {chosen:.3g}',
            (chosen, 0),
            xytext=(4, 4),
            xycoords=('data', 'axes fraction'),
            textcoords='offset points',
            color=_style.ORANGE,
        )
    axes.set(xlabel='C, the inverse of the L2 penalty', ylabel='score on validation')
    axes.yaxis.set_major_formatter(_style.per_cent)
    _style.save(figure, path)


@_style.shows()
def shots(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the score over the number of training examples a class: report['shots'], [k, mean,
    spread, scores of the seeds].
    """
    rows = sorted(report['shots'])
    counts, means, spreads = (np.array([row[i] for row in rows], float) for i in range(3))
    size = _style.counts(report, 'images', 'classes')
    subtitle = _style.joined(f'{len(rows[0][3])} draws of each size', *size)
    figure = _style.new(7.4, 3.7 + _style.HEAD, f'{_style.title(report)}', subtitle)
    axes = figure.add_subplot()
    axes.fill_between(counts, means - spreads, means + spreads, color=_style.SKY, alpha=0.25)
    axes.plot(counts, means, color=_style.BLUE, marker='o', markersize=5)
    for count, _, _, scores in rows:
        axes.plot([count] * len(scores), scores, '.', color=_style.GRAY, markersize=4, alpha=0.7)
    tops = np.maximum(means + spreads, [max(scores) for *_, scores in rows])
    for count, top, mean in zip(counts, tops, means, strict=True):
        axes.annotate(
            f'{100 * mean:.1f}',
            (count, top),
            xytext=(0, 5),
            textcoords='offset points',
            ha='center',
        )
    axes.set_xscale('log', base=2)
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(_style.per_cent)
    axes.margins(y=0.15)
    axes.set(xlabel='training examples a class', ylabel='mean and spread over draws')
    _style.save(figure, path)


@_style.shows()
def dims(report: Mapping[str, Any], images: Sequence, path: str | os.PathLike) -> None:
    """Draws the headline score of the first coordinates: report['dims'], [dim, score]."""
    counts, values = zip(*sorted(report['dims']), strict=True)
    headline = next(iter(report['scores']))
    title = f'{_style.title(report)} by dimension'
    subtitle = _style.joined(
        f'{len(counts)} sizes of one embedding', *_style.counts(report, 'images', 'classes')
    )
    figure = _style.new(7.4, 3.7 + _style.HEAD, title, subtitle)
    axes = figure.add_subplot()
    axes.plot(counts, values, color=_style.BLUE, marker='o', markersize=5)
    axes.set_xscale('log', base=2)
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    score = report['scores'][headline]
    for count, value in zip(counts, values, strict=True):
        axes.annotate(
            _style.score_text({**score, 'value': value}),
            (count, value),
            xytext=(0, 6),
            textcoords='offset points',
            ha='center',
        )
    if score['unit'] == 'fraction':
        axes.yaxis.set_major_formatter(_style.per_cent)
    axes.margins(y=0.15)
    axes.set(xlabel='first coordinates', ylabel=_style.SCORES.get(headline, headline))
    _style.save(figure, path)
