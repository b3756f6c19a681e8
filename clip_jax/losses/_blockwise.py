"""Contrastive losses computed block by block: the similarity matrix is never in memory as a whole.

Both losses depend on each pair's positive logit and on its negatives, the logits of all other
pairs. The negatives enter through two running statistics for each embedding, accumulated block by
block: the maximum and a sum (online softmax, arXiv 1805.02867). A second pass recomputes each block
together with the gradients, so that no block is stored (as in FlashAttention, arXiv 2205.14135).

`gather`: an all-gather gives every device all text embeddings; each device computes the logits of
its own images. `ring`: blocks of texts and their running statistics rotate around a ring of devices
with ppermute (Ring Attention, arXiv 2310.01889; for contrastive losses Inf-CL, arXiv 2410.17243).
One rotation serves both directions of the loss.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

IMPLEMENTATIONS = ('gather', 'ring')
LOWEST = jnp.finfo(jnp.float32).min
Axis = str | tuple[str, ...]
# Running statistics over negatives, float32 [n] each: the maximum, and a sum relative to it.
Statistics = tuple[jax.Array, jax.Array]


class PairLoss(NamedTuple):
    """A loss in terms of a pair's positive logit and its negatives; all functions are elementwise.

    Attributes:
        term: (logit, maximum) -> what a negative adds to the sum.
        rescale: (old maximum - new maximum) -> the factor of a sum whose maximum has grown.
        finalize: (positive logit, image statistics, text statistics) -> (loss, its derivative with
            respect to the positive logit, a normalizer for the image, a normalizer for the text).
        derivative: (logit, image normalizer, text normalizer) -> the derivative of the loss with
            respect to a negative logit.
    """

    term: Callable
    rescale: Callable
    finalize: Callable
    derivative: Callable


class Layout(NamedTuple):
    """How the batch is sharded: over `axis` of `mesh`, or on one device if `mesh` is None."""

    implementation: str
    mesh: Mesh | None
    axis: Axis
    block_size: int  # texts in a block


class Embeddings(NamedTuple):
    """Embeddings of one modality, and the index of the pair that each belongs to; -1: padding."""

    values: jax.Array  # float32 [n, D]
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
    """Computes a contrastive loss block by block.

    Args:
        loss: the loss of one pair.
        layout: how the batch is sharded, and how to compute.
        image: L2-normalized image embeddings, float [B, D].
        text: L2-normalized text embeddings, float [B, D].
        scale: factor of the cosine similarities, [].
        bias: added to the logits, [], or None.
        mask: bool [B]; pairs where it is False are ignored. None: all pairs count.

    Returns:
        The mean loss, float32 [], and the accuracy in both directions.
    """
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
    # The forward pass already computes the gradients: the texts are at hand, and the cotangent is
    # a scalar that multiplies them later. custom_vjp is outside of shard_map, so that shard_map
    # never has to be transposed.
    return _on_mesh(loss, layout, *inputs, gradients=True)


def _backward(loss, layout, gradients, cotangents):
    return *(cotangents[0] * x for x in gradients), None


_loss.defvjp(_forward, _backward)


def _devices(layout: Layout) -> int:
    names = (layout.axis,) if isinstance(layout.axis, str) else layout.axis
    return math.prod(layout.mesh.shape[name] for name in names) if layout.mesh is not None else 1


def _on_mesh(
    loss: PairLoss,
    layout: Layout,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pair: jax.Array,
    *,
    gradients: bool,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], tuple[jax.Array, ...] | None]:
    """Returns ((loss, metrics), gradients of image, text, scale and bias or None)."""
    on_device = functools.partial(
        _on_device, loss, layout, devices=_devices(layout), gradients=gradients
    )
    if layout.mesh is None:
        return on_device(image, text, scale, bias, pair)
    sharded, replicated = PartitionSpec(layout.axis), PartitionSpec()
    gradient_specs = (sharded, sharded, replicated, replicated)
    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(sharded, sharded, replicated, replicated, sharded),
        out_specs=((replicated, replicated), gradient_specs if gradients else None),
        check_vma=False,
    )(image, text, scale, bias, pair)


def _on_device(loss, layout, image, text, scale, bias, pair, *, devices, gradients):
    """Computes one device's part: its b images [b, D] against all texts, of which it holds b."""
    add = (lambda x: lax.psum(x, layout.axis)) if devices > 1 else (lambda x: x)
    passes = _ring if layout.implementation == 'ring' and devices > 1 else _gather
    images = Embeddings(image, pair)
    accumulate, differentiate = passes(loss, layout, images, text, scale, bias, devices)

    positive, of_image, of_text = accumulate()
    value, slope, image_normalizer, text_normalizer = loss.finalize(positive, of_image, of_text)
    count = jnp.maximum(add(jnp.sum(pair >= 0)), 1)

    def mean(x: jax.Array) -> jax.Array:
        return add(jnp.sum(jnp.where(pair >= 0, x, 0))) / count

    metrics = {
        'accuracy/image_to_text': mean(positive > of_image[0]),
        'accuracy/text_to_image': mean(positive > of_text[0]),
    }
    if not gradients:
        return (mean(value), metrics), None
    slope = jnp.where(pair >= 0, slope, 0)
    d_image, d_text, d_bias = differentiate(image_normalizer, text_normalizer)
    d_image = (d_image + slope[:, None] * text) / count
    d_text = (d_text + slope[:, None] * image) / count
    d_scale = add(jnp.sum(image * d_image))
    d_bias = add(d_bias + jnp.sum(slope)) / count
    return (mean(value), metrics), (scale * d_image, scale * d_text, d_scale, d_bias)


