"""The device mesh, and the rules that map logical axes of arrays to mesh axes.

The batch is sharded over `slices`, `data` and `fsdp`. Parameters and optimizer state are also
sharded over `fsdp` (ZeRO, arXiv 1910.02054) and, by attention heads and hidden features, over
`tensor` (Megatron-LM, arXiv 1909.08053); the optimizer state, if asked for, over `data` too.
Between `slices` links are slow: only gradients and embeddings cross them. Code names the logical
axes of an array; RULES says over which mesh axes they are sharded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SLICES, DATA, FSDP, TENSOR = AXES = ('slices', 'data', 'fsdp', 'tensor')
# Logical axis -> the mesh axis or axes that it is sharded over.
RULES: dict[str, str | tuple[str, ...] | None] = {
    'batch': (SLICES, DATA, FSDP),
    'width': FSDP,  # of parameters
    'heads': TENSOR,
    'mlp': TENSOR,
    'features': None,  # width, of activations: fsdp already shards their batch
    'length': None,
    'head_dim': None,
    'qkv': None,
    'vocab': None,
    'embed': None,
    'pixels': None,
    'channels': None,
    'layers': None,
}
# (path in a tree, number of axes) -> the logical axis of each, None: not sharded.
LogicalAxes = Callable[[str, int], Sequence[str | None]]


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    *,
    slices: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
) -> Mesh:
    """Makes the mesh slices x data x fsdp x tensor.

    Args:
        devices: the devices; None: all devices of all hosts.
        slices: groups of devices with slow links between them; None: the slices that TPUs are in,
            else 1. Devices other than TPUs are split in the order of their processes.
        fsdp: devices of a slice that parameters and optimizer state are sharded over.
        tensor: devices of a slice that attention heads and hidden features are sharded over.

    Returns:
        A mesh with the axes 'slices', 'data', 'fsdp' and 'tensor'; `data` has the remaining
        devices.

    Raises:
        ValueError: `slices` is not the number of the TPUs' slices, or does not divide the number of
            devices; or `fsdp` x `tensor` does not divide the number of devices of a slice.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in ((SLICES, 1 if slices is None else slices), (FSDP, fsdp), (TENSOR, tensor)):
        if size < 1:
            raise ValueError(f'mesh: {name} is {size}; expected at least 1')
    groups = _in_slices(devices, slices)
    size = len(groups[0])
    if size % (fsdp * tensor):
        of = f' of each of {len(groups)} slices' if len(groups) > 1 else ''
        raise ValueError(
            f'mesh: fsdp {fsdp} x tensor {tensor} does not divide the {size} devices{of}'
        )
    shape = size // (fsdp * tensor), fsdp, tensor
    # Unlike jax.make_mesh, this lets a mesh axis be a part of a physical one: fsdp 8 of a 4x4x4
    # slice.
    placed = [
        mesh_utils.create_device_mesh(shape, group, allow_split_physical_axes=True)
        for group in groups
    ]
    # The default axis type is Explicit, with which shardings are part of every array's type.
    return Mesh(np.stack(placed), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _in_slices(devices: Sequence[jax.Device], slices: int | None) -> list[list[jax.Device]]:
    """Splits devices into slices of as many devices each."""
    if devices[0].platform == 'tpu':
        # Not all kinds of clients say so of a single slice.
        index = [getattr(x, 'slice_index', 0) for x in devices]
        found = sorted({*index})
        if slices not in (None, len(found)):
            raise ValueError(
                f'mesh: slices is {slices}; expected {len(found)}, as many as the TPUs are in, or '
                'not set'
            )
        groups = [[x for x, j in zip(devices, index, strict=True) if j == i] for i in found]
        if len({len(group) for group in groups}) > 1:
            raise ValueError(
                f'mesh: slices of {", ".join(str(len(group)) for group in groups)} devices; '
                'expected slices of one size'
            )
        return groups
    slices = slices or 1
    if len(devices) % slices:
        raise ValueError(f'mesh: slices {slices} does not divide the {len(devices)} devices')
    size = len(devices) // slices
    if slices == 1:
        return [[*devices]]
    ordered = sorted(devices, key=lambda x: (x.process_index, x.id))
    return [ordered[i * size : (i + 1) * size] for i in range(slices)]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns a fully replicated sharding."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over `slices`, `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(RULES['batch']))


def spec(axes: Sequence[str | None], shape: Sequence[int], sizes: dict[str, int]) -> PartitionSpec:
    """Maps logical axes to mesh axes by RULES.

    Axes that do not divide evenly are left unsharded. For a parameter whose `width` does not divide
    evenly over `fsdp`, its largest axis that does is sharded instead.

    Args:
        axes: the logical axis of each axis of an array; None: not sharded.
        shape: the shape of the array.
        sizes: the sizes of the mesh axes by name.

    Raises:
        ValueError: a logical axis has no rule, or the number of axes is wrong.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f'sharding: logical axes {tuple(axes)} for an array of shape {tuple(shape)}; '
            'expected one for each axis'
        )
    places: list[Any] = []
    for axis, length in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(
                f'sharding: no rule for the logical axis {axis!r}; there are {", ".join(RULES)}'
            )
        place = RULES[axis] if axis else None
        places.append(place if place and length % _product(place, sizes) == 0 else None)
    if 'width' in axes and FSDP not in places:
        free = [i for i, p in enumerate(places) if p is None and shape[i] % sizes[FSDP] == 0]
        if free:
            places[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*places)


def spread(spec: PartitionSpec, shape: Sequence[int], sizes: dict[str, int]) -> PartitionSpec:
    """Shards an array over `data` too, by an axis of which `data` divides what a device has.

    Args:
        spec: how it is sharded.
        shape: the shape of the array. Scalars and vectors stay as they are.
        sizes: the sizes of the mesh axes by name.
    """
    places = [*spec, *[None] * (len(shape) - len(spec))]
    local = [length // _product(place, sizes) for place, length in zip(places, shape, strict=True)]
    free = [i for i, length in enumerate(local) if length % sizes[DATA] == 0]
    if len(shape) < 2 or not free:
        return spec
    # By the last one if there is no other: TPUs scatter sums over the others only.
    i = max(free, key=lambda i: (i < len(shape) - 1, local[i]))
    places[i] = (*_names(places[i]), DATA)
    return PartitionSpec(*places)


def _names(place: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (place,) if isinstance(place, str) else place or ()


def _product(place: str | tuple[str, ...] | None, sizes: dict[str, int]) -> int:
    return math.prod(sizes[name] for name in _names(place))


def path_name(path: Sequence[Any]) -> str:
    """Returns the path of a leaf, as `jax.tree.map_with_path` gives it, with slashes."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def axis_size(mesh: Mesh | None, axis: str | tuple[str, ...]) -> int:
    """Returns the number of devices along an axis of a mesh, or along several; 1 without a mesh."""
    return 1 if mesh is None else _product(axis, dict(mesh.shape))


def of_tree(tree: Any, mesh: Mesh, logical_axes: LogicalAxes, *, over_data: bool = False) -> Any:
    """Returns the shardings of a tree.

    Args:
        tree: arrays, or their shapes.
        mesh: the device mesh.
        logical_axes: names the axes of an array by its path in the tree, with slashes.
        over_data: whether arrays are sharded over `data` too.

    Returns:
        A tree of the same structure of NamedSharding.
    """
    specs = _specs(tree, dict(mesh.shape), logical_axes, over_data)
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs)


