"""Attention of short sequences on TPU: a kernel whose logits never leave the chip's vector memory.

Arrays stay [B, L, heads * head_dim], as dense layers make them; nothing is transposed. An instance
of the kernel holds some rows of the batch and the lanes of as many heads as fill tiles of 128
lanes: two heads of 64, four of 32, eight of 80. A head's product runs over the tiles that it
touches, with the lanes of other heads set to 0, which costs the matrix unit nothing more. The
backward pass recomputes the weights and works on [keys, queries], so that sums run over sublanes
and two of three products need no transposition.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

NAME = 'short_attention'  # of the output, for rematerialization, and of the kernel
LENGTHS = 16, 1024
HEAD_DIMS = 32, 128
DTYPES = 'bfloat16', 'float32'
TILE = 128  # lanes
MIB = 2**20
LOWEST = float(jnp.finfo(jnp.float32).min)  # of a masked logit, as in layers.attend


class Place(NamedTuple):
    """Where a kernel runs.

    Attributes:
        spec: how [B, L, heads, head_dim] is sharded on the mesh of `jax.set_mesh`, without axes if
            there is none.
        platform: the kind of device; the kernel is interpreted on others than 'tpu'.
    """

    spec: PartitionSpec
    platform: str

    def parts(self, axis: int) -> int:
        """The number of devices that an axis is sharded over."""
        names = self.spec[axis] if self.spec else None
        names = names if isinstance(names, tuple) else (names,) if names else ()
        mesh = jax.sharding.get_abstract_mesh()
        return math.prod(mesh.shape[name] for name in names)


def refusal(
    place: Place, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> str | None:
    """Says why `attend` does not take its inputs; None: it does."""
    (*_, heads, size), lengths = query.shape, (query.shape[1], key.shape[1])
    if not LENGTHS[0] <= min(lengths) <= max(lengths) <= LENGTHS[1]:
        return f'{max(lengths)} tokens; expected {LENGTHS[0]} to {LENGTHS[1]}'
    if not HEAD_DIMS[0] <= size <= HEAD_DIMS[1] or size % 8:
        return f'heads of {size}; expected a multiple of 8 from {HEAD_DIMS[0]} to {HEAD_DIMS[1]}'
    if {str(x.dtype) for x in (query, key, value)} not in ({dtype} for dtype in DTYPES):
        return f'inputs in {query.dtype}; expected {" or ".join(DTYPES)}'
    if mask is not None and any(n != 1 for n in mask.shape[:-1][-2:]):
        return f'a mask of shape {mask.shape}; expected one of keys, [B, 1, 1, L]'
    heads = heads // place.parts(2)
    if _plan(place.platform, lengths, heads, size, query.dtype).rows < 1:
        return f'{heads} heads of {size} and {max(lengths)} tokens; they do not fit its memory'
    return None


def attend(
    place: Place,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """Computes layers.attend with the kernel, with gradients of first order in reverse mode.

    Args:
        place: the devices.
        query: [B, Lq, heads, head_dim].
        key: [B, Lk, heads, head_dim].
        value: [B, Lk, heads, head_dim].
        mask: bool, broadcastable to [B, 1, 1, Lk]; True: queries attend to the key.
        causal: whether a query attends only to keys at its own and earlier positions.

    Returns:
        [B, Lq, heads, head_dim].

    Raises:
        ValueError: the kernel does not take such inputs, see `refusal`.
    """
    reason = refusal(place, query, key, value, mask)
    if reason:
        raise ValueError(f'model.attention short: {reason}; choose auto or xla')
    if mask is not None:
        mask = mask.reshape(mask.shape[:-3] + mask.shape[-1:])
        mask = jnp.broadcast_to(mask, key.shape[:2])
    return checkpoint_name(_attend(place, causal, query, key, value, mask), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    place: Place, causal: bool, query: jax.Array, key: jax.Array, value: jax.Array, mask: Any
) -> jax.Array:
    return _sharded(place, _forward, causal, mask, query, key, value)[0]


def _attend_forward(place: Place, causal: bool, *inputs: Any) -> tuple[jax.Array, tuple]:
    return _attend(place, causal, *inputs), inputs


def _attend_backward(place: Place, causal: bool, inputs: tuple, gradient: jax.Array) -> tuple:
    query, key, value, mask = inputs
    return *_sharded(place, _backward, causal, mask, query, key, value, gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


def _sharded(place: Place, kernel: Callable, causal: bool, mask: Any, *arrays: Any) -> list:
    """Runs a kernel on every device's part of the batch and of the heads."""
    call = functools.partial(_call, place.platform, kernel, causal)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return call(mask, *arrays)
    return jax.shard_map(
        call,
        in_specs=(PartitionSpec(place.spec[0]), *(place.spec for _ in arrays)),
        out_specs=place.spec,
        check_vma=False,
    )(mask, *arrays)


