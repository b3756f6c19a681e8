"""Figures of images with the predictions of a model, from the reports of evaluations."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from clip_jax.reports import _style

MAX_IMAGES = 12
MISTAKES = 24
COLUMNS = 6  # of mistakes
RESULTS = 5  # of a query
HEADING = 0.28  # inches


@_style.shows(lambda report: [x['index'] for x in report['examples'][:MAX_IMAGES]])
def zero_shot(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws up to 12 test images, each with its five nearest classes.

    `images` are uint8 [H, W, 3] in the order of report['examples'].
    """
    examples = report['examples'][:MAX_IMAGES]
    _style.check_images(len(examples), images)
    columns = min(3, len(examples))
    lines = math.ceil(len(examples) / columns)
    width, height = max(4.6 * columns, 6.4), 1.75 * lines + _style.HEAD + 0.4
    figure = _style.new(width, height, _style.title(report), _style.subtitle(report), foot=0.4)
    # pyrefly: ignore[missing-attribute]  # `new` chose one
    figure.get_layout_engine().set(wspace=0.03)
    grid = figure.add_gridspec(lines, 2 * columns, width_ratios=[1, 1.9] * columns)
    scores = [score for example in examples for _, score in example['top']]
    limits = min(0.0, *scores), max(1e-6, *scores)
    for i, (example, image) in enumerate(zip(examples, images, strict=False)):
        line, column = divmod(i, columns)
        _style.picture(figure.add_subplot(grid[line, 2 * column]), image)
        _top_classes(figure.add_subplot(grid[line, 2 * column + 1]), example, limits)
    handles = [patches.Patch(color=_style.SKY), patches.Patch(color=_style.PALE)]
    names = [
        'true class, also the heading',
        'other class      bars: cosine similarity of image and class',
    ]
    figure.legend(handles, names, loc='lower left', ncols=2)
    _style.save(figure, path)


