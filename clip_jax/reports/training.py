"""A run's curves, from metrics.jsonl."""

import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import lines as lines_of
from matplotlib import ticker
from matplotlib.axes import Axes

from clip_jax.reports import _style

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # a key's steps and values
Scores = Mapping[str, Mapping[str, Any]]  # NAME/SCORE -> value, better, unit
HEADLINE = r'top1|.*/recall@10'  # scores that are drawn where an evaluation has them


@_style.styled
def training(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    scores: Scores | None = None,
    title: str = 'Training',
) -> None:
    """Draws the curves of a run: loss, scores of evaluations, gradient, speed and the like.

    Panels without data are left out.

    Args:
        rows: the lines of metrics.jsonl.
        path: the PNG to write.
        scores: the scores of the run's evaluations, by their keys in `rows`.
        title: title of the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves, scores = _curves(rows), scores or {}
    panels = [(_loss, ['loss'])]
    keys = _score_keys(curves, scores)
    for unit in dict.fromkeys(scores[key]['unit'] for key in keys):
        own = {key: scores[key] for key in keys if scores[key]['unit'] == unit}
        panels.append((functools.partial(_evaluations, scores=own), list(own)))
    large = _found(curves, panels)
    small = _found(curves, SMALL_PANELS)
    if not large and not small:
        keys = ', '.join(sorted(curves)) or 'none'
        raise ValueError(f'training figure: expected rows with a "loss"; keys found: {keys}.')
    last = max(steps[-1] for steps, _ in curves.values())
    lines = [large[i : i + 2] for i in range(0, len(large), 2)] + [small] * bool(small)
    heights = [2.9 if line is small else 3.6 for line in lines]
    figure = _style.new(13.5, 0.9 + sum(heights), title, f'after {last:,} steps')
    grids = figure.add_gridspec(len(lines), 1, height_ratios=heights)
    # pyrefly: ignore[bad-argument-type]  # a grid can be iterated by index
    for grid, panels in zip(grids, lines, strict=True):
        for cell, (draw, found) in zip(grid.subgridspec(1, len(panels)), panels, strict=True):
            axes = figure.add_subplot(cell)
            draw(axes, found)
            _step_axis(axes, found)
    _style.save(figure, path)


@_style.styled
def compared(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike,
    *,
    scores: Scores | None = None,
) -> None:
    """Draws the curves of several runs over each other: a panel for the loss, for each of the
    evaluations' main scores, and for the speed.

    Args:
        runs: the lines of metrics.jsonl, by the name of the run.
        path: the PNG to write.
        scores: the scores of the runs' evaluations, by their keys in the lines.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves, scores = {name: _curves(rows) for name, rows in runs.items()}, scores or {}
    keys = list(dict.fromkeys(key for own in curves.values() for key in _score_keys(own, scores)))
    keys = [
        key for key in ('loss', *keys, 'pairs_per_second') if any(key in c for c in curves.values())
    ]
    if not keys:
        names = ', '.join(runs)
        raise ValueError(f'comparison: expected rows with a "loss"; none of {names} has any.')
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    foot = 0.22 * math.ceil(len(runs) / columns) + 0.1
    figure = _style.new(
        4.6 * columns, 3.1 * lines + _style.HEAD + foot, 'Runs compared', f'{len(runs)} runs', foot
    )
    grid = figure.add_gridspec(lines, columns)
    for i, key in enumerate(keys):
        axes = figure.add_subplot(grid[divmod(i, columns)])
        found = {name: own[key] for name, own in curves.items() if key in own}
        _of_runs(axes, key, found, list(runs), scores.get(key))
        _step_axis(axes, found)
    handles = [lines_of.Line2D([], [], color=color, linewidth=2.2) for color in _colors(len(runs))]
    names = [_style.short(name, 44) for name in runs]
    figure.legend(handles, names, loc='lower left', ncols=columns)
    _style.save(figure, path)


