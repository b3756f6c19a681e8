"""The device mesh and where arrays lie on it: batches are split along `data`, parameters are on
every device.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of all devices of all hosts, or of the given ones; its axis is `data`."""
    devices = jax.devices() if devices is None else devices
    # The default axis type is Explicit, under which every operation would need shardings in its
    # types.
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole: parameters, optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows are dealt out over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))
