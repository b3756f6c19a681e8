"""tars: samples are found, read and named exactly; damage is counted, and the index is kept."""

import concurrent.futures
import errno
import gzip
import http.server
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from PIL import Image

from clip_jax.data.errors import BadRecord, Skipped
from clip_jax.data.sources import (
    _tar_files,
    _tar_format,
    _tar_index,
    _tar_samples,
    _tar_shards,
    open_source,
    tars,
)
from clip_jax.data.sources._tar_index import Part, Shard, row_type
from clip_jax.runtime import progress

FLICKR = pathlib.Path(__file__).parents[4] / 'shared' / 'flickr8k'


ROLES = _tar_samples.roles(['png'], ['txt'], 'cls', [])
ROW = row_type(ROLES)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> pathlib.Path:
    """The folder of indices of one test."""
    home = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(home))
    return home / 'clip_jax' / 'tars'


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def write(path, members, tar_format=tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, 'w', format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            # Not whole: in the PAX format this puts a header before each member.
            info.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            if isinstance(data, bytes):
                info.size = len(data)
            else:  # a link, a device, a folder
                info.type, info.linkname = data
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
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


def test_several_numbers_are_several_labels(tmp_path):
    members = ('3 17\n', '5\r\n2\r\n', '4')
    path = tmp_path / 'a.tar'
    write(
        path,
        [
            x
            for i, m in enumerate(members)
            for x in ((f'{i}.png', png(i)), (f'{i}.cls', m.encode()))
        ],
    )
    source = tars.source(str(path))
    assert [source[i] for i in range(3)] == [
        {'image': png(0), 'labels': [3, 17]},
        {'image': png(1), 'labels': [5, 2]},
        {'image': png(2), 'label': 4},
    ]


def test_members_of_a_sample_need_not_be_neighbors(tmp_path):
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
    monkeypatch.setattr(_tar_files, '_MOST', 1)
    source = tars.source(f'{three_shards}/x-*.tar')
    want = [source[i]['image'] for i in range(15)]
    order = np.random.default_rng(0).integers(15, size=600).tolist()
    before = len(os.listdir('/dev/fd'))
    for reader in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i, reader=reader: reader[i]['image'], order))
        assert got == [want[i] for i in order]
    # The copy has opened the index and a shard.
    assert len(os.listdir('/dev/fd')) <= before + 2
    with pytest.raises(IndexError, match='15 samples'):
        source[15]


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    for shard in range(60):
        write(tmp_path / f'{shard:02}.tar', samples(shard, 1))
    sources = [tars.source(f'{tmp_path}/*.tar') for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir('/dev/fd')))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 25, limits[1]))
    try:
        again = tars.source(f'{tmp_path}/*.tar', index_dir=str(tmp_path / 'other'))
        for source in [*sources, again]:
            assert [source[i]['image'] for i in range(60)] == [png(i) for i in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_unreadable_shard_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.tar', samples(0, 2))
    source = tars.source(path)

    def fail(*_):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(os, 'pread', fail)
    with pytest.raises(OSError, match=r'Input/output error.*a\.tar') as error:
        source[1]
    assert error.value.filename == path
    assert source.where(1).startswith(f'{path}: image at byte')
    with pytest.raises(OSError, match=r'Input/output error.*a\.tar'):
        tars.source(path, index_dir=str(tmp_path))


def test_reading_the_index_skips_the_data(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.tar', [('a.png', bytes(10_000_000)), ('b.png', png(1))])
    read = []
    pread = os.pread

    def counting(number, size, offset):
        read.append(size)
        return pread(number, size, offset)

    monkeypatch.setattr(os, 'pread', counting)
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


@pytest.mark.parametrize('data', [b'hello' * 1000, b'hello', bytes(8) + b'?' * 700])
def test_what_is_no_tar_is_refused(tmp_path, three_shards, data):
    (three_shards / 'x-00003.tar').write_bytes(data)
    with pytest.raises(ValueError, match=r'x-00003\.tar: is not a tar') as error:
        tars.source(f'{three_shards}/x-*.tar')
    assert '\n' not in str(error.value)


def random_tar(rng: random.Random) -> bytes:
    """A tar of members of all types and lengths, with long names and other extra headers."""
    file, tar_format = io.BytesIO(), rng.choice([0, 1, 2])
    with tarfile.open(fileobj=file, mode='w', format=tar_format) as tar:
        for i in range(rng.randint(1, 8)):
            name = rng.choice(['a', 'x' * 90, 'y' * 120 + '/z', 'd/' * 60 + 'k', 'sm\u00f8r'])
            info = tarfile.TarInfo(f'{name}{i}.jpg')
            info.type = rng.choice([*([tarfile.REGTYPE] * 6), *tarfile.SUPPORTED_TYPES[1:8]])
            # The standard library takes a file of the old type for a folder if its name has a
            # slash just where the short form of the name ends.
            if info.type == tarfile.AREGTYPE and len(name) > 90:
                info.type = tarfile.REGTYPE
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000])) if info.isreg() else b''
            info.size, info.mtime = len(data), rng.choice([0, 1.5])
            info.linkname = (
                rng.choice(['', 'l' * (90 if tar_format == tarfile.USTAR_FORMAT else 150)])
                if info.issym() or info.islnk()
                else ''
            )
            if tar_format == tarfile.PAX_FORMAT and rng.random() < 0.3:
                info.pax_headers = {'comment': 'c' * rng.choice([5, 3000])}
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def walk(data: bytes) -> tuple[list[_tar_format.Member], str]:
    """The members of a tar, and the kind of damage at which the walk ended."""
    members = []
    try:
        for member in _tar_format.members(lambda at, size: data[at : at + size], len(data)):
            members.append(member)
    except _tar_format.Unreadable as stop:
        return members, stop.kind
    return members, ''