def _of_runs(
    axes: Axes, key: str, curves: Curves, names: list[str], score: Mapping[str, Any] | None
) -> None:
    """One number of several runs over steps; `score` if an evaluation found it."""
    for name, (steps, values) in curves.items():
        color = _colors(len(names))[names.index(name)]
        if score:
            often = max(1, len(steps) // 15)
            axes.plot(steps, values, color=color, marker='o', markersize=4, markevery=often)
        else:
            _smooth_line(axes, steps, values, color)
    if key == 'loss':
        _log_if_wide(axes, np.concatenate([values for _, values in curves.values()]))
    elif score:
        _score_axis(axes, curves, score)
    else:
        axes.set_ylim(0)
    titles = {'loss': 'Loss', 'pairs_per_second': 'Pairs per second'}
    axes.set_title(titles.get(key, _name(key)), pad=8)


def _score_axis(axes: Axes, curves: Curves, score: Mapping[str, Any]) -> None:
    """The scale of scores of one unit; it says so where lower is better."""
    label = '' if score['unit'] == 'fraction' else score['unit']
    if score['better'] == 'lower':
        label = f'{label} (lower is better)'.strip()
    if label:
        axes.set_ylabel(label)
    found = np.concatenate([values for _, values in curves.values()])
    if score['unit'] == 'fraction':
        low, high = np.nanmin([0, *found]), np.nanmax([1e-3, *found])
        axes.set_ylim(1.08 * low, 1.08 * high if high > 1 else min(1.08 * high, 1.02))
        axes.yaxis.set_major_formatter(_style.per_cent)
    else:
        axes.margins(y=0.08)
        _log_if_wide(axes, found)


def _colors(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(_style.COLORS), count))


def _curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Returns each key's steps, rising, and values; of two rows of a step the later one counts."""
    points = {}
    for row in rows:
        for key, value in row.items():
            if key != 'step' and isinstance(value, int | float):
                points.setdefault(key, {})[row['step']] = _as_float(value)
    sort = {key: sorted(at.items()) for key, at in points.items()}
    return {
        key: (np.asarray([step for step, _ in at]), np.asarray([value for _, value in at]))
        for key, at in sort.items()
    }


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any size
        return math.inf if value > 0 else -math.inf


def _found(curves: Curves, panels: Sequence[tuple[Callable, Sequence[str]]]) -> list:
    found = [(draw, {key: curves[key] for key in keys if key in curves}) for draw, keys in panels]
    return [(draw, some) for draw, some in found if some]


def _score_keys(curves: Curves, scores: Scores) -> list[str]:
    """Returns the keys of up to 8 scores: of each evaluation the usual headlines, or else those of
    the unit of its first score.
    """
    keys = []
    for name in dict.fromkeys(key.partition('/')[0] for key in scores):
        own = [key for key in scores if key.startswith(f'{name}/')]
        usual = [key for key in own if re.fullmatch(HEADLINE, key.removeprefix(f'{name}/'))]
        keys += usual or [key for key in own if scores[key]['unit'] == scores[own[0]]['unit']]
    return [key for key in keys if key in curves][: len(_style.COLORS)]


def _loss(axes: Axes, curves: Curves) -> None:
    steps, values = curves['loss']
    _smooth_line(axes, steps, values, _style.BLUE)
    _log_if_wide(axes, values)
    axes.set(title='Loss', ylabel='contrastive loss (nats)')
    _end_labels(axes, {'loss': (f'{_last(values):.3g}', values, _style.BLUE)})


