"""`clip-jax plan`: compiles a config for devices that are not attached."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from clip_jax.cli import _flags, config_file
from clip_jax.planning import gpu

SUMMARY = 'compile a config for devices that are not attached: does it fit?'
EXAMPLES = """\
examples:
  clip-jax plan --config=clip_vit_b32 --topology=v5e:16x16
  clip-jax plan --config=clip_vit_l14 --topology=v5p:4x4x4 --search --out=plan.json
  clip-jax plan --config=clip_vit_b16 --topology=h100:8 --config.batch_size=1024
  clip-jax plan --config=quickstart --topology=local:8 --config.batch_size=1024
TPU topologies need libtpu (pip install 'clipax[tpu]') and no TPU, GPUs need JAX's CUDA plugin
(pip install 'clipax[plan-gpu]') and no GPU. The exit code is 0 if it fits."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    parser = _flags.add_command(commands, 'plan', SUMMARY, EXAMPLES)
    _flags.add_config(parser)
    parser.add_argument(
        '--topology',
        required=True,
        metavar='NAME',
        help='such as v5e:16x16, v6e:16x16, v5p:4x4x4, h100:8, a100:16 (two hosts), h200:8, '
        'b200:8, or local[:N] for N simulated CPU devices',
    )
    parser.add_argument('--search', action='store_true', help='find the largest batch that fits')
    parser.add_argument('--out', metavar='FILE', help='write the plan to this file as JSON')


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Plans; returns the exit code."""
    _flags.check_overrides(rest)
    kind, _, count = args.topology.partition(':')
    out = _flags.local_path(args.out)
    if out and out.exists():
        raise ValueError(f'--out: {out} exists; name a new file')
    # Before JAX is imported: compilation runs on the CPU whatever devices are attached, and libtpu
    # should neither look for a TPU, nor report that it found none, nor ask for exclusive use.
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-1',  # of an imagined host
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }
    if kind in gpu.GPUS:
        gpu.prepare()
    if kind == 'local' and count:
        if not count.isdigit() or not int(count):
            raise ValueError(f'--topology is {args.topology!r}; expected local:N')
        flags = f'--xla_force_host_platform_device_count={count}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
    config = config_file.read(args.config, rest)
    from clip_jax.planning import fit, tables
    from clip_jax.runtime import atomic

    report, fits = fit.run(config, args.topology, largest=args.search, say=print)
    if out:
        atomic.write(out, tables.as_json(report))
        print(f'plan: {out}')
    return 0 if fits else 1
