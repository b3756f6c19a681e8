import collections
import io
import itertools
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from clip_jax.data import shapes
from clip_jax.data.datasets.shapes_captions import ShapesCaptions

COUNT = 300


@pytest.fixture(scope='module')
def scenes() -> dict:
    return {split: [shapes.scene(split, i) for i in range(COUNT)] for split in shapes.SPLITS}


def test_every_color_and_every_shape_is_held_out_twice():
    assert len(set(shapes.HELD_OUT)) == 20
    words = collections.Counter(word for pair in shapes.HELD_OUT for word in pair.split())
    assert words == dict.fromkeys([*shapes.COLORS, *shapes.SHAPES], 2)


@pytest.mark.parametrize('split', ['train', 'test', 'test_seen'])
def test_held_out_pairs_are_neither_drawn_nor_named(scenes, split):
    named = re.compile('|'.join(shapes.HELD_OUT))
    for things, _, captions in scenes[split]:
        assert not {thing.pair for thing in things} & set(shapes.HELD_OUT)
        assert not named.search(' '.join(captions))


def test_heldout_split_is_balanced_over_the_held_out_pairs(scenes):
    pairs = collections.Counter(things[0].pair for things, *_ in scenes['test_heldout'][:200])
    assert pairs == dict.fromkeys(shapes.HELD_OUT, 10)


def test_about_an_eighth_of_the_training_pictures_have_two_objects(scenes):
    two = sum(len(things) == 2 for things, *_ in scenes['train'])
    assert 0.07 * COUNT < two < 0.19 * COUNT


def test_one_caption_of_five_says_more_than_color_shape_and_relation(scenes):
    details = [*shapes.SIZES, *shapes.TEXTURES[1:], 'background', 'middle', 'corner', 'at', 'on']
    more = re.compile(r'\b(' + '|'.join(details) + r')\b')
    share = np.mean([bool(more.search(c)) for *_, captions in scenes['train'] for c in captions])
    assert 0.12 < share < 0.24


@pytest.mark.parametrize('split', list(shapes.SPLITS))
def test_captions_are_five_and_name_the_main_object(scenes, split):
    for things, _, captions in scenes[split]:
        assert len(set(captions)) == 5
        for caption in captions:
            assert things[0].color in caption.split() or f'{things[0].color},' in caption
            assert things[0].shape in re.findall(r'\w+', caption)
            assert not re.search(r'\ba [aeiou]|\ban [^aeiouh]|[{}]|  ', caption), caption


def test_relations_and_places_in_captions_are_true(scenes):
    for things, _, captions in scenes['train']:
        (x, y), (x2, y2) = things[0].position, things[-1].position
        true = {'above': y < y2, 'below': y > y2, 'left of': x < x2, 'right of': x > x2}
        corner = {'top': y < 0.43, 'bottom': y > 0.57, 'left': x < 0.43, 'right': x > 0.57}
        relation = '(?:to the )?(above|below|left of|right of)'
        for caption in captions:
            for thing, expected in ((things[0], True), (things[-1], False)):
                if found := re.search(f'{thing.pair}(?: is)? {relation} an? ', caption):
                    assert true[found[1]] is expected, caption
            if found := re.search(f'{things[0].pair} and, {relation} it', caption):
                assert not true[found[1]], caption
            if found := re.search(f'^{relation} an? {things[-1].pair}', caption):
                assert true[found[1]], caption
            if found := re.search('in the (top|bottom) (left|right) corner', caption):
                assert corner[found[1]], caption
                assert corner[found[2]], caption


@pytest.mark.parametrize('split', ['train', 'test_heldout'])
def test_objects_stand_out_and_do_not_overlap(scenes, split):
    for things, backdrop, _ in scenes[split][:100]:
        empty = np.asarray(shapes.draw([], backdrop), np.float32)
        areas = []
        for thing in things:
            drawn = np.asarray(shapes.draw([thing], backdrop), np.float32)
            distance = np.linalg.norm(drawn - empty, axis=-1)
            areas.append(distance > 40)
            assert areas[-1].sum() > 40, thing
            assert np.median(distance[areas[-1]]) > 70, (thing, backdrop)
        assert len(areas) == 1 or not (areas[0] & areas[1]).any()


