"""MobileCLIP's distillation: the teacher's softmax of similarities, the mean of both directions."""

import jax
from jax.sharding import Mesh

from clip_jax.distillation import _rows

IMPLEMENTATIONS = _rows.IMPLEMENTATIONS


def loss(
    student_image: jax.Array,
    student_text: jax.Array,
    scale: jax.Array,
    teacher_image: jax.Array,
    teacher_text: jax.Array,
    teacher_scale: jax.Array,
    *,
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = 'data',
    implementation: str | None = None,
    block_size: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the mean of KL(teacher || student) of the softmax over texts, and over images.

    Each model has its own temperature. The value is a mean over rows and over columns.

    Args:
        student_image: L2-normalized embeddings of the student, float [B, D].
        student_text: those of its texts, float [B, D].
        scale: the inverse temperature of the student, [].
        teacher_image: L2-normalized embeddings of the teacher, float [B, E].
        teacher_text: those of its texts, float [B, E].
        teacher_scale: the inverse temperature of the teacher, [].
        mesh: the device mesh, for 'gather'.
        axis: the mesh axis or axes that the batch is sharded over.
        implementation: 'dense' or 'gather'. None: 'gather' if there is a mesh, else 'dense'.
        block_size: the number of columns in a block of 'gather'.

    Returns:
        The value, float32 [], and its parts, 'distill/image_to_text' and 'distill/text_to_image'.

    Raises:
        ValueError: an unknown implementation, or shapes that do not fit.

    References:
      Vasu et al., MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced Training, 2023
      (arXiv 2311.17049), section 3.
    """
    layout = _rows.Layout(mesh, axis, implementation, block_size)
    student = student_image, student_text, scale
    metrics = _rows.divergences(student, (teacher_image, teacher_text, teacher_scale), layout)
    over_texts, over_images = metrics.values()
    return (over_texts + over_images) / 2, metrics
