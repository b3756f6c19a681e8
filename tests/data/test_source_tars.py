"""tars: samples are found, read and named exactly, and what cannot be read is refused in words."""

import gzip
import io
import os
import pathlib
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sources import open_source, tars

FLICKR = pathlib.Path(__file__).parents[3] / 'shared' / 'flickr8k'


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def write(path, members, tar_format=tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, 'w', format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # not whole: in the PAX format this puts a header before each member
            if tar_format != tarfile.PAX_FORMAT:
                info.mtime = 1
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def samples(first: int, count: int):
    for i in range(first, first + count):
        yield f'{i:05}.png', png(i)
        yield f'{i:05}.txt', f'picture {i}'.encode()


@pytest.fixture
def three_shards(tmp_path):
    for shard in (2, 0, 1):
        write(tmp_path / f'x-{shard:05}.tar', samples(10 * shard, 5))
    return tmp_path


@pytest.mark.parametrize(
    'tar_format', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_every_member_comes_back_as_written(tmp_path, tar_format):
    # A name of more than 100 characters is stored outside the header proper.
    long = 'folder.v1/' + 'n' * 95 + '/b'
    path = write(
        tmp_path / 'a.tar',
        [
            ('a.JPG', png(1)),
            ('a.txt', b' one \n\n two\r\n'),
            ('a.cls', b'17\n'),
            ('a.json', b'{}'),
            (f'{long}.webp', png(2)),
            (f'{long}.seg.png', b'not the image of this sample'),
            ('notes.txt', b'no image here'),
            ('c.png', png(3)),
            ('c.txt', 'sm\u00f8rrebr\u00f8d'.encode()),
        ],
        tar_format,
    )
    source = tars.source(path)
    assert [source[i] for i in range(len(source))] == [
        {'image': png(1), 'texts': ['one', 'two'], 'label': 17},
        {'image': png(2)},
        {'image': png(3), 'texts': ['sm\u00f8rrebr\u00f8d']},
    ]
    assert [source.where(i) for i in range(3)] == [
        f'{path}: a.JPG',
        f'{path}: {long}.webp',
        f'{path}: c.png',
    ]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    members = list(samples(0, 3))
    source = tars.source(write(tmp_path / 'a.tar', members[::2] + members[::-1][::2]))
    assert [source[i]['texts'] for i in range(3)] == [['picture 0'], ['picture 1'], ['picture 2']]


def test_the_same_key_in_two_folders_or_shards_is_two_samples(tmp_path):
    write(tmp_path / '0.tar', [('p/a.png', png(0)), ('q/a.png', png(1))])
    write(tmp_path / '1.tar', [('p/a.png', png(2))])
    source = tars.source(f'{tmp_path}/*.tar')
    assert [source[i]['image'] for i in range(len(source))] == [png(0), png(1), png(2)]


@pytest.mark.parametrize(
    'address', ['x-*.tar', 'x-{00000..00002}.tar', 'x-0000{2,0,1}.tar', '{y,x}-0000{0..2}.tar']
)
def test_globs_and_braces_give_all_shards_in_sorted_order(three_shards, address):
    if '{y' in address:
        for shard in range(3):
            write(three_shards / f'y-{shard:05}.tar', samples(100 + 10 * shard, 5))
    source = open_source(f'tars:{three_shards}/{address}')
    numbers = [int(source.where(i)[-9:-4]) for i in range(len(source))]
    assert numbers == sorted(numbers)
    assert len(source) == (30 if '{y' in address else 15)
    assert str(source) == f'tars:{three_shards}/{address}'


def test_options_choose_the_members(tmp_path):
    path = write(tmp_path / 'a.tar', [('a.tif', b'I'), ('a.caption', b'T'), ('a.id', b'3')])
    source = tars.source(path, image_exts=['tif'], text_exts=['caption'], label_ext='id')
    assert source[0] == {'image': b'I', 'texts': ['T'], 'label': 3}


def test_threads_and_pickled_copies_read_the_same_with_few_open_files(three_shards, monkeypatch):
    # One open shard at most, so that threads keep pulling it from under each other.
    monkeypatch.setattr(tars, '_OPEN_SHARDS', 1)
    source = tars.source(f'{three_shards}/x-*.tar')
    want = [source[i]['image'] for i in range(15)]
    order = np.random.default_rng(0).integers(15, size=600).tolist()
    before = len(os.listdir('/dev/fd'))
    for reader in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i, reader=reader: reader[i]['image'], order))
        assert got == [want[i] for i in order]
    assert len(os.listdir('/dev/fd')) <= before + 1
    with pytest.raises(IndexError, match='15 samples'):
        source[15]


