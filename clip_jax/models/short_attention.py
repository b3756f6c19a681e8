"""Attention of short sequences on TPU: a kernel whose logits never leave the chip's vector memory.

Queries, keys and values are parts of one array [3, B, L, heads * head_dim], as one matrix product
makes them, and so are their gradients; nothing is sliced, transposed or copied. Their bias is added
in the kernel, which also sums its gradient: no pass over the array is left for it. An instance of
the kernel holds some rows of the batch and the lanes of as many heads as fill tiles of 128
lanes: two heads of 64, four of 32, eight of 80. A head's product runs over the tiles that it
touches, with the lanes of other heads set to 0, which costs the matrix unit nothing more. The
backward pass recomputes the weights and works on [keys, queries], so that sums run over sublanes
and two of three products need no transposition.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
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
TOGETHER = 4, 2, 1  # rows at a time, the most of these that divide them
MIB = 2**20
LOWEST = float(jnp.finfo(jnp.float32).min)  # of a masked logit, as in attention.attend


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


def refusal(place: Place, query: Any, key: Any, value: Any, mask: jax.Array | None) -> str | None:
    """Says why the kernel does not take arrays, or shapes and dtypes; None: it does."""
    (*_, heads, size), length = query.shape, query.shape[1]
    if not LENGTHS[0] <= length <= LENGTHS[1]:
        return f'{length} tokens; expected {LENGTHS[0]} to {LENGTHS[1]}'
    if wrong := wrong_inputs(query, key, value, mask):
        return wrong
    if not HEAD_DIMS[0] <= size <= HEAD_DIMS[1] or size % 8:
        return f'heads of {size}; expected a multiple of 8 from {HEAD_DIMS[0]} to {HEAD_DIMS[1]}'
    heads = heads // place.parts(2)
    if _plan(place.platform, length, heads, size, query.dtype).rows < 1:
        return f'{heads} heads of {size} and {length} tokens; they do not fit its memory'
    return None


def wrong_inputs(query: Any, key: Any, value: Any, mask: jax.Array | None) -> str | None:
    """Says what no kernel for TPU takes of arrays, or of shapes and dtypes; None: nothing."""
    if key.shape != query.shape or value.shape != query.shape:
        return f'{query.shape[1]} queries and {key.shape[1]} keys; expected as many'
    if {str(x.dtype) for x in (query, key, value)} not in ({dtype} for dtype in DTYPES):
        return f'inputs in {query.dtype}; expected {" or ".join(DTYPES)}'
    if mask is not None and any(n != 1 for n in mask.shape[:-1][-2:]):
        return f'a mask of shape {mask.shape}; expected one of keys, [B, 1, 1, L]'
    return None


def of_keys(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts a mask of keys, broadcastable to [B, 1, 1, L], to the shape [B, L]."""
    return jnp.broadcast_to(mask.reshape(mask.shape[:-3] + mask.shape[-1:]), shape)


def layer(
    place: Place, params: Mapping, x: jax.Array, mask: jax.Array | None, *, causal: bool
) -> jax.Array:
    """Computes attention.Attention with the kernel.

    Heads stay side by side in one axis: with an axis of their own, TPUs pad it, and copy the
    activations before and after the kernel.

    Args:
        place: the devices.
        params: kernels and biases of `qkv` and `out`, in the dtype of `x`.
        x: [B, L, width].
        mask: bool, broadcastable to [B, 1, 1, L]; True: queries attend to the key.
        causal: whether a query attends only to keys at its own and earlier positions.

    Returns:
        [B, L, width].
    """
    kernel, width = params['qkv']['kernel'], x.shape[-1]
    qkv = jnp.moveaxis(jnp.tensordot(x, kernel.reshape(width, 3, width), 1), 2, 0)
    bias = params['qkv']['bias'].reshape(3, width)
    x = attend(place, qkv, bias, mask, head_dim=kernel.shape[-1], causal=causal)
    return x @ params['out']['kernel'].reshape(width, width) + params['out']['bias']


def attend(
    place: Place,
    qkv: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None = None,
    *,
    head_dim: int,
    causal: bool = False,
) -> jax.Array:
    """Computes attention.attend of biased queries, keys and values with the kernel, with gradients
    of first order in reverse mode.

    Args:
        place: the devices.
        qkv: queries, keys and values, [3, B, L, heads * head_dim], that `refusal` does not refuse.
        bias: added to them, [3, heads * head_dim].
        mask: bool, broadcastable to [B, 1, 1, L]; True: queries attend to the key.
        head_dim: features of a head.
        causal: whether a query attends only to keys at its own and earlier positions.

    Returns:
        [B, L, heads * head_dim].
    """
    if mask is not None:
        mask = of_keys(mask, qkv.shape[1:3])
    return checkpoint_name(_attend(place, head_dim, causal, qkv, bias, mask), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    place: Place, size: int, causal: bool, qkv: jax.Array, bias: jax.Array, mask: Any
) -> jax.Array:
    return _sharded(place, _forward, size, causal, mask, bias, qkv)[0]


