"""The device mesh, and the one table that says where arrays lie on it.

`data` and `fsdp` both deal out the batch; parameters and optimizer state are also dealt out over
`fsdp` (ZeRO, arXiv 1910.02054) and, by attention heads and hidden features, over `tensor`
(Megatron-LM, arXiv 1909.08053). Code names what an axis of an array is; RULES what that means.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ('data', 'fsdp', 'tensor')
# What an axis of an array is -> the mesh axis over which it is dealt out.
RULES: dict[str, str | tuple[str, ...] | None] = {
    'batch': (DATA, FSDP),
    'width': FSDP,  # of parameters
    'heads': TENSOR,
    'mlp': TENSOR,
    'features': None,  # width, of activations: their batch is dealt out over fsdp already
    'length': None,
    'head_dim': None,
    'qkv': None,
    'vocab': None,
    'embed': None,
    'pixels': None,
    'channels': None,
    'layers': None,
}


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1, tensor: int = 1
) -> Mesh:
    """Returns the mesh data x fsdp x tensor of all devices of all hosts, or of the given ones."""
    devices = jax.devices() if devices is None else devices
    for name, size in ((FSDP, fsdp), (TENSOR, tensor)):
        if size < 1:
            raise ValueError(f'mesh: {name} is {size}; expected at least 1')
    if len(devices) % (fsdp * tensor):
        raise ValueError(
            f'mesh: fsdp {fsdp} x tensor {tensor} does not divide the {len(devices)} devices'
        )
    shape = len(devices) // (fsdp * tensor), fsdp, tensor
    # As jax.make_mesh, but an axis of the mesh may be a part of one of the machine: fsdp 8 of a
    # 4x4x4 slice.
    places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # The default axis type is Explicit, under which every operation would need shardings in its
    # types.
    return Mesh(places, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows are dealt out over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(RULES['batch']))


def spec(words: Sequence[str | None], shape: Sequence[int], sizes: dict[str, int]) -> PartitionSpec:
    """Translates the words for an array's axes; what does not divide evenly stays whole.

    A parameter whose `width` does not divide evenly over `fsdp` has another axis dealt out, the
    largest that does. `sizes` are those of the mesh axes. ValueError for a word without a rule.
    """
    if len(words) != len(shape):
        raise ValueError(f'sharding: axes {words} for an array of shape {tuple(shape)}')
    places: list[Any] = []
    for word, length in zip(words, shape, strict=True):
        if word is not None and word not in RULES:
            raise ValueError(f'sharding: no rule for axis {word!r}; there are {", ".join(RULES)}')
        place = RULES[word] if word else None
        places.append(place if place and length % _product(place, sizes) == 0 else None)
    if 'width' in words and FSDP not in places:
        free = [i for i, p in enumerate(places) if p is None and shape[i] % sizes[FSDP] == 0]
        if free:
            places[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*places)


def _product(place: str | tuple[str, ...], sizes: dict[str, int]) -> int:
    return math.prod(sizes[name] for name in ((place,) if isinstance(place, str) else place))


def of_tree(tree: Any, mesh: Mesh, words: Callable[[str, int], Sequence[str | None]]) -> Any:
    """Returns the shardings of arrays or of their shapes; `words(path, ndim)` names their axes."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), _specs(tree, dict(mesh.shape), words))


def _specs(tree: Any, sizes: dict[str, int], words: Callable) -> Any:
    def one(path: tuple, x: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return spec(words(name, len(x.shape)), x.shape, sizes)

    return jax.tree.map_with_path(one, tree)


def constrain(x: jax.Array, *words: str | None) -> jax.Array:
    """Has the compiler lay an array out as the words for its axes say, on the mesh of
    `jax.set_mesh`; where none is set, as in a notebook, nothing is to be done.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(words, x.shape, dict(mesh.shape)))


def constrain_tree(tree: Any, words: Callable[[str, int], Sequence[str | None]]) -> Any:
    """As `constrain`, of a tree of parameters."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    specs = _specs(tree, dict(mesh.shape), words)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)
