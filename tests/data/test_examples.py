"""Training examples: bad records give way to others."""

import numpy as np
from support.listed import Listed

from clip_jax.data import examples
from clip_jax.data.augment import Augment
from clip_jax.data.captions import Captions


def test_images_above_the_limit_are_replaced():
    large, small = np.full((20, 20, 3), 9, np.uint8), np.full((19, 21, 3), 7, np.uint8)
    source = Listed([{'image': image, 'texts': ['a']} for image in (large, small)])
    image, bad = np.zeros((8, 8, 3), np.uint8), np.full(examples.TRIES, -1)
    make = {'seed': 0, 'augment': Augment(), 'filter': examples.Filter(), 'captions': Captions()}
    for limit, shade in (400, 9), (399, 7):
        maker = examples.ExampleMaker(source, **make, parts=((0, 2),), max_pixels=limit)
        maker(0, 0, image, bad)
        assert (image == shade).all()
    assert {(0, 'too_large')} == {*examples.bad_records(bad)}
