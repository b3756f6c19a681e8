"""Flags and arguments that several commands share."""

import argparse
import ast
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.cli import _help

SPEC = 'tfds:NAME/SPLIT, tars:GLOB, wds:PLACE, table:FILE or folder:DIR'


def add_command(
    commands: Any,
    name: str,
    summary: str,
    examples: str,
    *,
    details: Callable[[argparse.Namespace], str] | None = None,
) -> argparse.ArgumentParser:
    """Adds a command and returns its parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
        name: the word on the command line.
        summary: one line for the list of commands and for the command's own help.
        examples: the text below the flags, as written.
        details: returns a text that `--help` prints last, given the arguments before `--help`.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not details,
    )
    if details:
        text = 'show this help message and exit'
        parser.add_argument('-h', '--help', action=_help.Help, details=details, help=text)
    return parser


def add_model_name(parser: argparse.ArgumentParser) -> None:
    """Adds --model-name."""
    parser.add_argument(
        '--model-name',
        default='',
        metavar='NAME',
        help='the architecture of a file of weights without settings, as open_clip names it, such '
        'as ViT-L-14',
    )


def named(path: str, args: argparse.Namespace) -> str:
    """Returns the path of a checkpoint with what --model-name says of it."""
    from clip_jax.places import naming

    return f'{path}{naming.MODEL}{args.model_name}' if args.model_name else path


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the compute dtype of a model."""
    parser.add_argument(
        '--dtype',
        default='auto',
        metavar='TYPE',
        help='compute dtype: auto (default: bfloat16 on accelerators), float32 or bfloat16',
    )


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config and the line about --config.KEY."""
    parser.add_argument(
        '--config',
        required=required,
        metavar='NAME or FILE[:ARG]',
        help='a config that comes with clip_jax, such as quickstart, or a Python file',
    )
    parser.add_argument(
        '--config.KEY', metavar='VALUE', help='override a config value: --config.batch_size=64'
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Adds --threads."""
    parser.add_argument(
        '--threads',
        type=int,
        metavar='N',
        help='threads that read and decode (default: one per CPU)',
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Adds --max-pixels."""
    parser.add_argument(
        '--max-pixels',
        type=int,
        metavar='N',
        help='images with more pixels are bad records (default: 89478485, as in Pillow)',
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a model's preprocessing."""
    add_max_pixels(parser)
    parser.add_argument(
        '--gray16',
        choices=('clip', 'scale'),
        help='16-bit grayscale images: clip values above 255, as published, or scale to 8 bits, as '
        'training does (default: what the checkpoint says)',
    )


def image_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of images that were given; ValueError if one is wrong."""
    from clip_jax.data.image import opening

    names = ('max_pixels', 'gray16')
    given = {k: getattr(args, k) for k in names if getattr(args, k, None) is not None}
    if 'max_pixels' in given:
        opening.check_max_pixels(given['max_pixels'])
    return given


def threads(args: argparse.Namespace) -> int:
    """Returns the number of threads that --threads asks for; ValueError if it is below 1."""
    count = os.cpu_count() or 1 if args.threads is None else args.threads
    if count < 1:
        raise ValueError(f'--threads is {count}; expected at least 1')
    return count


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that connect several processes."""
    several = parser.add_argument_group('several processes, one per host')
    several.add_argument(
        '--distributed',
        action='store_true',
        help='on a TPU pod slice, under SLURM or Open MPI: processes find each other',
    )
    several.add_argument(
        '--coordinator', metavar='HOST:PORT', help='elsewhere: the address of process 0'
    )
    several.add_argument('--num-processes', type=int, metavar='N', help='the number of processes')
    several.add_argument(
        '--process-id', type=int, metavar='I', help='the number of this process, from 0'
    )
    several.add_argument(
        '--distributed-timeout',
        type=int,
        default=300,
        metavar='SECONDS',
        help='how long to wait for the other processes at the start (default: 300)',
    )


def connect(args: argparse.Namespace) -> None:
    """Connects the processes of a run, if there are several; their signals are then held."""
    explicit = args.coordinator, args.num_processes, args.process_id
    given = [x is not None for x in explicit]
    if any(given) and (args.distributed or not all(given)):
        raise ValueError(
            '--coordinator, --num-processes and --process-id must be given together, and without '
            '--distributed'
        )
    if args.distributed:
        import jax

        from clip_jax.runtime import multihost, preemption

        multihost.prepare_signals()
        try:
            jax.distributed.initialize(initialization_timeout=args.distributed_timeout)
            preemption.hold()
            if multihost.is_primary():
                preemption.exit_last()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f'--distributed: {last_line(error)}; expected a TPU pod slice, SLURM or Open MPI; '
                'elsewhere give --coordinator, --num-processes and --process-id'
            ) from error
    elif all(given):
        from clip_jax.runtime import multihost

        multihost.initialize(*explicit, timeout=args.distributed_timeout)


