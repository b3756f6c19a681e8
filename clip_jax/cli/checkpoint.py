"""`clip-jax checkpoint`: lists and verifies the checkpoints of a run."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clip_jax.cli import _flags

if TYPE_CHECKING:
    from etils import epath

SUMMARY = 'list the checkpoints of a run, or verify their checksums'
EXAMPLES = """\
examples:
  clip-jax checkpoint list runs/quickstart
  clip-jax checkpoint verify runs/quickstart
  clip-jax checkpoint verify gs://BUCKET/b16/checkpoints/12000 --sampled
list compares names and sizes of files, verify reads every byte. The exit code of verify is 0 if
all steps are valid, 1 otherwise."""
VALID = {'none': 'complete', 'sampled': 'valid (sampled)', 'all': 'valid'}
SHOWN_ERRORS = 8


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'checkpoint', SUMMARY, EXAMPLES)
    parser.add_argument('action', choices=('list', 'verify'), metavar='list | verify')
    parser.add_argument('path', metavar='PATH', help='a run directory, or one checkpoint in it')
    parser.add_argument(
        '--sampled', action='store_true', help='verify: read only parts of large files'
    )


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Lists or verifies; returns the exit code."""
    wrong = ['--sampled'] if args.sampled and args.action == 'list' else []
    _flags.refuse([*rest, *wrong], 'checkpoint')
    from clip_jax import checkpoint
    from clip_jax.training import listing

    contents = 'none' if args.action == 'list' else 'sampled' if args.sampled else 'all'
    asked = checkpoint.absolute(args.path)
    numbers: dict[int | None, str] | None = None
    newest, corrupt = '', 0
    for entry in listing.entries(asked, contents=contents):
        if numbers is None:
            numbers = _metrics_by_step(entry.path.parent.parent / 'metrics.jsonl')
        if entry.step is None and entry.path != asked:
            state = 'not a step: quarantined, or left by a process that was killed'
        elif entry.errors:
            state, corrupt = 'CORRUPT', corrupt + 1
        else:
            name = entry.path.name if entry.step is None else f'step {entry.step:,}'
            state, newest = VALID[contents], newest or name
        when = time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.written))
        print(f'{entry.path.name:>12}  {when}  {entry.bytes / 1e6:12,.1f} MB  {state}')
        shown = numbers.get(entry.step)
        for line in (*entry.errors[:SHOWN_ERRORS], *([shown] if shown else [])):
            print(f'{"":14}{line}')
    print(f'newest {VALID[contents]}:', newest or 'none')
    return 1 if corrupt and args.action == 'verify' else 0


def _metrics_by_step(path: 'epath.Path') -> dict[int | None, str]:
    """Returns loss and scores of each step of a run as text; empty if they cannot be read, which
    does not make the checkpoints invalid.
    """
    from clip_jax import metrics
    from clip_jax.reports import files

    steps: dict[int, dict[str, float]] = {}
    try:
        scores = files.scores(files.read_folder(path.parent / 'evals'))
        for row in metrics.read_jsonl(path) if path.exists() else ():
            steps.setdefault(row['step'], {}).update(row)
    except (ValueError, OSError) as error:
        print(f'metrics are not shown: {error}', file=sys.stderr)
        return {}
    return {
        step: ', '.join(f'{k} {v:.4g}' for k, v in row.items() if k == 'loss' or k in scores)
        for step, row in steps.items()
    }
