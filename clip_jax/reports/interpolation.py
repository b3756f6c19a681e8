"""Figures of a sweep over the weights between two checkpoints (WiSE-FT, arXiv 2109.01903)."""

import os
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from clip_jax.reports import _style


def write(table: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """Draws the figures of a sweep.

    Args:
        table: the table of `evaluation.alphas.run`.
        folder: where `alpha.png` and, if the reference task and another one have a score at each
            alpha, `wise_ft.png` are written.

    Returns:
        The names of the files.
    """
    rows, names = _shown(table), []
    if rows:
        tasks(table, folder / 'alpha.png')
        names.append('alpha.png')
    if len(rows) > 1 and rows[0]['task'] == table['reference']:
        line(table, folder / 'wise_ft.png')
        names.append('wise_ft.png')
    return names


def _shown(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of tasks whose score is a fraction at every alpha, the reference first."""
    rows = [
        row
        for row in table['tasks']
        if row['unit'] == 'fraction' and all(x is not None for x in row['values'])
    ]
    rows.sort(key=lambda row: row['task'] != table['reference'])
    return rows


@_style.styled
def tasks(table: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws the score of each task against alpha, and the mean over the tasks.

    Args:
        table: the table of `evaluation.alphas.run`.
        path: the PNG file to write.
    """
    rows, alphas = _shown(table), table['alphas']
    figure = _style.new(7.4, 3.9 + _style.HEAD, 'Between two checkpoints', _ends(table))
    axes = figure.add_subplot()
    for k, row in enumerate(rows):
        color = _style.COLORS[k % len(_style.COLORS)]
        marker = _style.MARKERS[k % len(_style.MARKERS)]
        label = _style.short(row['task'], 30)
        # Of many tasks the mean is what is read.
        style: dict[str, Any] = {'linewidth': 1.5 if len(rows) <= 8 else 0.8, 'markersize': 4}
        axes.plot(alphas, row['values'], color=color, marker=marker, label=label, **style)
    if len(rows) > 1:
        means = [statistics.fmean(column) for column in zip(*_values(rows), strict=True)]
        axes.plot(alphas, means, color=_style.INK, linewidth=2.2, linestyle='--', label='mean')
    axes.yaxis.set_major_formatter(_style.per_cent)
    axes.set(xlabel='alpha, the weight of B', ylabel='score')
    axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5))
    _style.save(figure, path)


@_style.styled
def line(table: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws the mean of the other tasks against the reference task, a point for each alpha.

    Args:
        table: the table of `evaluation.alphas.run`.
        path: the PNG file to write.
    """
    first, *others = _shown(table)
    alphas, across = table['alphas'], first['values']
    up = [statistics.fmean(column) for column in zip(*_values(others), strict=True)]
    figure = _style.new(6.2, 4.6 + _style.HEAD, 'Reference task and the others', _ends(table))
    axes = figure.add_subplot()
    axes.plot(across, up, color=_style.BLUE, marker='o', markersize=5)
    ends = (0, 'A', _style.ORANGE), (len(alphas) - 1, 'B', _style.GREEN)
    for k, name, color in ends:
        axes.plot(across[k], up[k], color=color, marker='s', markersize=8)
        axes.annotate(
            name,
            (across[k], up[k]),
            xytext=(7, 5),
            textcoords='offset points',
            color=color,
            weight='bold',
        )
    best = max(range(len(alphas)), key=lambda k: across[k] + up[k])
    if 0 < best < len(alphas) - 1:
        axes.annotate(
            f'alpha {alphas[best]:g}: highest sum',
            (across[best], up[best]),
            xytext=(7, 6),
            textcoords='offset points',
        )
    for axis in axes.xaxis, axes.yaxis:
        axis.set_major_formatter(_style.per_cent)
    axes.margins(0.14)
    axes.set(
        xlabel=_style.short(first['task'], 50),
        ylabel=f'mean of {len(others)} other tasks' if others[1:] else others[0]['task'],
    )
    _style.save(figure, path)


def _values(rows: list[dict[str, Any]]) -> list[list[float]]:
    return [row['values'] for row in rows]


def _ends(table: Mapping[str, Any]) -> str:
    return f'A: {_style.short(table["a"], 32)}   ·   B: {_style.short(table["b"], 32)}'
