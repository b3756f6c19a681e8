"""Images as training sees them: arrays too, upright, and refused where they are too small."""

import numpy as np
import pytest
from support.pictures import noise

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright


def test_arrays_are_images_too():
    array = noise(20, 30)
    assert upright.decode(array) is array
    assert upright.measure(array) == (20, 30)
    gray = upright.decode(array[:, :, 0])
    np.testing.assert_array_equal(gray, np.repeat(array[:, :, :1], 3, axis=2))
    for wrong in (array.astype(float), array[:, :, :2], array[None]):
        with pytest.raises(ValueError, match='an image array must be uint8'):
            upright.decode(wrong)
    for image in (noise(1, 30), noise(30, 1)):
        for use in (upright.decode, upright.measure):
            with pytest.raises(BadRecord, match='expected sides of at least 2') as error:
                use(image)
            assert error.value.kind == 'too_small'