def test_members_are_those_that_the_standard_library_finds():
    rng = random.Random(0)
    for _ in range(300):
        data = random_tar(rng)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            want = [(m.name, m.offset, m.offset_data, m.size, m.isreg(), m.isdir()) for m in tar]
        members, damage = walk(data)
        assert not damage
        assert want == [
            (m.name.rstrip('/'), m.header, m.offset, m.size, m.kind == 'file', m.kind == 'folder')
            for m in members
        ]


def header(name: bytes, size: int | bytes = 0, kind: bytes = b'0', **fields: bytes) -> bytes:
    """One block of a tar; `sum` and `rest`, what follows the link's name, can be set."""
    size = size if isinstance(size, bytes) else b'%011o\0' % size
    rest = fields.get('rest', b'ustar\x0000')
    block = name.ljust(100, b'\0') + bytes(24) + size + bytes(20) + kind + bytes(100) + rest
    block = block.ljust(512, b'\0')
    total = fields.get('sum', b'%06o\0 ' % (256 + sum(block)))
    return block[:148] + total + block[156:]


def block(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b'\0')


def test_rare_headers_are_understood():
    pax = b'22 GNU.sparse.major=1\n'
    # GNU's own format has other things where the POSIX format has the beginning of a name.
    gnu = b'ustar  \0' + bytes(80) + b'12345670123'
    high = b'\xe9' * 20  # Latin 1, whose bytes old programs added up as negative numbers
    signed = 256 + sum(header(high)[:148]) + sum(header(high)[156:]) - 20 * 256
    data = [
        header(b'global', len(pax), b'g') + block(pax),
        header(b'old folder/', 0, b'\0', rest=b''),
        header(b'old', 3, b'\0', rest=b'') + block(b'abc'),
        header(b'gnu', 3, rest=gnu) + block(b'abc'),
        header(b'link', 3, b'1'),
        header(high, sum=b'%06o\0 ' % signed),
        header(b'', len(pax), b'x') + block(pax) + header(b'holes', 3) + block(b'abc'),
        header(b'last'),
    ]
    members, damage = walk(b''.join(data))
    assert [(m.name, m.kind, m.size) for m in members] == [
        ('old folder/', 'folder', 0),
        ('old', 'file', 3),
        ('gnu', 'file', 3),
        ('link', 'other', 0),
        ('\ufffd' * 20, 'file', 0),
        ('holes', 'other', 3),
        ('last', 'file', 0),
    ]
    assert not damage


@pytest.mark.parametrize(
    'bad',
    [
        header(b'a', b'-0000000512\0'),
        header(b'a', b'\xff' * 12),
        header(b'a', b'x' * 12),
        header(b'a', sum=b'0000001\0'),
        header(b'', 512, b'x') + block(b'13 size=-512\n'),
        header(b'', 512, b'x') + block(b'0 path=a\n'),
        header(b'', 512, b'x') + block(b'-3 path=a\n'),
        header(b'', 512, b'x') + block(b'9' * 500),
        header(b'', 2 << 20, b'L') + bytes(2 << 20),
    ],
)
def test_impossible_headers_end_the_walk(bad):
    members, damage = walk(header(b'first') + bad + header(b'last'))
    assert [member.name for member in members] == ['first']
    assert damage == 'damaged_shard'


def test_a_pax_header_of_many_records_takes_time_in_proportion_to_its_size():
    data = b'4 =\n' * (1 << 18)
    start = time.perf_counter()
    members, damage = walk(header(b'', len(data), b'x') + data + header(b'last'))
    assert time.perf_counter() - start < 3
    assert [member.name for member in members] == ['last'] and not damage


