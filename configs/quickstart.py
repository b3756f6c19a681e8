"""A small CLIP on drawn shapes: minutes on the CPU of a laptop.

    clip-jax train --config=quickstart --workdir=runs/quickstart

2 CPU cores, 3 minutes: zeroshot/top1 90.7 %, zeroshot_all/top1 38.3 % (seed 0).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the quickstart's config."""
    c = default.get_config().unlock()
    c.batch_size = 128
    c.total_steps = 720
    c.log_every = 20
    c.eval_every = 360
    c.checkpoint.every = 100

    c.data.train = 'tfds:shapes_captions/train'
    c.data.num_threads = 2
    c.data.augment.crop_scale = (1.0, 1.0)  # no crop: it would cut off shapes

    c.tokenizer.name = 'sentencepiece'
    c.tokenizer.vocab_size = 320
    c.tokenizer.context_length = 20

    c.model.preset = ''
    c.model.embed_dim = 128
    c.model.image.update(image_size=32, patch_size=8, width=128, depth=4, heads=4, mlp_dim=512)
    c.model.image.update(pool='cls', positions='sincos2d', pre_norm=False)
    c.model.text.update(width=64, depth=2, heads=2, mlp_dim=256)

    c.optimizer.learning_rate = 1.5e-3
    c.optimizer.warmup_steps = 60
    c.optimizer.weight_decay = 0.1

    heldout = {
        'type': 'zeroshot',
        'data': 'tfds:shapes_captions/test_heldout',
        'templates': 'shapes',
    }
    c.evals.zeroshot = ConfigDict({**heldout, 'classes': 'present'})  # only held-out pairs
    c.evals.zeroshot_all = ConfigDict({**heldout, 'classes': 'all'})  # classes of training too
    c.evals.retrieval = ConfigDict({'type': 'retrieval', 'data': 'tfds:shapes_captions/test'})
    return c.lock()
