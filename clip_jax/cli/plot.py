"""`clip-jax plot`: figures and an HTML report of a run, of several compared, or of a suite."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags

SUMMARY = 'draw the figures of a run and write its HTML report; compare runs, reports or models'
EXAMPLES = """\
examples:
  clip-jax plot runs/quickstart
  clip-jax plot runs/a runs/b --out=compare.html
  clip-jax plot --report=a/pets.json --report=b/pets.json --out=reports.html
  clip-jax plot --suite=suites/a-and-b --x=imagenet --y=pets --out=models.html
The report is a single HTML file with the figures in it. Reports of one evaluation on the same data
are also compared image by image."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'plot', SUMMARY, EXAMPLES)
    parser.add_argument(
        'dirs', nargs='*', metavar='DIR', help='a run directory; several runs are compared'
    )
    parser.add_argument(
        '--workdir', action='append', metavar='DIR', help='the same as DIR; can be repeated'
    )
    parser.add_argument(
        '--report',
        action='append',
        metavar='FILE',
        help='a report of clip-jax eval to include; can be given several times',
    )
    parser.add_argument(
        '--suite', metavar='DIR', help='a folder of clip-jax eval suite, for a page of its models'
    )
    for flag, what in ('--x', 'parameters, or the first task'), ('--y', 'the last average or mean'):
        parser.add_argument(
            flag,
            metavar='NAME',
            help='with --suite: what models are drawn by, the name of a task or of an average, or '
            f'mean/EVALUATION (default: {what})',
        )
    parser.add_argument(
        '--fetch',
        action='store_true',
        help='read images for the figures from addresses that the reports name',
    )
    parser.add_argument(
        '--out',
        metavar='FILE.html',
        help='the HTML report (default, for one run: DIR/plots/index.html)',
    )


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Draws; returns the exit code."""
    more = [word for word in rest if not word.startswith('-')]  # DIRs after a flag
    _flags.refuse([word for word in rest if word not in more], 'plot')
    asked = *args.dirs, *more, *(args.workdir or ())
    workdirs, given = ([*map(os.path.expanduser, paths)] for paths in (asked, args.report or ()))
    out = _flags.local_path(args.out)
    if args.suite and (workdirs or given or args.fetch):
        raise ValueError('--suite: expected no DIR, --report or --fetch; a suite has its own page')
    if (args.x or args.y) and not args.suite:
        raise ValueError('--x and --y: expected --suite=DIR, whose models they compare')
    if not workdirs and not given and not args.suite:
        raise ValueError(
            'expected DIR, a run directory, or --report=FILE or --suite=DIR, and --out=FILE.html'
        )
    if not out and len(workdirs) != 1:
        raise ValueError('--out: expected a file to write, such as --out=compare.html')
    if out and (out.suffix != '.html' or out.exists()):
        raise ValueError(f'--out: {out}: expected a new name that ends in .html')
    from etils import epath

    from clip_jax import build
    from clip_jax.reports import compared, drawing, files, html_report, suites
    from clip_jax.runtime import atomic

    if out:
        atomic.check_place(out, '--out')
    if args.suite:
        assert out is not None  # as checked above
        folder = epath.Path(os.path.expanduser(args.suite))
        atomic.write(out, suites.suite_page(suites.read(folder), folder.name, x=args.x, y=args.y))
        print(out)
        return 0
    runs = html_report.read_runs(workdirs)
    sections = [html_report.report_file_section(path) for path in given]
    sections = compared.sections(given) + sections
    if len(runs) == 1:
        workdir = epath.Path(workdirs[0])
        data = runs[0].config['data']
        load_images = build.image_loader(
            data['options'], max_pixels=data['max_pixels'], remote=args.fetch
        )
        reports = files.read_folder(workdir / 'evals')
        # With --out the run directory, which may be somebody else's, stays as it is.
        with tempfile.TemporaryDirectory() as temporary:
            plots = epath.Path(temporary) if out else workdir / 'plots'
            figures = drawing.write_run(workdir, load_images, plots)
            text = html_report.run_page(runs[0], figures, reports, sections)
        if not out:
            print(*(path for paths in figures.values() for path in paths), sep='\n')
            out = workdir / 'plots' / 'index.html'
    else:
        assert out is not None  # as checked above
        text = html_report.compare_page(runs, sections)
    atomic.write(out, text)
    print(out)
    return 0
