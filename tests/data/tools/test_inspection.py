"""inspect counts what is there, verify finds all that is bad; figures of it can be drawn."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.listed import Listed

from clip_jax.data.errors import BadRecord, Skipped
from clip_jax.data.tools import inspection
from clip_jax.reports import _style, dataset


def encoded(width: int, height: int, mode: str = 'RGB', format: str = 'JPEG', **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 77).save(file, format, **options)
    return file.getvalue()


GOOD = {'image': encoded(40, 30), 'texts': ['a cat']}
TRUNCATED = {'image': encoded(400, 300)[:-200], 'texts': ['a cat']}


def inspect(source, sample: int = 2000) -> dict:
    return inspection.inspect(source, sample=sample, threads=2)[0]


def verify(source, *, decode=True, threads=2, out=None) -> tuple[dict, list[str]]:
    said = []
    report = inspection.verify(source, decode=decode, threads=threads, out=out, say=said.append)
    return report, said


# inspect


def test_numbers_of_images_and_captions():
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new('RGB', (16, 16), color) for color in ('red', 'green', 'blue')]
    animated = io.BytesIO()
    frames[0].save(animated, 'GIF', save_all=True, append_images=frames[1:])
    source = Listed(
        [
            {'image': encoded(40, 20), 'texts': ['a cat', 'a dog there']},
            {'image': encoded(60, 30, exif=turned), 'texts': ['word ' * 100]},
            {'image': encoded(50, 50, 'CMYK'), 'texts': ['b']},
            {'image': encoded(20, 100, 'L', 'PNG'), 'texts': ['c' * 10]},
            {'image': animated.getvalue(), 'texts': ['d']},
            {'image': np.zeros((20, 30, 3), np.uint8), 'texts': ['e']},
        ],
        skipped={'truncated_tar': Skipped(1, ['a.tar'])},
    )
    report = inspect(source)
    assert json.loads(json.dumps(report)) == report
    assert (report['records'], report['sample'], report['bad']) == (6, 6, {})
    assert report['skipped'] == {'truncated_tar': {'count': 1, 'examples': ['a.tar']}}
    assert report['formats'] == {'JPEG': 3, 'PNG': 1, 'GIF': 1, 'array': 1}
    assert report['modes'] == {'RGB': 1, 'RGB, turned': 1, 'CMYK': 1, 'L': 1, 'P, animated': 1}
    # As they are seen: the second stands upright.
    assert report['width'] == {'min': 16, 'median': 30, '95%': 47.5, 'max': 50}
    assert report['height'] == {'min': 16, 'median': 35, '95%': 90, 'max': 100}
    assert (report['aspect']['min'], report['aspect']['max']) == (0.2, 2)
    assert report['captions'] == {'min': 1, 'median': 1, '95%': 1.75, 'max': 2}
    assert report['several_captions'] == 1
    assert (report['characters']['min'], report['characters']['max']) == (1, 500)
    assert report['beyond_77_tokens'] == pytest.approx(1 / 7)
    assert report['with_label'] == report['classes'] == 0
    assert report['read_per_second'] > 0
    assert report['decoded_per_second'] > 0


def test_captions_are_counted_by_field():
    both = {'caption': ['a', 'b'], 'synthetic': ['c']}
    source = Listed(
        [
            {**GOOD, 'texts': ['a', 'b', 'c'], 'fields': both},
            {**GOOD, 'texts': ['a'], 'fields': {'caption': ['a']}},
        ]
    )
    assert inspect(source)['fields'] == {}
    source.text_fields = ('caption', 'synthetic', 'swapped')
    assert inspect(source)['fields'] == {
        'caption': {'records': 2, 'captions': 3},
        'synthetic': {'records': 1, 'captions': 1},
        'swapped': {'records': 0, 'captions': 0},
    }
    one = Listed([{**GOOD, 'texts': ['a', 'b']}])
    one.text_fields = ('txt',)
    assert inspect(one)['fields'] == {'txt': {'records': 1, 'captions': 2}}


def test_a_text_of_77_tokens_is_not_beyond_them():
    # The start and the end token are two of them.
    shares = [
        inspect(Listed([{**GOOD, 'texts': ['cat ' * words]}]))['beyond_77_tokens']
        for words in (75, 76)
    ]
    assert shares == [0, 1]


def test_every_label_of_an_image_is_counted():
    examples = [{'image': GOOD['image'], 'labels': own} for own in ([0, 2], [2], [])]
    report = inspect(Listed([*examples, GOOD], ['cat', 'dog', 'cow']))
    assert report['bad'] == {'no_caption': 1}
    assert (report['with_label'], report['labels']) == (2, {'cow': 2, 'cat': 1})


def test_labels_are_counted_by_name():
    examples = [{'image': GOOD['image'], 'label': i % 3 - 1} for i in range(9)]
    report = inspect(Listed([*examples, GOOD], ['cat', 'dog', 'cow']))
    assert report['bad'] == {'no_caption': 3}
    assert (report['with_label'], report['classes']) == (6, 3)
    assert report['labels'] == {'cat': 3, 'dog': 3}
    assert inspect(Listed(examples))['labels'] == {'0': 3, '1': 3}


def test_bad_records_of_the_sample_are_named():
    examples = [GOOD, TRUNCATED, BadRecord('not_utf8', 'no text'), OSError('gone')] * 10
    report = inspect(Listed(examples))
    assert report['bad'] == {'truncated': 10, 'not_utf8': 10, 'error': 10}
    assert len(report['bad_records']) == inspection.LISTED
    assert report['bad_records'][2] == {
        'record': 3,
        'kind': 'error',
        'where': 'place 3',
        'message': 'place 3: gone',
    }


@pytest.mark.parametrize(('count', 'sample'), [(1000, 7), (1000, 600), (5, 10)])
def test_a_sample_is_spread_evenly(count, sample):
    seen = []

    class Seen(Listed):
        def __getitem__(self, i: int) -> dict:
            seen.append(i)
            return super().__getitem__(i)

    report, values, pictures = inspection.inspect(Seen([GOOD] * count), sample=sample, threads=3)
    assert seen.pop(0) == 0  # before the sample
    assert len(seen) == report['sample'] == len(values['width']) == min(count, sample)
    steps = np.diff([*sorted(seen), count])
    assert steps.min() >= count // min(count, sample)
    assert steps.max() <= -(-count // min(count, sample))
    assert len(pictures) == min(inspection.PICTURES, count, sample)


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(ValueError, match='sample is 0; expected at least 1'):
        inspect(Listed([GOOD]), sample=0)


# verify


def test_all_that_is_bad_is_listed_in_order(tmp_path):
    examples = [GOOD] * 100
    examples[90], examples[5] = BadRecord('damaged', 'no'), TRUNCATED
    examples[17] = {**GOOD, 'image': b''}
    examples[40] = RuntimeError('hash mismatch')
    files = []
    for threads in (1, 2, 5):
        out = tmp_path / 'new' / f'{threads}.jsonl'
        report, said = verify(Listed(examples), threads=threads, out=out)
        files.append(out.read_text())
        assert report['bad'] == {'truncated': 1, 'empty': 1, 'error': 1, 'damaged': 1}
        assert not report['all_usable']
        assert [line.split(':')[0] for line in said] == ['truncated', 'empty', 'error', 'damaged']
        assert said[2] == 'error: place 40: hash mismatch'
    assert files[0] == files[1] == files[2]
    listed = [json.loads(line) for line in files[0].splitlines()]
    assert [x['record'] for x in listed] == [5, 17, 40, 90]
    assert listed[3] == {
        'record': 90,
        'kind': 'damaged',
        'where': 'place 90',
        'message': 'place 90: no',
    }


def test_without_decoding_the_header_is_judged_alone():
    source = Listed([GOOD, TRUNCATED, {**GOOD, 'image': b'no image'}])
    assert verify(source)[0]['bad'] == {'truncated': 1, 'not_an_image': 1}
    assert verify(source, decode=False)[0]['bad'] == {'not_an_image': 1}


def test_people_are_told_of_the_first_only(tmp_path):
    report, said = verify(Listed([BadRecord('damaged', 'no')] * 50), out=tmp_path / 'x.jsonl')
    assert report['bad'] == {'damaged': 50}
    assert len(said) == inspection.LISTED
    assert len((tmp_path / 'x.jsonl').read_text().splitlines()) == 50


@pytest.mark.parametrize(
    ('kinds', 'usable'),
    [
        ([], True),
        (['other_file'], True),
        (['folder:x: other_file', 'hidden', 'repeated_folder'], True),
        (['truncated_tar'], False),
        (['other_file', 'tars:x: truncated_tar'], False),
    ],
)
def test_what_a_source_left_out_counts(kinds, usable):
    source = Listed([GOOD], skipped={kind: Skipped(1, ['x']) for kind in kinds})
    report, _ = verify(source)
    assert report['all_usable'] is usable
    assert [*report['skipped']] == kinds


def test_the_list_of_bad_records_is_all_or_nothing(tmp_path):
    out = tmp_path / 'x.jsonl'

    class Fails(Listed):
        def __getitem__(self, i):
            if i == 40:
                raise KeyError('a bug')
            raise BadRecord('damaged', 'no')

    with pytest.raises(KeyError):
        verify(Fails([GOOD] * 50), out=out)
    assert not [*tmp_path.iterdir()]
    report, _ = verify(Listed([BadRecord('damaged', 'no')]), out=out)
    assert report['bad'] == {'damaged': 1} and [*tmp_path.iterdir()] == [out]


def test_larger_images_are_bad_unless_the_limit_is_raised():
    source = Listed([GOOD])
    for use in inspect_up_to, verify_up_to:
        assert use(source, 1199)['bad'] == {'too_large': 1}
        assert use(source, 1200)['bad'] == {}


def inspect_up_to(source, max_pixels: int) -> dict:
    return inspection.inspect(source, sample=9, threads=1, max_pixels=max_pixels)[0]


def verify_up_to(source, max_pixels: int) -> dict:
    return inspection.verify(
        source, decode=True, threads=1, out=None, say=print, max_pixels=max_pixels
    )


# figures


def draw(source, folder) -> set[str]:
    report, values, pictures = inspection.inspect(source, sample=100, threads=2)
    dataset.write(folder, {'data': 'x:y', **report}, values, pictures)
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize('count', [1, 7, 40])
def test_figures_of_any_number_of_any_shapes(tmp_path, count):
    rng = np.random.default_rng(0)
    examples = [
        {
            'image': encoded(*map(int, rng.integers(16, 900, 2))),
            'texts': ['$ a long caption that goes on \u732b ' * int(rng.integers(1, 9))],
        }
        for _ in range(count)
    ]
    assert draw(Listed(examples), tmp_path) == {'contact_sheet.png', 'histograms.png'}
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert('L').getcolors()) > 100  # something is drawn


def test_pictures_with_labels_alone(tmp_path):
    source = Listed([{'image': GOOD['image'], 'label': 0}] * 3, ['cat'])
    assert draw(source, tmp_path) == {'contact_sheet.png', 'histograms.png'}


def test_nothing_to_draw(tmp_path):
    assert draw(Listed([BadRecord('damaged', 'no')]), tmp_path) == set()


def test_large_images_are_kept_small_in_the_proportions_they_have():
    pictures = inspection.inspect(
        Listed([{**GOOD, 'image': encoded(3000, 1500)}]), sample=1, threads=1
    )
    (picture,) = pictures[2]
    assert picture.image.shape == (160, 320, 3)


def test_a_picture_stands_on_its_caption():
    square = _style.in_square(np.zeros((2, 4, 3), np.uint8))
    assert square.shape == (4, 4, 3)
    assert (square[:2] == 255).all()
    assert (square[2:] == 0).all()
