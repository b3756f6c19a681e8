r"""CLIP from scratch on 6,000 photographs with five captions each.

    clip-jax train --config=flickr8k --workdir=runs/flickr8k \
        --config.data.train='tars:flickr8k/train-*.tar' \
        --config.evals.retrieval.data='tars:flickr8k/val-*.tar'

2 CPU cores, 41 minutes on a busy machine: recall@10 14.4 % image to text, 13.7 % text to image
(seed 0).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config for Flickr8k in tar shards."""
    c = default.get_config().unlock()
    c.batch_size = 128
    c.total_steps = 1100
    c.log_every = 20
    c.eval_every = 275
    c.checkpoint.every = 100

    c.data.train = 'tars:flickr8k/train-*.tar'
    c.data.num_threads = 2
    c.data.augment.crop_scale = (0.5, 1.0)
    c.data.augment.flip = 0.5

    c.tokenizer.name = 'sentencepiece'
    c.tokenizer.vocab_size = 3000
    c.tokenizer.context_length = 20

    c.model.preset = ''
    c.model.embed_dim = 192
    c.model.image.update(image_size=64, patch_size=8, width=192, depth=6, heads=3, mlp_dim=768)
    c.model.image.update(pool='cls', positions='sincos2d', pre_norm=False, patch_dropout=0.5)
    c.model.text.update(width=192, depth=2, heads=3, mlp_dim=768)

    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 90
    c.optimizer.weight_decay = 0.2

    c.evals.retrieval = ConfigDict({'type': 'retrieval', 'data': 'tars:flickr8k/val-*.tar'})
    return c.lock()