def test_damage_is_added_up_over_shards(tmp_path):
    for shard in range(3):
        lost = [(f'{i}.txt', b'') for i in range(3)]
        write(tmp_path / f'{shard}.tar', [('a.png', b''), *lost])
    count, examples = tars.source(f'{tmp_path}/*.tar').skipped['caption_without_image']
    assert count == 9
    assert examples == [f'{tmp_path}/{i // 3}.tar: {i % 3}.txt' for i in range(5)]


def test_of_a_shard_cut_anywhere_the_whole_members_before_the_cut_remain():
    rng = random.Random(1)
    for _ in range(300):
        data = random_tar(rng)
        whole, _ = walk(data)
        cut = rng.randrange(512, len(data))
        cut = rng.choice([cut, cut // 512 * 512])
        members, damage = walk(data[:cut])
        assert members == [m for m in whole if m.offset + m.size <= cut]
        # Where a member ends a shard may end too, and behind the last one there are only zeros.
        ends = [m.offset + -(-m.size // 512) * 512 for m in whole]
        assert damage == ('' if cut in ends or cut >= ends[-1] else 'truncated_shard')


def test_no_damage_of_any_byte_breaks_the_walk():
    rng = random.Random(2)
    for _ in range(300):
        data = bytearray(random_tar(rng))
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        members, damage = walk(bytes(data))
        assert damage in ('', 'truncated_shard', 'damaged_shard', 'bytes_after_end')
        assert all(0 <= m.header < m.offset <= m.offset + m.size <= len(data) for m in members)


@pytest.mark.parametrize(
    ('where', 'usable', 'skipped'),
    [
        ('data', 3, {'truncated_shard': 'it ends at byte 13264, in'}),
        ('header', 3, {'truncated_shard': 'it ends at byte 10952, in a header'}),
        ('damaged header', 2, {'damaged_shard': 'no tar header at byte 7168'}),
        ('damaged name', 2, {'damaged_shard': 'no tar header at byte 7168'}),
    ],
)
def test_a_damaged_shard_is_used_as_far_as_it_goes(tmp_path, three_shards, where, usable, skipped):
    path = three_shards / 'x-00003.tar'
    write(path, [(f'{i}.png', bytes([i]) * 3000) for i in range(4)], tarfile.USTAR_FORMAT)
    data = path.read_bytes()
    member = 512 + 3072  # a header, and data filled up to whole blocks
    path.write_bytes(
        {
            'data': data[: 3 * member + 512 + 2000],
            'header': data[: 3 * member + 200],
            'damaged header': data[: 2 * member] + b'?' * 512 + data[2 * member + 512 :],
            'damaged name': data[: 2 * member] + b'3' + data[2 * member + 1 :],
        }[where]
    )
    source = tars.source(f'{three_shards}/x-*.tar')
    assert [source[i]['image'] for i in range(15, len(source))] == [
        bytes([i]) * 3000 for i in range(usable)
    ]
    assert source.skipped.keys() == skipped.keys()
    for kind, (count, examples) in source.skipped.items():
        assert count == 1
        assert examples[0].startswith(f'{path}: {skipped[kind]}')


def test_a_damaged_pax_header_ends_a_shard(tmp_path):
    path = pathlib.Path(write(tmp_path / 'a.tar', samples(0, 2)))
    data = path.read_bytes()
    second = data.index(b'mtime=', data.index(b'mtime=') + 1)
    for broken in (b'mtime ', b'mtime=\xff\xff'):
        path.write_bytes(data[: second - 3] + b'99 ' + broken + data[second + len(broken) :])
        assert tars.source(str(path)).skipped['damaged_shard'].count == 1


def test_what_can_be_in_no_sample_is_counted(tmp_path):
    unsafe = ['/etc/a.png', '../b.png', 'c/../../d.png', 'C:\\e.png', 'f\x9bg.png', 'h\\..\\i.png']
    path = write(
        tmp_path / 'a.tar',
        [
            ('folder', (tarfile.DIRTYPE, '')),
            ('link.png', (tarfile.SYMTYPE, '/etc/passwd')),
            ('link.txt', (tarfile.LNKTYPE, 'a.png')),
            ('pipe.png', (tarfile.FIFOTYPE, '')),
            ('device.png', (tarfile.CHRTYPE, '')),
            *((name, png(9)) for name in unsafe),
            ('..png', png(9)),  # a hidden file
            ('a.txt', b'alone'),
            ('b.txt', b'second'),
            ('b.png', png(0)),
            ('b.jpg', png(1)),
            ('b.txt', b'third'),
            ('c..d/e.png', png(2)),
        ],
    )
    source = tars.source(path)
    assert [source[i] for i in range(len(source))] == [
        {'image': png(0), 'texts': ['second']},
        {'image': png(2)},
    ]
    counts = {kind: found.count for kind, found in source.skipped.items()}
    assert counts == {
        'not_a_file': 4,
        'unsafe_name': 6,
        'caption_without_image': 1,
        'duplicate_member': 2,
        'other_file': 1,
    }
    assert source.skipped['duplicate_member'] == Skipped(2, [f'{path}: b.jpg', f'{path}: b.txt'])
    assert source.skipped['caption_without_image'].examples == [f'{path}: a.txt']
    assert len(source.skipped['unsafe_name'].examples) == 5
    assert source.skipped['unsafe_name'].examples[4] == f"{path}: 'f\\x9bg.png'"
    # The same from the cache.
    assert tars.source(path).skipped == source.skipped
    assert len(tars.source(path, image_exts=['png'], index_dir=str(tmp_path / 'i'))) == 2


def test_a_name_with_a_null_byte_is_unsafe(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for name in ('a.png', 'b.png'):
            info = tarfile.TarInfo(name)
            info.pax_headers = {'path': 'a\0.png'} if name == 'a.png' else {}
            tar.addfile(info)
    source = tars.source(str(path))
    assert len(source) == 1
    assert source.skipped['unsafe_name'].examples == [f"{path}: 'a\\x00.png'"]


def test_a_file_with_holes_is_no_file_and_what_follows_it_is_found(tmp_path):
    path = tmp_path / 'a.tar'
    write(path, [('a.png', bytes(3000)), ('b.png', png(1))], tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    # GNU's type for them; a block more of the map of holes follows the header.
    data[156:157], data[482] = b'S', 1
    data[148:156] = b'%06o\0 ' % (256 + sum(data[:148]) + sum(data[156:512]))
    path.write_bytes(bytes(data[:512]) + bytes(512) + bytes(data[512:]))
    source = tars.source(str(path))
    assert [source[i]['image'] for i in range(len(source))] == [png(1)]
    assert source.skipped.keys() == {'not_a_file'}


def test_sizes_that_the_index_cannot_hold_are_refused_or_left_out():
    block = bytearray(tarfile.TarInfo('a.png').tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b'\x80' + (3 << 30).to_bytes(11, 'big')
    block[148:156] = b'%06o\0 ' % (256 + sum(block[:148]) + sum(block[156:]))
    headers = {0: bytes(block), 512 + (3 << 30): tarfile.TarInfo('b.png').tobuf()}
    read = lambda offset, size: headers.get(offset, bytes(size))  # noqa: E731
    part = _tar_index.scan(Shard('x.tar', (3 << 30) + 4096, ''), read, {'png': 'image'})
    assert part.skipped == {'too_large_member': Skipped(1, ['x.tar: a.png'])}
    assert part.rows['image'].tolist() == [2 + (3 << 30) // 512]
    with pytest.raises(ValueError, match=r'x\.tar.*2 TiB.*Split'):
        _tar_index.scan(Shard('x.tar', 3 << 40, ''), read, {'png': 'image'})


def test_an_image_without_bytes_or_text_is_still_a_sample(tmp_path):
    path = write(tmp_path / 'a.tar', [('a.png', b''), ('b.png', b''), ('b.txt', b'')])
    source = tars.source(path)
    os.remove(path)  # there is nothing to read
    assert [source[0], source[1]] == [{'image': b''}, {'image': b'', 'texts': []}]


def test_names_behind_very_long_headers_are_given_up_but_the_image_is_read(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for size in (100_000, 200_000):
            info = tarfile.TarInfo(f'{size}.png')
            info.size, info.pax_headers = len(png(1)), {'comment': 'c' * size}
            tar.addfile(info, io.BytesIO(png(1)))
    source = tars.source(str(path))
    assert [source[i]['image'] for i in range(2)] == [png(1), png(1)]
    assert source.where(0) == f'{path}: 100000.png'
    assert source.where(1).startswith(f'{path}: image at byte ')


def test_a_tar_that_ends_without_end_mark_is_read(tmp_path):
    path = tmp_path / 'a.tar'
    write(path, [(f'{i}.png', bytes(3000)) for i in range(4)], tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[: 4 * (512 + 3072)])
    source = tars.source(str(path))
    assert len(source) == 4
    assert not source.skipped


def test_bad_labels_are_refused(tmp_path):
    for i, label in enumerate((b'cat', b'1 cat', b' ')):
        path = write(tmp_path / f'{i}.tar', [('a.png', png(0)), ('a.cls', label)])
        with pytest.raises(ValueError, match=rf"{i}\.tar: a\.png.*integer label.*'[1 cat]+'"):
            tars.source(path)[0]
    path = write(tmp_path / 'long.tar', [('a.png', png(0)), ('a.cls', b'1' * (1 << 16 | 2))])
    with pytest.raises(ValueError, match=r'a\.png: expected a label of less than 65535 bytes'):
        tars.source(path)[0]


def test_a_caption_that_is_no_utf8_is_a_bad_record(tmp_path):
    path = write(tmp_path / 'a.tar', [('a.png', png(0)), ('a.txt', b'caf\xe9')])
    with pytest.raises(BadRecord, match='not UTF-8 at byte 3') as error:
        tars.source(path)[0]
    assert error.value.kind == 'not_utf8'


def test_json_members_give_one_field_as_text(tmp_path):
    fields = [
        {'caption': ' one\ntwo ', 'alt': 'x'},
        {'caption': ['one', ' two ', ' ']},
        {'caption': None},
    ]
    members = [(f'{i}.{ext}', b'') for i in range(3) for ext in ('png', 'json')]
    members = [(n, json.dumps(fields[int(n[0])]).encode() if 'j' in n else b'') for n, _ in members]
    # A plain text beside one without the field.
    members += [('3.png', b''), ('3.txt', b'{"caption": 1}'), ('3.json', b'{}')]
    path = write(tmp_path / 'a.tar', members)
    source = tars.source(path, text_exts=('txt', 'json'))
    assert [source[i].get('texts') for i in range(4)] == [
        ['one\ntwo'],
        ['one', 'two'],
        None,
        ['{"caption": 1}'],
    ]
    assert tars.source(path, text_exts=['json'], json_key='alt')[0]['texts'] == ['x']
    several = tars.source(path, text_exts=['txt', 'json'], json_key=['alt', 'caption'])
    assert several.text_fields == ('txt', 'alt', 'caption')
    assert several[0]['fields'] == {'alt': ['x'], 'caption': ['one\ntwo']}
    assert several[1]['fields'] == {'caption': ['one', 'two']}  # a field may be missing
    assert several[3]['fields'] == {'txt': ['{"caption": 1}']}
    neither = tars.source(path, text_exts=['json'], json_key=['title', 'text'])
    with pytest.raises(BadRecord, match=r"no 'title' or 'text' \(json_key\); it has"):
        neither[0]


def test_a_caption_that_is_in_two_members_is_in_both_fields_and_once_in_all(tmp_path):
    members = [('0.png', b''), ('0.txt', b'a star'), ('0.json', b'{"caption": "a star"}')]
    source = tars.source(write(tmp_path / 'a.tar', members), text_exts=['txt', 'json'])
    fields = {'txt': ['a star'], 'caption': ['a star']}
    assert source[0] == {'image': b'', 'texts': ['a star'], 'fields': fields}


@pytest.mark.parametrize(
    ('data', 'kind', 'message'),
    [
        (b'{"caption": 3}', 'not_utf8', "'caption' of its .json member is not text: 3"),
        (b'{"caption": ["a", {}]}', 'not_utf8', 'not text'),
        (b'{"caption": "\\ud800"}', 'not_utf8', 'not text'),
        (b'["a"]', 'not_utf8', 'not an object'),
        (b'{"caption":', 'not_utf8', 'not JSON'),
        (b'[' * 100_000, 'not_utf8', 'not JSON'),
        (b'{"caption": "\xe9"}', 'not_utf8', 'not JSON'),
        (b'{"text": "a", "url": "b"}', 'no_caption', r"no 'caption' \(json_key\).*'text', 'url'"),
    ],
)
def test_json_without_a_text_is_a_bad_record(tmp_path, data, kind, message):
    path = write(tmp_path / 'a.tar', [('a.png', b''), ('a.json', data)])
    with pytest.raises(BadRecord, match=message) as error:
        tars.source(path, text_exts=['json'])[0]
    assert error.value.kind == kind


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'\.txt is given for text and for label'):
        tars.source('x.tar', label_ext='.TXT')
    with pytest.raises(ValueError, match=r"image_exts is 'jpg'; expected a list"):
        tars.source('x.tar', image_exts='jpg')
    with pytest.raises(ValueError, match=r"index_dir is 'gs://x'.*local"):
        tars.source('x.tar', index_dir='gs://x')


def test_a_shard_that_shrank_after_indexing_is_noticed(tmp_path):
    path = write(tmp_path / 'a.tar', samples(0, 2))
    source = tars.source(path)
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match=r'a\.tar: was truncated'):
        source[1]


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """Grows by the name of each shard that is scanned."""
    names = []
    scan = _tar_index.scan

    def recording(shard, read, roles):
        names.append(pathlib.Path(shard.path).name)
        return scan(shard, read, roles)

    monkeypatch.setattr(_tar_index, 'scan', recording)
    return names


def contents(source) -> list:
    return [(source[i], source.where(i)) for i in range(len(source))]


def fresh(address: str, tmp_path_factory) -> list:
    """What a source without a cache holds."""
    return contents(tars.source(address, index_dir=str(tmp_path_factory.mktemp('fresh'))))


def test_what_was_indexed_once_is_not_scanned_again(three_shards, cache, scanned):
    address = f'{three_shards}/x-*.tar'
    first = contents(tars.source(address))
    assert sorted(scanned) == ['x-00000.tar', 'x-00001.tar', 'x-00002.tar']
    assert contents(tars.source(address)) == first
    assert len(scanned) == 3
    assert sorted(path.suffix for path in cache.iterdir()) == ['.json', '.npy']
    # Among the shards themselves, and with a glob that matches everything there.
    for _ in range(2):
        everything = tars.source(f'{three_shards}/*', index_dir=str(three_shards))
        assert contents(everything) == first
    assert len(scanned) == 6
    assert len(list(three_shards.iterdir())) == 5


def test_only_shards_that_changed_are_scanned_again(three_shards, scanned, cache, tmp_path_factory):
    address = f'{three_shards}/x-*.tar'
    tars.source(address)
    changes = {
        'x-00001.tar': lambda path: write(path, samples(70, 7)),
        'x-00000.tar': lambda path: os.utime(path, (1, 1)),  # nothing else differs
        'x-000005.tar': lambda path: write(path, samples(50, 3)),  # between the others
    }
    for name, change in changes.items():
        change(three_shards / name)
        scanned.clear()
        source = tars.source(address)
        assert scanned == [name]
        assert contents(source) == fresh(address, tmp_path_factory)
    (three_shards / 'x-00002.tar').unlink()
    scanned.clear()
    assert len(tars.source(address)) == 5 + 3 + 7
    assert not scanned
    assert len(list(cache.iterdir())) == 2


def test_options_have_indices_of_their_own(tmp_path, scanned):
    path = write(tmp_path / 'a.tar', [('a.png', b'1'), ('b.webp', b'2'), ('b.txt', b'3')])
    for _ in range(2):
        assert len(tars.source(path)) == 2
        assert contents(tars.source(path, image_exts=['png'])) == [
            ({'image': b'1'}, f'{path}: a.png')
        ]
        assert 'texts' not in tars.source(path, text_exts=['json'])[1]
    assert len(scanned) == 3


def _flip(path: pathlib.Path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('suffix', ['.npy', '.json'])
@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b''),
        lambda path: os.truncate(path, path.stat().st_size - 24),
        lambda path: path.write_bytes(b'[{}]'),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"samples": 5', b'"samples": 6')),
        lambda path: np.save(path.open('wb'), np.array([{}], object), allow_pickle=True),
        _flip,
    ],
    ids=['removed', 'empty', 'cut', 'other', 'counts', 'pickle', 'bit'],
)
def test_a_damaged_cache_is_made_again(three_shards, cache, scanned, damage, suffix):
    address = f'{three_shards}/x-*.tar'
    first = contents(tars.source(address))
    (path,) = cache.glob(f'.tars-*{suffix}')
    before = path.read_bytes()
    damage(path)
    damaged = not path.exists() or path.read_bytes() != before
    scanned.clear()
    assert contents(tars.source(address)) == first
    assert bool(scanned) == damaged
    scanned.clear()
    assert contents(tars.source(address)) == first
    assert not scanned


def test_a_cache_that_cannot_be_written_is_one_warning(three_shards, monkeypatch):
    warnings = []
    monkeypatch.setattr(_tar_index.logging, 'warning', lambda text, *args: warnings.append(text))
    monkeypatch.setattr(_tar_index, '_SAVE', 0)
    (three_shards / 'file').touch()
    source = tars.source(f'{three_shards}/x-*.tar', index_dir=f'{three_shards}/file/folder')
    assert len(warnings) == 1
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    assert len(source) == 15


def test_an_interrupted_indexing_goes_on_where_it_was(three_shards, scanned, monkeypatch):
    monkeypatch.setattr(_tar_index, '_SAVE', 0)
    address = f'{three_shards}/x-*.tar'
    last = three_shards / 'x-00002.tar'
    good = last.read_bytes()
    last.write_bytes(b'no tar' * 100)
    with pytest.raises(ValueError, match='not a tar'):
        tars.source(address)
    last.write_bytes(good)
    scanned.clear()
    assert len(tars.source(address)) == 15
    assert scanned == ['x-00002.tar']


def _open_and_hash(address: str) -> tuple[int, bytes]:
    source = tars.source(address)
    return len(source), b''.join(source[i]['image'] for i in range(len(source)))


def test_a_refused_shard_ends_the_work_on_all_others(tmp_path, monkeypatch):
    read = []

    def slow(shard, *_):
        read.append(shard)
        time.sleep(0.01)
        raise ValueError('not a tar')

    monkeypatch.setattr(_tar_index, '_SCANS', 1)
    monkeypatch.setattr(_tar_index, 'scan', slow)
    for shard in range(50):
        write(tmp_path / f'{shard:02}.tar', [('a.png', b'')])
    with pytest.raises(ValueError, match='not a tar'):
        tars.source(f'{tmp_path}/*.tar')
    assert len(read) < 25


def test_a_relative_address_is_of_its_folder(tmp_path, monkeypatch):
    members = {'a': [('a.png', b'a')], 'b': [('b.txt', b'b'), ('b.png', b'b')]}
    for folder in 'aba':
        (tmp_path / folder).mkdir(exist_ok=True)
        path = write(tmp_path / folder / 'x.tar', members[folder])
        os.utime(path, (1, 1))  # and of one size too
        monkeypatch.chdir(tmp_path / folder)
        source = tars.source('x.tar')
        assert (source[0]['image'], source.where(0)) == (folder.encode(), f'x.tar: {folder}.png')


def test_an_index_replaced_by_another_process_while_it_is_opened_is_used(
    three_shards, scanned, monkeypatch
):
    tars.source(f'{three_shards}/x-*.tar')
    crc, calls = _tar_index._crc, []

    def gone_at_first(path):
        calls.append(path)
        return crc(path if len(calls) > 1 else path + '.gone')

    monkeypatch.setattr(_tar_index, '_crc', gone_at_first)
    scanned.clear()
    assert len(tars.source(f'{three_shards}/x-*.tar')) == 15
    assert not scanned


def test_processes_and_threads_that_index_at_once_all_succeed(three_shards, cache):
    address = f'{three_shards}/x-*.tar'
    want = 15, b''.join(png(10 * shard + i) for shard in range(3) for i in range(5))
    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            # Each turn has something to write, and an older index to remove.
            os.utime(three_shards / 'x-00001.tar', (turn, turn))
            assert set(pool.map(_open_and_hash, [address] * 8)) == {want}
    assert len(list(cache.iterdir())) == 2
    os.utime(three_shards / 'x-00002.tar', (9, 9))
    # Not forked: a copy of this process would have the locks of its threads, and not the threads.
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        assert set(pool.map(_open_and_hash, [address] * 4)) == {want}


def test_a_pickled_source_takes_its_index_from_the_cache(tmp_path, cache, monkeypatch):
    write(tmp_path / 'x.tar', [(f'{i:05}.png', b'%d' % i) for i in range(2000)])
    source = tars.source(f'{tmp_path}/x.tar')
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert [pickle.loads(data)[i]['image'] for i in (0, 1999)] == [b'0', b'1999']
    for path in cache.glob('.tars-*.npy'):
        path.unlink()
    with pytest.raises(ValueError, match=r'removed or replaced.*Start again'):
        pickle.loads(data)
    assert source[7]['image'] == b'7'


def test_an_index_whose_file_another_process_has_replaced_stays_in_memory(tmp_path):
    parts = {Shard(name, 512, ''): Part(np.zeros(3, ROW), {}, {}) for name in ('a', 'b')}
    index = _tar_index.Index(parts, str(tmp_path / 'gone.npy'))
    assert [index[i][0] for i in range(6)] == ['a', 'a', 'a', 'b', 'b', 'b']
    assert len(pickle.loads(pickle.dumps(index))) == 6


def test_a_large_cached_index_opens_at_once_and_takes_24_bytes_a_sample(tmp_path):
    assert ROW.itemsize <= 24
    shards, each = 1000, 1000
    folder = tmp_path / 'index'
    address = f'{tmp_path}/x-*.tar'
    rows = np.zeros(each, ROW)
    rows['image'], rows['image_size'], rows['head'] = np.arange(each) * 64 + 1, 30_000, 1
    for shard in range(shards):
        with open(tmp_path / f'x-{shard:05}.tar', 'wb') as file:
            file.truncate(each * 32_768)  # a hole, which takes no room on the disk
    made = _tar_index._Cache(str(folder), address, ROLES)
    found = _tar_shards.matches(address)
    made.save({shard: Part(rows, {}, {}) for shard in found})
    start = time.perf_counter()
    source = tars.source(address, image_exts=['png'], index_dir=str(folder))
    assert time.perf_counter() - start < 5
    assert len(source) == shards * each
    assert source._index.nbytes <= 24 * len(source)
    assert len(pickle.dumps(source)) < 200 * shards
    for i in (0, each - 1, each, len(source) - 1):
        path, (image, size, *_) = source._index[i]
        assert path == found[i // each].path
        assert (image, size) == (i % each * 64 + 1, 30_000)


def test_progress_of_a_long_scan_is_logged(three_shards, monkeypatch):
    lines = []
    monkeypatch.setattr(progress, 'LOG_EVERY', 0)
    monkeypatch.setattr(progress.logging, 'info', lambda text, *args: lines.append(text % args))
    tars.source(f'{three_shards}/x-*.tar')
    assert len(lines) == 3
    assert lines[-1].startswith('Indexing: 3 of 3 shards, ')


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    fs = fsspec.filesystem('memory')
    yield fs
    fs.rm('/clip-jax-test', recursive=True)


@pytest.mark.parametrize('pattern', ['x-*.tar', 'x-{00000..00002}.tar'])
def test_remote_shards_give_what_local_ones_give(three_shards, memory, pattern, scanned):
    memory.put(f'{three_shards}/', 'memory://clip-jax-test/', recursive=True)
    memory.pipe_file('/clip-jax-test/x-folder.tar/file', b'')
    local = tars.source(f'{three_shards}/{pattern}')
    remote = tars.source(f'memory://clip-jax-test/{pattern}')
    assert [remote[i] for i in range(15)] == [local[i] for i in range(15)]
    assert remote.where(14) == 'memory:///clip-jax-test/x-00002.tar: 00024.png'
    copy = pickle.loads(pickle.dumps(remote))
    assert copy[14] == local[14]
    scanned.clear()
    memory.pipe_file('/clip-jax-test/x-00001.tar', (three_shards / 'x-00000.tar').read_bytes())
    assert tars.source(f'memory://clip-jax-test/{pattern}')[5] == local[0]
    assert scanned == ['x-00001.tar']
    memory.pipe_file('/clip-jax-test/x-00001.tar', b'short')
    with pytest.raises(ValueError, match='was truncated'):
        remote[7]


def test_no_remote_match_names_what_is_there(three_shards, memory):
    memory.put(f'{three_shards}/', 'memory://clip-jax-test/', recursive=True)
    for name in ('y-*.tar', 'y.tar'):
        with pytest.raises(ValueError, match=r'no file matches.*y.*holds: x-00000\.tar') as error:
            tars.source(f'memory://clip-jax-test/{name}')
        assert '\n' not in str(error.value)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files and parts of files; notes how much it sends."""

    ranges = True
    sent: list[int] = []

    def do_GET(self):
        path = pathlib.Path(self.translate_path(self.path.partition('?')[0]))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        asked = self.headers.get('Range') if self.ranges else None
        if asked:
            first, last = (int(x) for x in asked.removeprefix('bytes=').split('-'))
            last = min(last, len(data) - 1)
        if first >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(data)}')
        self.send_header('Content-Length', str(last + 1 - first))
        self.end_headers()
        self.sent.append(last + 1 - first)
        self.wfile.write(data[first : last + 1])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(three_shards, monkeypatch):
    """Address of a web server of `three_shards`."""
    pytest.importorskip('aiohttp', reason="fsspec's driver for http needs aiohttp")
    monkeypatch.setattr(_Ranges, 'sent', [])
    handler = lambda *args: _Ranges(*args, directory=str(three_shards))  # noqa: E731
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_shards_of_a_web_server_are_read_in_parts(three_shards, server, scanned):
    local = tars.source(f'{three_shards}/x-*.tar')
    address = f'{server}/x-{{00000..00002}}.tar?token=1'
    remote = tars.source(address)
    _Ranges.sent.clear()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: remote[i], range(15))) == [local[i] for i in range(15)]
    assert sum(_Ranges.sent) == sum(
        len(local[i]['image']) + len(f'picture {i // 5 * 10 + i % 5}') for i in range(15)
    )
    assert remote.where(7) == f'{server}/x-00001.tar?token=1: 00012.png'
    scanned.clear()
    assert tars.source(address)[3] == local[3]
    assert not scanned
    os.truncate(three_shards / 'x-00000.tar', 1000)
    with pytest.raises(ValueError, match=r'x-00000\.tar\?token=1: was truncated'):
        remote[4]
    with pytest.raises(ValueError, match=r'no file matches.*x-00003\.tar'):
        tars.source(f'{server}/x-{{00000..00003}}.tar')


def test_a_web_server_that_sends_whole_files_only_is_refused(server, monkeypatch):
    remote = tars.source(f'{server}/x-00000.tar')
    monkeypatch.setattr(_Ranges, 'ranges', False)
    with pytest.raises(ValueError, match=r'x-00000\.tar.*range requests'):
        remote[0]
    monkeypatch.setattr(_tar_files, '_AHEAD', 1024)
    with pytest.raises(ValueError, match=r'x-00001\.tar.*range requests'):
        tars.source(f'{server}/x-00001.tar')


def test_a_server_that_does_not_answer_is_no_missing_file(server):
    with pytest.raises(ValueError, match=r'x\.tar\?token=1: cannot be looked up \(.*Connect'):
        tars.source('http://127.0.0.1:1/x.tar?token=1')


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    with pytest.raises(ValueError, match=r"gs://.*pip install 'clipax\[gcs\]'") as error:
        tars.source('gs://bucket/x-*.tar')
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='fsspec does not support nowhere://'):
        tars.source('nowhere://bucket/x-*.tar')


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
