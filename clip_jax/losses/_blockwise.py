"""Losses over all pairs of a global batch, tile by tile: the similarity matrix never exists whole.

Both losses see a pair's own logit (its partner's) and the logits of its rivals, all other pairs.
What they need of the rivals are two numbers a row, gathered tile by tile: the largest logit and a
sum (online softmax, arXiv 1805.02867). A second pass makes each tile again and with it the
gradients, so that no tile is kept (as arXiv 2205.14135 does for attention).

`gather`: every device holds all texts and makes its images' part of the matrix. `ring`: texts, and
what is known of them, visit one device after the other (arXiv 2310.01889 for attention, 2410.17243
for this loss; here one ring serves both directions of the loss).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

IMPLEMENTATIONS = ('gather', 'ring')
LOWEST = jnp.finfo(jnp.float32).min
Axis = str | tuple[str, ...]


class PairLoss(NamedTuple):
    """A loss by what it says of one pair and its rivals; all functions are of arrays of any shape.

    `term(logit, top)` is what a rival adds to a sum, `rescale(old - new)` the factor of a sum whose
    `top`, the largest logit, has grown. `settle(partner, image, text)` takes the pair's own logit
    and (top, sum) of image and text: (loss, its slope by `partner`, two numbers to remember).
    `slope(logit, image, text)` is that by a rival's logit, of the remembered numbers of its image
    and its text.
    """

    term: Callable
    rescale: Callable
    settle: Callable
    slope: Callable


class Layout(NamedTuple):
    """How the batch lies: its rows are dealt out over `axis` of `mesh`; without one, one device."""

    implementation: str
    mesh: Mesh | None
    axis: Axis
    block_size: int  # texts in a tile


class Side(NamedTuple):
    """Rows of one kind and which pair each belongs to, -1: none."""

    rows: jax.Array  # float32 [n, D]
    pair: jax.Array  # int32 [n]


def contrast(
    loss: PairLoss,
    layout: Layout,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean loss of the pairs for which `mask` holds (without one, all), and metrics."""
    if layout.block_size < 1:
        raise ValueError(f'losses: block_size is {layout.block_size}; expected at least 1')
    if layout.mesh is not None and len(image) % _devices(layout):
        raise ValueError(
            f'losses: a batch of {len(image)} pairs is not a multiple of the {_devices(layout)} '
            f'devices of axis {layout.axis!r}'
        )
    pair = jnp.arange(len(image), dtype=jnp.int32)
    pair = pair if mask is None else jnp.where(mask, pair, -1)
    numbers = scale, jnp.float32(0) if bias is None else bias
    image, text, *numbers = (x.astype(jnp.float32) for x in (image, text, *numbers))
    return _loss(loss, layout, image, text, *numbers, pair)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(loss, layout, image, text, scale, bias, pair):
    return _on_mesh(loss, layout, image, text, scale, bias, pair, gradients=False)[0]


def _forward(loss, layout, *inputs):
    # The gradients of the mean are made at once: the texts are there, and the cotangent, a number,
    # is a factor of all. Outside shard_map, so that no transposition of it is needed.
    return _on_mesh(loss, layout, *inputs, gradients=True)


def _backward(loss, layout, gradients, cotangents):
    return *(cotangents[0] * x for x in gradients), None


_loss.defvjp(_forward, _backward)


def _devices(layout: Layout) -> int:
    names = (layout.axis,) if isinstance(layout.axis, str) else layout.axis
    return math.prod(layout.mesh.shape[name] for name in names) if layout.mesh is not None else 1


def _on_mesh(loss, layout, image, text, scale, bias, pair, *, gradients):
    on_device = functools.partial(
        _on_device, loss, layout, devices=_devices(layout), gradients=gradients
    )
    if layout.mesh is None:
        return on_device(image, text, scale, bias, pair)
    split, same = PartitionSpec(layout.axis), PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(split, split, same, same, split),
        out_specs=((same, same), (split, split, same, same) if gradients else None),
        check_vma=False,
    )(image, text, scale, bias, pair)


