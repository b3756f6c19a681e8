"""`clip-jax convert`: writes a checkpoint in the layout of another library."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags

SUMMARY = 'write a checkpoint in the layout of another library'
EXAMPLES = """\
examples:
  clip-jax convert runs/quickstart exported --layout=open_clip
  clip-jax convert ViT-B-32.pt clip-vit-base-patch32 --layout=huggingface
SRC is a run directory, a checkpoint in it, or a checkpoint of OpenAI, open_clip, Hugging Face
transformers or big_vision; its layout is detected. The files are read back and compared."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'convert', SUMMARY, EXAMPLES)
    parser.add_argument(
        'src', metavar='SRC', help='a run directory or a checkpoint of any known layout'
    )
    parser.add_argument('dst', metavar='DST', help='the new folder')
    parser.add_argument(
        '--layout', required=True, metavar='NAME', help='open_clip, huggingface or big_vision'
    )
    _flags.add_model_name(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Converts; returns the exit code."""
    _flags.refuse(rest, 'convert')
    from clip_jax import convert, pretrained
    from clip_jax.step import state

    convert.check_layout(args.layout)  # before anything large is read
    folder = pathlib.Path(args.dst)
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    card, variables = pretrained.read(_flags.named(args.src, args))
    table, changed = convert.write(folder, args.layout, card, variables)
    print(table)
    print(f'{state.count_parameters(variables):,} parameters; read back bit for bit equal')
    for line in changed:
        print('different:', line)
    print(f'in {folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
    return 0
