"""One file = one contrastive loss over the global batch.

`loss(image, text, scale, bias=None, *, mask=None, implementation='dense', mesh=None, axis='data',
block_size=512) -> (scalar, metrics)` with unit rows `image` and `text` [B, D], scalars `scale`
(already exponentiated) and `bias`. Row i of both belongs together, every other row of the batch is
a negative; rows where `mask`, bool [B], is false count as neither. The gradient is exact for the
global batch on any mesh; arithmetic is float32. `metrics` are scalars of the same batch.

`IMPLEMENTATIONS` are 'dense', the similarity matrix as one array under jit, 'gather' and 'ring',
tile by tile (see _blockwise.py), which need the `mesh` over whose `axis` the rows are dealt out;
`block_size` is the number of texts in a tile. `INIT` are the paper's initial logit_scale and
logit_bias, as fields of the model.
"""
