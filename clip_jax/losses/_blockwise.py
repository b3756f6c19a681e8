"""Contrastive losses computed block by block: the similarity matrix is never in memory as a whole.

Both losses depend on each pair's positive logit and on its negatives, the logits of other images'
texts and of hard negatives. The negatives enter through two running statistics for each embedding,
accumulated block by block: the maximum and a sum (online softmax, arXiv 1805.02867). A second pass
recomputes each block together with the gradients, so that no block is stored (as in FlashAttention,
arXiv 2205.14135).

`gather`: an all-gather gives every device all text embeddings; each device computes the logits of
its own images. `ring`: blocks of texts and their running statistics rotate around a ring of devices
with ppermute (Ring Attention, arXiv 2310.01889; for contrastive losses Inf-CL, arXiv 2410.17243).
One rotation serves both directions of the loss.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from clip_jax import sharding
from clip_jax.losses import _texts

IMPLEMENTATIONS = ('gather', 'ring')
LOWEST = jnp.finfo(jnp.float32).min
Axis = str | tuple[str, ...]
# Running statistics over negatives, float32 [n] each: the maximum, and a sum relative to it.
Statistics = tuple[jax.Array, jax.Array]
# What stands in Embeddings.pair in place of an index.
NOTHING, HARD_NEGATIVE = -1, -2


class PairLoss(NamedTuple):
    """A loss in terms of a pair's positive logit and its negatives.

    Pairs are [b, P], an image's with each of its texts. All functions but `finalize` are
    elementwise.

    Attributes:
        term: (logit, maximum) -> what a negative adds to the sum.
        rescale: (old maximum - new maximum) -> the factor of a sum whose maximum has grown.
        finalize: (positive logits [b, P], image statistics [b, 1], text statistics [b, P]) ->
            (losses [b, P], their derivatives with respect to the positive logits, a normalizer for
            each image [b], a normalizer for each text [b, P]).
        derivative: (logit, image normalizer, text normalizer) -> the derivative of the loss with
            respect to a negative logit. The text normalizer of a hard negative is inf.
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
    positives: int = 1  # P; texts of an image that are its positives, the others: hard negatives

    @property
    def devices(self) -> int:
        """The number of devices that the batch is sharded over."""
        return sharding.axis_size(self.mesh, self.axis)


class Embeddings(NamedTuple):
    """Embeddings of one modality, and the index of the image that each belongs to, HARD_NEGATIVE
    for a text that belongs to none, or NOTHING for padding and what is masked.
    """

    values: jax.Array  # float32 [n, D]
    pair: jax.Array  # int32 [n]


