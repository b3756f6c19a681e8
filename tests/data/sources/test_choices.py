"""choices: the questions of published layouts, and their images."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import annotations
from support.annotations import caption, error_of, picture, pictures

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import open_source


def test_rows_by_key_share_images_and_are_grouped_by_file(tmp_path):
    source = open_source(annotations.sugar_crepe(tmp_path), root=str(tmp_path))
    rows = []
    for category in 'replace_obj', 'swap_att':
        found = json.loads((tmp_path / f'{category}.json').read_text()).values()
        rows += [(category, row) for row in found]
    assert len(source.questions) == len(rows) == 23
    assert len(source) == len({row['filename'] for _, row in rows}) < 23
    for question, (category, row) in zip(source.questions, rows, strict=True):
        (image,) = question.images
        assert source[image]['image'] == picture(int(row['filename'].removesuffix('.jpg')))
        assert row['caption'].strip() in source[image]['texts']
        assert question.texts == (row['caption'].strip(), row['negative_caption'])
        assert (question.matches, question.group) == (((0, 0),), category)


@pytest.mark.parametrize('kind', ['relation', 'attribution'])
def test_boxes_are_cut_as_pillow_does(tmp_path, kind):
    source = open_source(annotations.aro(tmp_path, kind))
    rows = json.loads((tmp_path / f'visual_genome_{kind}.json').read_text())
    outside = 0
    for question, row in zip(source.questions, rows, strict=True):
        whole = Image.open(io.BytesIO(picture(row['image_id'])))
        left, top = row['bbox_x'], row['bbox_y']
        right, bottom = left + row['bbox_w'], top + row['bbox_h']
        outside += right > whole.width or bottom > whole.height
        image = source[question.images[0]]['image']
        np.testing.assert_array_equal(image, np.asarray(whole.crop((left, top, right, bottom))))
        assert question.texts == (row['true_caption'], row['false_caption'])
    assert outside > 3
    groups = list(dict.fromkeys(question.group for question in source.questions))
    relations = list(annotations.RELATIONS)
    assert groups == (relations if kind == 'relation' else ['white_black', 'old_new'])


def test_images_in_parquet_are_read_from_their_row(tmp_path):
    source = open_source(annotations.order(tmp_path))
    assert len(source) == 16
    for n, question in enumerate(source.questions):
        assert source[question.images[0]]['image'] == picture(n % annotations.COUNT)
        assert len(question.texts) == 5 and question.texts[0] == caption(n % annotations.COUNT)
        assert question.group == 'test'
    assert source.where(9) == f'{tmp_path}/test-00001-of-00002.parquet: row 2: images'


def test_two_images_and_two_captions(tmp_path):
    source = open_source(annotations.winoground(tmp_path))
    for n, question in enumerate(source.questions):
        images = [source[i]['image'] for i in question.images]
        assert images == [picture(2 * n), picture(2 * n + 1)]
        assert question.texts == (caption(2 * n), caption(2 * n + 1))
        assert question.matches == ((0, 0), (1, 1))
        assert question.group == ('Object', 'Relation')[n % 2]


def test_a_cue_and_candidates(tmp_path):
    source = open_source(annotations.winogavil(tmp_path))
    assert len(source) == annotations.COUNT
    first, *others = source.questions
    assert first.texts == ('An azure',) and first.group == '5 candidates'
    assert others[0].texts[0].startswith('A ')
    words = [source.where(i).rpartition('/')[2].removesuffix('.jpg') for i in first.images]
    assert len(words) == 5 and set(words) < set(annotations.WORDS)


ROW = {'image': '0.png', 'caption': 'a', 'negative_caption': 'b'}
BOX = {'bbox_x': 0, 'bbox_y': 0, 'bbox_w': 9, 'bbox_h': 9}
WINOGAVIL = {'cue': 'x', 'candidates': '["0", "1"]', 'associations': '["1"]'}


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'image': '0.png', 'caption': 'a'}, 'has image, caption; expected an image'),
        ({**ROW, 'caption': 3}, 'caption is 3; expected a text'),
        ({**ROW, 'negative_caption': ' '}, "negative_caption is ' '; expected a text"),
        ({**ROW, 'negative_caption': ['b', None]}, 'negative_caption is None'),
        ({**ROW, 'image': 7}, 'image is 7; expected the name of an image file'),
        ({**ROW, **BOX, 'bbox_w': '9'}, "bbox_w is '9'; expected a number"),
        ({**ROW, **BOX, 'bbox_h': 0}, 'the box is 9 by 0 pixels'),
        ({**WINOGAVIL, 'candidates': '0,1'}, "candidates is '0,1'; expected a list of names"),
        ({**WINOGAVIL, 'associations': '["2"]'}, "associations: there is no '2'"),
        ({'image_0': '0.png', 'image_1': '1.png', 'caption_0': 'a'}, 'caption_1 is None'),
    ],
)
def test_rows_of_other_layouts(tmp_path, row, words):
    pictures(tmp_path, ['0.png', '1.png'])
    file = tmp_path / 'rows.jsonl'
    file.write_text(f'{json.dumps(ROW)}\n\n{json.dumps(row)}\n')
    said = error_of(f'choices:{file}')
    assert said.startswith(f'{file}: line 3: ') and words in said


def test_files_of_other_layouts(tmp_path):
    file = tmp_path / 'rows.json'
    for content, words in (
        ('[]', 'has no rows'),
        ('[3]', 'rows.json: 0 is 3; expected an object'),
        ('3', 'is 3; expected an object or a list'),
        ('[', 'not valid JSON'),
    ):
        file.write_text(content)
        assert words in error_of(f'choices:{file}')
    text = tmp_path / 'rows.txt'
    text.write_text('x')
    assert "extension: there is no '.txt'" in error_of(f'choices:{text}')
    broken = tmp_path / 'rows.parquet'
    broken.write_bytes(b'PAR1 no more')
    assert 'rows.parquet: cannot be read' in error_of(f'choices:{broken}')
    file.write_text(json.dumps([ROW, {**ROW, 'image': 'gone.png'}]))
    pictures(tmp_path, ['0.png'])
    assert f'1 of 2 images are not in {tmp_path}; give their folder as root: gone.png' in error_of(
        f'choices:{file}'
    )


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    pictures(tmp_path, ['0.png'])
    file = tmp_path / 'rows.jsonl'
    file.write_bytes(json.dumps(ROW).replace('"b"', '"caf%"').encode().replace(b'%', b'\xe9'))
    with pytest.raises(BadRecord, match=r'rows.jsonl: line 1: the caption is not UTF-8'):
        list(open_source(f'choices:{file}').questions)


def test_an_empty_image_in_parquet_is_a_bad_record(tmp_path):
    rows = [{'image': {'bytes': None, 'path': 'x'}, 'caption': 'a', 'negative_caption': 'b'}]
    kind = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
    schema = pa.schema({'image': kind, 'caption': pa.string(), 'negative_caption': pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / 'a.parquet')
    source = open_source(f'choices:{tmp_path}/a.parquet')
    with pytest.raises(BadRecord, match=r'a.parquet: row 1: image: has no image'):
        source[0]
