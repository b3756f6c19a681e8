"""`clip-jax embed`: writes the embeddings of a data set to a folder."""

import argparse
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _console, _flags
from clip_jax.runtime import environment

SUMMARY = 'write the embeddings of a data set to a folder'
EXAMPLES = """\
examples:
  clip-jax embed --model=runs/flickr8k --data='tars:flickr8k/*.tar' --out=embedded/flickr8k
  clip-jax embed --model=ViT-B-32.pt --data=folder:photographs --out=embedded/mine \\
      --save-dtype=float16
  clip-jax embed --model=runs/flickr8k --data=tfds:mnist/train --out=embedded/mnist \\
      --features=pre_projection
Options of the data are given as --data.option=value (clip-jax data inspect SPEC --help lists them).
The same command resumes an interrupted one. Evaluations read the folder as --data=embeddings:DIR;
clip_jax.search(DIR, text) searches it."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'embed', SUMMARY, EXAMPLES)
    parser.add_argument(
        '--model',
        required=True,
        metavar='PATH',
        help='a run directory or a checkpoint of any known layout',
    )
    _flags.add_model_name(parser)
    parser.add_argument('--data', required=True, metavar='SPEC', help=_flags.SPEC)
    parser.add_argument('--out', required=True, metavar='DIR', help='the folder to write')
    parser.add_argument(
        '--features',
        default='embedding',
        metavar='NAME',
        help='embedding (default): L2-normalized; pre_projection: for linear probes; patches; '
        'block:N, the output of a block; attention:N, its attention weights',
    )
    parser.add_argument(
        '--text-features',
        default='',
        metavar='NAME',
        help='what to write of captions: embedding (default, beside embeddings of images), '
        'pre_projection, tokens, block:N, attention:N, or none',
    )
    parser.add_argument(
        '--dim',
        type=int,
        default=0,
        metavar='D',
        help='only the first D coordinates of embeddings, L2-normalized again (default: all)',
    )
    _flags.add_dtype(parser)
    parser.add_argument(
        '--save-dtype',
        default='float32',
        metavar='TYPE',
        help='dtype of the files: float32 (default) or float16',
    )
    parser.add_argument(
        '--shard-size',
        type=int,
        default=8192,
        metavar='N',
        help='records per shard; an interruption loses unfinished shards (default: 8192)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=128,
        metavar='N',
        help='images per device and batch (default: 128)',
    )
    parser.add_argument(
        '--max-bad-fraction',
        type=float,
        default=0.05,
        metavar='FRACTION',
        help='fraction of bad records above which the command stops (default: 0.05)',
    )
    _flags.add_image_options(parser)
    _flags.add_threads(parser)
    _flags.add_processes(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Embeds; returns the exit code."""
    options, source_options = _flags.split_options(rest, 'data')
    for name in options:
        raise ValueError(f'there is no flag --{name}; options of the data are --data.{name}=value')
    environment.keep_freed_memory()
    _flags.connect(args)
    from clip_jax.runtime import preemption

    preemption.release()  # killed at any moment, the same command resumes
    from clip_jax import build
    from clip_jax.embeddings import embed
    from clip_jax.runtime import multihost

    how = embed.Options(
        features=args.features,
        text_features=args.text_features,
        dim=args.dim,
        dtype=args.dtype,
        save_dtype=args.save_dtype,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        max_bad_fraction=args.max_bad_fraction,
        threads=_flags.threads(args),
        **_flags.image_options(args),
    )
    of_kind = _flags.by_kind(args.data, source_options, 'data.')
    source = multihost.primary_first(lambda: build.source(args.data, of_kind))
    summary = embed.run(
        *(_flags.named(args.model, args), source, args.out, how),
        spec=args.data,
        spec_options=source_options,
    )
    if multihost.is_primary():
        _console.show({'data': args.data, **summary})
        print(f'in {args.out}: use it as --data=embeddings:{args.out}')
    return 0