def contrast(
    loss: PairLoss,
    layout: Layout,
    image: jax.Array,
    text: jax.Array,
    negatives: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a contrastive loss block by block.

    Args:
        loss: the loss of one pair.
        layout: how the batch is sharded, and how to compute.
        image: L2-normalized image embeddings, float [B, D].
        text: L2-normalized text embeddings, float [B, D] or [B, P, D].
        negatives: those of hard negatives, float [B, N, D], or None.
        scale: factor of the cosine similarities, [].
        bias: added to the logits, [], or None.
        mask: bool [B]; pairs where it is False are ignored. None: all pairs count.

    Returns:
        The mean loss, float32 [], and the accuracy in both directions.
    """
    if layout.block_size < 1:
        raise ValueError(f'losses: block_size is {layout.block_size}; expected at least 1')
    if layout.mesh is not None and len(image) % layout.devices:
        raise ValueError(
            f'losses: a batch of {len(image)} pairs is not a multiple of the {layout.devices} '
            f'devices of axis {layout.axis!r}'
        )
    texts, positives = _texts.join(image, text, negatives)
    layout = layout._replace(positives=positives)
    pair = jnp.arange(len(image), dtype=jnp.int32)
    pair = pair if mask is None else jnp.where(mask, pair, NOTHING)
    numbers = scale, jnp.float32(0) if bias is None else bias
    image, texts, *numbers = (x.astype(jnp.float32) for x in (image, texts, *numbers))
    return _loss(loss, layout, image, texts, *numbers, pair)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(loss, layout, image, texts, scale, bias, pair):
    return _on_mesh(loss, layout, image, texts, scale, bias, pair, gradients=False)[0]


def _forward(loss, layout, *inputs):
    # The forward pass already computes the gradients: the texts are at hand, and the cotangent is
    # a scalar that multiplies them later. custom_vjp is outside of shard_map, so that shard_map
    # never has to be transposed.
    return _on_mesh(loss, layout, *inputs, gradients=True)


def _backward(loss, layout, gradients, cotangents):
    return *(cotangents[0] * x for x in gradients), None


_loss.defvjp(_forward, _backward)


def _on_mesh(
    loss: PairLoss,
    layout: Layout,
    image: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pair: jax.Array,
    *,
    gradients: bool,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], tuple[jax.Array, ...] | None]:
    """Returns ((loss, metrics), gradients of image, texts, scale and bias or None)."""
    on_device = functools.partial(
        _on_device,
        loss,
        layout,
        devices=layout.devices,
        gradients=gradients,
    )
    if layout.mesh is None:
        return on_device(image, texts, scale, bias, pair)
    sharded, replicated = PartitionSpec(layout.axis), PartitionSpec()
    gradient_specs = (sharded, sharded, replicated, replicated)
    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(sharded, sharded, replicated, replicated, sharded),
        out_specs=((replicated, replicated), gradient_specs if gradients else None),
        check_vma=False,
    )(image, texts, scale, bias, pair)


def _on_device(loss, layout, image, texts, scale, bias, pair, *, devices, gradients):
    """Computes one device's part: its images [b, D] against all texts, of which it holds [b, K, D];
    of an image's K texts the first P are its positives.
    """
    add = (lambda x: lax.psum(x, layout.axis)) if devices > 1 else (lambda x: x)
    passes = _ring if layout.implementation == 'ring' and devices > 1 else _gather
    local, of_each, _ = texts.shape
    is_positive = jnp.arange(of_each) < layout.positives
    real = pair[:, None] >= 0
    text_pair = jnp.where(is_positive, pair[:, None], jnp.where(real, HARD_NEGATIVE, NOTHING))
    own_texts = Embeddings(texts.reshape(local * of_each, -1), text_pair.reshape(-1))
    images = Embeddings(image, pair)
    accumulate, differentiate = passes(loss, layout, images, own_texts, scale, bias, devices)

    def of_pairs(x: jax.Array) -> jax.Array:
        return x.reshape(local, of_each)[:, : layout.positives]

    of_image, of_text = accumulate()
    positive, *of_text = map(of_pairs, of_text)
    of_image = tuple(x[:, None] for x in of_image)
    value, slope, image_normalizer, text_normalizer = loss.finalize(positive, of_image, of_text)
    count = jnp.maximum(add(jnp.sum(real)), 1) * layout.positives

    def mean(x: jax.Array) -> jax.Array:
        return add(jnp.sum(jnp.where(real, x, 0))) / count

    metrics = {
        'accuracy/image_to_text': mean(positive > of_image[0]),
        'accuracy/text_to_image': mean(positive > of_text[0]),
    }
    if not gradients:
        return (mean(value), metrics), None
    slope = jnp.where(real, slope, 0)
    hard_negatives = [(0, 0), (0, of_each - layout.positives)]
    text_normalizer = jnp.pad(text_normalizer, hard_negatives, constant_values=jnp.inf)
    d_image, d_texts, d_bias = differentiate(image_normalizer, text_normalizer.reshape(-1))
    slopes = jnp.pad(slope, hard_negatives)[..., None]
    d_image = (d_image + jnp.sum(slopes * texts, axis=1)) / count
    d_texts = (d_texts.reshape(texts.shape) + slopes * image[:, None]) / count
    d_scale = add(jnp.sum(image * d_image))
    d_bias = add(d_bias + jnp.sum(slope)) / count
    return (mean(value), metrics), (scale * d_image, scale * d_texts, d_scale, d_bias)


def _gather(loss, layout, images, texts, scale, bias, devices):
    """All-gathers the texts once; a text's statistics are reduced over all devices."""
    gather = functools.partial(lax.all_gather, axis_name=layout.axis, tiled=True)
    all_texts = jax.tree.map(gather, texts) if devices > 1 else texts
    total, local = len(all_texts.pair), len(texts.pair)
    split, join = _blocks(total, layout.block_size)
    blocks = Embeddings(split(all_texts.values), split(all_texts.pair, fill=NOTHING))

    def accumulate():
        start = _no_negatives(len(images.pair)), _nothing(blocks.pair.shape)
        of_image, of_text = _accumulate(loss, images, start[0], blocks, start[1], scale, bias)
        positive, old_maximum, sums = jax.tree.map(join, of_text)
        if devices == 1:
            return of_image, (positive, old_maximum, sums)
        maximum = lax.pmax(old_maximum, layout.axis)
        sums = lax.psum(sums * loss.rescale(old_maximum - maximum), layout.axis)
        start = lax.axis_index(layout.axis) * local
        own = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=local)
        # The positives of a device's own texts are its own images.
        return of_image, (own(positive), own(maximum), own(sums))

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


def _ring(loss, layout, images, texts, scale, bias, devices):
    """Rotates blocks of texts with their statistics; after a full round each is back on its device.

    `local` are this device's own texts, `remote` those that it holds at one step of the rotation.
    """
    split, join = _blocks(len(texts.pair), layout.block_size)
    local = Embeddings(split(texts.values), split(texts.pair, fill=NOTHING))
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

        start = _no_negatives(len(images.pair)), local, _nothing(local.pair.shape)
        of_image, _, of_text = lax.fori_loop(0, devices, rotate, start)
        return of_image, jax.tree.map(join, of_text)

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


def _nothing(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The initial positive logits of texts, and their statistics."""
    return jnp.zeros(shape), *_no_negatives(shape)


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
    real = (text.pair[:, None] != NOTHING) & (image.pair >= 0)
    return jnp.where(same & real, logits, 0), jnp.where(real & ~same, logits, -jnp.inf)


def _accumulate(
    loss: PairLoss,
    image: Embeddings,
    of_images: Statistics,
    texts: Embeddings,
    of_texts: tuple[jax.Array, ...],
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[Statistics, tuple[jax.Array, ...]]:
    """Adds blocks of texts to the images' statistics, and the images to the texts' (positive logit,
    maximum, sum): a text has one positive, an image may have several.
    """

    def add(statistics: Statistics, negatives: jax.Array, axis: int) -> Statistics:
        maximum = jnp.maximum(statistics[0], negatives.max(axis))
        terms = loss.term(negatives, jnp.expand_dims(maximum, axis))
        return maximum, statistics[1] * loss.rescale(statistics[0] - maximum) + terms.sum(axis)

    def step(of_image: Statistics, block: tuple) -> tuple[Statistics, tuple[jax.Array, ...]]:
        text, (positive, maximum, sums) = block
        positives, negatives = _logits(image, text, scale, bias)
        of_text = positive + positives.sum(axis=1), *add((maximum, sums), negatives, 1)
        return add(of_image, negatives, 0), of_text

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