def test_every_two_objects_have_a_background_that_both_stand_out_from():
    kinds = itertools.product(shapes.COLORS, ('plain', 'striped'))
    things = [shapes.Thing(color, 'star', texture=texture) for color, texture in kinds]
    rng = np.random.default_rng(0)
    for pair in itertools.combinations_with_replacement(things, 2):
        tone = shapes._random_backdrop(rng, pair).tone
        assert shapes.contrast(tone, [thing.color for thing in pair]) >= shapes.CONTRAST


@pytest.mark.parametrize('texture', shapes.TEXTURES)
def test_texture_keeps_the_color_recognizable(texture):
    for name, color in shapes.COLORS.items():
        thing = shapes.Thing(name, 'square', size=0.8, texture=texture)
        mean = np.asarray(shapes.draw(thing))[20:44, 20:44].mean((0, 1))
        others = [shapes.COLORS[other] for other in shapes.COLORS if other != name]
        assert np.linalg.norm(mean - color) < min(np.linalg.norm(mean - o) for o in others)


def test_shapes_differ_even_when_small_and_turned():
    def area(shape, rotation):
        thing = shapes.Thing('black', shape, size='small', rotation=rotation)
        return np.asarray(shapes.draw(thing).convert('L')) < 128

    for one, other in itertools.combinations(shapes.SHAPES, 2):
        for turn in (-15, 0, 15):
            assert (area(one, 0) ^ area(other, turn)).sum() > 25, (one, other)


def test_an_example_depends_on_split_and_number_alone():
    once = [shapes.example('train', i) for i in range(5)]
    again = [shapes.example('train', i) for i in reversed(range(5))][::-1]
    assert once == again
    assert len({e['image'] for e in once}) == 5
    assert shapes.example('test', 0)['image'] != once[0]['image']


def test_pictures_are_small_and_labeled_where_there_is_one_object():
    for i in range(20):
        example = shapes.example('train', i)
        things, *_ = shapes.scene('train', i)
        assert Image.open(io.BytesIO(example['image'])).size == (64, 64)
        label = example['label']
        assert label == -1 if len(things) == 2 else shapes.PAIRS[label] == things[0].pair


def test_draw_takes_words_and_objects_at_any_size():
    things = ['small striped red star', shapes.Thing('blue', 'ring', position=(0.8, 0.2))]
    picture = shapes.draw(things, 'checkered', size=96)
    assert picture.size == (96, 96)
    assert picture.mode == 'RGB'
    assert shapes.draw('red star') == shapes.draw([shapes.Thing('red', 'star')])
    assert shapes.draw('red star') != shapes.draw('large red star')


@pytest.mark.parametrize(
    ('wrong', 'there'),
    [('rad star', 'red'), ('red stars', 'star'), ('tiny red star', 'small'), ('star', 'red star')],
)
def test_draw_names_what_there_is(wrong, there):
    with pytest.raises(ValueError, match=rf'\b{there}\b'):
        shapes.draw(wrong)


def test_draw_refuses_sizes_in_pixels_and_unknown_backgrounds():
    with pytest.raises(ValueError, match='fraction'):
        shapes.Thing('red', 'star', size=20)
    with pytest.raises(ValueError, match='striped'):
        shapes.draw('red star', 'stripes')


def test_the_builder_stores_the_examples_in_order(tmp_path):
    builder = ShapesCaptions(data_dir=tmp_path)
    few = tfds.download.DownloadConfig(max_examples_per_split=20)
    builder.download_and_prepare(download_config=few)
    builder = tfds.builder_from_directory(builder.data_dir)
    assert set(builder.info.splits) == set(shapes.SPLITS)
    assert builder.info.features['label'].names == shapes.PAIRS
    skip = {'image': tfds.decode.SkipDecoding()}
    stored = builder.as_data_source('train', decoders=skip)
    assert len(stored) == 20
    labels = set()
    for i in range(20):
        example = shapes.example('train', i)
        assert stored[i]['image'] == example['image']
        assert [text.decode() for text in stored[i]['captions']] == example['captions']
        assert stored[i]['label'] == example['label']
        labels.add(example['label'] < 0)
    assert labels == {True, False}
    assert builder.as_data_source('train')[0]['image'].shape == (64, 64, 3)
