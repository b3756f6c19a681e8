"""karpathy: the images and captions of a split, as the published file lists them."""

import json

import pytest
from support.annotations import caption, error_of, karpathy_coco, picture

from clip_jax.data.errors import DataNotFound
from clip_jax.data.sources import open_source


def test_a_split_has_its_images_with_all_their_captions(tmp_path):
    spec = karpathy_coco(tmp_path)
    source = open_source(spec)
    assert [source[i] for i in range(len(source))] == [
        {
            'image': picture(k),
            'texts': [f'{caption(k)} number {n}' for n in range(5 + (k == 3))],
        }
        for k in (0, 3, 5, 8)
    ]
    assert source.where(1) == f'{tmp_path}/val2014/COCO_val2014_{3:012}.jpg'
    both = open_source(spec, split='train,restval')
    assert [both[i]['image'] for i in range(4)] == [picture(k) for k in (1, 4, 6, 9)]
    assert len(open_source(spec, split=('val', 'test'))) == 6
    first = open_source(spec, captions=5)
    assert [len(first[i]['texts']) for i in range(4)] == [5] * 4


def test_images_may_lie_in_one_folder_elsewhere(tmp_path):
    spec = karpathy_coco(tmp_path)
    flat = tmp_path / 'flat'
    flat.mkdir()
    for file in (tmp_path / 'val2014').iterdir():
        file.rename(flat / file.name)
    source = open_source(spec, root=str(flat))
    assert source[0]['image'] == picture(0) and source.where(0).startswith(f'{flat}/COCO_')


def test_flickr30k_has_no_folders(tmp_path):
    images = [{'filename': '1.jpg', 'split': 'test', 'sentences': [{'raw': 'a dog .'}]}]
    (tmp_path / 'dataset_flickr30k.json').write_text(json.dumps({'images': images}))
    (tmp_path / 'flickr30k-images').mkdir()
    (tmp_path / 'flickr30k-images/1.jpg').write_bytes(picture(1))
    source = open_source(f'karpathy:{tmp_path}/dataset_flickr30k.json')
    assert source[0] == {'image': picture(1), 'texts': ['a dog .']}


def test_missing_images_are_listed(tmp_path):
    spec = karpathy_coco(tmp_path)
    assert 'cannot list the folder of the images, /no/such' in error_of(spec, root='/no/such')
    for k in (3, 8):
        (tmp_path / f'val2014/COCO_val2014_{k:012}.jpg').unlink()
    said = error_of(spec)
    assert f'2 of 4 images are not in {tmp_path}; give their folder as root' in said
    assert all(f'COCO_val2014_{k:012}.jpg' in said for k in (3, 8)) and f'{0:012}' not in said
    (tmp_path / 'other').mkdir()
    with pytest.raises(DataNotFound, match=r'4 of 4 images are not in .*other'):
        open_source(spec, root=str(tmp_path / 'other'))


def test_a_wrong_split_file_or_layout(tmp_path):
    spec = karpathy_coco(tmp_path)
    said = error_of(spec, split='tset')
    assert "there is no 'tset'. Did you mean 'test'? There are: restval, test, train, val" in said
    assert 'split is' in error_of(spec, split='')
    assert 'captions is 1.5; expected a number' in error_of(spec, captions=1.5)
    file = tmp_path / 'other.json'
    for content, words in (
        ([1], 'a list of 1; expected an object'),
        ({'annotations': []}, 'expected an object with images, each with filename, split and'),
        ({'images': [{'file_name': 'x.jpg', 'id': 1}]}, 'such as dataset_coco.json'),
        ({'images': [{'filename': 'x', 'split': 'test', 'sentences': 'a'}]}, 'expected a list'),
    ):
        file.write_text(json.dumps(content))
        assert words in error_of(f'karpathy:{file}')
    file.write_text('{')
    assert 'not valid JSON' in error_of(f'karpathy:{file}')
    (tmp_path / 'more.json').write_text('{}')
    assert 'expected one' in error_of(f'karpathy:{tmp_path}/*.json')


def test_paths_that_leave_the_folder_are_refused(tmp_path):
    (tmp_path / 'secret.jpg').write_bytes(picture(0))
    (tmp_path / 'data').mkdir()
    images = [{'filename': '../secret.jpg', 'split': 'test', 'sentences': []}]
    (tmp_path / 'data/dataset.json').write_text(json.dumps({'images': images}))
    assert 'leaves the folder' in error_of(f'karpathy:{tmp_path}/data/dataset.json')
