"""The style of all figures: colors, title and subtitle, formats, and saving.

The colors can be told apart by color-blind readers (Okabe and Ito; Tol). matplotlib's global state
stays as it is.
"""

import functools
import io
import os
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from clip_jax.runtime import atomic
from clip_jax.runtime.messages import printable

BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#AA4499'
SKY, AMBER, INK, GRAY, PALE = '#56B4E9', '#E69F00', '#222222', '#6b6b6b', '#dcdcdc'
COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, INK, GRAY)
MARKERS = 'osD^vPX*'
DPI = 130
HEAD = 0.72  # inches for title and subtitle
STYLE = {
    'axes.axisbelow': True,
    'axes.edgecolor': GRAY,
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
    'xtick.color': GRAY,
    'xtick.labelsize': 8.5,
    'ytick.color': GRAY,
    'ytick.labelsize': 8.5,
}

TITLES = {
    'zeroshot': 'Zero-shot classification',
    'retrieval': 'Retrieval',
    'linear_probe': 'Linear probe',
    'fewshot': 'Few-shot probe',
}
# Scores whose names have a usual spelling.
SCORES = {
    'top1': 'top-1',
    'top5': 'top-5',
    'mean_per_class': 'mean per class',
    'map_11_point': '11-point mAP',
    'mean_average_precision': 'mAP',
    'roc_auc': 'ROC AUC',
    'ece': 'ECE',
    'nll': 'NLL',
    'fitted/ece': 'ECE, fitted',
    'fitted/nll': 'NLL, fitted',
}
HEADLINES = 4  # scores in the subtitle of a figure


def styled(draw: Callable) -> Callable:
    """Makes a function draw in our style."""

    @functools.wraps(draw)
    def wrapper(*arguments: Any, **options: Any) -> None:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # The font lacks the characters of some languages; boxes replace them.
            warnings.filterwarnings('ignore', 'Glyph')
            draw(*arguments, **options)

    return wrapper


def shows(indices: Callable[[Mapping[str, Any]], list[int]] = lambda report: []) -> Callable:
    """Makes a function a figure of a report, drawn in our style; its attribute `shows(report)`
    returns the indices of the images that it needs.
    """

    def decorate(draw: Callable) -> Callable:
        wrapper = styled(draw)
        wrapper.shows = indices  # pyrefly: ignore[missing-attribute]  # a function may have any
        return wrapper

    return decorate


def title(report: Mapping[str, Any]) -> str:
    """The title of a report's figures."""
    return TITLES.get(report.get('type', ''), str(report.get('type', 'Evaluation')))


def subtitle(report: Mapping[str, Any]) -> str:
    """The first scores of a report and the size of its data, in one line."""
    first = list(report['scores'].items())[:HEADLINES]
    parts = [f'{SCORES.get(name, name)} {score_text(score)}' for name, score in first]
    return joined(*parts, *counts(report, 'images', 'classes'))


def counts(report: Mapping[str, Any], *names: str) -> list[str]:
    """Those counts of a report that it has: '10,000 images'."""
    found = report.get('counts', {})
    return [f'{found[name]:,} {name}' for name in names if name in found]


def joined(*parts: str) -> str:
    return '   ·   '.join(parts)


def score_text(score: Mapping[str, Any]) -> str:
    """A score with its unit: '62.5 %', '1,234', '2.31 nats'."""
    value, unit = score['value'], score['unit']
    if unit == 'fraction':
        return f'{100 * value:.1f} %' if value >= 0.001 or not value else f'{100 * value:.2g} %'
    return f'{value:,.0f}' if unit == 'rank' else f'{value:,.4g} {unit}'


def interval_text(score: Mapping[str, Any]) -> str:
    """The 95 % interval of a score: '61.2 to 63.8 %'; '' if it has none."""
    if not score.get('interval'):
        return ''
    low, high = (score_text({**score, 'value': end}) for end in score['interval'])
    return f'{low.removesuffix(" %")} to {high}'


def score_of_class(report: Mapping[str, Any]) -> str:
    """What the score of a class in `per_class` is."""
    several = {'map_11_point', 'mean_average_precision'} & {*report['scores']}
    return 'average precision' if several else 'accuracy'


def save(figure: Figure, path: str | os.PathLike) -> None:
    for text in figure.findobj(Text):
        # A name of a file may hold bytes that no font has.
        text.set_text(printable(text.get_text(), keep='\n'))
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI)
    atomic.write(path, buffer.getvalue())


def new(width: float, height: float, title: str, subtitle: str, foot: float = 0.0) -> Figure:
    """Makes a figure (in inches) with a title and a subtitle; `foot` is kept free below."""
    figure = Figure(figsize=(width, height), facecolor='white', layout='constrained')
    free = (0, foot / height, 1, 1 - (HEAD + foot) / height)
    # pyrefly: ignore[missing-attribute]  # the layout has an engine
    figure.get_layout_engine().set(rect=free, w_pad=0.1, h_pad=0.08)
    figure.text(0.12 / width, 1 - 0.12 / height, title, fontsize=14, weight='bold', va='top')
    figure.text(0.12 / width, 1 - 0.43 / height, subtitle, fontsize=10, color=GRAY, va='top')
    return figure


def look(k: int) -> dict[str, Any]:
    """The color and the marker of the k-th of several models; the first 64 differ."""
    count = len(COLORS)
    return {'color': COLORS[k % count], 'marker': MARKERS[(k + k // count) % len(MARKERS)]}


def whiskers(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> np.ndarray:
    """The lengths of error bars below and above values, [2, N]; 0 without an interval."""
    ends = [(v, v) if x is None else x for v, x in zip(values, intervals, strict=True)]
    low, high = np.asarray(ends, float).reshape(-1, 2).T
    return np.maximum([values - low, high - values], 0)


def thousands(value: float, _: float | None = None) -> str:
    if abs(value) >= 1e6:
        return f'{value / 1e6:g}M'
    return f'{value / 1e3:g}k' if abs(value) >= 1e4 else f'{value:,.0f}'


def per_cent(value: float, _: float | None = None) -> str:
    return f'{100 * value:.4g} %'


def short(text: str, length: int) -> str:
    return text if len(text) <= length else f'{text[: length - 1].rstrip()}…'


def wrapped(text: str) -> str:
    lines = textwrap.wrap(' '.join(text.split()), 36, max_lines=3, placeholder=' …')
    return '\n'.join(lines)


def check_images(count: int, images: Sequence[np.ndarray]) -> None:
    if not count or len(images) < count:
        raise ValueError(
            f'figure: {len(images)} images for the {count} examples of the report; '
            'expected one each and at least one'
        )


def picture(axes: Axes, image: np.ndarray) -> None:
    image = np.asarray(image)
    small = max(image.shape[:2]) < 64
    axes.imshow(image, cmap='gray', interpolation='nearest' if small else 'antialiased')
    axes.set_axis_off()


def in_square(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [H, W] or [H, W, 3], at the bottom of a white square."""
    image = np.asarray(image)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    left = (side - width) // 2
    square[side - height :, left : left + width] = image
    return square
