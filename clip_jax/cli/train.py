"""`clip-jax train`: trains a model, or resumes its run."""

import argparse
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags, config_file

SUMMARY = 'train a model from a config file, or resume its run'
EXAMPLES = """\
examples:
  clip-jax train --config=quickstart --workdir=runs/quickstart
  clip-jax train --config=quickstart --workdir=runs/longer --config.total_steps=2000
  clip-jax train --config=quickstart --workdir=runs/quickstart --config.total_steps=2000 \\
      --allow-change=total_steps   # extends a run
  clip-jax train --config=my_config.py --workdir=runs/mine
  clip-jax train --config=quickstart --workdir=runs/two --coordinator=localhost:8476 \\
      --num-processes=2 --process-id=0   # the same with --process-id=1 in another terminal
The same command resumes an interrupted run from its last checkpoint. The exit code is 0 if the run
is complete or was preempted (SIGTERM) and saved, 130 after Ctrl-C, 75 if a step took longer than
config.step_timeout."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'train', SUMMARY, EXAMPLES)
    _flags.add_config(parser)
    parser.add_argument('--workdir', required=True, metavar='DIR', help='the run directory')
    parser.add_argument(
        '--allow-change',
        metavar='KEYS',
        default='',
        help='keys of the config, separated by commas, that may differ from the run in --workdir: '
        'total_steps to extend it, data.train and data.options if its data have moved',
    )
    _flags.add_processes(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    _flags.check_overrides(rest)
    config = config_file.read(args.config, rest)
    _flags.connect(args)
    from clip_jax.runtime.preemption import SIGTERM, Preempted
    from clip_jax.training import loop

    try:
        allow_changes = [key for key in args.allow_change.split(',') if key]
        loop.train(config, args.workdir, allow_changes=allow_changes)
    except Preempted as preempted:
        # SIGTERM asks for exactly this: to save and exit.
        return 0 if preempted.signal == SIGTERM else preempted.signal
    return 0