def last_line(error: Exception) -> str:
    """Returns the last line of an error message: those above it are context."""
    return str(error).strip().splitlines()[-1]


def joined(rest: Sequence[str]) -> list[str]:
    """Joins `--option VALUE` to `--option=VALUE` in arguments that argparse does not know."""
    found: list[str] = []
    for word in rest:
        open_option = bool(found) and found[-1].startswith('--') and '=' not in found[-1]
        if open_option and not word.startswith('--'):
            found[-1] += f'={word}'
        else:
            found.append(word)
    return found


def refuse(rest: Sequence[str], command: str) -> None:
    """ValueError if there are arguments that the command does not know."""
    if rest:
        raise ValueError(f'there is no flag {rest[0]!r}; clip-jax {command} --help lists the flags')


def check_overrides(rest: Sequence[str], flag: str = 'config') -> None:
    """ValueError if an argument is not of the form --config.key=value."""
    for argument in rest:
        if not argument.startswith(f'--{flag}.'):
            raise ValueError(f'there is no flag {argument!r}; expected --{flag}.key=value')
        if '=' not in argument:
            raise ValueError(f'{argument} has no value; expected {argument}=value')


def assignments(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields key and value (see `literal`) of each `--key=value`, with underscores for dashes in
    the key.
    """
    for argument in arguments:
        key, equals, value = argument.partition('=')
        if not key.startswith('--') or not equals:
            raise ValueError(f'there is no flag {argument!r}; expected --option=value')
        yield key[2:].replace('-', '_'), literal(value)


def literal(value: str) -> Any:
    """Returns a Python literal (a number, a list, ...) as its value, anything else as it is; so
    too `{}`, which is a template.
    """
    try:
        return value if value == '{}' else ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def split_options(rest: Sequence[str], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options `--option=value`, and those named `--PREFIX.option=value`."""
    options, prefixed = {}, {}
    for key, value in assignments(rest):
        own = key.startswith(f'{prefix}.')
        (prefixed if own else options)[key.removeprefix(f'{prefix}.')] = value
    return options, prefixed


def by_kind(
    spec: str, options: Mapping[str, Any], prefix: str = ''
) -> dict[str, Mapping[str, Any]]:
    """Returns options of data by the kind of source that SPEC names.

    ValueError if there are some and SPEC is a mixture of several kinds.
    """
    from clip_jax.data import sources

    found = sources.kinds(spec)
    if options and len(found) > 1:
        name = next(iter(options))
        raise ValueError(
            f'--{prefix}{name}: SPEC names several kinds of sources ({", ".join(found)}), and it '
            'is not clear which one the option is for'
        )
    return dict.fromkeys(map(sources.option_key, found), options)


def kinds(spec: str) -> list[str]:
    """Returns the kinds of sources that SPEC names."""
    from clip_jax.data import sources

    return sources.kinds(spec)


def local_path(out: str | None) -> pathlib.Path | None:
    """Returns the path that --out names; ValueError if it is not on this machine."""
    if not out:
        return None
    from clip_jax.runtime import atomic

    atomic.check_local(out, '--out')
    return pathlib.Path(out).expanduser()


def new_csv(out: str) -> pathlib.Path:
    """Returns the path of the CSV file that --out names; ValueError if it exists or is none."""
    path = local_path(out)
    if not path or path.suffix != '.csv' or path.exists():
        raise ValueError(f'--out: {path}: expected a new name that ends in .csv')
    from clip_jax.runtime import atomic

    atomic.check_place(path, '--out')
    return path
