r"""SigLIP ViT-B/16 on a TPU v5e-256: arXiv 2303.15343, with the optimizer that arXiv 2502.14786
(section 2.5) gives for SigLIP 2.

    clip-jax train --config=siglip_vit_b16 --workdir=gs://BUCKET/siglip --distributed \
        --config.data.train='tars:gs://BUCKET/pairs/*.tar'
    clip-jax plan --config=siglip_vit_b16 --topology=v5e:16x16

40 billion pairs. The vocabulary is trained on your captions, with the size of the published one.
Not trained by us. Planned, not measured (experiments/plans): 5.0 of 16 GiB per chip; without
collectives 0.220 s per step by the compiler, 0.151 s by its schedules (60 % MFU).
"""

import default
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = default.get_config().unlock()
    c.batch_size = 32_768
    c.total_steps = 1_220_703
    c.tokenizer.update(name='sentencepiece', vocab_size=32_000, context_length=64)
    c.preprocess.update(resize='squash', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.model.preset = 'ViT-B-16-SigLIP'
    c.model.scan = True
    c.model.remat = 'full'  # 'dots': 10.9 GiB; 0.229 s by the compiler, 0.137 s by its schedules
    c.loss.name = 'sigmoid'
    c.loss.implementation = 'ring'
    c.optimizer.update(learning_rate=1e-3, warmup_steps=20_000, weight_decay=1e-4, b2=0.95)
    return c.lock()