def _on_device(loss, layout, image, text, scale, bias, pair, *, devices, gradients):
    """What one device does: its images [b, D] against all texts, of which it holds b."""
    add = (lambda x: lax.psum(x, layout.axis)) if devices > 1 else (lambda x: x)
    passes = _ring if layout.implementation == 'ring' and devices > 1 else _gather
    absorb, differentiate = passes(loss, layout, Side(image, pair), text, scale, bias, devices)

    partner, of_image, of_text = absorb()
    value, slope, image_number, text_number = loss.settle(partner, of_image, of_text)
    count = jnp.maximum(add(jnp.sum(pair >= 0)), 1)

    def mean(x: jax.Array) -> jax.Array:
        return add(jnp.sum(jnp.where(pair >= 0, x, 0))) / count

    metrics = {
        'accuracy/image_to_text': mean(partner > of_image[0]),
        'accuracy/text_to_image': mean(partner > of_text[0]),
    }
    if not gradients:
        return (mean(value), metrics), None
    slope = jnp.where(pair >= 0, slope, 0)
    d_image, d_text, d_bias = differentiate(image_number, text_number)
    d_image = (d_image + slope[:, None] * text) / count
    d_text = (d_text + slope[:, None] * image) / count
    d_scale = add(jnp.sum(image * d_image))
    d_bias = add(d_bias + jnp.sum(slope)) / count
    return (mean(value), metrics), (scale * d_image, scale * d_text, d_scale, d_bias)


def _gather(loss, layout, image, text, scale, bias, devices):
    """One all-gather of the texts; what is known of a text is put together from all devices."""
    gather = functools.partial(lax.all_gather, axis_name=layout.axis, tiled=True)
    everything = Side(text, image.pair)
    if devices > 1:
        everything = Side(gather(text), gather(image.pair))
    total, own = len(everything.pair), len(image.pair)
    cut, restore = _blocks(total, layout.block_size)
    everything = Side(cut(everything.rows), cut(everything.pair, fill=-1))

    def absorb():
        (partner, of_image), of_text = _absorb(
            loss,
            image,
            (jnp.zeros(own), _nothing(own)),
            everything,
            _nothing(everything.pair.shape),
            scale,
            bias,
        )
        of_text = jax.tree.map(restore, of_text)
        if devices == 1:
            return partner, of_image, of_text
        top = lax.pmax(of_text[0], layout.axis)
        sums = lax.psum(of_text[1] * loss.rescale(of_text[0] - top), layout.axis)
        start = lax.axis_index(layout.axis) * own
        mine = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=own)
        return partner, of_image, (mine(top), mine(sums))

    def differentiate(image_number, text_number):
        if devices > 1:
            text_number = gather(text_number)
        numbers = cut(text_number)
        zero = jnp.zeros_like(image.rows), jnp.zeros(everything.rows.shape), jnp.float32(0)
        d_image, d_text, d_bias = _differentiate(
            loss, image, image_number, everything, numbers, zero, scale, bias
        )
        d_text = restore(d_text)
        if devices > 1:
            d_text = lax.psum_scatter(d_text, layout.axis, tiled=True)
        return d_image, d_text, d_bias

    return absorb, differentiate


