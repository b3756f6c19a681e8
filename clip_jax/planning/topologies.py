"""The devices that a plan can be made for, and what their makers say of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from clip_jax import lookup
from clip_jax.planning import gpu


class Chip(NamedTuple):
    """Figures of Google's Cloud TPU documentation (cloud.google.com/tpu/docs, system architecture);
    those of GPUs are in planning/gpu.py.

    The clock of a TPU is the one at which the matrix units reach the peak.
    """

    hbm_gib: float
    peak_tflops: float  # dense bfloat16
    clock_ghz: float
    bandwidth: float  # of HBM, bytes a second
    is_gpu: bool = False


CHIPS = {
    'v4': Chip(32, 275, 1.05, 1.2e12),
    'v5e': Chip(16, 197, 1.5, 0.819e12),
    'v5p': Chip(95, 459, 1.75, 2.765e12),
    'v6e': Chip(32, 918, 1.75, 1.64e12),
}


class Planned(NamedTuple):
    """The devices of a topology by name."""

    name: str
    devices: list
    chip: Chip | None  # None: the local backend
    schedules: Path | None = None  # where libtpu writes the schedules of what it compiles
    read: Callable[[str], tuple[dict, dict]] | None = None  # a checkpoint's card and shapes


def topology(name: str, slices: int = 1) -> Planned:
    """Returns the devices of a topology.

    Args:
        name: a TPU topology such as `v5e:16x16`, GPUs such as `h100:8`, or `local` for the devices
            of this machine, of which XLA_FLAGS can simulate several.
        slices: the number of such TPU slices.

    Raises:
        ValueError: there is no such topology, or libtpu is not installed.
    """
    kind, _, shape = name.partition(':')
    if kind == 'local':
        return Planned(name, jax.devices(), None)
    lookup.check(kind, [*CHIPS, *gpu.GPUS, 'local'], what='--topology')
    if kind in gpu.GPUS:
        return Planned(name, gpu.devices(kind, shape), _of_gpu(gpu.GPUS[kind]))
    if not re.fullmatch(r'\d+(x\d+){1,2}', shape):
        raise ValueError(f'--topology is {name!r}; expected for instance {kind}:4x4')
    if slices < 1:
        raise ValueError(f'mesh: slices is {slices}; expected at least 1')
    try:
        # A v4 chip has two cores, which programs see as one device.
        cores = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
        found = topologies.get_topology_desc(name, 'tpu', num_slices=slices, **cores).devices
    except Exception as error:  # libtpu and JAX raise several kinds
        text = str(error).splitlines()[0]
        raise ValueError(
            f"--topology {name}: {text}. It needs libtpu: pip install 'clipax[tpu]'; "
            'v5e and v6e have two dimensions, v4 and v5p three, multiples of 4 or the small slices'
        ) from error
    return Planned(name, list(found), CHIPS[kind])


def chip_of(kind: str) -> Chip | None:
    """Returns the figures of a device by JAX's name of its kind, None if they are not known."""
    names = kind.lower().replace(' lite', 'e').split()  # 'TPU v5 lite', 'NVIDIA H100 80GB HBM3'
    tpu = next((chip for name, chip in CHIPS.items() if name in names), None)
    return tpu or next((_of_gpu(one) for name, one in gpu.GPUS.items() if name in names), None)


def _of_gpu(one: gpu.Gpu) -> Chip:
    return Chip(one.usable_gib, one.peak_tflops, one.clock_ghz, one.bandwidth, is_gpu=True)
