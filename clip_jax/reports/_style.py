"""What all figures share: style, colors, a head of two lines, and how they become files.

Color-blind readers can tell the colors (of Okabe, Ito and Tol) apart; no backend is touched.
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
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#AA4499'
SKY, AMBER, INK, GRAY, PALE = '#56B4E9', '#E69F00', '#222222', '#6b6b6b', '#dcdcdc'
COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, INK, GRAY)
MARKERS = 'osD^vPX*'
DPI = 130
HEAD = 0.72  # inches for the title and the line below it
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
# Scores of reports, as a reader calls them.
SCORES = {
    'top1': 'top-1',
    'top5': 'top-5',
    'accuracy': 'accuracy',
    'mean_per_class': 'mean per class',
    'map_11_point': '11-point mAP',
    'mean_average_precision': 'mAP',
    'roc_auc': 'ROC AUC',
}


def shows(indices: Callable[[Mapping[str, Any]], list[int]] = lambda report: []) -> Callable:
    """Makes a function a figure of a report: it draws in our style, and its `shows(report)` says
    which pictures of the data set it wants.
    """

    def decorate(draw: Callable) -> Callable:
        @functools.wraps(draw)
        def styled(*arguments: Any) -> None:
            with matplotlib.rc_context(STYLE), warnings.catch_warnings():
                # The font has no signs of some languages: boxes stand for them.
                warnings.filterwarnings('ignore', 'Glyph')
                draw(*arguments)

        styled.shows = indices
        return styled

    return decorate


def title(report: Mapping[str, Any]) -> str:
    """What a report is called."""
    return TITLES.get(report.get('type'), str(report.get('type', 'Evaluation')))


def scores(report: Mapping[str, Any]) -> str:
    """The scores of a report and how much it is about, in one line."""
    shares = [f'{word} {100 * report[key]:.1f} %' for key, word in SCORES.items() if key in report]
    counts = [f'{report[what]:,} {what}' for what in ('images', 'classes') if what in report]
    return '   ·   '.join(shares + counts)


def score_of_class(report: Mapping[str, Any]) -> str:
    """What a class's score in `per_class` is."""
    several = 'map_11_point' in report or 'mean_average_precision' in report
    return 'average precision' if several else 'share of its images that are recognized'


def save(figure: Figure, path: str | os.PathLike) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def new(width: float, height: float, title: str, subtitle: str, foot: float = 0.0) -> Figure:
    """Returns a figure (in inches) with two lines of head; the layout keeps head and foot free."""
    figure = Figure(figsize=(width, height), facecolor='white', layout='constrained')
    free = (0, foot / height, 1, 1 - (HEAD + foot) / height)
    figure.get_layout_engine().set(rect=free, w_pad=0.1, h_pad=0.08)
    figure.text(0.12 / width, 1 - 0.12 / height, title, fontsize=14, weight='bold', va='top')
    figure.text(0.12 / width, 1 - 0.43 / height, subtitle, fontsize=10, color=GRAY, va='top')
    return figure


def thousands(value: float, _: int | None = None) -> str:
    if abs(value) >= 1e6:
        return f'{value / 1e6:g}M'
    return f'{value / 1e3:g}k' if abs(value) >= 1e4 else f'{value:,.0f}'


def per_cent(value: float, _: int | None = None) -> str:
    return f'{100 * value:.4g} %'


def short(text: str, length: int) -> str:
    return text if len(text) <= length else f'{text[: length - 1].rstrip()}…'


def wrapped(text: str) -> str:
    lines = textwrap.wrap(' '.join(text.split()), 36, max_lines=3, placeholder=' …')
    return '\n'.join(lines)


def check_images(count: int, images: Sequence[np.ndarray]) -> None:
    if not count or len(images) < count:
        raise ValueError(
            f'figure of pictures: {len(images)} pictures for the {count} examples of the report, '
            'expected one each and at least one.'
        )


def picture(axes: Axes, image: np.ndarray) -> None:
    image = np.asarray(image)
    small = max(image.shape[:2]) < 64
    axes.imshow(image, cmap='gray', interpolation='nearest' if small else 'antialiased')
    axes.set_axis_off()