class _Plan(NamedTuple):
    """How much of the arrays an instance of a kernel holds."""

    rows: int  # of the batch; 0: not even one fits
    heads: int
    queries: int  # at a time
    limit: int  # of vector memory, in bytes


def _plan(platform: str, lengths: tuple[int, int], heads: int, size: int, dtype: Any) -> _Plan:
    """Plans both kernels by what the backward one needs.

    Args:
        platform: the kind of device.
        lengths: Lq and Lk.
        heads: the heads of a device.
        size: the features of a head.
        dtype: of the inputs.
    """
    together = TILE // math.gcd(size, TILE)  # heads that fill whole tiles
    together = together if heads % together == 0 else heads
    lanes, (queries, keys) = _round(together * size, TILE), (_round(n, 16) for n in lengths)
    chunk = queries if queries * keys <= 2**18 else 2**17 // keys // TILE * TILE or TILE
    # Blocks are in memory twice, one being copied: query, its gradients and those of the output;
    # key, value and their gradients; a mask of keys.
    row = 2 * (lanes * (3 * queries + 4 * keys) * dtype.itemsize + keys * TILE * 4)
    # Six matrices [keys, queries] in float32, and sums of gradients.
    work = 6 * 4 * min(chunk, queries) * _round(keys, TILE) + 3 * 4 * lanes * max(queries, keys)
    most = _memory(platform)
    rows = min((most - work) // row, max(1, 6 * MIB // row))
    rows -= rows > 1 and rows % 2
    return _Plan(max(rows, 0), together, chunk, min(most, max(16 * MIB, 2 * (row * rows + work))))


def _memory(platform: str) -> int:
    """Bytes of vector memory that a kernel may use."""
    from jax.experimental.pallas import tpu

    if platform != 'tpu':
        return 32 * MIB
    # Of the device of the mesh, which need not be here.
    return min(tpu.get_tpu_info().vmem_capacity_bytes, 32 * MIB)


def _round(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _call(platform: str, kernel: Callable, causal: bool, mask: Any, *arrays: Any) -> list:
    """Calls a kernel on the arrays of one device, [B, L, heads, head_dim] each."""
    from jax.experimental import pallas
    from jax.experimental.pallas import tpu

    query, key = arrays[:2]
    (batch, queries, heads, size), keys = query.shape, key.shape[1]
    plan = _plan(platform, (queries, keys), heads, size, query.dtype)
    steps = -(-batch // plan.rows)
    # As many in every step, but an even number; rows beyond the batch are not written.
    rows = min(_round(-(-batch // steps), 2), plan.rows, batch)
    lanes = plan.heads * size
    steps = -(-batch // rows)

    def block(x: Any) -> Any:
        return pallas.BlockSpec((rows, x.shape[1], lanes), lambda b, h: (b, 0, h))

    flat = [x.reshape(*x.shape[:2], -1) for x in arrays]
    outputs, products = (1, 2) if kernel is _forward else (3, 5)
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat[:outputs]]
    inputs, in_specs = flat, [block(x) for x in flat]
    if mask is not None:
        # Along lanes in the forward pass, along sublanes in the backward one.
        shown = mask.astype(jnp.float32)
        shown = shown[:, None] if kernel is _forward else shown[:, :, None]
        inputs = [*flat, shown]
        in_specs.append(pallas.BlockSpec((rows, *shown.shape[1:]), lambda b, h: (b, 0, 0)))
    found = pallas.pallas_call(
        functools.partial(kernel, causal, size, plan.queries, mask is not None),
        grid=(steps, heads // plan.heads),
        in_specs=in_specs,
        out_specs=[block(x) for x in out_shape],
        out_shape=out_shape,
        interpret=platform != 'tpu',
        name=NAME if kernel is _forward else f'{NAME}_backward',
        compiler_params=tpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel'), vmem_limit_bytes=plan.limit
        ),
        cost_estimate=pallas.CostEstimate(
            flops=2 * products * batch * heads * queries * keys * size,
            transcendentals=batch * heads * queries * keys,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *out_shape)),
        ),
    )(*inputs)
    return [x.reshape(like.shape) for x, like in zip(found, arrays, strict=False)]


class _Tile(NamedTuple):
    """A head's part of one tile of 128 lanes."""

    lanes: slice  # of the tile, in the block
    first: int  # the head's lanes in the tile
    last: int

    def of_head(self, x: jax.Array) -> jax.Array:
        """Sets the lanes of other heads to 0."""
        if (self.first, self.last) == (0, x.shape[1]):
            return x
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where((lane >= self.first) & (lane < self.last), x, jnp.zeros_like(x))


def _tiles(head: int, size: int, width: int) -> list[_Tile]:
    """The tiles that a head touches, in a block of `width` lanes."""
    first, last = head * size, (head + 1) * size
    starts = range(first // TILE * TILE, last, TILE)
    return [
        _Tile(slice(s, min(s + TILE, width)), max(first - s, 0), min(last - s, TILE))
        for s in starts
    ]


def _chunks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _product(left: jax.Array, right: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, in float32."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _inner(left: list, right: list) -> jax.Array:
    """The product of two matrices over their lanes, which lie in several tiles."""
    products = [_product(x, y, (1, 1)) for x, y in zip(left, right, strict=True)]
    return functools.reduce(jnp.add, products)


def _add(sums: dict, key: Any, x: jax.Array) -> None:
    sums[key] = sums[key] + x if key in sums else x


def _visible(shape: tuple[int, ...], query_axis: int, first: int) -> jax.Array:
    """The causal mask of queries from `first` on."""
    query = jax.lax.broadcasted_iota(jnp.int32, shape, query_axis) + first
    return query >= jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)


def _each_row(rows: int, one: Callable[[Any], None]) -> None:
    def body(i: Any, _: None) -> None:
        one(i)

    # Two rows at a time: the products of one run beside the softmax of the other.
    jax.lax.fori_loop(0, rows, body, None, unroll=1 + (rows % 2 == 0))


def _forward(causal: bool, size: int, chunk: int, masked: bool, *refs: Any) -> None:
    query, key, value, *shown, out = refs
    rows, length, width = query.shape
    # Powers of 2, as the hardware has them.
    factor = size**-0.5 * math.log2(math.e)

    def one(i: Any) -> None:
        for part in _chunks(length, chunk):
            sums: dict = {}
            for head in range(width // size):
                tiles = _tiles(head, size, width)
                logits = _inner(
                    [t.of_head(query[i, part, t.lanes]) for t in tiles],
                    [key[i, :, t.lanes] for t in tiles],
                )
                if masked:
                    logits = jnp.where(shown[0][i] > 0, logits, LOWEST)
                if causal:
                    logits = jnp.where(_visible(logits.shape, 0, part.start), logits, LOWEST)
                weights = jnp.exp2((logits - logits.max(1, keepdims=True)) * factor)
                inverse = 1 / weights.sum(1, keepdims=True)
                weights = weights.astype(value.dtype)
                for t in tiles:
                    x = _product(weights, value[i, :, t.lanes], (1, 0)) * inverse
                    _add(sums, (t.lanes.start, t.lanes.stop), t.of_head(x))
            for (start, stop), x in sums.items():
                out[i, part, start:stop] = x.astype(out.dtype)

    _each_row(rows, one)


def _backward(causal: bool, size: int, chunk: int, masked: bool, *refs: Any) -> None:
    query, key, value, gradient, *shown, to_query, to_key, to_value = refs
    rows, length, width = query.shape
    scale = size**-0.5
    factor = scale * math.log2(math.e)

    def one(i: Any) -> None:
        of_keys: dict = {}
        of_values: dict = {}
        for part in _chunks(length, chunk):
            of_queries: dict = {}
            for head in range(width // size):
                tiles = _tiles(head, size, width)
                queries = [t.of_head(query[i, part, t.lanes]) for t in tiles]
                gradients = [t.of_head(gradient[i, part, t.lanes]) for t in tiles]
                keys, values = ([x[i, :, t.lanes] for t in tiles] for x in (key, value))
                logits = _inner(keys, queries)
                if masked:
                    logits = jnp.where(shown[0][i] > 0, logits, LOWEST)
                if causal:
                    logits = jnp.where(_visible(logits.shape, 1, part.start), logits, LOWEST)
                weights = jnp.exp2((logits - logits.max(0, keepdims=True)) * factor)
                weights = weights * (1 / weights.sum(0, keepdims=True))
                slope = _inner(values, gradients)
                slope = weights * (slope - (weights * slope).sum(0, keepdims=True))
                if masked:  # of a query that sees no key at all, no logit has a gradient
                    slope = jnp.where(logits > LOWEST, slope, 0)
                slope, weights = slope.astype(query.dtype), weights.astype(value.dtype)
                for t, q, k, g in zip(tiles, queries, keys, gradients, strict=True):
                    lanes = t.lanes.start, t.lanes.stop
                    _add(of_queries, lanes, t.of_head(_product(slope, k, (0, 0))))
                    _add(of_keys, lanes, _product(slope, q, (1, 0)))
                    _add(of_values, lanes, _product(weights, g, (1, 0)))
            for (start, stop), x in of_queries.items():
                to_query[i, part, start:stop] = (x * scale).astype(to_query.dtype)
        for (start, stop), x in of_keys.items():
            to_key[i, :, start:stop] = (x * scale).astype(to_key.dtype)
        for (start, stop), x in of_values.items():
            to_value[i, :, start:stop] = x.astype(to_value.dtype)

    _each_row(rows, one)
