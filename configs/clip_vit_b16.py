r"""CLIP ViT-B/16 on a TPU v5e-256: arXiv 2103.00020, tables 18 and 20.

    clip-jax train --config=clip_vit_b16 --workdir=gs://BUCKET/b16 --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=clip_vit_b16 --topology=v5e:16x16

32 epochs of 400 million pairs. Not trained by us; published: 68.6 % zero-shot on ImageNet (table
11). Planned, not measured (experiments/plans): 9.3 of 16 GiB per chip; without collectives 0.208 s
per step by the compiler, 0.140 s by its schedules (57 % MFU).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 32_768
    c.total_steps = 390_625
    c.model.preset = 'ViT-B-16'
    c.model.scan = True
    c.model.remat = 'dots'
    return c.lock()
