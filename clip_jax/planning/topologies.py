"""The devices that a plan can be made for, and what their makers say of them."""

import re
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from clip_jax import lookup


class Chip(NamedTuple):
    """Figures of Google's Cloud TPU documentation (cloud.google.com/tpu/docs, system architecture).

    The clock is the one at which the matrix units reach the peak.
    """

    hbm_gib: float
    peak_tflops: float  # dense bfloat16
    clock_ghz: float
    bandwidth: float  # of HBM, bytes a second


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


def topology(name: str) -> Planned:
    """Returns the devices of a topology.

    Args:
        name: a TPU topology such as `v5e:16x16`, or `local` for the devices of this machine, of
            which XLA_FLAGS can simulate several.

    Raises:
        ValueError: there is no such topology, or libtpu is not installed.
    """
    kind, _, shape = name.partition(':')
    if kind == 'local':
        return Planned(name, jax.devices(), None)
    lookup.check(kind, [*CHIPS, 'local'], what='--topology')
    if not re.fullmatch(r'\d+(x\d+){1,2}', shape):
        raise ValueError(f'--topology is {name!r}; expected for instance {kind}:4x4')
    try:
        # A v4 chip has two cores, which programs see as one device.
        cores = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
        found = topologies.get_topology_desc(name, 'tpu', **cores).devices
    except Exception as error:  # libtpu and JAX raise several kinds
        text = str(error).splitlines()[0]
        raise ValueError(
            f"--topology {name}: {text}. It needs libtpu: pip install 'clipax[tpu]'; "
            'v5e and v6e have two dimensions, v4 and v5p three, multiples of 4 or the small slices'
        ) from error
    return Planned(name, list(found), CHIPS[kind])
