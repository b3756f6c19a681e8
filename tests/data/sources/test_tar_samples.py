"""tars: every member is part of a sample or counted, whatever its name and the shard's end."""

import io
import json
import pathlib
import random
import tarfile

import fsspec
import numpy as np
import pytest
from support.sources import png

from clip_jax.data.errors import BadRecord, Skipped
from clip_jax.data.sources import _files, _tar_labels, _tar_samples, open_source, tars
from clip_jax.data.tools import inspection

CASES = pathlib.Path(__file__).parents[4] / 'shared' / 'cases'


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def packed(members, tar_format=tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, data); data None is a link, '' a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            else:
                info.type = tarfile.SYMTYPE if data is None else tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(data or b'') if isinstance(data, bytes) else None)
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    def run(members, name: str = 'a.tar') -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = members if isinstance(members, bytes) else packed(members)
        path.write_bytes(data)
        return str(path)

    return run


def read(path: str, **options) -> list[dict]:
    source = tars.source(path, **options)
    return [source[i] for i in range(len(source))]


def counts(path: str, **options) -> dict[str, int]:
    return {kind: found.count for kind, found in tars.source(path, **options).skipped.items()}


@pytest.mark.parametrize(
    ('name', 'key', 'extension'),
    [
        ('x.png', 'x', 'png'),
        ('d.e/x.JPG', 'd.e/x', 'jpg'),
        ('Photo 2024.05.06.png', 'Photo 2024.05.06', 'png'),
        ('Photo 2024.05.06.syn.txt', 'Photo 2024.05.06', 'syn.txt'),
        ('x.seg.png', 'x.seg', 'png'),
        ('x.depth.exr', 'x', 'depth.exr'),
        ('x.tar.gz', 'x', 'tar.gz'),
        ('x', 'x', ''),
        ('x.', 'x', ''),
        ('x..png', 'x.', 'png'),
        ('d/.hidden.png', '', 'hidden.png'),
        ('x' + '.' * 1_000_000 + 'png', 'x' + '.' * 999_999, 'png'),
    ],
)
def test_a_name_is_split_before_the_longest_extension_that_an_option_names(name, key, extension):
    roles = _tar_samples.roles(['png', 'jpg'], ['txt', 'syn.txt'], 'cls', [])
    parts = _tar_samples.most_parts(roles)
    assert _tar_samples.split(name, roles, parts)[:2] == (key, extension)


def test_names_with_dots_are_samples_of_their_own(write):
    stems = ['Photo 2024.05.06', 'v1', 'v1.1', 'v1.2', 'St. Anne', 'a.b.c', 'd.e/f.5']
    members = [
        (f'{stem}.{ext}', f'{ext} of {stem}'.encode()) for stem in stems for ext in ('png', 'txt')
    ]
    path = write(members)
    assert read(path) == [
        {'image': f'png of {stem}'.encode(), 'texts': [f'txt of {stem}']} for stem in stems
    ]
    assert not counts(path)
    # Neighbors or not.
    assert read(write(members[::2] + members[::-1][::2])) == read(path)


def test_further_members_of_a_sample_are_counted_and_no_samples(write):
    path = write(
        [
            ('x.seg.png', b's'),  # before the image that makes it a member of x
            ('x.jpg', b'x'),
            ('x.txt', b'one'),
            ('x.syn.txt', b'two'),
            ('x.fine.cls', b'3'),
            ('x.json', b'{}'),
            ('x.depth.exr', b'd'),
            ('y.bmp', b'y'),
            ('y.cls', b'1'),
            ('z.seg.png', b'z'),  # there is no z
        ]
    )
    assert read(path) == [{'image': b'x', 'texts': ['one']}, {'image': b'z'}]
    source = tars.source(path)
    assert source.skipped == {
        'unused_image': Skipped(2, [f'{path}: y.bmp', f'{path}: x.seg.png']),
        'unused_caption': Skipped(1, [f'{path}: x.syn.txt']),
        'unused_label': Skipped(1, [f'{path}: x.fine.cls']),
        'other_file': Skipped(2, [f'{path}: x.json', f'{path}: x.depth.exr']),
        'label_without_image': Skipped(1, [f'{path}: y.cls']),
    }
    named = {'other_exts': ['seg.png'], 'text_exts': ['txt', 'syn.txt'], 'image_exts': ['jpg']}
    fields = {'txt': ['one'], 'syn_txt': ['two']}
    assert read(path, **named) == [{'image': b'x', 'texts': ['one', 'two'], 'fields': fields}]
    assert counts(path, **named)['other_file'] == 4
    # Of thousands of .json, one is an example.
    many = write(
        [(f'{i}.{ext}', b'{}') for i in range(9) for ext in ('png', 'json', 'md')], 'b.tar'
    )
    assert tars.source(many).skipped == {
        'other_file': Skipped(18, [f'{many}: 0.json', f'{many}: 0.md'])
    }