def _gather(loss, layout, images, text, scale, bias, devices):
    """All-gathers the texts once; a text's statistics are reduced over all devices."""
    gather = functools.partial(lax.all_gather, axis_name=layout.axis, tiled=True)
    all_texts = Embeddings(text, images.pair)
    if devices > 1:
        all_texts = Embeddings(gather(text), gather(images.pair))
    total, local = len(all_texts.pair), len(images.pair)
    split, join = _blocks(total, layout.block_size)
    blocks = Embeddings(split(all_texts.values), split(all_texts.pair, fill=-1))

    def accumulate():
        (positive, of_image), of_text = _accumulate(
            loss,
            images,
            (jnp.zeros(local), _no_negatives(local)),
            blocks,
            _no_negatives(blocks.pair.shape),
            scale,
            bias,
        )
        of_text = jax.tree.map(join, of_text)
        if devices == 1:
            return positive, of_image, of_text
        maximum = lax.pmax(of_text[0], layout.axis)
        sums = lax.psum(of_text[1] * loss.rescale(of_text[0] - maximum), layout.axis)
        start = lax.axis_index(layout.axis) * local
        own = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=local)
        return positive, of_image, (own(maximum), own(sums))

    def differentiate(image_normalizer, text_normalizer):
        if devices > 1:
            text_normalizer = gather(text_normalizer)
        normalizers = split(text_normalizer)
        zero = jnp.zeros_like(images.values), jnp.zeros(blocks.values.shape), jnp.float32(0)
        d_image, d_text, d_bias = _differentiate(
            loss, images, image_normalizer, blocks, normalizers, zero, scale, bias
        )
        d_text = join(d_text)
        if devices > 1:
            d_text = lax.psum_scatter(d_text, layout.axis, tiled=True)
        return d_image, d_text, d_bias

    return accumulate, differentiate


def _ring(loss, layout, images, text, scale, bias, devices):
    """Rotates blocks of texts with their statistics; after a full round each is back on its device.

    `local` are this device's own texts, `remote` those that it holds at one step of the rotation.
    """
    split, join = _blocks(len(text), layout.block_size)
    local = Embeddings(split(text), split(images.pair, fill=-1))
    to_next = [(i, (i + 1) % devices) for i in range(devices)]
    send = functools.partial(lax.ppermute, axis_name=layout.axis, perm=to_next)

    def accumulate():
        def rotate(_, carry):
            of_images, remote, of_remote = carry
            sent = jax.tree.map(send, remote)  # overlaps with the computation of the blocks
            of_images, of_remote = _accumulate(
                loss, images, of_images, remote, of_remote, scale, bias
            )
            return of_images, sent, jax.tree.map(send, of_remote)

        count = len(images.pair)
        start = (jnp.zeros(count), _no_negatives(count)), local, _no_negatives(local.pair.shape)
        (positive, of_image), _, of_text = lax.fori_loop(0, devices, rotate, start)
        return positive, of_image, jax.tree.map(join, of_text)

    def differentiate(image_normalizer, text_normalizer):
        def rotate(_, carry):
            d_image, remote, normalizer, d_remote, d_bias = carry
            sent = jax.tree.map(send, (remote, normalizer))
            d_image, d_remote, d_bias = _differentiate(
                loss,
                images,
                image_normalizer,
                remote,
                normalizer,
                (d_image, d_remote, d_bias),
                scale,
                bias,
            )
            return d_image, *sent, send(d_remote), d_bias

        zero = jnp.zeros(local.values.shape)
        start = jnp.zeros_like(images.values), local, split(text_normalizer), zero, jnp.float32(0)
        d_image, _, _, d_text, d_bias = lax.fori_loop(0, devices, rotate, start)
        return d_image, join(d_text), d_bias

    return accumulate, differentiate


