"""Images are resized as torchvision does it, to the last bit of bytes."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.pictures import encode, smooth

from clip_jax.convert import _image_processor
from clip_jax.data.image import resampling
from clip_jax.data.preprocess import Preprocess, normalize

FLOAT = {'size': 6, 'resize': 'squash', 'interpolation': 'bilinear', 'resampling': 'float'}
_REST = (
    ([135, 146], [80, 154], [88, 99], [141, 82], [162, 120], [123, 197]),
    (
        *([135.222, 145.869], [80, 154], [88.131, 98.778]),
        *([141.515, 82.343], [162.576, 120.212], [123, 197]),
    ),
)
# Computed by torchvision 0.29: values [height, width] of bytes and of floats, both antialiased.
EXPECTED = {
    ('bilinear', 3, 4): (
        [[113, 110, 90, 92], [112, 104, 130, 122], [142, 144, 124, 121]],
        [
            [112.964, 110.417, 89.583, 91.607],
            [112.485, 104.201, 129.799, 121.515],
            [142.393, 144.417, 123.583, 121.036],
        ],
    ),
    ('bicubic', 3, 4): (
        [[110, 113, 87, 93], [118, 99, 135, 116], [141, 147, 121, 124]],
        [
            [110.144, 112.967, 86.922, 93.065],
            [117.541, 98.848, 135.152, 116.459],
            [140.935, 147.077, 121.033, 123.856],
        ],
    ),
    # 162.576 becomes 162: what comes between is rounded too.
    ('bilinear', 9, 2): (
        [[37, 111], [114, 72], [152, 93], *_REST[0]],
        [[37, 111], [113.788, 71.424], [151.657, 92.485], *_REST[1]],
    ),
}


@pytest.mark.parametrize('case', EXPECTED, ids=str)
def test_values_of_torchvision(case):
    name, height, width = case
    image = (np.arange(35).reshape(7, 5, 1) * 37 % 256).astype(np.uint8)
    rounded = resampling.resized(image, (width, height), name, rounded=True)
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded[..., 0], EXPECTED[case][0])
    floats = resampling.resized(image, (width, height), name, rounded=False)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats[..., 0], EXPECTED[case][1], atol=6e-4)


def test_an_image_of_the_size_does_not_change():
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    for rounded in (True, False):
        found = resampling.resized(image, (5, 5), 'bicubic', rounded=rounded)
        np.testing.assert_array_equal(found, image)


def test_floats_stay_floats_in_a_batch_and_in_a_card():
    rule = Preprocess(**FLOAT)
    found = rule(encode(smooth(20, 30)))
    assert found.dtype == rule.blank(2).dtype == np.float32 and found.shape == (6, 6, 3)
    assert np.abs(found - np.round(found)).max() > 0.1
    same = np.full((6, 6, 3), 7, np.uint8)
    assert rule(same).dtype == np.float32
    assert Preprocess.from_card(rule.card) == rule
    assert 'resampling' not in Preprocess(size=6).card


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'resampling': 'torch'}, "resampling: there is no 'torch'. Did you mean 'torchvision'"),
        ({'interpolation': 'lanczos'}, "float: interpolation: there is no 'lanczos'"),
        ({'resize': 'shortest'}, "resampling 'float' with resize 'shortest'"),
        ({'resize_to': (8, 8)}, r"resize_to \(8, 8\); expected 'squash' without a crop"),
    ],
)
def test_what_cannot_be_done_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**FLOAT | changes)


@pytest.mark.parametrize('name', ['Tipsv2ImageProcessor', 'DINOv3ViTImageProcessor'])
def test_a_processor_with_torchvision_alone_is_written_back(name, tmp_path):
    config = {'image_processor_type': name, 'size': {'height': 8, 'width': 8}}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(config))
    rule = _image_processor.read(tmp_path, 8, usual='CLIPImageProcessor')
    written = _image_processor.written(rule, siglip=False)
    assert written['image_processor_type'] == name
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(written))
    assert _image_processor.read(tmp_path, 8, usual='CLIPImageProcessor') == rule


@pytest.mark.reference
@pytest.mark.parametrize('name', ['Tipsv2ImageProcessor', 'DINOv3ViTImageProcessor'])
@pytest.mark.parametrize('shape', [(120, 200), (333, 90), (40, 31), (64, 64)])
def test_pixels_of_transformers(name, shape, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    theirs = getattr(transformers, name)(size={'height': 64, 'width': 64})
    theirs.save_pretrained(tmp_path)
    rule = Preprocess.from_card(_image_processor.read(tmp_path, 64, usual='CLIPImageProcessor'))
    encoded = encode(smooth(*shape))
    image = Image.open(io.BytesIO(encoded))
    expected = theirs(image, return_tensors='np')['pixel_values'][0]
    found = np.asarray(normalize(rule(encoded), rule.mean, rule.std)).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)
    if name == 'Tipsv2ImageProcessor':
        np.testing.assert_array_equal(np.round(found * 255), np.round(expected * 255))
