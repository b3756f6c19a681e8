r"""OpenCLIP's ViT-H/14 on a TPU v5p-128 (64 chips): arXiv 2212.07143, LAION's
CLIP-ViT-H-14-laion2B-s32B-b79K.

    clip-jax train --config=clip_vit_h14 --workdir=gs://BUCKET/h14 --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=clip_vit_h14 --topology=v5p:4x4x4

32 billion pairs in batches of 79 thousand, from the name of the checkpoint; all other values are
CLIP's (arXiv 2103.00020, table 18). Not trained by us; published: 78.0 % zero-shot on ImageNet
(open_clip's README). Planned, not measured (experiments/plans): 64.0 of 95 GiB per chip;
without collectives 5.74 s per step by the compiler, 5.07 s by its schedules (61 % MFU).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 79_104
    c.total_steps = 404_531
    c.mesh.fsdp = 8
    c.model.preset = 'ViT-H-14'
    c.model.scan = True
    c.model.remat = 'full'
    return c.lock()
