"""`clip-jax models`: lists published checkpoints."""

import argparse
import fnmatch
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags

SUMMARY = 'list published checkpoints that are loaded by name'
EXAMPLES = """\
examples:
  clip-jax models
  clip-jax models 'ViT-B-*'
  clip-jax models siglip2
A name works wherever a checkpoint is named, as --model=ViT-B-32/laion2b_s34b_b79k."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'models', SUMMARY, EXAMPLES)
    parser.add_argument(
        'pattern', metavar='PATTERN', nargs='?', default='', help='a part of a name, or a glob'
    )
    parser.add_argument('--all', action='store_true', help='also those that clip_jax cannot load')


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    _flags.refuse(rest, 'models')
    from clip_jax.places import names

    pattern = args.pattern.lower()
    pattern = pattern if any(c in pattern for c in '*?[') else f'*{pattern}*'
    rows = [
        row
        for row in names.published()
        if any(fnmatch.fnmatch(x.lower(), pattern) for x in (row.name, row.repository))
    ]
    shown = [row for row in rows if row.loads or args.all]
    if not rows:
        close = names.near(args.pattern)
        hint = f'; did you mean {", ".join(close)}?' if close else ''
        raise ValueError(f'no published checkpoint matches {args.pattern!r}{hint}')
    cells = [('name', 'ImageNet', 'trained on', 'license', 'hf://', 'missing')]
    for row in shown:
        score = '' if row.imagenet is None else f'{row.imagenet:.1f} %'
        name = row.name if row.name != row.repository else row.name.rpartition('/')[2]
        cells.append((name, score, row.trained_on, row.license, row.repository, row.missing))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print('  '.join(x.ljust(n) for x, n in zip(line, widths, strict=True)).rstrip())
    hidden = len(rows) - len(shown)
    print(
        f'{len(shown):,} checkpoints'
        + (f'; {hidden:,} more cannot be loaded (--all shows why)' if hidden else '')
    )
    if shown:
        print(
            'Each that loads was checked with small random weights of its architecture, written in '
            'its layout and loaded by its name; the published files are not part of the tests.'
        )
    return 0
