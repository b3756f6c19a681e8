"""The command line `clip-jax`: assembles the commands, runs one, and turns errors into exit codes.

Nothing here imports JAX, so that `clip-jax --help` is quick; a command imports what it needs when
it runs.
"""

import argparse
import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from logging import WARNING, LogRecord
from typing import NoReturn

from absl import logging

import clip_jax
from clip_jax import lookup
from clip_jax.cli import _console, _flags
from clip_jax.runtime import interrupts

# Each command is a file with `add_parser(commands)` and `run(args, rest) -> exit code`.
COMMANDS = {
    name: lookup.module('cli', name, 'add_parser', 'run')
    for name in (
        'train',
        'eval',
        'classify',
        'caption',
        'embed',
        'convert',
        'interpolate',
        'checkpoint',
        'models',
        'push',
        'data',
        'plan',
        'plot',
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits.

    Args:
        arguments: the words after `clip-jax`; by default those of the process.

    Raises:
        SystemExit: always. The code is 0 for success, 1 for bad input (one line on stderr says
            what, or a heading and a line per item) or a negative result, 2 for wrong usage, 130 for
            Ctrl-C, 141 if nobody reads the output any more.
    """
    with _console.escaped_output(), _console.output_checked():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> None:
    args, rest = _parse(arguments)
    if not os.environ.get('CLIP_JAX_TRACEBACK'):
        logging.set_verbosity(logging.INFO)
        logging.get_absl_logger().addFilter(_is_for_users)
    try:
        sys.exit(COMMANDS[args.command].run(args, rest))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    except Exception as error:
        if multihost := sys.modules.get('clip_jax.runtime.multihost'):
            multihost.exit_if_peer_lost(error)
        code = _console.report_error(args.command, error)
    if multihost := sys.modules.get('clip_jax.runtime.multihost'):
        multihost.exit_together(code)  # other processes may wait for this one
    sys.exit(code)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments that the command knows, and the others."""
    parser = _parser()
    for word in arguments:
        if word.startswith(('\u2013', '\u2014', '\u2212')):
            parser.error(f'{word!r} begins with a dash of a text editor; flags begin with --')
    args, rest = parser.parse_known_args(arguments)
    return args, _flags.joined(rest)


def console() -> NoReturn:
    """The installed command: runs `main`, then ends the process without Python's finalization.

    Threads of JAX and of input pipelines may run until the end, and crash when the interpreter is
    finalized under them.
    """
    code = 1
    signal.signal(
        signal.SIGINT, interrupts.safely(interrupts.interrupt, importing=interrupts.leave)
    )
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # while the arguments are read
        code = 130
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)  # the exit code is decided
    atexit._run_exitfuncs()
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError):  # nobody reads it any longer
            stream.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='clip-jax',
        description='CLIP in JAX and Flax: train, evaluate, classify, embed, convert.',
        epilog='Set CLIP_JAX_TRACEBACK=1 to see the traceback of an error.',
        allow_abbrev=False,
    )
    parser.add_argument('--version', action='version', version=clip_jax.__version__)
    commands = parser.add_subparsers(dest='command', required=True, metavar=' | '.join(COMMANDS))
    for command in COMMANDS.values():
        command.add_parser(commands)
    return parser


def _is_for_users(record: LogRecord) -> bool:
    """Whether a log record is shown: all of clip_jax, and warnings of other libraries. Not those of
    orbax, which also logs, with tracebacks, what it raises.
    """
    if record.pathname.startswith(os.path.dirname(clip_jax.__file__)):
        return True
    return record.levelno >= WARNING and 'orbax' not in record.pathname
