"""One file = one contrastive loss over the global batch.

`loss(image, text, scale, bias=None, *, implementation='dense', mesh=None, axis='data') -> (scalar,
metrics)` with unit rows `image` and `text` [B, D], scalars `scale` (already exponentiated) and
`bias`. Row i of both belongs together, every other row of the batch is a negative. The gradient is
exact for the global batch on any mesh; arithmetic is float32. `IMPLEMENTATIONS` names what the file
offers. `metrics` are scalars of the same batch.
"""
