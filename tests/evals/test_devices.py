"""The scores of a model are the same for any batch size and on any number of devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from clip_jax import lookup, pretrained, sharding
from clip_jax.data.sources import Question

COUNT = 150
OPTIONS = {
    'zeroshot': {'templates': ['a {} picture', '{}']},
    'retrieval': {},
    'multilingual': {},
    'compositional': {},
}


class Noise:
    """Pictures of noise over a color, two captions of their own, a label and a question each."""

    label_names = ['red', 'green', 'blue', 'white', 'grid', 'tint']
    text_fields = ('first', 'second')

    @property
    def questions(self):
        texts = [self[i]['texts'] for i in range(COUNT)]
        return [
            Question((i, (i + 1) % COUNT), (texts[i][0], texts[i - 1][1]), ((0, 0), (1, 1)), 'all')
            for i in range(COUNT)
        ]

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, 3) + rng.integers(-90, 90, (16, 16, 3))
        texts = [''.join(rng.choice([*'abdeghilnrtu '], 9)) for _ in range(2)]
        fields = {name: [text] for name, text in zip(self.text_fields, texts, strict=True)}
        image = image.clip(0, 255).astype(np.uint8)
        return {'image': image, 'texts': texts, 'fields': fields, 'label': i % 6}

    def where(self, i):
        return f'noise {i}'


def scores(report):
    """What a report says except cosines, which encoders round differently."""
    parts = 'scores', 'counts', 'per_class', 'confusion', 'groups'
    return {part: report[part] for part in parts if part in report}


@pytest.mark.parametrize('name', [*OPTIONS])
def test_scores_do_not_depend_on_batch_size_and_devices(tiny_run, name):
    loaded = pretrained.load(tiny_run)
    evaluate = functools.partial(lookup.module('evals', name).evaluate, **OPTIONS[name])
    found = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        variables = jax.device_put(loaded.variables, sharding.replicated(mesh))
        for batch_size in (1, 7, 64):
            clip = dataclasses.replace(
                loaded, variables=variables, mesh=mesh, batch_size=batch_size
            )
            found.append(scores(evaluate(clip.encode_image, clip.encode_text, Noise())))
    assert all(other == found[0] for other in found)
    assert any(0 < score['value'] < 1 for score in found[0]['scores'].values())
