"""Figures for people: a run's curves from metrics.jsonl, and what eval reports say."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from clip_jax import metrics
from clip_jax.reports._style import STYLE as STYLE
from clip_jax.reports.images import mistakes, queries, similarity, zero_shot
from clip_jax.reports.scores import confusion, per_class, shots, sweep
from clip_jax.reports.training import compared as compared
from clip_jax.reports.training import training

LoadImages = Callable[[str, list[int]], list[np.ndarray]]
Draw = Callable[[Mapping[str, Any], list[np.ndarray], str | os.PathLike], None]


def write_all(workdir: str | os.PathLike, load_images: LoadImages) -> list[epath.Path]:
    """Draws every figure of a run directory into its plots/ and returns the paths."""
    return [path for paths in write_run(workdir, load_images).values() for path in paths]


def write_run(workdir: str | os.PathLike, load_images: LoadImages) -> dict[str, list[epath.Path]]:
    """Draws every figure of a run directory into its plots/; returns the paths, of the curves by ''
    and of each report by its name.

    `load_images(spec, indices)` returns those uint8 pictures of a data set that a report is about.
    """
    workdir = epath.Path(workdir)
    if not (workdir / 'metrics.jsonl').exists():
        raise ValueError(
            f'{workdir}: no metrics.jsonl there, expected a run directory of `clip-jax train`.'
        )
    curves = workdir / 'plots' / 'training.png'
    training(
        metrics.read_jsonl(workdir / 'metrics.jsonl'), curves, title=workdir.name or 'Training'
    )
    written, taken = {'': [curves]}, {curves}
    evals = workdir / 'evals'
    for name, report in reports(evals).items():
        paths = {}
        for figure in figures(report):
            path = workdir / 'plots' / f'{figure}.png'
            paths[figure] = path.with_name(f'{figure}_{name}.png') if path in taken else path
        with _of_file(evals / f'{name}.json'):
            written[name] = write_report(report, load_images, paths.__getitem__)
        taken.update(paths.values())
    return written


def write_report(
    report: Mapping[str, Any], load_images: LoadImages, place: Callable[[str], epath.Path]
) -> list[epath.Path]:
    """Draws the figures that a report has material for, each at `place(its name)`; returns the
    paths.
    """
    found = figures(report)
    shown = sorted({i for _, indices in found.values() for i in indices})
    try:
        images = load_images(report['data'], shown) if shown else []
    except (ValueError, OSError, IndexError) as error:
        # The data may have gone, or shrunk; the numbers are worth a figure all the same.
        said = f'{report["data"]}: figures with pictures are left out: {error}'
        print(said, file=sys.stderr)
        found, images = {k: v for k, v in found.items() if not v[1]}, [None] * len(shown)
    by_index = dict(zip(shown, images, strict=True))
    for name, (draw, indices) in found.items():
        draw(report, [by_index[i] for i in indices], place(name))
    return [place(name) for name in found]


def figures(report: Mapping[str, Any]) -> dict[str, tuple[Draw, list[int]]]:
    """Returns the figures that a report has material for, with the pictures that each shows."""
    found: dict[str, tuple[Draw, list[int]]] = {}
    if report.get('type') == 'zeroshot' and report.get('examples'):
        found['zero_shot'] = zero_shot, zero_shot.shows(report)
    for draw, key in (
        (mistakes, 'mistakes'),
        (similarity, 'similarity'),
        (queries, 'queries'),
        (per_class, 'per_class'),
        (confusion, 'confusion'),
        (sweep, 'sweep'),
        (shots, 'shots'),
    ):
        if report.get(key):
            found[key] = draw, draw.shows(report)
    return found


def reports(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads the reports of a folder, by name."""
    return {path.stem: read_report(path) for path in sorted(epath.Path(folder).glob('*.json'))}


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the report of an evaluation; ValueError if the file holds none."""
    path = epath.Path(path)
    if not path.exists():
        raise ValueError(f'{path}: there is no such file; expected a report of clip-jax eval')
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path}: no JSON ({error}). Run that evaluation again.') from error
    if not isinstance(report, dict) or not {'type', 'data'} <= {*report}:
        raise ValueError(f'{path}: no report of an evaluation (it has no "type" and "data")')
    with _of_file(path):
        if not isinstance(report.get('options', {}), dict):
            raise TypeError(f'its "options" are {report["options"]!r:.60}')
        figures(report)  # finds what each shows
    return report


@contextlib.contextmanager
def _of_file(path: epath.Path) -> Iterator[None]:
    """Names the file whose content is not of the shape that a report has."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: not as clip-jax eval writes it ({error}). Run that evaluation again.'
        ) from error