def _blocks(total: int, block_size: int) -> tuple[Callable[..., jax.Array], Callable]:
    """Returns two functions: one splits an array [total, …] into blocks of about `block_size`, all
    of one size, [blocks, size, …], and pads the last one; the other joins them again.
    """
    blocks = -(-total // block_size)
    size = -(-total // blocks)

    def split(x: jax.Array, fill: int = 0) -> jax.Array:
        padding = [(0, blocks * size - total)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(x, padding, constant_values=fill)
        return padded.reshape(blocks, size, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        return x.reshape(blocks * size, *x.shape[2:])[:total]

    return split, join


def _no_negatives(shape: int | tuple[int, ...]) -> Statistics:
    """The initial statistics."""
    return jnp.full(shape, LOWEST), jnp.zeros(shape)


def _logits(
    image: Embeddings, text: Embeddings, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns two arrays [texts, images]: logits of positives, elsewhere 0; and of negatives,
    elsewhere -inf.
    """
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    cosine = jnp.matmul(text.values, image.values.T, precision=lax.Precision.HIGHEST)
    logits = scale * cosine + bias
    same = text.pair[:, None] == image.pair
    real = (text.pair[:, None] >= 0) & (image.pair >= 0)
    return jnp.where(same & real, logits, 0), jnp.where(real & ~same, logits, -jnp.inf)


def _accumulate(
    loss: PairLoss,
    image: Embeddings,
    of_images: tuple[jax.Array, Statistics],
    texts: Embeddings,
    of_texts: Statistics,
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[tuple[jax.Array, Statistics], Statistics]:
    """Adds blocks of texts to the images' (positive logit, statistics), and the images to the
    texts' statistics.
    """

    def add(statistics: Statistics, negatives: jax.Array, axis: int) -> Statistics:
        maximum = jnp.maximum(statistics[0], negatives.max(axis))
        terms = loss.term(negatives, jnp.expand_dims(maximum, axis))
        return maximum, statistics[1] * loss.rescale(statistics[0] - maximum) + terms.sum(axis)

    def step(carry: tuple, block: tuple) -> tuple[tuple, Statistics]:
        positive, of_image = carry
        text, of_text = block
        positives, negatives = _logits(image, text, scale, bias)
        carry = positive + positives.sum(axis=0), add(of_image, negatives, 0)
        return carry, add(of_text, negatives, 1)

    return lax.scan(step, of_images, (texts, of_texts))


def _differentiate(
    loss: PairLoss,
    image: Embeddings,
    image_normalizer: jax.Array,
    texts: Embeddings,
    text_normalizers: jax.Array,
    gradients: tuple[jax.Array, jax.Array, jax.Array],
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds the negatives' part to the gradients of images, of blocks of texts and of the bias.

    Those of embeddings still have to be multiplied by the scale.
    """

    def step(carry: tuple, block: tuple[Any, ...]) -> tuple[tuple, jax.Array]:
        d_image, d_bias = carry
        text, normalizer, d_text = block
        _, negatives = _logits(image, text, scale, bias)
        slope = loss.derivative(negatives, image_normalizer, normalizer[:, None])
        product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        d_image = d_image + product(slope.T, text.values)
        return (d_image, d_bias + slope.sum()), d_text + product(slope, image.values)

    d_image, d_texts, d_bias = gradients
    blocks = texts, text_normalizers, d_texts
    (d_image, d_bias), d_texts = lax.scan(step, (d_image, d_bias), blocks)
    return d_image, d_texts, d_bias
