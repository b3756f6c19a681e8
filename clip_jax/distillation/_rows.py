"""Rows of a student's similarity matrix against those of a teacher, or against the diagonal.

`gather`: an all-gather gives every device all columns; it goes over the rows of its own part of the
batch block by block, with running statistics (online softmax, arXiv 1805.02867), and recomputes
each block for the gradient. The matrix is never in memory as a whole.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from clip_jax import lookup, sharding

IMPLEMENTATIONS = ('dense', 'gather')
LOWEST = jnp.finfo(jnp.float32).min
Axis = str | tuple[str, ...]


class Side(NamedTuple):
    """Logits of a model, rows @ columns.T."""

    rows: jax.Array  # float32 [B, D], times the scale
    columns: jax.Array  # float32 [B, D]


class Layout(NamedTuple):
    """How to compute; see `Args` in __init__.py."""

    mesh: Mesh | None
    axis: Axis
    implementation: str | None
    block_size: int

    @property
    def devices(self) -> int:
        """The number of devices that the batch is sharded over."""
        return sharding.axis_size(self.mesh, self.axis)


def side(rows: jax.Array, columns: jax.Array, scale: jax.Array) -> Side:
    """Makes a side of embeddings [B, D] and the factor of their similarities."""
    return Side(scale * rows.astype(jnp.float32), columns.astype(jnp.float32))


def divergence(student: Side, teacher: Side, layout: Layout) -> jax.Array:
    """Returns KL(teacher's softmax || student's) of each row, float32 [B].

    Raises:
        ValueError: an implementation, a block size or shapes that do not fit.
    """
    return _rows(student, jax.tree.map(lax.stop_gradient, teacher), layout)


def divergences(
    student: tuple[jax.Array, jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array, jax.Array],
    layout: Layout,
) -> dict[str, jax.Array]:
    """Returns the mean divergence over texts and that over images, as metrics; the models are
    given by images [B, D], texts [B, D] and the factor of their similarities; raises as
    `divergence`.
    """

    def mean(first: int, second: int) -> jax.Array:
        one, other = (side(x[first], x[second], x[2]) for x in (student, teacher))
        return jnp.mean(divergence(one, other, layout))

    return {'distill/image_to_text': mean(0, 1), 'distill/text_to_image': mean(1, 0)}


def cross_entropy(student: Side, layout: Layout) -> jax.Array:
    """Returns -log softmax(row i)[i] of each row i, float32 [B]; raises as `divergence`."""
    return _rows(student, None, layout)


def _rows(student: Side, teacher: Side | None, layout: Layout) -> jax.Array:
    mesh = layout.mesh
    implementation = layout.implementation or ('dense' if mesh is None else 'gather')
    lookup.check(implementation, IMPLEMENTATIONS, what='distillation: implementation')
    _check(student, teacher, layout)
    if implementation == 'dense':
        return _dense(student, teacher)
    on_device = functools.partial(_on_device, layout=layout, devices=layout.devices)
    if mesh is None:
        return on_device(student, teacher)
    sharded = PartitionSpec(layout.axis)
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(sharded, sharded), out_specs=sharded, check_vma=False
    )(student, teacher)


def _check(student: Side, teacher: Side | None, layout: Layout) -> None:
    if layout.block_size < 1:
        raise ValueError(f'distillation: block_size is {layout.block_size}; expected at least 1')
    for who, given in (('student', student), ('teacher', teacher)):
        if given is None:
            continue
        shapes = [[*x.shape] for x in given]
        if given.rows.ndim != 2 or shapes[0] != shapes[1] or len(given.rows) != len(student.rows):
            raise ValueError(
                f'distillation: embeddings of the {who} have the shapes {shapes[0]} and '
                f'{shapes[1]}; expected [B, D] for both, B = {len(student.rows)}; a student that '
                'is compared with a teacher of another D must be projected'
            )
    if layout.mesh is not None and len(student.rows) % layout.devices:
        raise ValueError(
            f'distillation: a batch of {len(student.rows)} pairs is not a multiple of the '
            f'{layout.devices} devices of axis {layout.axis!r}'
        )


def _logits(rows: jax.Array, columns: jax.Array) -> jax.Array:
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    return jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)


def _dense(student: Side, teacher: Side | None) -> jax.Array:
    log_student = jax.nn.log_softmax(_logits(*student))
    if teacher is None:
        return -jnp.diagonal(log_student)
    log_teacher = jax.nn.log_softmax(_logits(*teacher))
    return jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=1)


def _on_device(student: Side, teacher: Side | None, *, layout: Layout, devices: int) -> jax.Array:
    """Computes the rows of one device, [b]."""

    def blocks(x: jax.Array) -> jax.Array:
        x = lax.all_gather(x, layout.axis, tiled=True) if devices > 1 else x
        count = -(-len(x) // layout.block_size)
        size = -(-len(x) // count)
        x = jnp.pad(x, [(0, count * size - len(x)), (0, 0)])
        return x.reshape(count, size, -1)

    columns = jax.tree.map(blocks, (student.columns, None if teacher is None else teacher.columns))
    index = jnp.arange(columns[0].shape[0] * columns[0].shape[1])
    is_real = (index < len(student.columns) * devices).reshape(columns[0].shape[:2])

    @jax.checkpoint
    def step(carry: tuple, block: tuple) -> tuple[tuple, None]:
        (of_student, of_teacher), (of_columns, real) = carry, block
        logits = jnp.where(real, _logits(student.rows, of_columns[0]), LOWEST)
        of_student = _add(of_student, logits, (1.0,))
        if teacher is not None:
            target = jnp.where(real, _logits(teacher.rows, of_columns[1]), LOWEST)
            of_teacher = _add(of_teacher, target, (1.0, target - logits))
        return (of_student, of_teacher), None

    zero = jnp.zeros(len(student.rows))
    start = (zero + LOWEST, zero), (zero + LOWEST, zero, zero)
    (of_student, of_teacher), _ = lax.scan(step, start, (columns, is_real))
    normalizer = of_student[0] + jnp.log(of_student[1])
    if teacher is None:
        return normalizer - jnp.sum(student.rows * student.columns, axis=1)
    maximum, total, difference = of_teacher
    return difference / total - (maximum + jnp.log(total)) + normalizer


def _add(statistics: tuple, logits: jax.Array, values: tuple) -> tuple[jax.Array, ...]:
    """Adds a block of logits to the maximum of each row, and to the sums of exp(logit - maximum)
    times each of `values`.
    """
    old, *sums = statistics
    # The sums do not depend on it in the end: no gradient.
    maximum = lax.stop_gradient(jnp.maximum(old, logits.max(axis=1)))
    terms, factor = jnp.exp(logits - maximum[:, None]), jnp.exp(old - maximum)
    return maximum, *(
        total * factor + (terms * value).sum(axis=1)
        for total, value in zip(sums, values, strict=True)
    )
