"""`clip-jax eval suite`: many evaluations of several checkpoints."""

import argparse
import functools
import sys
from collections.abc import Sequence

from clip_jax.cli import _flags, config_file

HELP = """\
A suite needs --suite=NAME or FILE and at least one --model=PATH. --suite.key=value overrides a
value of it, such as --suite.options.tfds.data_dir=DIR."""


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs a suite; returns the exit code."""
    if args.data or not args.suite or not args.model:
        raise ValueError(
            'suite: expected --suite=NAME or FILE, at least one --model=PATH, and no --data'
        )
    _flags.check_overrides(rest, 'suite')
    out = _flags.local_path(args.out)
    if out and out.exists() and not out.is_dir():
        raise ValueError(f'--out: {out} is a file; a suite writes a folder')
    page = config_file.read(args.suite, rest, flag='suite')
    from clip_jax import build
    from clip_jax.evaluation import suite, suite_table
    from clip_jax.runtime import atomic

    if out:
        atomic.check_place(out / 'suite.json', '--out')
    build.check_dtype(args.dtype)
    say = functools.partial(print, file=sys.stderr, flush=True)
    table, fine = suite.run(
        *(page.to_dict(), [_flags.named(model, args) for model in args.model], out),
        say=say,
        dtype=args.dtype,
        image_options=_flags.image_options(args),
    )
    print(suite_table.markdown(table), end='', flush=True)
    if out:
        suite_table.write(table, out)
        print(f'in {out}: suite.json, suite.md, and a folder of reports for each checkpoint')
    return 0 if fine else 1