def test_reading_the_index_skips_the_data(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.tar', [('a.png', bytes(10_000_000)), ('b.png', png(1))])
    read = []
    plain_open = open

    def counting_open(*args, **kwargs):
        file = plain_open(*args, **kwargs)

        class Counting(io.RawIOBase):
            seek, tell = file.seek, file.tell
            readable = seekable = lambda self: True

            def read(self, size):
                read.append(size)
                return file.read(size)

        return Counting()

    monkeypatch.setattr('builtins.open', counting_open)
    assert len(tars.source(path)) == 2
    assert 0 < sum(read) < 20_000


def test_no_match_names_the_glob_and_what_the_folder_holds(three_shards):
    with pytest.raises(ValueError, match=r'y-\*\.tar.*holds: x-00000\.tar, x-00001\.tar') as error:
        tars.source(f'{three_shards}/y-*.tar')
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=r'x-00003\.tar'):
        tars.source(f'{three_shards}/x-{{00000..00003}}.tar')
    with pytest.raises(ValueError, match='no file matches'):
        tars.source(f'{three_shards}')
    with pytest.raises(ValueError, match=f'{three_shards.name}.*x-00000'):
        tars.source(f'{three_shards}/missing/deep/*.tar')


def test_a_tar_without_images_says_what_it_has(tmp_path):
    path = write(tmp_path / 'a.tar', [('a.bmp', b'1'), ('a.txt', b'2'), ('b.bmp', b'3')])
    with pytest.raises(ValueError, match=r'\.jpg.*found: \.bmp \(2\), \.txt \(1\).*image_exts'):
        tars.source(path)


def test_empty_tars_are_refused(tmp_path, three_shards):
    write(three_shards / 'x-00003.tar', [])
    with pytest.raises(ValueError, match=r'x-00003\.tar: the tar is empty'):
        tars.source(f'{three_shards}/x-*.tar')
    (tmp_path / 'zero.tar').write_bytes(b'')
    with pytest.raises(ValueError, match=r'zero\.tar.*empty'):
        tars.source(f'{tmp_path}/zero.tar')


def test_compressed_tars_are_refused_by_content(tmp_path):
    path = write(tmp_path / 'a.tar', samples(0, 2))
    packed = tmp_path / 'packed.tar'
    packed.write_bytes(gzip.compress(pathlib.Path(path).read_bytes()))
    with pytest.raises(ValueError, match=r'packed\.tar: is compressed \(gzip\).*uncompressed'):
        tars.source(str(packed))


@pytest.mark.parametrize('where', ['data', 'header', 'not a tar', 'damaged header'])
def test_damage_is_an_error_that_names_the_shard(tmp_path, where):
    path = tmp_path / 'a.tar'
    write(path, [(f'{i}.png', bytes(3000)) for i in range(4)], tarfile.USTAR_FORMAT)
    data = path.read_bytes()
    member = 512 + 3072  # a header, and data filled up to whole blocks
    path.write_bytes(
        {
            'data': data[: 3 * member + 512 + 2000],
            'header': data[: 3 * member + 200],
            'not a tar': b'hello' * 1000,
            'damaged header': data[: 2 * member] + b'?' * 512 + data[2 * member + 512 :],
        }[where]
    )
    with pytest.raises(ValueError, match=r'a\.tar: truncated, damaged or not a tar') as error:
        tars.source(str(path))
    assert '\n' not in str(error.value)


def test_a_tar_that_ends_without_end_mark_is_read(tmp_path):
    path = tmp_path / 'a.tar'
    write(path, [(f'{i}.png', bytes(3000)) for i in range(4)], tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[: 4 * (512 + 3072)])
    assert len(tars.source(str(path))) == 4


def test_two_images_for_one_sample_and_bad_labels_are_refused(tmp_path):
    path = write(tmp_path / 'a.tar', [('a.png', png(0)), ('a.jpg', png(1))])
    with pytest.raises(ValueError, match=r'a\.tar.*a\.png and a\.jpg'):
        tars.source(path)
    assert len(tars.source(path, image_exts=['png'])) == 1
    path = write(tmp_path / 'b.tar', [('a.png', png(0)), ('a.cls', b'cat')])
    with pytest.raises(ValueError, match=r"b\.tar: a\.png.*whole number.*b'cat'"):
        tars.source(path)[0]


def test_a_shard_that_shrank_after_indexing_is_noticed(tmp_path):
    path = write(tmp_path / 'a.tar', samples(0, 2))
    source = tars.source(path)
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match=r'a\.tar: has become shorter'):
        source[1]


@pytest.mark.skipif(not FLICKR.exists(), reason='Flickr8k is not on this machine')
def test_flickr8k_shards_are_read_in_full():
    source = open_source(f'tars:{FLICKR}/train-{{00000..00005}}.tar')
    assert len(source) == 6000
    for i in (0, 1234, 5999):
        example = source[i]
        assert Image.open(io.BytesIO(example['image'])).size == (128, 128)
        assert len(example['texts']) == 5
        assert 'label' not in example
    with tarfile.open(FLICKR / 'train-00005.tar') as tar:
        last = [member for member in tar if member.name.endswith('.jpg')][-1]
        assert source[5999]['image'] == tar.extractfile(last).read()
        assert source.where(5999) == f'{FLICKR}/train-00005.tar: {last.name}'
