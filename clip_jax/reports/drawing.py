"""Figures as files: those of a run directory, and those of the reports of evaluations."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from absl import logging
from etils import epath

from clip_jax import metrics
from clip_jax.reports import files
from clip_jax.reports.calibration import calibration
from clip_jax.reports.images import mistakes, queries, similarity, zero_shot
from clip_jax.reports.scores import confusion, dims, groups, per_class, shots, sweep
from clip_jax.reports.training import compared as compared
from clip_jax.reports.training import training
from clip_jax.runtime import atomic

_Path = TypeVar('_Path', bound=os.PathLike)
LoadImages = Callable[[str, list[int]], list[np.ndarray]]
Draw = Callable[[Mapping[str, Any], list[np.ndarray], str | os.PathLike], None]


def write_all(workdir: str | os.PathLike, load_images: LoadImages) -> list[epath.Path]:
    """Draws every figure of a run directory into its plots/; returns the paths."""
    return [path for paths in write_run(workdir, load_images).values() for path in paths]


def write_run(
    workdir: str | os.PathLike, load_images: LoadImages, plots: epath.Path | None = None
) -> dict[str, list[epath.Path]]:
    """Draws every figure of a run directory.

    Args:
        workdir: the run directory.
        load_images: (SPEC, indices) -> decoded images of that data set, uint8 [H, W, 3].
        plots: the folder of the figures; default: plots/ of the run directory.

    Returns:
        The paths: of the training curves by '', of each report by its name.

    Raises:
        ValueError: `workdir` is no run directory, or a report in it is damaged.
    """
    workdir = epath.Path(workdir)
    if not (workdir / 'metrics.jsonl').exists():
        raise ValueError(
            f'{workdir}: no metrics.jsonl found, expected a run directory of `clip-jax train`.'
        )
    evals = workdir / 'evals'
    reports = files.read_folder(evals)
    plots = plots or workdir / 'plots'
    curves = plots / 'training.png'
    rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
    if not rows:
        raise ValueError(f'{workdir}: metrics.jsonl has no lines yet; draw when training has begun')
    training(rows, curves, scores=files.scores(reports), title=workdir.name or 'Training')
    written, taken = {'': [curves]}, {curves}
    for name, report in reports.items():
        with _named(evals / f'{name}.json'):
            paths = {}
            for figure in figures(report):
                path = plots / f'{figure}.png'
                paths[figure] = path.with_name(f'{figure}_{name}.png') if path in taken else path
            written[name] = write_report(report, load_images, paths.__getitem__)
        taken.update(paths.values())
    return written


def write_report(
    report: Mapping[str, Any], load_images: LoadImages, place: Callable[[str], _Path]
) -> list[_Path]:
    """Draws the figures that a report has data for.

    Args:
        report: the report.
        load_images: (SPEC, indices) -> decoded images of that data set, uint8 [H, W, 3].
        place: name of a figure -> its path.

    Returns:
        The paths.
    """
    found = figures(report)
    shown = sorted({i for _, indices in found.values() for i in indices})
    try:
        images = load_images(report['data'], shown) if shown else []
    except (ValueError, OSError, IndexError) as error:
        # The data may have moved or shrunk; the numbers are worth their figures all the same.
        logging.warning('%s: figures with images are left out: %s', report['data'], error)
        found, shown, images = {k: v for k, v in found.items() if not v[1]}, [], []
    by_index = dict(zip(shown, images, strict=True))
    for name, (draw, indices) in found.items():
        draw(report, [by_index[i] for i in indices], place(name))
    return [place(name) for name in found]


def write_with_figures(
    report: Mapping[str, Any], out: pathlib.Path, load_images: LoadImages
) -> list[pathlib.Path]:
    """Writes a report to `x.json` and its figures into the folder `x`, all or nothing.

    Args:
        report: the report.
        out: the path, which `files.check` accepts.
        load_images: (SPEC, indices) -> decoded images of that data set, uint8 [H, W, 3].

    Returns:
        The paths, the report's first.
    """
    out = out.expanduser()
    temporary = tempfile.mkdtemp(
        prefix=f'.{out.name}.', suffix='.partial', dir=atomic.existing_parent(out)
    )
    work = pathlib.Path(temporary)
    try:
        folder = work / 'figures'
        drawn = write_report(report, load_images, lambda name: folder / f'{name}.png')
        (work / 'report').write_bytes(atomic.encoded(files.as_json(report)))
        out.parent.mkdir(parents=True, exist_ok=True)
        if drawn:
            folder.rename(out.with_suffix(''))
        (work / 'report').rename(out)
    finally:
        shutil.rmtree(work)
    return [out, *(out.with_suffix('') / path.name for path in drawn)]


def figures(report: Mapping[str, Any]) -> dict[str, tuple[Draw, list[int]]]:
    """Returns the figures that a report has data for, with the images that each shows."""
    found: dict[str, tuple[Draw, list[int]]] = {}
    for name, draw, key in (
        ('zero_shot', zero_shot, 'examples'),
        ('mistakes', mistakes, 'mistakes'),
        ('similarity', similarity, 'similarity'),
        ('queries', queries, 'queries'),
        ('per_class', per_class, 'per_class'),
        ('groups', groups, 'groups'),
        ('confusion', confusion, 'confusion'),
        ('calibration', calibration, 'calibration'),
        ('sweep', sweep, 'sweep'),
        ('shots', shots, 'shots'),
        ('dims', dims, 'dims'),
    ):
        if report.get(key):
            found[name] = draw, draw.shows(report)
    return found


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Names the file of a report whose tables do not have the shape that figures need."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: not as clip-jax eval writes it ({error}). Run that evaluation again.'
        ) from error


def drawn_beside(path: str | os.PathLike, report: Mapping[str, Any]) -> list[epath.Path]:
    """Returns the figures that exist in the folder beside a report's file."""
    path = epath.Path(path)
    with _named(path):
        names = list(figures(report))
    return [file for name in names if (file := path.with_suffix('') / f'{name}.png').exists()]