def _ring(loss, layout, image, text, scale, bias, devices):
    """Blocks of texts travel with what is known of them; after one round all are home again."""
    cut, restore = _blocks(len(text), layout.block_size)
    home = Side(cut(text), cut(image.pair, fill=-1))
    to_next = [(i, (i + 1) % devices) for i in range(devices)]
    send = functools.partial(lax.ppermute, axis_name=layout.axis, perm=to_next)

    def absorb():
        def visit(_, carry):
            known, guest, of_guest = carry
            leaving = jax.tree.map(send, guest)  # while the tiles are made
            known, of_guest = _absorb(loss, image, known, guest, of_guest, scale, bias)
            return known, leaving, jax.tree.map(send, of_guest)

        own = len(image.pair)
        start = (jnp.zeros(own), _nothing(own)), home, _nothing(home.pair.shape)
        (partner, of_image), _, of_text = lax.fori_loop(0, devices, visit, start)
        return partner, of_image, jax.tree.map(restore, of_text)

    def differentiate(image_number, text_number):
        def visit(_, carry):
            d_image, guest, number, d_guest, d_bias = carry
            leaving = jax.tree.map(send, (guest, number))
            d_image, d_guest, d_bias = _differentiate(
                loss, image, image_number, guest, number, (d_image, d_guest, d_bias), scale, bias
            )
            return d_image, *leaving, send(d_guest), d_bias

        zero = jnp.zeros(home.rows.shape)
        start = jnp.zeros_like(image.rows), home, cut(text_number), zero, jnp.float32(0)
        d_image, _, _, d_text, d_bias = lax.fori_loop(0, devices, visit, start)
        return d_image, restore(d_text), d_bias

    return absorb, differentiate


def _blocks(total: int, block_size: int) -> tuple[Callable, Callable]:
    """Two functions: one cuts `total` rows into pieces of about `block_size`, all of one
    size, [pieces, size, …], and fills up the last piece; the other is the way back.
    """
    pieces = -(-total // block_size)
    size = -(-total // pieces)

    def cut(x: jax.Array, fill: int = 0) -> jax.Array:
        padding = [(0, pieces * size - total)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(x, padding, constant_values=fill)
        return padded.reshape(pieces, size, *x.shape[1:])

    def restore(x: jax.Array) -> jax.Array:
        return x.reshape(pieces * size, *x.shape[2:])[:total]

    return cut, restore


def _nothing(shape: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Largest logit and sum of no rivals."""
    return jnp.full(shape, LOWEST), jnp.zeros(shape)


def _tile(
    image: Side, text: Side, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logits [texts, images] of partners, else 0, and of rivals, else -inf."""
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    cosine = jnp.matmul(text.rows, image.rows.T, precision=lax.Precision.HIGHEST)
    logits = scale * cosine + bias
    same = text.pair[:, None] == image.pair
    real = (text.pair[:, None] >= 0) & (image.pair >= 0)
    return jnp.where(same & real, logits, 0), jnp.where(real & ~same, logits, -jnp.inf)


def _absorb(loss, image, known, texts, of_texts, scale, bias):
    """Adds chunked texts to what is known of images (partner, rivals), and images to theirs."""

    def add(of_side, rivals, axis):
        top = jnp.maximum(of_side[0], rivals.max(axis))
        terms = loss.term(rivals, jnp.expand_dims(top, axis))
        return top, of_side[1] * loss.rescale(of_side[0] - top) + terms.sum(axis)

    def tile(known, block_size):
        partner, of_image = known
        text, of_text = block_size
        partners, rivals = _tile(image, text, scale, bias)
        known = partner + partners.sum(axis=0), add(of_image, rivals, 0)
        return known, add(of_text, rivals, 1)

    return lax.scan(tile, known, (texts, of_texts))


def _differentiate(loss, image, image_number, texts, text_numbers, sums, scale, bias):
    """Adds the rivals' part to the gradients of images, of chunked texts and of the bias.

    Those of rows are still to be multiplied by the scale.
    """

    def tile(carry, block_size):
        d_image, d_bias = carry
        text, number, d_text = block_size
        _, rivals = _tile(image, text, scale, bias)
        slope = loss.slope(rivals, image_number, number[:, None])
        product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        d_image = d_image + product(slope.T, text.rows)
        return (d_image, d_bias + slope.sum()), d_text + product(slope, image.rows)

    d_image, d_texts, d_bias = sums
    (d_image, d_bias), d_texts = lax.scan(tile, (d_image, d_bias), (texts, text_numbers, d_texts))
    return d_image, d_texts, d_bias
