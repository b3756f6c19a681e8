"""Reports of one evaluation on the same data, compared: scores with their intervals, and paired
tests of every two models.
"""

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from clip_jax import evals
from clip_jax.reports import _style, files
from clip_jax.reports._dots import draw_dots
from clip_jax.reports.html_report import Row, Section, Table, images_of

Reports = Mapping[str, Mapping[str, Any]]  # by the name of the report
MOST_SCORES = 12  # in a figure
MOST_REASONS = 8
METHOD = (
    "images that only one of two models gets right decide: McNemar's exact (binomial) test; "
    'intervals of 95 % by bootstrap over images; p values are not corrected for the number of '
    'comparisons'
)


def sections(paths: Sequence[str | os.PathLike]) -> list[Section]:
    """Makes the sections that compare reports.

    Args:
        paths: files of reports.

    Returns:
        A section for each evaluation and data set of which there are two reports or more, and one
        that says why other pairs are not compared.

    Raises:
        ValueError: there is no report at a path, or it is damaged.
    """
    reports = {name: files.read(path) for name, path in zip(_names(paths), paths, strict=True)}
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, report in reports.items():
        groups.setdefault((report['type'], report['data']), {})[name] = report
    found, reasons = [], []
    for (type_, data), own in groups.items():
        if len(own) > 1:
            rows, why = _pairs(own)
            table = Table(['', *HEAD], rows) if rows else None
            title = f'{type_} on {data}: {len(own)} reports compared'
            images = [_image(own)] if _shared(own) else []
            found.append(Section(title, METHOD if rows else '', table=table, images=images))
            reasons += why
    firsts = {kind: next(iter(own)) for kind, own in groups.items()}
    for one, other in itertools.combinations(firsts, 2):
        if one[0] == other[0]:  # of different evaluations nobody expects it
            reasons += _pairs({firsts[kind]: groups[kind][firsts[kind]] for kind in (one, other)})[
                1
            ]
    if reasons:
        more = len(reasons) - MOST_REASONS
        shown = [*reasons[:MOST_REASONS], *([f'and {more} more pairs'] if more > 0 else [])]
        found.append(Section('Not compared image by image', ' · '.join(shown)))
    return found


HEAD = ('score', 'examples', 'only the first', 'only the second', 'difference', '95 %', 'p')


def _pairs(reports: Reports) -> tuple[list[Row], list[str]]:
    """The rows of all pairs of reports, and why others are not compared."""
    rows, reasons = [], []
    for one, other in itertools.combinations(reports, 2):
        try:
            found = evals.compare(reports[one], reports[other])
        except ValueError as error:
            reasons.append(f'{one} and {other}: {error}')
            continue
        for x in found:
            interval = ' to '.join(f'{100 * end:+.2f}' for end in x.interval or ())
            cells = [
                *(x.score, f'{x.images:,}', f'{x.wins:,}', f'{x.losses:,}'),
                *(f'{100 * x.difference:+.2f}', interval, f'{x.p_value:.2g}'),
            ]
            rows.append(Row(f'{one} and {other}', cells))
    return rows, reasons


def _names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The stems of files, or their paths where stems are the same."""
    stems = [epath.Path(path).stem for path in paths]
    return stems if len({*stems}) == len(stems) else [str(path) for path in paths]


def _image(reports: Reports) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / 'scores.png'
        scores(reports, path)
        (image,) = images_of([path])
    return image


def _shared(reports: Reports) -> list[str]:
    """The scores that all reports have and that are fractions."""
    first = next(iter(reports.values()))['scores']
    return [
        name
        for name, score in first.items()
        if score['unit'] == 'fraction' and all(name in x['scores'] for x in reports.values())
    ][:MOST_SCORES]


@_style.styled
def scores(reports: Reports, path: str | os.PathLike) -> None:
    """Draws the scores of several reports of one evaluation, with their intervals: a line for each
    score that is a fraction.

    Args:
        reports: by what the figure calls them.
        path: the PNG file to write.
    """
    first, names = next(iter(reports.values())), _shared(reports)
    size = _style.joined(str(first['data']), *_style.counts(first, 'images', 'classes'))
    found = {
        name: [(x['scores'][own]['value'], x['scores'][own].get('interval')) for own in names]
        for name, x in reports.items()
    }
    titles = [_style.SCORES.get(name, name) for name in names]
    draw_dots(titles, found, path, title=_style.title(first), subtitle=_style.short(size, 90))