@_style.shows(lambda report: report['similarity']['indices'][:MAX_IMAGES])
def similarity(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws the cosine similarities of up to 12 images (columns) and their texts (rows).

    report['similarity']['matrix'] is [images][texts]; `images` are uint8 in the order of its rows.
    """
    texts = report['similarity']['texts'][:MAX_IMAGES]
    n = len(texts)
    _style.check_images(n, images)
    matrix = np.asarray(report['similarity']['matrix'], float)[:n, :n]
    if matrix.shape != (n, n):
        raise ValueError(f'similarity figure: a matrix {matrix.shape} does not fit {n} texts.')
    cell, left, right, bottom = 0.68, 3.0, 1.0, 0.5  # inches
    size = n * cell
    width, height = max(left + size + right, 6.8), bottom + size + cell + 0.1 + _style.HEAD
    figure = _style.new(
        width, height, 'Cosine similarity of images and texts', _nearest(matrix, texts)
    )
    figure.set_layout_engine('none')

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, y / height, wide / width, high / height))

    mesh = _heat_map(place(left, bottom, size, size), matrix, texts)
    for i, image in enumerate(images[:n]):
        x, y = left + (i + 0.05) * cell, bottom + size + 0.06
        _style.picture(place(x, y, 0.9 * cell, 0.9 * cell), image)
    bar = place(left + size + 0.2, bottom, 0.14, size)
    figure.colorbar(mesh, cax=bar).outline.set_visible(False)
    bar.grid(False)
    bar.set_ylabel('cosine similarity' if n > 2 else 'cosine')
    note = 'outlined: an image and its own text   ·   bold: the text nearest to the image'
    figure.text(0.12 / width, 0.15 / height, note, fontsize=8.5, color=_style.GRAY)
    _style.save(figure, path)


@_style.shows(lambda report: [x['index'] for x in report['mistakes'][:MISTAKES]])
def mistakes(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws the misclassified images with the highest scores: report['mistakes']."""
    shown = report['mistakes'][:MISTAKES]
    _style.check_images(len(shown), images)
    columns = min(COLUMNS, max(4, len(shown)))
    lines = math.ceil(len(shown) / columns)
    width, height = 2.1 * columns, 2.35 * lines + _style.HEAD + 0.35
    head = f'{_style.title(report)}: the most confident mistakes'
    figure = _style.new(width, height, head, _style.subtitle(report), foot=0.35)
    grid = figure.add_gridspec(lines, columns)
    for i, (mistake, image) in enumerate(zip(shown, images, strict=False)):
        axes = figure.add_subplot(grid[divmod(i, columns)])
        _style.picture(axes, _style.in_square(image))
        words = [('label', 'score_of_label', _style.BLUE), ('guess', 'score', _style.ORANGE)]
        for line, (key, score, color) in enumerate(words):
            number = f'  {mistake[score]:.2f}' if score in mistake else ''
            text = f'{_style.short(mistake[key], 24)}{number}'
            at = {'transform': axes.transAxes, 'ha': 'center', 'va': 'top', 'fontsize': 8}
            axes.text(0.5, -0.03 - 0.115 * line, text, color=color, **at)
    handles = [patches.Patch(color=_style.BLUE), patches.Patch(color=_style.ORANGE)]
    figure.legend(handles, ['true class', 'predicted class'], loc='lower left', ncols=2)
    _style.save(figure, path)


def _indices_of_queries(report: Mapping[str, Any]) -> list[int]:
    """The indices of the image queries, then of the results of each text query."""
    queried = [query['index'] for query in report['queries']['image_to_text']]
    found = [i for q in report['queries']['text_to_image'] for i, _, _ in q['top'][:RESULTS]]
    return queried + found


@_style.shows(_indices_of_queries)
def queries(
    report: Mapping[str, Any], images: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws image queries with their nearest captions, and text queries with their nearest
    images: report['queries']; positives are marked.
    """
    from_image = report['queries']['image_to_text']
    from_text = report['queries']['text_to_image']
    _style.check_images(len(_indices_of_queries(report)), images)
    lines = math.ceil(len(from_image) / 2), len(from_text)
    inches = 1.75 * lines[0] + HEADING, 1.55 * lines[1] + HEADING
    height = sum(inches) + 2 * HEADING + _style.HEAD
    figure = _style.new(13, height, 'Retrieval: queries and their top results', _recalls(report))
    parts = figure.add_gridspec(4, 1, height_ratios=[HEADING, inches[0], HEADING, inches[1]])
    _heading(figure.add_subplot(parts[0]), 'Image → text')
    _heading(figure.add_subplot(parts[2]), 'Text → image')
    grid = parts[1].subgridspec(lines[0], 4, width_ratios=[1, 3.4, 1, 3.4])
    for i, (query, image) in enumerate(zip(from_image, images, strict=False)):
        line, column = divmod(i, 2)
        _style.picture(figure.add_subplot(grid[line, 2 * column]), image)
        _captions_found(figure.add_subplot(grid[line, 2 * column + 1]), query)
    grid = parts[3].subgridspec(lines[1], 1 + RESULTS, width_ratios=[2.4] + [1] * RESULTS)
    rest = iter(images[len(from_image) :])
    for line, query in enumerate(from_text):
        _text_query(figure.add_subplot(grid[line, 0]), query)
        for column, (_, score, right) in enumerate(query['top'][:RESULTS], start=1):
            axes = figure.add_subplot(grid[line, column])
            _style.picture(axes, next(rest))
            _mark(axes, score, right)
    _style.save(figure, path)


def _heading(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0, 0, text, weight='bold', fontsize=10.5, va='bottom', transform=axes.transAxes)


def _recalls(report: Mapping[str, Any]) -> str:
    scores, parts = report['scores'], []
    for way, words in (('image_to_text', 'image → text'), ('text_to_image', 'text → image')):
        ats = [k for k in (1, 5, 10) if f'{way}/recall@{k}' in scores]
        values = ' / '.join(f'{100 * scores[f"{way}/recall@{k}"]["value"]:.1f}' for k in ats)
        if ats:
            parts.append(f'{words} recall@{"/".join(map(str, ats))}: {values} %')
        if f'{way}/median_rank' in scores:
            rank = _style.score_text(scores[f'{way}/median_rank'])
            parts[-1] += f', median rank {rank}'
    return _style.joined(*parts, *_style.counts(report, 'images', 'texts'))


def _captions_found(axes: Axes, query: Mapping[str, Any]) -> None:
    """The captions nearest to an image, its own ones in blue."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(RESULTS - 0.4, -1.4))
    axes.text(
        0, -0.95, _rank(query, 'its first caption'), color=_style.GRAY, fontsize=8.5, va='center'
    )
    for line, (caption, score, right) in enumerate(query['top'][:RESULTS]):
        look = {'color': _style.BLUE if right else _style.INK, 'fontsize': 8, 'va': 'center'}
        look['weight'] = 'bold' if right else 'normal'
        axes.text(0, line, f'{score:.2f}', **look)
        axes.text(0.085, line, '✓' if right else '', **look)
        axes.text(0.125, line, _style.short(' '.join(caption.split()), 56), **look)


def _text_query(axes: Axes, query: Mapping[str, Any]) -> None:
    axes.set_axis_off()
    text = textwrap.fill(' '.join(query['text'].split()), 42, max_lines=4, placeholder=' …')
    axes.text(0, 0.46, text, va='bottom', transform=axes.transAxes)
    at = {'va': 'top', 'transform': axes.transAxes, 'fontsize': 8.5}
    axes.text(0, 0.38, _rank(query, 'its image'), color=_style.GRAY, **at)


def _rank(query: Mapping[str, Any], what: str) -> str:
    return f'{what} has rank {query["rank"]:,}'


def _mark(axes: Axes, score: float, right: bool) -> None:
    axes.set_title(
        f'{"✓ " if right else ""}{score:.2f}',
        fontsize=8,
        pad=2,
        color=_style.BLUE if right else _style.GRAY,
        weight='bold' if right else 'normal',
    )
    if right:
        axes.add_patch(
            patches.Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, fill=False, ec=_style.BLUE, lw=3
            )
        )


def _top_classes(axes: Axes, example: Mapping[str, Any], limits: tuple[float, float]) -> None:
    names, scores = zip(*example['top'][:5], strict=True)
    colors = [_style.SKY if name == example['label'] else _style.PALE for name in names]
    axes.barh(range(len(names)), scores, color=colors, height=0.82)
    low, high = limits
    # Room for the numbers to the right of the longest bar.
    axes.set(xlim=(low, high + 0.25 * (high - low)), ylim=(4.6, -0.6))
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        weight = 'bold' if name == example['label'] else 'normal'
        at = {'transform': axes.get_yaxis_transform(), 'va': 'center', 'weight': weight}
        axes.text(0.02, i, _style.short(name, 30), fontsize=8, **at)
        axes.text(1, i, f'{score:.2f}', fontsize=8, ha='right', **at)
    right = names[0] == example['label']
    axes.set_title(
        f'{"✓" if right else "✗"} {_style.short(example["label"], 30)}',
        color=_style.BLUE if right else _style.ORANGE,
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
    axes.tick_params(length=0, labelcolor=_style.INK)
    axes.set_xticks([])
    axes.set_yticks(np.arange(n) + 0.5, [_style.wrapped(text) for text in texts])
    nearest = matrix == matrix.max(axis=1, keepdims=True)
    for i, j in np.ndindex(n, n):
        look = {
            # pyrefly: ignore[unsupported-operation]  # a number gives a number
            'color': 'white' if mesh.norm(matrix[i, j]) > 0.6 else _style.INK,
            'weight': 'bold' if nearest[i, j] else 'normal',
        }
        axes.text(i + 0.5, j + 0.5, f'{matrix[i, j]:.2f}', ha='center', va='center', **look)
    for i in range(n):
        box = patches.Rectangle(
            (i + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec=_style.ORANGE, lw=2
        )
        axes.add_patch(box)
    return mesh


def _nearest(matrix: np.ndarray, texts: Sequence[str]) -> str:
    n = len(texts)
    # As in the evaluations, a tie counts as a miss; equal texts are no negatives.
    negative = np.not_equal.outer(np.asarray(texts, object), np.asarray(texts, object))
    negatives = np.where(negative, matrix, -np.inf)
    of_images, of_texts = ((matrix.diagonal() > negatives.max(axis)).sum() for axis in (1, 0))
    return (
        f'own text nearest for {of_images} of {n} images   ·   '
        f'own image nearest for {of_texts} of {n} texts'
    )
