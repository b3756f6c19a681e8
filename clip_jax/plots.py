"""Figures for people: a run's curves from metrics.jsonl, and what eval reports say of pictures.

Colour-blind readers can tell the colours (of Okabe, Ito and Tol) apart; no backend is touched.
"""

import io
import itertools
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib import patches, ticker
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from clip_jax import metrics

BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#AA4499'
SKY, AMBER, INK, GREY, PALE = '#56B4E9', '#E69F00', '#222222', '#6b6b6b', '#dcdcdc'
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, INK, GREY)
MARKERS = 'osD^vPX*'
DPI = 130
HEAD = 0.72  # inches for the title and the line below it
MOST_PICTURES = 12
STYLE = {
    'axes.axisbelow': True,
    'axes.edgecolor': GREY,
    'axes.grid': True,
    'axes.labelcolor': INK,
    'axes.labelsize': 9,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlepad': 20,
    'axes.titlesize': 10.5,
    'axes.titleweight': 'bold',
    'font.family': 'DejaVu Sans',
    'font.size': 9,
    'grid.color': '#ebebeb',
    'legend.fontsize': 8.5,
    'legend.frameon': False,
    'text.color': INK,
    'text.parse_math': False,  # a caption may hold dollar signs
    'xtick.color': GREY,
    'xtick.labelsize': 8.5,
    'ytick.color': GREY,
    'ytick.labelsize': 8.5,
}

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # a key's steps and values


@matplotlib.rc_context(STYLE)
def training(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str = 'Training'
) -> None:
    """Draws the rows of metrics.jsonl: loss, evaluations, and what tells a healthy run, over steps.

    A panel whose keys the rows do not have is left out; ValueError if that leaves none.
    """
    curves = _curves(rows)
    large = _found(curves, [(_loss, ['loss']), (_evaluations, _evaluation_keys(curves))])
    small = _found(curves, SMALL_PANELS)
    if not large and not small:
        keys = ', '.join(sorted(curves)) or 'none'
        raise ValueError(f'training figure: expected rows with a "loss"; keys found: {keys}.')
    last = max(steps[-1] for steps, _ in curves.values())
    figure = _figure(
        13.5, 0.9 + 3.6 * bool(large) + 2.9 * bool(small), title, f'after {last:,} steps'
    )
    grids = figure.add_gridspec(
        bool(large) + bool(small), 1, height_ratios=[3.6] * bool(large) + [2.9] * bool(small)
    )
    for grid, panels in zip(grids, filter(None, (large, small)), strict=True):
        for cell, (draw, found) in zip(grid.subgridspec(1, len(panels)), panels, strict=True):
            axes = figure.add_subplot(cell)
            draw(axes, found)
            _step_axis(axes, found)
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def zero_shot(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws up to 12 test pictures with their nearest classes.

    `images` are uint8 [H, W, 3] in the order of report['examples'].
    """
    examples = report['examples'][:MOST_PICTURES]
    _check_images(len(examples), images)
    columns = min(3, len(examples))
    lines = math.ceil(len(examples) / columns)
    width, height = max(4.6 * columns, 6.4), 1.75 * lines + HEAD + 0.4
    figure = _figure(width, height, 'Zero-shot classification', _scores(report), foot=0.4)
    figure.get_layout_engine().set(wspace=0.03)
    grid = figure.add_gridspec(lines, 2 * columns, width_ratios=[1, 1.9] * columns)
    scores = [score for example in examples for _, score in example['top']]
    limits = min(0.0, *scores), max(1e-6, *scores)
    for i, (example, image) in enumerate(zip(examples, images, strict=False)):
        line, column = divmod(i, columns)
        _picture(figure.add_subplot(grid[line, 2 * column]), image)
        _top_classes(figure.add_subplot(grid[line, 2 * column + 1]), example, limits)
    handles = [patches.Patch(color=SKY), patches.Patch(color=PALE)]
    names = [
        'right class, also the heading',
        'other class      bars: cosine similarity of picture and class',
    ]
    figure.legend(handles, names, loc='lower left', ncols=2)
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def similarity(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws the similarities of up to 12 pictures (columns) and their texts (lines).

    report['similarity']['matrix'] is [images][texts]; `images` are uint8 in the order of its rows.
    """
    texts = report['similarity']['texts'][:MOST_PICTURES]
    n = len(texts)
    _check_images(n, images)
    matrix = np.asarray(report['similarity']['matrix'], float)[:n, :n]
    if matrix.shape != (n, n):
        raise ValueError(f'similarity figure: a matrix {matrix.shape} does not fit {n} texts.')
    cell, left, right, bottom = 0.68, 3.0, 1.0, 0.5  # inches
    size = n * cell
    width, height = max(left + size + right, 6.8), bottom + size + cell + 0.1 + HEAD
    figure = _figure(width, height, 'Similarity of pictures and texts', _nearest(matrix, texts))
    figure.set_layout_engine('none')

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, y / height, wide / width, high / height))

    mesh = _heat_map(place(left, bottom, size, size), matrix, texts)
    for i, image in enumerate(images[:n]):
        x, y = left + (i + 0.05) * cell, bottom + size + 0.06
        _picture(place(x, y, 0.9 * cell, 0.9 * cell), image)
    bar = place(left + size + 0.2, bottom, 0.14, size)
    figure.colorbar(mesh, cax=bar).outline.set_visible(False)
    bar.grid(False)
    bar.set_ylabel('cosine similarity' if n > 2 else 'cosine')
    note = 'outlined: a picture and its own text   ·   bold: the text nearest to the picture'
    figure.text(0.12 / width, 0.15 / height, note, fontsize=8.5, color=GREY)
    _save(figure, path)