def test_all_caption_members_that_are_named_are_captions(write):
    path = write(
        [
            ('0.png', b'0'),
            ('0.json', json.dumps({'caption': ['c', 'a']}).encode()),
            ('0.txt', b'a\nb'),
            ('1.png', b'1'),
            ('1.syn.txt', b's'),
            ('2.png', b'2'),
            ('2.txt', b'a'),
            ('2.txt', b'again'),
            ('2.json', b'{}'),
            ('3.png', b'3'),
            ('3.json', b'{}'),
        ]
    )
    source = tars.source(path, text_exts=['syn.txt', 'txt', 'json'])
    assert [source[i]['texts'] for i in range(3)] == [['a', 'b', 'c'], ['s'], ['a']]
    assert counts(path, text_exts=['syn.txt', 'txt', 'json']) == {'duplicate_member': 1}
    with pytest.raises(BadRecord, match="no 'caption'"):
        source[3]
    assert source.text_fields == ('syn_txt', 'txt', 'caption')
    assert tars.source(path, text_exts=['json', 'txt'])[0]['texts'] == ['c', 'a', 'b']


@pytest.mark.parametrize('kind', ['tars', 'folder'])
def test_only_line_feeds_end_a_caption(write, tmp_path, kind):
    text = 'a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh'
    write([('x.png', b'x'), ('x.txt', f'{text}\r\n\n two \n'.encode())])
    (tmp_path / 'x.png').write_bytes(b'x')
    (tmp_path / 'x.txt').write_bytes(f'{text}\r\n\n two \n'.encode())
    address = f'tars:{tmp_path}/a.tar' if kind == 'tars' else f'folder:{tmp_path}'
    assert open_source(address)[0]['texts'] == [text, 'two']
    assert open_source(address, text_lines=False)[0]['texts'] == [f'{text}\r\n\n two']


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_labels_in_npy_members(write):
    arrays = [
        np.array([2, 0]),
        np.array(1),
        np.array([0, 1, 1, 0], np.uint8),
        np.array([0.0, 0, 1], np.float32),
        np.array([True, False, True]),
        np.array([0, 0, 0]),
        np.array([], np.int64),
        np.array([0, 1]),
    ]
    members = [(f'{i}.png', b'x') for i in range(len(arrays))]
    members += [(f'{i}.npy', npy(array)) for i, array in enumerate(arrays)]
    path = write(members)
    want = [[2, 0], [1], [1, 2], [2], [0, 2], [], [], [0, 1]]
    assert [x['labels'] for x in read(path, label_ext='npy')] == want
    write(b'cat\ndog\n', 'classnames.txt')
    source = tars.source(path, label_ext='npy')
    assert source[7]['labels'] == [1]  # one element for each of the two classes
    with pytest.raises(ValueError, match=r'0\.png: expected a label below 2.*classnames.txt, fou'):
        source[0]


@pytest.mark.parametrize(
    ('data', 'found'),
    [
        (b'3', "b'3'"),
        (npy(np.array([1]))[:-1], 'ValueError'),
        (npy(np.zeros((2, 2), int)), 'int64'),
        (npy(np.array([0.5])), '0.5'),
        (npy(np.array([np.inf])), 'inf'),
        (npy(np.array(['a'])), '<U1'),
        (npy(np.array([1])).replace(b'(1,)', b'(9999999999999,)'), 'Error'),
        (npy(np.array([1])).replace(b"'<i8'", b"'|S0'"), ''),
        (npy(np.array([{}], object)), 'ValueError'),
    ],
)
def test_npy_members_without_labels_are_refused(write, data, found):
    path = write([('a.png', b'x'), ('a.npy', data)])
    with pytest.raises(ValueError, match=rf'a\.png: expected a \.npy array .*{found}') as error:
        read(path, label_ext='npy')
    assert '\n' not in str(error.value)


