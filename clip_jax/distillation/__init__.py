"""Losses that bring a student's embeddings near a teacher's. One file is one loss.

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
    goes through them, nor through its scale. A module whose loss needs E = D has
    SAME_SIZE = True: then the student's embeddings are projected to E by a learned matrix, and
    normalized again, where the sizes differ.
  teacher_scale: factor of the teacher's cosine similarities, float32 [].

Options of losses that compare similarities:
  mesh, axis: the device mesh and the axis name or names that the batch is sharded over.
  implementation: 'dense', all similarities as one array, or 'gather', which computes them in blocks
    of `block_size` columns; None: 'gather' if there is a mesh, else 'dense'. See _rows.py.

Returns:
    value: the mean over the batch, float32 []; its gradient is exact.
    metrics: a dict of scalars to log, the parts of the value.
"""
