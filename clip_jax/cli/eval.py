"""`clip-jax eval`: scores a model on a data set."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax import lookup
from clip_jax.cli import _console, _flags, _help, suite

SUMMARY = 'evaluate a model on a data set, or several models on many'
EXAMPLES = """\
examples:
  clip-jax eval zeroshot --model=runs/quickstart --data=tfds:shapes_captions/test_heldout \\
      --templates=shapes
  clip-jax eval retrieval --model=runs/flickr8k --data='tars:flickr8k/val-*.tar' \\
      --out=report.json
  clip-jax eval retrieval --data=embeddings:embedded/flickr8k
  clip-jax eval --model=runs/flickr8k --data=wds:hf://datasets/clip-benchmark/wds_cars
  clip-jax eval linear_probe --model=runs/flickr8k --data=folder:pets/test \\
      --train=folder:pets/train --save=probe.npz
  clip-jax eval suite --suite=clip27 --model=runs/a --model=runs/b --out=suites/a-and-b
Options of the evaluation are given as --option=value; clip-jax eval NAME --help lists them. Options
of the data are given as --data.option=value, overrides of a suite as --suite.key=value. --model can
be left out if --data is a folder of embeddings, and NAME if --data is a set, as of wds:, that says
what it is for. The same command resumes an interrupted suite; its exit code is 0 if at least one
task ran and none failed."""
SUITE = 'suite'
DIMS = """\
option of every evaluation:
  --dims=64,128         also score the first coordinates of embeddings, L2-normalized again, of a
                        model that was trained for it (Matryoshka): dim64/NAME and so on"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'eval', SUMMARY, EXAMPLES, details=_details)
    parser.add_argument(
        'name',
        nargs='?',
        default='',
        metavar='NAME',
        help='an evaluation (clip-jax eval --help lists them), the import path of your own, or '
        f'{SUITE}; without, what --data=wds:PLACE says it is for',
    )
    parser.add_argument(
        '--model',
        action='append',
        metavar='PATH',
        help='a run directory or a checkpoint of any known layout; a suite takes several',
    )
    _flags.add_model_name(parser)
    parser.add_argument('--data', metavar='SPEC', help=f'{_flags.SPEC}; or embeddings:DIR')
    parser.add_argument(
        '--suite',
        metavar='NAME or FILE[:ARG]',
        help='a suite that comes with clip_jax, such as clip27, or a Python file',
    )
    _flags.add_dtype(parser)
    _flags.add_image_options(parser)
    parser.add_argument(
        '--out', metavar='FILE', help='write the report to this JSON file; for a suite, a folder'
    )


def _details(args: argparse.Namespace) -> str:
    """The part of the help that depends on the evaluation and the data."""
    if args.name == SUITE:
        return suite.HELP
    if args.name:
        evaluate = lookup.module('evals', args.name, 'evaluate').evaluate
        parts = [DIMS, f'options of {args.name}:\n{_help.options(evaluate, own=3)}']
    else:
        parts = [f'evaluations:\n{_help.plugins("evals")}']
    if args.data:
        parts.append(_help.source_options(_flags.kinds(args.data), '--data.'))
    return '\n\n'.join(parts)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Evaluates; returns the exit code."""
    if args.name == SUITE:
        return suite.run(args, rest)
    if args.name.startswith('--'):  # an option with a space in it, where there is no NAME
        args.name, rest = '', [args.name, *rest]
    if args.name and '.' not in args.name:
        lookup.check(args.name, [*lookup.names('evals'), SUITE], what='evals')
    models = [_flags.named(model, args) for model in args.model or []]
    if not args.data or args.suite or len(models) > 1:
        raise ValueError(
            f'{args.name or "eval"}: expected --data=SPEC, one --model=PATH and no --suite; for '
            f'several models or evaluations use clip-jax eval {SUITE}'
        )
    options, source_options = _flags.split_options(rest, 'data')
    out = _flags.local_path(args.out)
    from clip_jax import build
    from clip_jax.evaluation import evaluate, single
    from clip_jax.reports import files

    build.check_dtype(args.dtype)
    if out:
        files.check(out)
    of_kind = _flags.by_kind(args.data, source_options, 'data.')
    model = models[0] if models else None
    image_options = _flags.image_options(args)
    name = args.name or evaluate.made_for(args.data, of_kind)
    report = single.run(
        *(name, options, args.data, of_kind),
        model=model,
        dtype=args.dtype,
        image_options=image_options,
    )
    _show(report)
    if out:
        from clip_jax.data.image import opening
        from clip_jax.reports import drawing

        max_pixels = image_options.get('max_pixels', opening.MAX_PIXELS)
        load_images = build.image_loader(of_kind, max_pixels=max_pixels)
        path, *figures = drawing.write_with_figures(report, out, load_images)
        print(f'report: {path}')
        if figures:
            print(f'figures in {figures[0].parent}: {", ".join(p.name for p in figures)}')
    return 0


def _show(report: Mapping[str, Any]) -> None:
    """Prints scores, counts and the facts that are set."""
    for name, score in report['scores'].items():
        form = '.4f' if score['unit'] == 'fraction' else ',.6g'
        ends = ' to '.join(f'{end:{form}}' for end in score.get('interval', ()))
        print(f'{name:28} {score["value"]:{form}}', *([f'  95 %: {ends}'] if ends else []))
    facts = {k: v for k, v in report['info'].items() if v not in ('', [])}
    for name, value in {**report['counts'], **facts, 'seconds': report['seconds']}.items():
        print(f'{name:28} {_console.one_line(value)}')
