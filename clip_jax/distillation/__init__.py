"""Losses that bring a student's embeddings near a teacher's. One file is one loss; `mix` adds them
to the contrastive one.

Each is a module with this function:

    def loss(
        student_image, student_text, scale, teacher_image, teacher_text, teacher_scale, **options
    ):
        ...
        return value, metrics

Args:
  student_image, student_text: L2-normalized embeddings of the student, float [B, D]; under jit
    these are global arrays, so that a loss written for one device is correct on any mesh.
  scale: factor of the student's cosine similarities, float32 []; already exponentiated.
  teacher_image, teacher_text: L2-normalized embeddings of the teacher, float [B, E]; no gradient
    goes through them, nor through its scale. Some losses need E = D: then the caller projects the
    student's embeddings by a learned matrix, and normalizes them again.
  teacher_scale: factor of the teacher's cosine similarities, float32 [].

Options of losses that compare similarities:
  mesh, axis: the device mesh and the axis name or names that the batch is sharded over.
  implementation: 'dense', all similarities as one array, or 'gather', which computes them in blocks
    of `block_size` columns; None: 'gather' if there is a mesh, else 'dense'. See _rows.py.

Returns:
    value: the mean over the batch, float32 []; its gradient is exact.
    metrics: a dict of scalars to log, the parts of the value.
"""

from collections.abc import Sequence

import jax


def mix(contrastive: jax.Array, teachers: Sequence[jax.Array], weight: float) -> jax.Array:
    """Returns MobileCLIP's total loss, (1 - weight) * contrastive + weight * mean(teachers).

    Args:
        contrastive: the value of the contrastive loss, [].
        teachers: the value of a distillation loss for each teacher, [] each.
        weight: the part of distillation, from 0 to 1 (lambda in arXiv 2311.17049, section 3).

    Returns:
        The total, [].

    Raises:
        ValueError: there is no teacher, or the weight is not from 0 to 1.
    """
    if not teachers or not 0 <= weight <= 1:
        raise ValueError(
            f'distillation: {len(teachers)} teachers with weight {weight}; expected at least one '
            'teacher and a weight from 0 to 1'
        )
    mean = sum(teachers[1:], start=teachers[0]) / len(teachers)
    return (1 - weight) * contrastive + weight * mean
