"""Which attention runs is said before a run, for every kind of device; none need be here."""

import contextlib

import jax
import pytest
from support.small_models import MODELS

from clip_jax import sharding
from clip_jax.models import attention_choice, clip, cudnn_attention


def on(platform: str):
    """A mesh of one device that is not here."""
    if platform == 'none':
        return contextlib.nullcontext()
    kind = {'tpu': 'TPU v5 lite'}.get(platform, platform)
    device = jax.sharding.AbstractDevice(kind, num_cores=1, platform=platform)
    types = (jax.sharding.AxisType.Auto,) * 4
    return jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1, 1, 1, 1), sharding.AXES, types, abstract_device=device)
    )


def model(name: str = 'clip', dtype: str = 'bfloat16', attention: str = 'auto') -> clip.CLIP:
    fields = MODELS[name]
    text = {**fields['text'], 'context_length': 16}
    image = {'image_size': 80, 'heads': 1} if name != 'resnet' else {}
    fields = {**fields, 'text': text, 'image': {**fields['image'], **image}}
    return clip.from_card(fields, dtype, attention=attention)


NO_HEADS = 'heads of 12; expected a multiple of 8 '
CASES = [
    ('none', {}, 'xla (there is no kernel for cpu)', 'xla (there is no kernel for cpu)'),
    ('tpu', {}, 'short (on tpu)', f'xla (short: {NO_HEADS}from 32 to 128)'),
    ('gpu', {}, 'cudnn (on gpu)', f'xla (cudnn: {NO_HEADS}up to 128)'),
    ('cuda', {}, 'cudnn (on cuda)', f'xla (cudnn: {NO_HEADS}up to 128)'),
    *[
        ('gpu', {'dtype': 'float32'}, *[f'xla (cudnn: inputs in float32; {reason})'] * 2)
        for reason in ['expected bfloat16 or float16']
    ],
    ('gpu', {'attention': 'xla'}, 'xla', 'xla'),
]


@pytest.mark.parametrize(('platform', 'options', 'image', 'text'), CASES)
def test_the_attention_of_each_tower_is_said(monkeypatch, platform, options, image, text):
    # JAX asks for the version of cuDNN, which need not be here.
    monkeypatch.setattr(cudnn_attention, 'attend', lambda query, *_, **__: query)
    with on(platform):
        assert attention_choice.describe(model(**options), batch_size=4) == (
            f'attention: image {image} for 26 tokens, 1 heads of 32; '
            f'text {text} for 16 tokens, 2 heads of 12'
        )


def test_long_sequences_have_an_attention_of_their_own_on_tpu():
    large = model()
    large = large.clone(image=large.image.clone(image_size=528))
    with on('tpu'):
        said = attention_choice.describe(large, batch_size=4)
    assert 'image splash (on tpu) for 1090 tokens, 1 heads of 32; text xla (short: heads' in said


def test_what_is_traced_outside_is_not_listed():
    """Dropped patches count, blocks that are alike are said once, and a ResNet pools by XLA."""
    scaled, resnet = model('scaled'), model('resnet')
    with attention_choice.recorded() as choices:
        said = attention_choice.describe(scaled, batch_size=4)
    assert 'for 13 tokens' in said and said.count('image') == 1 and len(choices) == 4
    attention_choice.describe(scaled, batch_size=4)
    assert len(choices) == 4  # of which two are of the initialization
    assert 'image xla for 1 tokens, 2 heads' in attention_choice.describe(resnet, batch_size=2)


@pytest.mark.parametrize(
    ('platform', 'dtype', 'message'),
    [
        ('none', 'bfloat16', 'cudnn needs a CUDA GPU; JAX runs on cpu'),
        ('tpu', 'bfloat16', 'cudnn needs a CUDA GPU; JAX runs on tpu'),
        ('gpu', 'float32', 'cudnn: inputs in float32; expected bfloat16 or float16; choose auto'),
        ('gpu', 'bfloat16', 'cudnn: heads of 12; expected a multiple of 8 up to 128; choose auto'),
    ],
)
def test_cudnn_that_cannot_run_is_refused(monkeypatch, platform, dtype, message):
    monkeypatch.setattr(cudnn_attention, 'attend', lambda query, *_, **__: query)
    wanted = model(dtype=dtype, attention='cudnn')
    clip.shapes(wanted)  # initialization needs no kernel
    with on(platform), pytest.raises(ValueError, match=f'model.attention {message}'):
        attention_choice.describe(wanted, batch_size=4)
