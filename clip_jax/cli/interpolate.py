"""`clip-jax interpolate`: writes or evaluates models between two checkpoints (WiSE-FT)."""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags, config_file

SUMMARY = 'mix the weights of two checkpoints (WiSE-FT), or evaluate the whole line between them'
EXAMPLES = """\
examples:
  clip-jax interpolate ViT-B-32.pt runs/tuned --alpha=0.5 --out=runs/wise
  clip-jax interpolate ViT-B-32.pt runs/tuned --sweep=11 --suite=clip27 --workdir=sweeps/tuned
The weights are (1 - alpha) A + alpha B. A and B are run directories or checkpoints of any known
layout, with the same architecture, tokenizer and preprocessing; --out is loaded as a run directory.
A sweep evaluates alpha = 0 to 1 in equal steps and writes a table and figures; the same command
resumes it. --suite.key=value overrides a value of the suite."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'interpolate', SUMMARY, EXAMPLES)
    for name in 'ab':
        parser.add_argument(
            name, metavar=name.upper(), help='a run directory or a checkpoint of any known layout'
        )
    parser.add_argument('--alpha', type=float, metavar='X', help='the weight of B, from 0 to 1')
    parser.add_argument('--out', metavar='DIR', help='with --alpha: the new folder')
    parser.add_argument(
        '--sweep', type=int, metavar='N', help='evaluate N values of alpha, with both ends'
    )
    parser.add_argument(
        '--suite', metavar='NAME or FILE[:ARG]', help='for a sweep: as for clip-jax eval suite'
    )
    parser.add_argument('--workdir', metavar='DIR', help='for a sweep: reports, table and figures')
    parser.add_argument(
        '--reference',
        metavar='TASK',
        help='for a sweep: the task of the horizontal axis (default: the first one)',
    )
    parser.add_argument(
        '--save', action='store_true', help='for a sweep: also write each model, to DIR/models'
    )
    _flags.add_dtype(parser)
    _flags.add_image_options(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Interpolates; returns the exit code."""
    one = args.alpha is not None and args.out
    for_sweep = args.sweep is not None and args.suite and args.workdir
    others = (args.sweep, args.suite, args.workdir, args.reference, args.save or None)
    if one and others == (None,) * len(others):
        return _write(args, rest)
    if not for_sweep or args.alpha is not None or args.out:
        raise ValueError(
            'expected --alpha=X and --out=DIR for one model, or --sweep=N, --suite=NAME and '
            '--workdir=DIR to evaluate several'
        )
    if args.sweep < 2:
        raise ValueError(f'--sweep is {args.sweep}; expected at least 2, which are A and B')
    return _sweep(args, rest)


def _write(args: argparse.Namespace, rest: Sequence[str]) -> int:
    _flags.refuse(rest, 'interpolate')
    if args.dtype != 'auto' or _flags.image_options(args):
        raise ValueError('--dtype, --gray16 and --max-pixels are options of a sweep')
    from clip_jax.pretrained import loaded
    from clip_jax.step import state
    from clip_jax.training import interpolation

    interpolation.check_alpha(args.alpha)  # before anything large is read
    folder = _flags.local_path(args.out)
    assert folder is not None  # as `run` checked
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    pair = interpolation.Pair(args.a, args.b)
    variables = pair.variables(args.alpha)
    loaded.write(folder, pair.card(args.alpha), variables)
    print(f'{state.count_parameters(variables):,} parameters at alpha {args.alpha:g} in {folder}')
    return 0


def _sweep(args: argparse.Namespace, rest: Sequence[str]) -> int:
    _flags.check_overrides(rest, 'suite')
    workdir = _flags.local_path(args.workdir)
    assert workdir is not None  # as `run` checked
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f'--workdir: {workdir} is a file; a sweep writes a folder')
    page = config_file.read(args.suite, rest, flag='suite')
    from clip_jax import build
    from clip_jax.evaluation import alphas, suite_table
    from clip_jax.reports import interpolation
    from clip_jax.runtime import atomic

    atomic.check_place(workdir / 'suite.json', '--workdir')
    build.check_dtype(args.dtype)
    table, fine = alphas.run(
        *(page.to_dict(), args.a, args.b, args.sweep, workdir),
        say=functools.partial(print, file=sys.stderr, flush=True),
        reference=args.reference,
        save=args.save,
        dtype=args.dtype,
        image_options=_flags.image_options(args),
    )
    print(suite_table.markdown(table), end='', flush=True)
    figures = interpolation.write(table, workdir)
    print(f'in {workdir}: suite.json, suite.md, {", ".join([*figures, "a folder per alpha"])}')
    return 0 if fine else 1