def _attend_forward(place: Place, size: int, causal: bool, *inputs: Any) -> tuple:
    return _attend(place, size, causal, *inputs), inputs


def _attend_backward(
    place: Place, size: int, causal: bool, inputs: tuple, gradient: jax.Array
) -> tuple:
    qkv, bias, mask = inputs
    to_qkv, parts = _sharded(place, _backward, size, causal, mask, bias, qkv, gradient)
    return to_qkv, parts.sum(0).astype(bias.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def _sharded(
    place: Place, kernel: Callable, size: int, causal: bool, mask: Any, bias: Any, *arrays: Any
) -> tuple[jax.Array, ...]:
    """Runs a kernel on every device's part of the batch and of the heads."""
    call = functools.partial(_call, place.platform, kernel, size, causal)
    if not place.spec or jax.sharding.get_abstract_mesh().size == 1:
        return call(mask, bias, *arrays)
    batch, length, heads, _ = place.spec
    rows, qkv = PartitionSpec(batch, length, heads), PartitionSpec(None, batch, length, heads)
    in_specs = (PartitionSpec(batch), PartitionSpec(None, heads), qkv, rows)
    return jax.shard_map(
        call,
        in_specs=in_specs[: 2 + len(arrays)],
        out_specs=(rows,) if kernel is _forward else (qkv, PartitionSpec(batch, None, heads)),
        check_vma=False,
    )(mask, bias, *arrays)


class _Plan(NamedTuple):
    """How much of the arrays an instance of a kernel holds."""

    rows: int  # of the batch; 0: not even one fits
    heads: int
    queries: int  # at a time
    limit: int  # of vector memory, in bytes


def _plan(platform: str, length: int, heads: int, size: int, dtype: Any) -> _Plan:
    """Plans both kernels by what the backward one needs.

    Args:
        platform: the kind of device.
        length: tokens.
        heads: the heads of a device.
        size: the features of a head.
        dtype: of the inputs.
    """
    together = TILE // math.gcd(size, TILE)  # heads that fill whole tiles
    together = together if heads % together == 0 else heads
    lanes, length = _round(together * size, TILE), _round(length, 16)
    chunk = length if length**2 <= 2**18 else 2**17 // length // TILE * TILE or TILE
    # Blocks are in memory twice, one being copied: query, key, value, their gradients and that of
    # the output; a mask of keys.
    row = 2 * length * (lanes * 7 * dtype.itemsize + TILE * 4)
    # Six matrices [keys, queries] in float32, and sums of gradients.
    work = 6 * 4 * chunk * _round(length, TILE) + 3 * 4 * lanes * length
    most = _memory(platform)
    rows = min((most - work) // row, max(1, 6 * MIB // row))
    rows -= rows % next(n for n in TOGETHER if n <= max(rows, 1))
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


def _call(
    platform: str,
    kernel: Callable,
    size: int,
    causal: bool,
    mask: Any,
    bias: Any,
    qkv: Any,
    *gradient: Any,
) -> tuple[jax.Array, ...]:
    """Calls a kernel on the arrays of one device."""
    from jax.experimental import pallas
    from jax.experimental.pallas import tpu

    _, batch, length, width = qkv.shape
    heads = width // size
    plan = _plan(platform, length, heads, size, qkv.dtype)
    steps = -(-batch // plan.rows)
    # As many in every step, but such that some run together; rows beyond the batch are not written.
    together = next(n for n in TOGETHER if plan.rows % n == 0)
    rows = min(_round(-(-batch // steps), together), plan.rows, batch)
    steps = -(-batch // rows)
    block = rows, length, plan.heads * size
    one = pallas.BlockSpec(block, lambda b, h: (b, 0, h))
    of_bias = pallas.BlockSpec((3, block[2]), lambda b, h: (0, h))
    inputs = [qkv, qkv, qkv, bias.astype(jnp.float32)]
    in_specs = [*(_part(block, part) for part in range(3)), of_bias]
    if kernel is _forward:
        out_specs, out_shapes, products = [one], [(qkv.shape[1:], qkv.dtype)], 2
    else:
        inputs, in_specs, products = [*inputs, *gradient], [*in_specs, one], 5
        out_specs = [
            pallas.BlockSpec((3, *block), lambda b, h: (0, b, 0, h)),
            pallas.BlockSpec((None, 3, block[2]), lambda b, h: (b, 0, h)),
        ]
        out_shapes = [(qkv.shape, qkv.dtype), ((steps, 3, width), jnp.float32)]
    if mask is not None:
        # Along lanes in the forward pass, along sublanes in the backward one.
        shown = mask.astype(jnp.float32)
        inputs.append(shown[:, None] if kernel is _forward else shown[:, :, None])
        in_specs.append(pallas.BlockSpec((rows, *inputs[-1].shape[1:]), lambda b, h: (b, 0, 0)))
    out_shape = [jax.ShapeDtypeStruct(*x) for x in out_shapes]
    found = pallas.pallas_call(
        functools.partial(kernel, _Options(batch, size, causal, plan.queries, mask is not None)),
        grid=(steps, heads // plan.heads),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=platform != 'tpu',
        name=NAME if kernel is _forward else f'{NAME}_backward',
        compiler_params=tpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel'), vmem_limit_bytes=plan.limit
        ),
        cost_estimate=pallas.CostEstimate(
            flops=2 * products * batch * heads * length * length * size,
            transcendentals=batch * heads * length * length,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (qkv, *inputs[3:], *out_shape)),
        ),
    )(*inputs)
    return tuple(found)


def _part(block: tuple[int, ...], part: int) -> Any:
    """The blocks of queries, of keys or of values."""
    from jax.experimental import pallas

    return pallas.BlockSpec((None, *block), lambda b, h: (part, b, 0, h))


class _Options(NamedTuple):
    """What a kernel does."""

    batch: int  # rows of all instances
    size: int  # features of a head
    causal: bool
    chunk: int  # queries at a time
    masked: bool


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

    # The products of one run beside the softmax of the others.
    unroll = next(n for n in TOGETHER if rows % n == 0)
    jax.lax.fori_loop(0, rows, body, None, unroll=unroll)


def _biased(x: Any, bias: Any, part: int) -> Callable[..., jax.Array]:
    """Reads a part of queries, keys or values, and adds the bias."""

    def read(row: Any, tokens: slice, lanes: slice) -> jax.Array:
        wide = x[row, tokens, lanes].astype(jnp.float32)
        return (wide + bias[part : part + 1, lanes]).astype(x.dtype)

    return read


def _forward(options: _Options, *refs: Any) -> None:
    query, key, value, bias, *shown, out = refs
    rows, length, width = query.shape
    _, size, causal, chunk, masked = options
    # Powers of 2, as the hardware has them.
    factor = size**-0.5 * math.log2(math.e)
    query, key, value = (_biased(x, bias, n) for n, x in enumerate((query, key, value)))

    def one(i: Any) -> None:
        for part in _chunks(length, chunk):
            sums: dict = {}
            for head in range(width // size):
                tiles = _tiles(head, size, width)
                logits = _inner(
                    [t.of_head(query(i, part, t.lanes)) for t in tiles],
                    [key(i, slice(None), t.lanes) for t in tiles],
                )
                if masked:
                    logits = jnp.where(shown[0][i] > 0, logits, LOWEST)
                if causal:
                    logits = jnp.where(_visible(logits.shape, 0, part.start), logits, LOWEST)
                weights = jnp.exp2((logits - logits.max(1, keepdims=True)) * factor)
                inverse = 1 / weights.sum(1, keepdims=True)
                weights = weights.astype(out.dtype)
                for t in tiles:
                    x = _product(weights, value(i, slice(None), t.lanes), (1, 0)) * inverse
                    _add(sums, (t.lanes.start, t.lanes.stop), t.of_head(x))
            for (start, stop), x in sums.items():
                out[i, part, start:stop] = x.astype(out.dtype)

    _each_row(rows, one)


def _backward(options: _Options, *refs: Any) -> None:
    query, key, value, bias, gradient, *shown, out, to_bias = refs
    rows, length, width = query.shape
    batch, size, causal, chunk, masked = options
    scale = size**-0.5
    factor = scale * math.log2(math.e)
    query, key, value = (_biased(x, bias, n) for n, x in enumerate((query, key, value)))
    to_bias[...] = jnp.zeros_like(to_bias)
    first = _first_row(rows)

    def write(i: Any, which: int, tokens: slice, lanes: tuple[int, int], x: jax.Array) -> None:
        out[which, i, tokens, slice(*lanes)] = x.astype(out.dtype)
        x = x.sum(0, keepdims=True)
        if batch % rows:
            x = jnp.where(first + i < batch, x, 0)
        to_bias[which : which + 1, slice(*lanes)] += x

    def one(i: Any) -> None:
        of_keys: dict = {}
        of_values: dict = {}
        for part in _chunks(length, chunk):
            of_queries: dict = {}
            for head in range(width // size):
                tiles = _tiles(head, size, width)
                queries = [t.of_head(query(i, part, t.lanes)) for t in tiles]
                gradients = [t.of_head(gradient[i, part, t.lanes]) for t in tiles]
                keys, values = ([x(i, slice(None), t.lanes) for t in tiles] for x in (key, value))
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
                slope, weights = slope.astype(out.dtype), weights.astype(out.dtype)
                for t, q, k, g in zip(tiles, queries, keys, gradients, strict=True):
                    lanes = t.lanes.start, t.lanes.stop
                    _add(of_queries, lanes, t.of_head(_product(slope, k, (0, 0))))
                    _add(of_keys, lanes, _product(slope, q, (1, 0)))
                    _add(of_values, lanes, _product(weights, g, (1, 0)))
            for lanes, x in of_queries.items():
                write(i, 0, part, lanes, x * scale)
        for lanes, x in of_keys.items():
            write(i, 1, slice(None), lanes, x * scale)
        for lanes, x in of_values.items():
            write(i, 2, slice(None), lanes, x)

    _each_row(rows, one)


def _first_row(rows: int) -> Any:
    from jax.experimental import pallas

    return pallas.program_id(0) * rows