def write_all(
    workdir: str | os.PathLike,
    load_images: Callable[[str, list[int]], list[np.ndarray]],
) -> list[epath.Path]:
    """Draws every figure of a run directory into its plots/ and returns the paths.

    `load_images(spec, indices)` returns those uint8 pictures of a data set that a report is about.
    """
    workdir = epath.Path(workdir)
    if not (workdir / 'metrics.jsonl').exists():
        raise ValueError(
            f'{workdir}: no metrics.jsonl there, expected a run directory of `clip-jax train`.'
        )
    written = [workdir / 'plots' / 'training.png']
    training(
        metrics.read_jsonl(workdir / 'metrics.jsonl'), written[0], title=workdir.name or 'Training'
    )
    for name, report in _reports(workdir / 'evals').items():
        for part, (draw, indices) in _drawable(report).items():
            path = workdir / 'plots' / f'{part}.png'
            path = path.with_name(f'{part}_{name}.png') if path in written else path
            draw(report, load_images(report['data'], indices), path)
            written.append(path)
    return written


def _reports(folder: epath.Path) -> dict[str, dict[str, Any]]:
    reports = {}
    for path in sorted(folder.glob('*.json')):
        try:
            reports[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f'{path}: no JSON ({error}). Run that evaluation again.') from error
    return reports


def _drawable(report: Mapping[str, Any]) -> dict[str, tuple[Callable[..., None], list[int]]]:
    """Returns the figures that a report has material for, with the pictures that each shows."""
    found = {}
    if report.get('eval') == 'zeroshot' and report.get('examples'):
        examples = report['examples'][:MOST_PICTURES]
        found['zero_shot'] = zero_shot, [example['index'] for example in examples]
    if report.get('similarity'):
        found['similarity'] = similarity, report['similarity']['indices'][:MOST_PICTURES]
    return found


def _curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Returns each key's steps, rising, and values; of two rows of a step the later one counts."""
    points = {}
    for row in rows:
        for key, value in row.items():
            if key != 'step' and isinstance(value, int | float):
                points.setdefault(key, {})[row['step']] = value
    sort = {key: sorted(at.items()) for key, at in points.items()}
    return {key: tuple(map(np.asarray, zip(*at, strict=True))) for key, at in sort.items()}


def _found(curves: Curves, panels: Sequence[tuple[Callable, Sequence[str]]]) -> list:
    found = [(draw, {key: curves[key] for key in keys if key in curves}) for draw, keys in panels]
    return [(draw, some) for draw, some in found if some]


def _evaluation_keys(curves: Curves) -> list[str]:
    """Returns up to 8 headline numbers of evaluations; without such, of all that may be shares."""
    headline = [k for k in curves if re.fullmatch(r'.+/(top1|recall@10)(\D.*)?', k)]
    others = [k for k in curves if '/' in k and not k.startswith('accuracy/')]
    shares = [k for k in others if np.nanmax([*curves[k][1], 0]) <= 1]
    return (headline or shares)[: len(COLOURS)]


def _loss(axes: Axes, curves: Curves) -> None:
    steps, values = curves['loss']
    _smooth_line(axes, steps, values, BLUE)
    _log_if_wide(axes, values)
    axes.set(title='Loss', ylabel='contrastive loss (nats)')
    _end_labels(axes, {'loss': (f'{_last(values):.3g}', values, BLUE)})


