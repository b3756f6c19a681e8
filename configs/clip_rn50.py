r"""CLIP ResNet-50 on a TPU v5e-256: arXiv 2103.00020, tables 18 and 19.

    clip-jax train --config=clip_rn50 --workdir=gs://BUCKET/rn50 --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=clip_rn50 --topology=v5e:16x16

32 epochs of 400 million pairs; batch normalization over the global batch. Not trained by us;
published: 59.6 % zero-shot on ImageNet (table 11). Planned, not measured (experiments/plans): 4.1
of 16 GiB per chip, 0.21 s per step without collectives, 16 % MFU.
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 32_768
    c.total_steps = 390_625
    c.model.preset = 'RN50'
    c.model.scan = True
    c.model.remat = 'full'
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    return c.lock()