def test_names_of_classes_lie_beside_the_shards_or_above(write, tmp_path, monkeypatch):
    path = write([('0.webp', b'x'), ('0.cls', b'1')], 'wds/test/0.tar')
    assert tars.source(path).label_names == []
    above = write('caf\u00e9\nday lily\n'.encode(), 'wds/classnames.txt')
    assert tars.source(path).label_names == ['caf\u00e9', 'day lily']
    write(b'a\r\nb\r\nc\r\n', 'wds/test/classnames.txt')
    assert tars.source(path).label_names == ['a', 'b', 'c']
    monkeypatch.chdir(tmp_path / 'wds' / 'test')
    assert tars.source('*.tar').label_names == ['a', 'b', 'c']
    assert tars.source('*.tar', class_names='').label_names == []
    pathlib.Path('classnames.txt').unlink()
    assert tars.source('*.tar').label_names == ['caf\u00e9', 'day lily']
    for bad, message in ((b'a\n\nb', 'line 2 is empty'), (b'\xe9', 'not UTF-8')):
        pathlib.Path(above).write_bytes(bad)
        with pytest.raises(ValueError, match=rf'classnames\.txt: .*{message}'):
            tars.source('*.tar')
    # Without labels nobody needs them.
    assert tars.source(write([('0.png', b'x'), ('0.txt', b'a')], 'wds/b/0.tar')).label_names == []


def test_names_of_classes_of_remote_shards(monkeypatch):
    fs = fsspec.filesystem('memory')
    data = packed([('0.png', b'x'), ('0.cls', b'1')])
    for path in ('wds/test/0.tar', '0.tar'):
        fs.pipe_file(f'/{path}', data)
    looked = []
    read = _files.read
    monkeypatch.setattr(_files, 'read', lambda path: looked.append(path) or read(path))
    try:
        fs.pipe_file('/wds/classnames.txt', b'a\nb\n')
        assert tars.source('memory://wds/test/*.tar').label_names == ['a', 'b']
        assert len(looked) == 2 and looked[1].endswith('/wds/classnames.txt')
    finally:
        fs.rm('/wds', recursive=True)
        fs.rm('/0.tar')
    looked.clear()
    monkeypatch.setattr(_files, 'read', missing := Missing())
    assert _tar_labels.Labels(False, [], '').named(['gs://bucket/0.tar'], 'c.txt').names == []
    assert missing.looked == ['gs://bucket/c.txt']


class Missing:
    """Stands for reading files of which there is none."""

    def __init__(self):
        self.looked = []

    def __call__(self, path: str) -> bytes:
        self.looked.append(path)
        raise BadRecord('no_image', 'there is no such file')


def test_joined_shards_are_read_to_the_end(write):
    parts = [packed([(f'{i}.png', b'%d' % i), (f'{i}.txt', b't')]) for i in range(3)]
    path = write(b''.join(parts))
    assert [x['image'] for x in read(path)] == [b'0', b'1', b'2']
    assert not counts(path)
    assert tars.source(path).where(2) == f'{path}: 2.png'
    # With any number of zeros between them.
    assert len(read(write(parts[0] + bytes(1 << 20) + parts[1] + bytes(512)))) == 2


@pytest.mark.parametrize('rest', [b'?', b'?' * 511, b'?' * 5000, bytes(512) + b'{"a": 1}'])
def test_bytes_after_the_end_are_counted(write, rest):
    data = packed([('0.png', b'x')])
    path = write(data + rest)
    at = len(data) + rest.index(rest.strip(b'\0')[:1])
    size = len(data) + len(rest) - at
    found = Skipped(1, [f'{path}: {size} bytes after the end, at byte {at}, are no tar'])
    assert tars.source(path).skipped == {'bytes_after_end': found}
    assert len(read(path)) == 1


