"""`clip-jax caption`: captions for the images of a folder, table or tar, as a CSV file."""

import argparse
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _console, _flags, _help

SUMMARY = 'write captions of images to a CSV file'
EXAMPLES = """\
examples:
  clip-jax caption folder:photographs --model=coca_ViT-B-32/laion2b_s13b_b90k --out=captions.csv
  clip-jax caption 'tars:web/*.tar' --model=runs/captions --method=beam --beams=4 --out=captions.csv
Options of the captions are given as --option=value, those of the data as --data.option=value. The
model needs a caption decoder (CoCa). The exit code is 0 if at least one image could be read; the
others have their kind in the column `bad`."""
OWN = 3  # fields of Generation that are the tokenizer's


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'caption', SUMMARY, EXAMPLES, details=_details)
    parser.add_argument('spec', metavar='SPEC', help=_flags.SPEC)
    parser.add_argument(
        '--model',
        required=True,
        metavar='PATH',
        help='a run directory or a checkpoint with a caption decoder',
    )
    _flags.add_model_name(parser)
    parser.add_argument('--out', required=True, metavar='FILE.csv', help='the new CSV file')
    _flags.add_dtype(parser)
    _flags.add_threads(parser)


def _details(args: argparse.Namespace) -> str:
    """The part of the help that depends on the data."""
    from clip_jax.models.generate import Generation

    parts = [f'options of the captions:\n{_help.options(Generation, own=OWN)}']
    if args.spec:
        parts.append(_help.source_options(_flags.kinds(args.spec), '--data.'))
    return '\n\n'.join(parts)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Writes captions; returns the exit code."""
    options, source_options = _flags.split_options(rest, 'data')
    threads = _flags.threads(args)
    out = _flags.new_csv(args.out)
    from clip_jax import build
    from clip_jax.evaluation import predictions

    build.check_dtype(args.dtype)
    source = build.source(args.spec, _flags.by_kind(args.spec, source_options, 'data.'))
    model = _flags.named(args.model, args)
    summary = predictions.write_captions(model, source, out, args.dtype, threads, **options)
    _console.show({'data': args.spec, **summary})
    print(f'in {out}: a row for each of {len(source):,} records')
    return 0
