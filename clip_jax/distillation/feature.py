"""CLIP-KD's feature distillation (FD): the squared distance to the teacher's embeddings."""

import jax
import jax.numpy as jnp

SAME_SIZE = True


def loss(
    student_image: jax.Array,
    student_text: jax.Array,
    scale: jax.Array,
    teacher_image: jax.Array,
    teacher_text: jax.Array,
    teacher_scale: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the mean squared error of images, plus that of texts.

    The mean is over the coordinates too, as in the authors' code; their weight of it is 2000.

    Args:
        student_image: L2-normalized embeddings of the student, float [B, D].
        student_text: those of its texts, float [B, D].
        scale: has no effect.
        teacher_image: L2-normalized embeddings of the teacher, float [B, D].
        teacher_text: those of its texts, float [B, D].
        teacher_scale: has no effect.

    Returns:
        The value, float32 [], and its parts, 'distill/image' and 'distill/text'.

    Raises:
        ValueError: the embeddings of student and teacher differ in their shapes.

    References:
      Yang et al., CLIP-KD: An Empirical Study of CLIP Model Distillation, 2023 (arXiv 2307.12732),
      feature distillation.
    """
    del scale, teacher_scale
    parts = {}
    pairs = {'image': (student_image, teacher_image), 'text': (student_text, teacher_text)}
    for name, (student, teacher) in pairs.items():
        if student.shape != teacher.shape:
            raise ValueError(
                f'distillation/feature: {name} embeddings of the student are {[*student.shape]}, '
                f"of the teacher {[*teacher.shape]}; expected the same shape: project the student's"
            )
        target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
        parts[f'distill/{name}'] = jnp.mean((student.astype(jnp.float32) - target) ** 2)
    return parts['distill/image'] + parts['distill/text'], parts
