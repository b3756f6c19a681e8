"""CLIP-KD's interactive contrastive learning (ICL): student's images find teacher's texts."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.distillation import _rows

IMPLEMENTATIONS = _rows.IMPLEMENTATIONS
SAME_SIZE = True


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
    """Computes the mean of two cross-entropies: of the student's images over the teacher's texts,
    and of the student's texts over the teacher's images.

    Args:
        student_image: L2-normalized embeddings of the student, float [B, D].
        student_text: those of its texts, float [B, D].
        scale: the inverse temperature of both, [].
        teacher_image: L2-normalized embeddings of the teacher, float [B, D].
        teacher_text: those of its texts, float [B, D].
        teacher_scale: has no effect.
        mesh: the device mesh, for 'gather'.
        axis: the mesh axis or axes that the batch is sharded over.
        implementation: 'dense' or 'gather'. None: 'gather' if there is a mesh, else 'dense'.
        block_size: the number of columns in a block of 'gather'.

    Returns:
        The value, float32 [], and its parts, 'distill/image_to_text' and 'distill/text_to_image'.

    Raises:
        ValueError: an unknown implementation, or shapes that do not fit.

    References:
      Yang et al., CLIP-KD: An Empirical Study of CLIP Model Distillation, 2023 (arXiv 2307.12732),
      interactive contrastive learning.
    """
    del teacher_scale
    layout = _rows.Layout(mesh, axis, implementation, block_size)
    teacher_image, teacher_text = map(jax.lax.stop_gradient, (teacher_image, teacher_text))
    rows = _rows.cross_entropy(_rows.side(student_image, teacher_text, scale), layout)
    columns = _rows.cross_entropy(_rows.side(student_text, teacher_image, scale), layout)
    over_texts, over_images = jnp.mean(rows), jnp.mean(columns)
    metrics = {'distill/image_to_text': over_texts, 'distill/text_to_image': over_images}
    return (over_texts + over_images) / 2, metrics
