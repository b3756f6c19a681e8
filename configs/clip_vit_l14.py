r"""CLIP ViT-L/14 on a TPU v6e-256: arXiv 2103.00020, tables 18 and 20.

    clip-jax train --config=clip_vit_l14 --workdir=gs://BUCKET/l14 --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=clip_vit_l14 --topology=v6e:16x16

32 epochs of 400 million pairs. Not trained by us; published: 75.3 % zero-shot on ImageNet (table
11). Planned, not measured (experiments/plans): 27.9 of 32 GiB per chip; without collectives 0.363 s
per step by the compiler, 0.225 s by its schedules (33 % MFU). v5e needs --config.model.remat=full:
10.7 of 16 GiB and 0.60 s by the schedules (57 % MFU) on v5e.
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 32_768
    c.total_steps = 390_625
    c.model.preset = 'ViT-L-14'
    c.optimizer.learning_rate = 4e-4
    c.model.scan = True
    c.model.remat = 'dots'
    return c.lock()
