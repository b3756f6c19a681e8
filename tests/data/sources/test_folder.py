"""folder: every image is found once, in a stable order, with its class and its captions."""

import io
import os
import pathlib
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from absl import logging
from PIL import Image

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import opening
from clip_jax.data.sources import folder, open_source


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


FILES = {
    'dog/b.PNG': png(1),
    'dog/a.jpeg': png(2),
    'dog/at/far/c.webp': png(3),
    'dog/at/near/d.png': png(7),
    'cat/1.gif': png(4),
    'cat/1.txt': b'\xef\xbb\xbfa cat\n\n sm\xc3\xb8rrebr\xc3\xb8d \r\n',
    'cat/2.tif': png(5),
    'cat/2.txt': b'\n',
    'bird/3.bmp': png(6),
}
EXAMPLES = [
    {'image': png(6), 'label': 0},
    {'image': png(4), 'texts': ['a cat', 'sm\u00f8rrebr\u00f8d'], 'label': 1},
    {'image': png(5), 'texts': [], 'label': 1},
    {'image': png(2), 'label': 2},
    {'image': png(3), 'label': 2},
    {'image': png(7), 'label': 2},
    {'image': png(1), 'label': 2},
]


def write(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def examples(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def test_a_sub_folder_is_a_class(tmp_path):
    source = open_source(f'folder:{write(tmp_path, FILES)}')
    assert str(source) == f'folder:{tmp_path}'
    assert source.label_names == ['bird', 'cat', 'dog']
    assert examples(source) == EXAMPLES
    assert source.where(4) == f'{tmp_path}/dog/at/far/c.webp'
    assert source.skipped == {}


def test_a_remote_folder_gives_the_same(tmp_path):
    memory = fsspec.filesystem('memory')
    more = {'top.png': png(9), 'dog/.hidden.png': png(9), 'dog/a.pdf': b''}
    for name, data in {**FILES, **more}.items():
        memory.pipe(f'/zoo/{name}', data)
    source = open_source('folder:memory://zoo/')
    assert source.label_names == ['bird', 'cat', 'dog']
    assert examples(source) == EXAMPLES
    assert source.where(0) == 'memory://zoo/bird/3.bmp'
    assert source.skipped == {
        'no_class': (1, ['memory://zoo/top.png']),
        'hidden': (1, ['memory://zoo/dog/.hidden.png']),
        'other_file': (1, ['memory://zoo/dog/a.pdf']),
    }
    with pytest.raises(ValueError, match=r'cannot list memory://zoo/fish.*holds: bird, cat, dog'):
        open_source('folder:memory://zoo/fish')


def test_images_without_sub_folders_have_no_class(tmp_path):
    write(tmp_path, {'b.png': png(1), 'a.jpg': png(2), 'a.txt': b'one\ntwo'})
    for slash in ('', '/'):
        source = folder.source(f'{tmp_path}{slash}')
        assert examples(source) == [{'image': png(2), 'texts': ['one', 'two']}, {'image': png(1)}]
        assert source.label_names == []
        assert source.where(0) == f'{tmp_path}/a.jpg'
    # Sub-folders without any image make no classes.
    write(tmp_path, {'notes/read.me': b'hello'})
    source = folder.source(str(tmp_path))
    assert len(source) == 2 and source.label_names == []
    assert source.skipped == {'other_file': (1, [f'{tmp_path}/notes/read.me'])}


def test_a_class_without_images_keeps_its_number(tmp_path):
    write(tmp_path, {'a/notes.md': b'', 'b/1.png': png(1)})
    (tmp_path / 'c').mkdir()
    source = folder.source(str(tmp_path))
    assert source.label_names == ['a', 'b', 'c']
    assert source[0]['label'] == 1


def test_what_is_no_example_is_counted(tmp_path):
    write(tmp_path, FILES)
    others = (
        [f'dog/at/{place}/x.pdf' for place in ('near', 'far')]
        + [f'dog/to/{i}' for i in range(5)]
        + ['cat/alone.txt', 'cat/1', 'classes.txt']
    )
    write(tmp_path, dict.fromkeys(others, b'?'))
    write(tmp_path, {'x.png': png(0), 'y.png': png(0), '.git/z.png': png(0), 'cat/.z.png': png(0)})
    os.mkfifo(tmp_path / 'cat/pipe.png')  # reading it would wait for ever
    source = folder.source(str(tmp_path))
    assert examples(source) == EXAMPLES
    assert source.skipped == {
        'other_file': (
            10,
            [f'{tmp_path}/{name}' for name in ('classes.txt', 'cat/1', 'cat/alone.txt')]
            + [f'{tmp_path}/dog/at/{place}/x.pdf' for place in ('far', 'near')],
        ),
        'hidden': (2, [f'{tmp_path}/.git', f'{tmp_path}/cat/.z.png']),
        'not_a_file': (1, [f'{tmp_path}/cat/pipe.png']),
        'no_class': (2, [f'{tmp_path}/x.png', f'{tmp_path}/y.png']),
    }


def test_links_are_followed_and_not_in_circles(tmp_path):
    write(tmp_path / 'set', {'a/1.png': png(1)})
    write(tmp_path / 'else', {'2.png': png(2), 'in/4.png': png(4)})
    (tmp_path / 'set/a/2.png').symlink_to(tmp_path / 'else/2.png')
    (tmp_path / 'set/a/3.png').symlink_to(tmp_path / 'gone.png')
    (tmp_path / 'set/a/5.png').symlink_to(tmp_path / 'set/a/5.png')
    (tmp_path / 'set/a/again').symlink_to(tmp_path / 'set')
    (tmp_path / 'set/a/me').symlink_to('.')
    (tmp_path / 'set/b').symlink_to(tmp_path / 'else')
    (tmp_path / 'else/twice').symlink_to('in')
    source = folder.source(f'{tmp_path}/set')
    assert source.label_names == ['a', 'b']
    assert examples(source) == [
        {'image': png(1), 'label': 0},
        {'image': png(2), 'label': 0},
        {'image': png(2), 'label': 1},
        {'image': png(4), 'label': 1},
    ]
    assert source.skipped == {
        'not_a_file': (2, [f'{tmp_path}/set/a/3.png', f'{tmp_path}/set/a/5.png']),
        'repeated_folder': (3, [f'{tmp_path}/set/{x}' for x in ('a/again', 'a/me', 'b/twice')]),
    }


def test_many_links_are_not_followed_for_ever(tmp_path):
    for i in range(20):
        (tmp_path / f'{i:02}').mkdir()
        for name in 'xyz':
            (tmp_path / f'{i:02}/{name}').symlink_to(f'../{i + 1:02}')
    write(tmp_path, {'20/1.png': png(1)})
    source = folder.source(str(tmp_path))
    assert len(source) == 21  # one for each class, though 3 ** 20 paths lead to it


def test_captions_have_their_ending_in_any_case(tmp_path):
    write(tmp_path, {'a/1.JPG': png(1), 'a/1.TXT': b'one', 'a/2.Png': png(2), 'a/2.tXt': b'two'})
    write(tmp_path, {'a/3.png': png(3), 'a/3.txt': b'three', 'a/3.TXT': b'other'})
    source = folder.source(str(tmp_path))
    assert [source[i]['texts'] for i in range(3)] == [['one'], ['two'], ['three']]
    assert source.skipped == {'other_file': (1, [f'{tmp_path}/a/3.TXT'])}


def test_avif_is_read_and_heic_is_counted_where_it_cannot_be(tmp_path, monkeypatch):
    write(tmp_path, {'a/1.avif': b'1', 'a/2.HEIC': b'2', 'a/3.heif': b'3'})
    monkeypatch.setattr(opening, 'is_known', lambda format: True)
    assert len(folder.source(str(tmp_path))) == 3
    monkeypatch.setattr(opening, 'is_known', lambda format: format != 'HEIF')
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
    source = folder.source(str(tmp_path))
    assert examples(source) == [{'image': b'1', 'label': 0}]
    assert source.skipped == {'no_decoder': (2, [f'{tmp_path}/a/2.HEIC', f'{tmp_path}/a/3.heif'])}
    (line,) = said
    assert '2 HEIF images' in line and '2.HEIC' in line and "'clipax[heif]'" in line
    (tmp_path / 'a/1.avif').unlink()
    with pytest.raises(ValueError, match=r'no images.*To read HEIF images.*clipax\[heif\]'):
        folder.source(str(tmp_path))


def test_names_of_classes_are_text(tmp_path):
    write(tmp_path, {os.fsdecode(name) + '/1.png': png(1) for name in (b'caf\xe9', 'é'.encode())})
    source = folder.source(str(tmp_path))
    assert source.label_names == ['café', 'é']
    assert os.fsencode(source.where(0)).endswith(b'/caf\xe9/1.png')


def test_the_endings_of_images_can_be_chosen(tmp_path):
    write(tmp_path, {'a/1.JP2': png(1), 'a/2.png': png(2), 'a/3.jxl': png(3)})
    source = folder.source(str(tmp_path), image_exts=('jp2', '.JXL'))
    assert [example['image'] for example in examples(source)] == [png(1), png(3)]
    assert source.skipped['other_file'].count == 1


def test_names_of_any_letters_and_bytes(tmp_path):
    names = [
        'gr\u00f6\u00dfe/\u732b.png',
        os.fsdecode(b'gr\xff/\xfe.png'),
        'a b/ .c d.png',
        'a/\n.png',
    ]
    write(tmp_path, {name: png(i) for i, name in enumerate(names)})
    source = pickle.loads(pickle.dumps(folder.source(str(tmp_path))))
    for i in range(4):
        name = os.path.relpath(source.where(i), tmp_path)
        assert source[i]['image'] == png(names.index(name))
    assert len({source.where(i) for i in range(4)}) == 4


def test_broken_captions_and_files_that_went_are_bad_records(tmp_path):
    write(tmp_path, {'a/1.png': png(1), 'a/1.txt': b'caf\xe9', 'a/2.png': b'', 'a/3.png': png(3)})
    source = folder.source(str(tmp_path))
    with pytest.raises(BadRecord, match=r'not UTF-8 at byte 3') as error:
        source[0]
    assert error.value.kind == 'not_utf8'
    assert source[1]['image'] == b''  # the decoder judges it
    (tmp_path / 'a/3.png').unlink()
    (tmp_path / 'a/1.txt').unlink()
    kinds = []
    for i in (0, 2):
        with pytest.raises(BadRecord, match='No such file') as error:
            source[i]
        kinds.append(error.value.kind)
    assert kinds == ['no_caption', 'no_image']


def test_threads_and_pickled_copies_read_the_same(tmp_path):
    source = folder.source(str(write(tmp_path, FILES)))
    order = np.random.default_rng(0).integers(7, size=300).tolist()
    for reader in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(reader.__getitem__, order)) == [EXAMPLES[i] for i in order]
        assert reader.label_names == source.label_names
    for i in (7, -1):
        with pytest.raises(IndexError, match='7 images'):
            source[i]


def test_many_names_take_little_memory(monkeypatch):
    count = 50_000
    classes = 100

    def listing(path):
        if path == '/set':
            return ((f'{c:03}', 'folder') for c in range(classes))
        return ((f'{i:08}.jpg', 'file') for i in reversed(range(count // classes)))

    monkeypatch.setattr(folder._files, 'listing', listing)
    monkeypatch.setattr(folder._files, 'identity', str)
    tracemalloc.start()
    source = folder.source('/set')
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(source) == count
    assert source.where(count - 1) == '/set/099/00000499.jpg'
    assert held < 35 * count  # 16 of them are the name


@pytest.mark.parametrize(
    ('address', 'said'),
    [
        ('none', r'cannot list .*none \(No such file.*holds: empty, text'),
        ('none/deeper', r'No such file.*holds: empty, text'),
        ('text/a.txt', r'cannot list .*a\.txt \(Not a directory\).*text.* holds: a\.txt, b\.csv'),
        ('empty', r'no images \(avif, .*webp\).*empty. holds: nothing'),
        ('text', r'no images .*holds: a\.txt, b\.csv\. There are 2 other files.*image_exts'),
    ],
)
def test_folders_without_images_say_what_they_hold(tmp_path, address, said):
    write(tmp_path, {'text/a.txt': b'', 'text/b.csv': b''})
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=said) as error:
        folder.source(f'{tmp_path}/{address}')
    assert '\n' not in str(error.value)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, FILES)
    plain = os.scandir

    def scandir(path):
        if path.endswith('near'):
            raise PermissionError(13, 'Permission denied')
        return plain(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(ValueError, match=r'cannot list .*/dog/at/near \(Permission denied\)'):
        folder.source(str(tmp_path))