def _specs(
    tree: Any, sizes: dict[str, int], logical_axes: LogicalAxes, over_data: bool = False
) -> Any:
    def one(path: tuple, x: Any) -> PartitionSpec:
        found = spec(logical_axes(path_name(path), len(x.shape)), x.shape, sizes)
        return spread(found, x.shape, sizes) if over_data else found

    return jax.tree.map_with_path(one, tree)


def platform() -> str:
    """Returns the kind of device that a program is traced for, such as 'cpu' or 'tpu': that of the
    mesh of `jax.set_mesh`, of which no device need be here; without one, JAX's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def _sizes() -> dict[str, int]:
    """The sizes of the axes of the mesh of `jax.set_mesh`, if it is one that `make_mesh` makes, and
    a program is not inside shard_map; else {}: a caller's own mesh has axes of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == AXES and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return dict(mesh.shape) if ours else {}


def place(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """Maps logical axes of an array to axes of the mesh of `jax.set_mesh`; without one of ours, it
    returns a spec without axes.
    """
    sizes = _sizes()
    return spec(axes, shape, sizes) if sizes else PartitionSpec()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an array's sharding by its logical axes, on the mesh of `jax.set_mesh`; without
    one of ours, as in a notebook or inside shard_map, it returns the array unchanged.
    """
    if not _sizes():
        return x
    return jax.lax.with_sharding_constraint(x, place(x.shape, *axes))


def constrain_tree(tree: Any, logical_axes: LogicalAxes, *, over_data: bool = False) -> Any:
    """Constrains the sharding of a tree of parameters, as `constrain` does for an array; see
    `of_tree`.
    """
    sizes = _sizes()
    if not sizes:
        return tree
    specs = _specs(tree, sizes, logical_axes, over_data)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """ValueError if a micro-batch cannot be sharded evenly over the devices of the mesh."""
    if batch_size % (microbatches * mesh.size):
        raise ValueError(
            f'batch_size {batch_size} is not a multiple of microbatches {microbatches} x '
            f'{mesh.size} devices'
        )
