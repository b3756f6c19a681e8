"""Contrastive losses over a global batch. One file is one loss; see softmax.py for an example.

A loss of your own is a module with this function, named in the config by its file here
(`loss.name='softmax'`) or by its import path (`loss.name='my_package.my_loss'`):

    def loss(image, text, scale, bias=None, *, mask=None, mesh=None, axis='data', **options):
        ...
        return value, metrics

Args that the train step passes:
  image, text: L2-normalized embeddings, float [B, D]. `image[i]` and `text[i]` are a positive pair;
    all other combinations in the batch are negatives. Under jit these are global arrays, so a loss
    written for one device is correct on any mesh.
  scale: factor of the cosine similarities, float32 []; already exponentiated.
  bias: added to the logits, float32 []; None if the model has none.
  mesh, axis: the device mesh and the axis name or names that the batch is sharded over. Passed only
    to a function that has these parameters; for losses that manage their own communication.

Args that callers of a loss may pass:
  mask: bool [B]; pairs where it is False are neither positives nor negatives.
  negatives: float [B, N, D], hard negatives of each image; more negatives of all images. A loss
    with this parameter also takes `text` as [B, P, D], P positives of each image; only with it can
    a config have several captions of an image, or hard negatives, in a batch.

All other keyword parameters are the loss's own options: the config sets them by name
(`c.loss.update(name='my_package.my_loss', margin=0.2)`), and an option that the function does not
have is an error. A parameter without a default must be set.

Returns:
    value: the mean loss over the global batch, float32 []; its gradient must be exact.
    metrics: a dict of scalars to log, such as 'accuracy/image_to_text'.

Optional module attributes:
  INIT: initial `init_logit_scale` (a logarithm) and `init_logit_bias` of the model; what it lacks
    is softmax's: log(1 / 0.07), and no bias.
  IMPLEMENTATIONS: the values of an option `implementation`. Those of the losses here are 'dense',
    the similarity matrix as one array; 'gather' and 'ring', which compute it block by block (see
    _blockwise.py) and need `mesh`, with an option `block_size`, the number of texts in a block.

The losses here have an option `dims`: lengths of prefixes of the embeddings over which the value is
averaged (Matryoshka, see _texts.py).
"""
