"""A small CoCa that captions drawn shapes: about ten minutes on the CPU of a laptop.

    clip-jax train --config=captions --workdir=runs/captions
    clip-jax caption tfds:shapes_captions/test --model=runs/captions --out=captions.csv

See experiments/captions for what it writes.
"""

import quickstart
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = quickstart.get_config().unlock()
    c.total_steps = 1_800
    c.eval_every = 1_800
    del c.evals.retrieval

    # Widths that open_clip's files can hold: the decoder, the text encoder and the pooler agree.
    c.model.embed_dim = 64
    c.model.image.update(pool='queries', pool_queries=17, pool_width=64, pool_heads=4)
    c.model.decoder.update(depth=2)
    return c.lock()
