"""`clip-jax push`: publishes a run on the Hugging Face hub, with a model card."""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags

SUMMARY = 'publish a run on the Hugging Face hub, with a model card'
EXAMPLES = """\
examples:
  clip-jax push runs/quickstart hf://me/quickstart --layout=open_clip --dry-run
  clip-jax push runs/quickstart hf://me/quickstart --layout=clip_jax --license=apache-2.0
The card has the scores of the run's own reports. Log in with `hf auth login` or HF_TOKEN."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'push', SUMMARY, EXAMPLES)
    parser.add_argument('run', metavar='RUN', help='a run directory')
    parser.add_argument('place', metavar='hf://OWNER/NAME', help='the repository')
    parser.add_argument(
        '--layout',
        required=True,
        metavar='NAME',
        help='open_clip, huggingface, or clip_jax for its own checkpoints',
    )
    parser.add_argument('--license', default='', metavar='NAME', help='such as apache-2.0')
    parser.add_argument('--private', action='store_true', help='create a private repository')
    parser.add_argument(
        '--dry-run', action='store_true', help='show the files and the card; upload nothing'
    )


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Publishes; returns the exit code."""
    _flags.refuse(rest, 'push')
    from clip_jax.places import hub
    from clip_jax.training import publish

    name = hub.repository(args.place)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / 'repository'
        publish.write(args.run, folder, args.layout, name=name, license=args.license)
        files = sorted(path for path in folder.rglob('*') if path.is_file())
        for path in files:
            print(f'{path.stat().st_size:>13,}  {path.relative_to(folder)}')
        if args.dry_run:
            print(f'\n{(folder / publish.CARD).read_text()}')
            print(f'nothing was uploaded to {args.place} (--dry-run)')
            return 0
        print(f'in {hub.upload(folder, args.place, private=args.private)}')
    return 0
