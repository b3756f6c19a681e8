"""What a fine-tuning adds to a step is the same on any mesh, over 20 steps."""

import functools

import jax
import numpy as np
import pytest
from support.small_training import CARDS, batch, setup
from test_teachers import teacher

from clip_jax.step.teachers import Teachers

pytestmark = pytest.mark.slow

MESHES = {
    'data': {'devices': 8},
    'fsdp': {'devices': 8, 'fsdp': 4, 'shard_optimizer': True},
    'tensor': {'devices': 8, 'tensor': 2},
    'microbatches': {'devices': 8, 'fsdp': 2, 'tensor': 2, 'microbatches': 2},
}
FEATURES = {
    'rules': {
        'optimizer': {
            'freeze': ['lock_image:1'],
            'rules': [
                {'path': 'text/.*', 'lr_mult': 0.5, 'weight_decay': 0.3},
                {'path': 'image_projection/.*', 'unfreeze_at': 5, 'schedule': {'name': 'linear'}},
            ],
            'layer_decay': {'text': 0.8},
        }
    },
    'average': {'decay': 0.9},
    'stable adamw': {'optimizer': {'update_clip': 1.0, 'schedule': {'name': 'wsd'}}},
    'lamb': {'optimizer': {'name': 'lamb'}},
    'schedule-free': {'optimizer': {'name': 'schedule_free', 'schedule': {'name': 'constant'}}},
    'sgd': {'optimizer': {'name': 'sgd', 'schedule': {'name': 'rsqrt'}}},
    'captions and negatives': {'captions': 2, 'loss': {'dims': (8, 16)}},
    'sigmoid': {'captions': 2, 'loss': {'name': 'sigmoid', 'implementation': 'ring'}},
    'teacher': {'teachers': True},
}


def train(devices, *, captions=1, teachers=False, **how):
    """Losses of 20 steps with dropout, and the trees that they change."""
    if teachers:
        one, variables = teacher()
        how |= {
            'teachers': Teachers(0.5, {'large': one}),
            'teacher_variables': {'large': variables},
        }
    how = {'learning_rate': 1e-4, 'card': CARDS['vit'], 'captions': captions, **how}
    state, step, put = setup(devices, **how)
    losses = []
    for i in range(20):
        data = batch(i, 32)
        if captions > 1:  # and hard negatives
            texts = [np.roll(data['tokens'], j, axis=1) for j in range(captions + 1)]
            data['tokens'] = np.stack(texts, axis=1)
        state, numbers = step(state, put(data))
        losses.append(float(numbers['loss']))
    return losses, (state.params, state.ema)


@functools.cache
def on_one_device(feature):
    return train(1, **FEATURES[feature])


@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('feature', FEATURES)
def test_twenty_steps_are_those_of_one_device(feature, mesh):
    losses, trees = on_one_device(feature)
    others, other = train(**MESHES[mesh], **FEATURES[feature])
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(check, jax.device_get(other), jax.device_get(trees))
