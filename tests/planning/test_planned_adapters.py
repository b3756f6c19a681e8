"""What a plan says of a run with adapters."""

import jax

from clip_jax.cli import config_file
from clip_jax.models import clip
from clip_jax.planning import abstract_step
from clip_jax.step import rules


def test_a_plan_counts_adapters():
    flags = '--config.batch_size=8', '--config.lora.image.rank=8', '--config.lora.text.rank=4'
    config = config_file.read('clip_vit_b16', [*flags, '--config.model.scan=True'])
    step = abstract_step.step_of(config, jax.devices()[:1], 'bfloat16')
    params = rules.paths(step.state.params)
    # Of queries, keys, values and output, in 12 blocks of each tower.
    adapters = 12 * 4 * (8 * 2 * 768 + 4 * 2 * 512)
    assert sum(x.size for name, x in params.items() if name.startswith('lora/')) == adapters
    whole = rules.paths(clip.shapes(step.model)['params'])
    assert params.keys() > whole.keys()
    moments = 2 * 4 * adapters / 2**20
    assert moments <= abstract_step.local_mib(step.state.opt_state) < moments + 0.01
