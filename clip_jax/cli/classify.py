"""`clip-jax classify`: labels for the images of a folder, table or tar, as a CSV file."""

import argparse
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _console, _flags, _help

SUMMARY = 'label images zero-shot and write the predictions to a CSV file'
EXAMPLES = """\
examples:
  clip-jax classify folder:photographs --model=ViT-B-32.pt --labels=cat,dog --out=pets.csv
  clip-jax classify 'tars:web/*.tar' --model=runs/flickr8k --labels=names.txt --top_k=5 \\
      --templates='a photo of a {}.' --out=predictions.csv
Options of the classifier are given as --option=value, those of the data as --data.option=value.
The images need no labels; clip-jax eval zeroshot scores a model on images that have some. The exit
code is 0 if at least one image could be read; the others have their kind in the column `bad`."""
OWN = 6  # parameters of predictions.write that have flags of their own


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'classify', SUMMARY, EXAMPLES, details=_details)
    parser.add_argument('spec', metavar='SPEC', help=_flags.SPEC)
    parser.add_argument(
        '--model',
        required=True,
        metavar='PATH',
        help='a run directory or a checkpoint of any known layout',
    )
    _flags.add_model_name(parser)
    parser.add_argument(
        '--labels',
        required=True,
        metavar='NAMES or FILE',
        help='the classes: cat,dog or a text file with a name per line, or JSON',
    )
    parser.add_argument('--out', required=True, metavar='FILE.csv', help='the new CSV file')
    _flags.add_dtype(parser)
    _flags.add_threads(parser)


def _details(args: argparse.Namespace) -> str:
    """The part of the help that depends on the data."""
    from clip_jax.evaluation import predictions

    parts = [f'options of the classifier:\n{_help.options(predictions.write, own=OWN)}']
    if args.spec:
        parts.append(_help.source_options(_flags.kinds(args.spec), '--data.'))
    return '\n\n'.join(parts)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Classifies; returns the exit code."""
    options, source_options = _flags.split_options(rest, 'data')
    threads = _flags.threads(args)
    out = _flags.new_csv(args.out)
    from clip_jax import build
    from clip_jax.evaluation import predictions

    write = build.bind(predictions.write, options, what='classify', own=OWN)
    build.check_dtype(args.dtype)
    of_kind = _flags.by_kind(args.spec, source_options, 'data.')
    source = build.source(args.spec, of_kind)
    labels = _flags.literal(args.labels) if args.labels.startswith('[') else args.labels
    model = _flags.named(args.model, args)
    summary = write(model, source, out, labels, args.dtype, threads)
    _console.show({'data': args.spec, **summary})
    print(f'in {out}: a row for each of {len(source):,} records')
    return 0
