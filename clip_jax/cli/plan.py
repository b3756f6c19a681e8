"""`clip-jax plan`: compiles a config for devices that are not attached."""

import argparse
import contextlib
import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags, config_file
from clip_jax.planning import gpu, libtpu

SUMMARY = 'compile a config for devices that are not attached: does it fit?'
EXAMPLES = """\
examples:
  clip-jax plan --config=clip_vit_b32 --topology=v5e:16x16
  clip-jax plan --config=clip_vit_l14 --topology=v5p:4x4x4 --search --out=plan.json
  clip-jax plan --config=clip_vit_b16 --topology=v5e:16x16 --schedules
  clip-jax plan --config=clip_vit_b16 --topology=h100:8 --config.batch_size=1024
  clip-jax plan --config=quickstart --topology=local:8 --config.batch_size=1024
  clip-jax plan --compare old.json new.json
TPU topologies need libtpu (pip install 'clipax[tpu]') and no TPU, GPUs need JAX's CUDA plugin
(pip install 'clipax[plan-gpu]') and no GPU. The exit code is 0 if it fits."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'plan', SUMMARY, EXAMPLES)
    _flags.add_config(parser, required=False)
    parser.add_argument(
        '--topology',
        metavar='NAME',
        help='such as v5e:16x16, v6e:16x16, v5p:4x4x4, h100:8, a100:16 (two hosts), h200:8, '
        'b200:8, or local[:N] for N simulated CPU devices',
    )
    parser.add_argument(
        '--stage', type=int, metavar='N', help='the stage to plan, from 1, of a config with stages'
    )
    parser.add_argument('--search', action='store_true', help='find the largest batch that fits')
    parser.add_argument(
        '--schedules',
        action='store_true',
        help='estimate the seconds by the machine code that libtpu makes, too: slower',
    )
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('OLD', 'NEW'),
        help='print two plans, JSON files that --out wrote, side by side; no config is needed',
    )
    parser.add_argument('--out', metavar='FILE', help='write the plan to this file as JSON')
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Plans or compares plans; returns the exit code."""
    _flags.check_overrides(rest)
    if args.compare:
        return _compare(args, rest)
    missing = [f'--{flag}' for flag in ('config', 'topology') if not vars(args)[flag]]
    if missing:
        args.wrong_usage(
            f'{" and ".join(missing)} missing; expected --config and --topology, or --compare'
        )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if args.schedules else None
        return _plan(args, rest, folder)


def _compare(args: argparse.Namespace, rest: Sequence[str]) -> int:
    alone = ('config', 'topology', 'stage', 'search', 'schedules', 'out')
    others = [name for name in alone if vars(args)[name]]
    if others or rest:
        found = f'--{others[0]}' if others else rest[0]
        raise ValueError(f'{found} has no effect with --compare; expected two plans only')
    from clip_jax.planning import compare

    print(compare.table(*map(compare.read, args.compare)))
    return 0


def _plan(args: argparse.Namespace, rest: Sequence[str], folder: str | None) -> int:
    """Plans, with schedules that libtpu writes into a folder, if one is given."""
    kind, _, count = args.topology.partition(':')
    out = _flags.local_path(args.out)
    if out and out.exists():
        raise ValueError(f'--out: {out} exists; name a new file')
    os.environ |= libtpu.VARIABLES  # before JAX is imported
    if kind == 'local' and count:
        if not count.isdigit() or not int(count):
            raise ValueError(f'--topology is {args.topology!r}; expected local:N')
        flags = f'--xla_force_host_platform_device_count={count}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
    if folder:
        if kind == 'local' or kind in gpu.GPUS:
            where = 'this machine' if kind == 'local' else kind
            raise ValueError(f'--schedules: {where} has none; name a TPU topology')
        from clip_jax.planning import schedules

        own = os.environ.get('LIBTPU_INIT_ARGS', '')
        os.environ['LIBTPU_INIT_ARGS'] = f'{own} {schedules.flags(folder)}'.strip()
    if kind in gpu.GPUS:
        gpu.prepare()
    config = config_file.read(args.config, rest)
    from clip_jax.planning import fit, tables
    from clip_jax.runtime import atomic
    from clip_jax.training import stages

    if args.stage is not None:
        config = stages.numbered(config, args.stage)
    report, fits = fit.run(
        config, args.topology, largest=args.search, schedules=folder, read=shapes, say=print
    )
    if out:
        atomic.write(out, tables.as_json(report))
        print(f'plan: {out}')
    return 0 if fits else 1


@functools.cache
def shapes(path: str) -> tuple[dict, dict]:
    """Returns the card of a checkpoint and the shapes of its variables."""
    import jax

    from clip_jax import pretrained, sharding

    card, variables = pretrained.read(path, sharding.make_mesh(jax.local_devices()[:1]))
    return card, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