@pytest.mark.parametrize(
    ('kind', 'lost', 'rest'),
    [
        ('unused_image', [('1.bmp', b'x')], b''),
        ('unused_caption', [('0.syn.txt', b'x')], b''),
        ('unused_label', [('0.fine.cls', b'1')], b''),
        ('caption_without_image', [('1.txt', b'x')], b''),
        ('label_without_image', [('1.cls', b'1')], b''),
        ('duplicate_member', [('0.txt', b'x')], b''),
        ('not_a_file', [('1.png', None)], b''),
        ('unsafe_name', [('../1.png', b'x')], b''),
        ('bytes_after_end', [], b'?'),
        ('truncated_shard', [], packed([('1.png', b'x' * 900)])[:1200]),
        ('other_file', [('0.json', b'{}')], b''),
    ],
)
def test_verify_names_and_counts_what_is_lost(write, kind, lost, rest):
    path = write(packed([('0.png', png(0)), ('0.txt', b'a'), *lost]) + rest)
    said = []
    options = {'decode': True, 'threads': 1, 'out': None, 'say': said.append}
    report = inspection.verify(tars.source(path), **options)
    assert (report['records'], report['bad'], said) == (1, {}, [])
    assert report['skipped'].keys() == {kind}
    assert report['skipped'][kind]['count'] == len(report['skipped'][kind]['examples']) == 1
    assert report['all_usable'] == (kind == 'other_file')


STEMS = ['a', 'b', 'v1', 'v1.1', 'Photo 2024.05', 'St. Anne', 'd/x', 'd.e/x', '../up', '.hidden']
EXTS = ['png', 'jpg', 'PNG', 'txt', 'syn.txt', 'alt.txt', 'seg.png', 'cls', 'json', 'bmp', 'exr']


def random_members(rng: random.Random, start: int) -> list[tuple[str, bytes | str | None]]:
    """Members whose contents are numbered, so that each is recognized where it is read."""
    found: list[tuple[str, bytes | str | None]] = []
    for i in range(start, start + rng.randint(1, 30)):
        stem, ext = rng.choice(STEMS), rng.choice(EXTS)
        data = b'%d' % i + b' ' * rng.choice([0, 600, 3000])
        found.append((f'{stem}.{ext}', rng.choice([*[data] * 20, None, ''])))
    return found


@pytest.mark.parametrize('seed', range(3))
def test_samples_and_counts_add_up_to_what_the_standard_library_finds(write, seed):
    rng = random.Random(seed)
    for _ in range(50):
        tar_format = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
        parts = [[('first.png', b'first'), *random_members(rng, 0)]]
        parts += [random_members(rng, 100 * k) for k in range(1, rng.randint(1, 3))]
        data = b''.join(packed(part, tar_format) for part in parts)
        with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as tar:
            there = list(tar)
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in there]
        cut = rng.choice([len(data), rng.randrange(ends[0], len(data))])
        whole = [m for m in there if m.offset_data + m.size <= cut]
        junk = b'?' * rng.choice([0, 700]) if cut == len(data) else b''
        path = write(data[:cut] + junk)
        source = tars.source(path, text_exts=['txt', 'syn.txt'])
        used = [x for i in range(len(source)) for x in contents(source[i])]
        found = {kind: skipped.count for kind, skipped in source.skipped.items()}
        # Not members: where the walk ended.
        damage = found.pop('truncated_shard', 0) + found.pop('bytes_after_end', 0)
        inside = any(m.offset < cut < end for m, end in zip(there, ends, strict=True))
        assert damage == (inside or bool(junk))
        others = [m for m in whole if not m.isdir()]
        assert len(used) + sum(found.values()) == len(others)
        assert len(set(used)) == len(used)
        assert set(used) <= {data[m.offset_data :][: m.size].strip() for m in others}


def contents(example: dict) -> list[bytes]:
    """The contents of all members of a sample."""
    label = [b'%d' % example['label']] if 'label' in example else []
    return [example['image'].strip(), *(t.encode() for t in example.get('texts', [])), *label]


@pytest.mark.skipif(not CASES.exists(), reason='the reported cases are not on this machine')
@pytest.mark.parametrize('case', ['tar-dots/dots.tar', 'tar-cat/joined.tar'])
def test_the_reported_cases_are_read_in_full(case):
    source = tars.source(str(CASES / case))
    assert len(source) == 10 and not source.skipped