def _evaluations(axes: Axes, curves: Curves, *, scores: Scores) -> None:
    """Scores of one unit over steps."""
    labels = {}
    for (key, (steps, values)), color, marker in zip(
        curves.items(), _style.COLORS, _style.MARKERS, strict=False
    ):
        often = max(1, len(steps) // 15)
        axes.plot(steps, values, color=color, marker=marker, markersize=4.5, markevery=often)
        last = _style.score_text({**scores[key], 'value': _last(values)})
        labels[key] = f'{last}  {_name(key)}', values, color
    axes.set_title('Evaluations')
    directions = {score['better']: score for score in scores.values()}
    _score_axis(axes, curves, directions.get('higher') or directions['lower'])
    _end_labels(axes, labels)


def _batch_accuracy(axes: Axes, curves: Curves) -> None:
    for (key, (steps, values)), color in zip(curves.items(), _style.COLORS, strict=False):
        _smooth_line(axes, steps, values, color, label=_name(key.removeprefix('accuracy/')))
    axes.set(title='Batch accuracy', ylabel='positive is nearest', ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(_style.per_cent)
    _legend(axes)


def _rate_and_scale(host: Axes, curves: Curves) -> None:
    looks = {
        'learning_rate': ('learning rate', _style.BLUE),
        'logit_scale': ('logit scale', _style.ORANGE),
    }
    pairs = zip(_twins(host, len(curves)), curves.items(), strict=True)
    for axes, (key, (steps, values)) in pairs:
        name, color = looks[key]
        axes.plot(steps, values, color=color, **_dot(values))
        axes.set_ylabel(name, color=color)
        axes.set_ylim(min(0, np.nanmin([*values, 0])), 1.08 * np.nanmax([*values, 1e-12]))
        if key == 'learning_rate':
            axes.yaxis.set_major_formatter(_exponent)
    host.set_title(' and '.join(looks[key][0] for key in curves).capitalize())


def _grad_norm(axes: Axes, curves: Curves) -> None:
    steps, values = curves['grad_norm']
    _smooth_line(axes, steps, values, _style.BLUE)
    _log_if_wide(axes, values)
    axes.set(title='Gradient', ylabel='global norm')


def _speed(host: Axes, curves: Curves) -> None:
    pairs = zip(_twins(host, len(curves)), curves.items(), strict=True)
    for axes, (key, (steps, values)) in pairs:
        waits = key == 'input_wait'
        color = _style.ORANGE if waits else _style.BLUE
        _smooth_line(axes, steps, values, color)
        axes.set_ylabel('time waiting for input' if waits else 'pairs per second', color=color)
        axes.set_ylim(0, 1 if waits else 1.15 * np.nanmax([*values, 1e-9]))
        plain = ticker.StrMethodFormatter('{x:,.0f}')
        axes.yaxis.set_major_formatter(_style.per_cent if waits else plain)
    host.set_title('Speed')


SMALL_PANELS = (
    (_batch_accuracy, ('accuracy/image_to_text', 'accuracy/text_to_image')),
    (_rate_and_scale, ('learning_rate', 'logit_scale')),
    (_grad_norm, ('grad_norm',)),
    (_speed, ('pairs_per_second', 'input_wait')),
)


def _smooth_line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str | None = None
) -> None:
    """Draws a running mean over the faint raw line, or the line alone where points are few."""
    width = len(steps) // 40
    if width < 2:
        axes.plot(steps, values, color=color, label=label, **_dot(values))
        return
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    known = np.isfinite(values)
    window = np.ones(2 * (width // 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), window, 'same')
    count = np.convolve(known, window, 'same')
    mean = np.where(known, total / np.maximum(count, 1), np.nan)
    axes.plot(steps, mean, color=color, label=label, linewidth=1.8)


def _dot(values: np.ndarray) -> dict[str, Any]:
    return {'marker': 'o', 'markersize': 4} if len(values) <= 12 else {}


def _last(values: np.ndarray) -> float:
    return next((float(v) for v in values[::-1] if math.isfinite(v)), math.nan)


def _log_if_wide(axes: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() > 20 * known.min():
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _end_labels(axes: Axes, labels: Mapping[str, tuple[str, np.ndarray, str]]) -> None:
    """Writes (text, values, color) at the end of each line, apart where they would meet."""
    gap = 0.062
    to_height = axes.transData + axes.transAxes.inverted()
    middle = float(np.mean(axes.get_xlim()))
    ends = {
        k: to_height.transform((middle, _last(values)))[1] for k, (_, values, _) in labels.items()
    }
    known = sorted((k for k in ends if math.isfinite(ends[k])), key=lambda k: ends[k])
    for _ in range(100):
        for low, high in itertools.pairwise(known):
            push = max(0.0, gap - (ends[high] - ends[low])) / 2
            ends[low], ends[high] = ends[low] - push, ends[high] + push
    for key in known:
        text, _, color = labels[key]
        axes.annotate(
            text,
            (1, ends[key]),
            xytext=(6, 0),
            xycoords='axes fraction',
            textcoords='offset points',
            color=color,
            va='center',
            fontsize=8.5,
        )


def _legend(axes: Axes) -> None:
    axes.legend(
        loc='lower left', bbox_to_anchor=(-0.02, 0.98), ncols=2, handlelength=1.2, columnspacing=1.2
    )


def _twins(axes: Axes, count: int) -> list[Axes]:
    """Returns the axes and, for a second curve, another with its scale on the right."""
    if count == 1:
        return [axes]
    other = axes.twinx()
    other.grid(False)
    other.spines['right'].set_visible(True)
    return [axes, other]


def _step_axis(axes: Axes, curves: Curves) -> None:
    steps = np.concatenate([steps for steps, _ in curves.values()])
    axes.set_xlabel('step')
    axes.set_xlim(min(0, steps.min()), 1.01 * max(1, steps.max()))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(_style.thousands)


def _exponent(value: float, _: float | None = None) -> str:
    mantissa, exponent = f'{value:.1e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}' if value else '0'


def _name(key: str) -> str:
    words = key.replace('image_to_text', 'image → text').replace('text_to_image', 'text → image')
    words = words.replace('top1', 'top-1').replace('_', ' ').replace('/', ' ')
    # Names of one kind differ at either end: what is too long loses its middle.
    return words if len(words) <= 36 else f'{words[:17].rstrip()} … {words[-17:].lstrip()}'