def _evaluations(axes: Axes, curves: Curves) -> None:
    labels = {}
    for (key, (steps, values)), colour, marker in zip(
        curves.items(), COLOURS, MARKERS, strict=False
    ):
        often = max(1, len(steps) // 15)
        axes.plot(steps, values, color=colour, marker=marker, markersize=4.5, markevery=often)
        labels[key] = f'{100 * _last(values):.1f} %  {_name(key)}', values, colour
    axes.set(title='Evaluations', ylabel='share of test examples')
    highest = np.nanmax([1e-3, *(v for _, values in curves.values() for v in values)])
    axes.set_ylim(0, min(1.08 * highest, 1.02))
    axes.yaxis.set_major_formatter(_per_cent)
    _end_labels(axes, labels)


def _batch_accuracy(axes: Axes, curves: Curves) -> None:
    for (key, (steps, values)), colour in zip(curves.items(), COLOURS, strict=False):
        _smooth_line(axes, steps, values, colour, label=_name(key.removeprefix('accuracy/')))
    axes.set(title='Batch accuracy', ylabel='own partner nearest', ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(_per_cent)
    _legend(axes)


def _rate_and_scale(host: Axes, curves: Curves) -> None:
    looks = {'learning_rate': ('learning rate', BLUE), 'logit_scale': ('logit scale', ORANGE)}
    pairs = zip(_twins(host, len(curves)), curves.items(), strict=True)
    for axes, (key, (steps, values)) in pairs:
        name, colour = looks[key]
        axes.plot(steps, values, color=colour, **_dot(values))
        axes.set_ylabel(name, color=colour)
        axes.set_ylim(min(0, np.nanmin([*values, 0])), 1.08 * np.nanmax([*values, 1e-12]))
        if key == 'learning_rate':
            axes.yaxis.set_major_formatter(_exponent)
    host.set_title(' and '.join(looks[key][0] for key in curves).capitalize())


def _grad_norm(axes: Axes, curves: Curves) -> None:
    steps, values = curves['grad_norm']
    _smooth_line(axes, steps, values, BLUE)
    _log_if_wide(axes, values)
    axes.set(title='Gradient', ylabel='global norm')


def _speed(host: Axes, curves: Curves) -> None:
    pairs = zip(_twins(host, len(curves)), curves.items(), strict=True)
    for axes, (key, (steps, values)) in pairs:
        waits = key == 'input_wait'
        colour = ORANGE if waits else BLUE
        _smooth_line(axes, steps, values, colour)
        axes.set_ylabel('time waiting for input' if waits else 'pairs a second', color=colour)
        axes.set_ylim(0, 1 if waits else 1.15 * np.nanmax([*values, 1e-9]))
        plain = ticker.StrMethodFormatter('{x:,.0f}')
        axes.yaxis.set_major_formatter(_per_cent if waits else plain)
    host.set_title('Speed')


SMALL_PANELS = (
    (_batch_accuracy, ('accuracy/image_to_text', 'accuracy/text_to_image')),
    (_rate_and_scale, ('learning_rate', 'logit_scale')),
    (_grad_norm, ('grad_norm',)),
    (_speed, ('pairs_per_second', 'input_wait')),
)


def _smooth_line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str | None = None
) -> None:
    """Draws a running mean over the faint raw line, or the line alone where points are few."""
    width = len(steps) // 40
    if width < 2:
        axes.plot(steps, values, color=colour, label=label, **_dot(values))
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    known = np.isfinite(values)
    window = np.ones(2 * (width // 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), window, 'same')
    count = np.convolve(known, window, 'same')
    mean = np.where(known, total / np.maximum(count, 1), np.nan)
    axes.plot(steps, mean, color=colour, label=label, linewidth=1.8)


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
    """Writes (text, values, colour) at the end of each line, apart where they would meet."""
    gap = 0.062
    to_height = axes.transData + axes.transAxes.inverted()
    middle = np.mean(axes.get_xlim())
    ends = {
        k: to_height.transform((middle, _last(values)))[1] for k, (_, values, _) in labels.items()
    }
    known = sorted((k for k in ends if math.isfinite(ends[k])), key=ends.get)
    for _ in range(100):
        for low, high in itertools.pairwise(known):
            push = max(0.0, gap - (ends[high] - ends[low])) / 2
            ends[low], ends[high] = ends[low] - push, ends[high] + push
    for key in known:
        text, _, colour = labels[key]
        axes.annotate(
            text,
            (1, ends[key]),
            xytext=(6, 0),
            xycoords='axes fraction',
            textcoords='offset points',
            color=colour,
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
    axes.xaxis.set_major_formatter(_thousands)


def _thousands(value: float, _: int | None = None) -> str:
    if abs(value) >= 1e6:
        return f'{value / 1e6:g}M'
    return f'{value / 1e3:g}k' if abs(value) >= 1e4 else f'{value:,.0f}'


def _per_cent(value: float, _: int | None = None) -> str:
    return f'{100 * value:.4g} %'


def _exponent(value: float, _: int | None = None) -> str:
    mantissa, exponent = f'{value:.1e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}' if value else '0'


def _name(key: str) -> str:
    words = key.replace('image_to_text', 'image → text').replace('text_to_image', 'text → image')
    words = words.replace('top1', 'top-1').replace('_', ' ').replace('/', ' ')
    # Names of one kind differ at either end: what is too long loses its middle.
    return words if len(words) <= 36 else f'{words[:17].rstrip()} … {words[-17:].lstrip()}'


def _scores(report: Mapping[str, Any]) -> str:
    shares = [f'top-{k} {100 * report[f"top{k}"]:.1f} %' for k in (1, 5) if f'top{k}' in report]
    counts = [f'{report[what]:,} {what}' for what in ('images', 'classes') if what in report]
    return '   ·   '.join(shares + counts)


def _picture(axes: Axes, image: np.ndarray) -> None:
    image = np.asarray(image)
    small = max(image.shape[:2]) < 64
    axes.imshow(image, cmap='gray', interpolation='nearest' if small else 'antialiased')
    axes.set_axis_off()


def _top_classes(axes: Axes, example: Mapping[str, Any], limits: tuple[float, float]) -> None:
    names, scores = zip(*example['top'][:5], strict=True)
    colours = [SKY if name == example['label'] else PALE for name in names]
    axes.barh(range(len(names)), scores, color=colours, height=0.82)
    low, high = limits
    # Room for the numbers to the right of the longest bar.
    axes.set(xlim=(low, high + 0.25 * (high - low)), ylim=(4.6, -0.6))
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        weight = 'bold' if name == example['label'] else 'normal'
        at = {'transform': axes.get_yaxis_transform(), 'va': 'center', 'weight': weight}
        axes.text(0.02, i, _short(name, 30), fontsize=8, **at)
        axes.text(1, i, f'{score:.2f}', fontsize=8, ha='right', **at)
    right = names[0] == example['label']
    axes.set_title(
        f'{"✓" if right else "✗"} {_short(example["label"], 30)}',
        color=BLUE if right else ORANGE,
        fontsize=9,
        pad=3,
    )
    axes.set_axis_off()


def _heat_map(axes: Axes, matrix: np.ndarray, texts: Sequence[str]) -> QuadMesh:
    """Draws the matrix [images, texts] with images as columns; the nearest text of each is bold."""
    n = len(texts)
    mesh = axes.pcolormesh(matrix.T, cmap='Blues', edgecolors='white', linewidth=1.5)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xticks([])
    axes.set_yticks(np.arange(n) + 0.5, [_wrapped(text) for text in texts])
    nearest = matrix == matrix.max(axis=1, keepdims=True)
    for i, j in np.ndindex(n, n):
        look = {
            'color': 'white' if mesh.norm(matrix[i, j]) > 0.6 else INK,
            'weight': 'bold' if nearest[i, j] else 'normal',
        }
        axes.text(i + 0.5, j + 0.5, f'{matrix[i, j]:.2f}', ha='center', va='center', **look)
    for i in range(n):
        box = patches.Rectangle((i + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec=ORANGE, lw=2)
        axes.add_patch(box)
    return mesh


def _nearest(matrix: np.ndarray, texts: Sequence[str]) -> str:
    n = len(texts)
    # As in the evaluations a tie counts against the right one; equal texts are no rivals.
    rival = np.not_equal.outer(np.asarray(texts, object), np.asarray(texts, object))
    rivals = np.where(rival, matrix, -np.inf)
    of_pictures, of_texts = ((matrix.diagonal() > rivals.max(axis)).sum() for axis in (1, 0))
    return (
        f'own text nearest for {of_pictures} of {n} pictures   ·   '
        f'own picture nearest for {of_texts} of {n} texts'
    )


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(' '.join(text.split()), 36, max_lines=3, placeholder=' …')
    return '\n'.join(lines)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f'{text[: length - 1].rstrip()}…'


def _check_images(count: int, images: Sequence[np.ndarray]) -> None:
    if not count or len(images) < count:
        raise ValueError(
            f'figure of pictures: {len(images)} pictures for the {count} examples of the report, '
            'expected one each and at least one.'
        )


def _figure(width: float, height: float, title: str, subtitle: str, foot: float = 0.0) -> Figure:
    """Returns a figure (in inches) with two lines of head; the layout keeps head and foot free."""
    figure = Figure(figsize=(width, height), facecolor='white', layout='constrained')
    free = (0, foot / height, 1, 1 - (HEAD + foot) / height)
    figure.get_layout_engine().set(rect=free, w_pad=0.1, h_pad=0.08)
    figure.text(0.12 / width, 1 - 0.12 / height, title, fontsize=14, weight='bold', va='top')
    figure.text(0.12 / width, 1 - 0.43 / height, subtitle, fontsize=10, color=GREY, va='top')
    return figure


def _save(figure: Figure, path: str | os.PathLike) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
