"""What a plan saves where a tower is locked: optimizer state and backward FLOPs of B/16."""

import jax
import pytest

from clip_jax import sharding
from clip_jax.cli import config_file
from clip_jax.models import clip
from clip_jax.planning import abstract_step, hlo
from clip_jax.step import rules


def planned(*flags):
    """MiB of the optimizer's state, FLOPs of a step, and the step."""
    config = config_file.read('clip_vit_b16', ['--config.batch_size=8', *flags])
    step = abstract_step.step_of(config, jax.devices()[:1], 'bfloat16')
    with jax.set_mesh(sharding.make_mesh(jax.devices()[:1])):
        jaxpr = jax.make_jaxpr(step.function)(step.state, step.batch).jaxpr
    return abstract_step.local_mib(step.state.opt_state), sum(hlo.flops(jaxpr).values()), step


def test_a_locked_image_tower_has_neither_optimizer_state_nor_a_backward_pass():
    plain = '--config.model.remat=none', '--config.model.scan=False'
    whole, flops, step = planned(*plain)
    locked, fewer, _ = planned(*plain, "--config.optimizer.freeze=('lock_image',)")
    params = rules.paths(clip.shapes(step.model)['params'])
    held = sum(x.size for name, x in params.items() if name.startswith('image'))
    # Two float32 moments for each parameter.
    assert whole - locked == pytest.approx(held * 8 / 2**20, rel=1e-3)
    assert held / sum(x.size for x in params.values()) > 0.5
    image = _image_flops(step.model) * 8
    # The backward pass of the images, twice the forward one but for the patches, is gone.
    assert flops - fewer == pytest.approx(2 * image, rel=0.03)
    assert fewer < 0.55 * flops


def _image_flops(model):
    """FLOPs of the forward pass of one image."""
    size = model.image.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
    encode = jax.make_jaxpr(lambda v, x: model.apply(v, x, method='encode_image'))
    return sum(hlo.flops(encode(clip.shapes(model), images).jaxpr).values())
