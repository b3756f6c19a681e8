r"""CLIP ViT-B/32 on a TPU v5e-256: arXiv 2103.00020, tables 18 and 20.

    clip-jax train --config=clip_vit_b32 --workdir=gs://BUCKET/b32 --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=clip_vit_b32 --topology=v5e:16x16

32 epochs of 400 million pairs. Not trained by us; published: 63.2 % zero-shot on ImageNet (table
11). Planned, not measured (experiments/plans): 5.9 of 16 GiB per chip; without collectives 0.094 s
per step by the compiler, 0.063 s by its schedules (46 % MFU).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 32_768
    c.total_steps = 390_625
    c.model.preset = 'ViT-B-32'
    c.model.scan = True
    c.model.remat = 'dots'  # with none, twice the memory and no less time, by schedules
    return c.lock()
