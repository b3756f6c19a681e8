"""`clip-jax data verify` on data with one of each trouble: all is named, counted and adds up."""

import csv
import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections import Counter

import pytest
from PIL import Image


def encoded(format: str = 'JPEG', size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert('RGB').save(file, format)
    return file.getvalue()


def huge() -> bytes:
    """A PNG that says it has 20,000 x 20,000 pixels."""
    data, head = encoded('PNG'), struct.pack('>II', 20_000, 20_000)
    body = b'IHDR' + head + data[24:29]
    return data[:8] + struct.pack('>I', 13) + body + struct.pack('>I', zlib.crc32(body)) + data[33:]


JPEG, PNG = encoded(), encoded('PNG')
# Contents of images that cannot be used, by kind.
BAD = {
    'empty': b'',
    'not_an_image': b'<html>Not found</html>',
    'truncated': JPEG[: len(JPEG) // 2],
    'damaged': PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    'too_small': encoded('PNG', (1, 1)),
    'too_large': huge(),
}


@pytest.fixture
def verify(run, tmp_path):
    """Verifies a SPEC: returns the records, counts of the bad and the skipped, and what is said."""

    def verify(spec: str) -> tuple[int, Counter, Counter, str]:
        listed = tmp_path / 'listed.jsonl'
        code, said, _ = run('data', 'verify', spec, f'--out={listed}')
        assert code == 1 and re.search(r'^all_usable +False$', said, re.M)
        bad = [json.loads(line) for line in listed.read_text().splitlines()]
        records = int(re.search(r'^records +([\d,]+)$', said, re.M)[1].replace(',', ''))
        (line,) = re.findall(r'^skipped +(.*)$', said, re.M)
        skipped = {kind: int(n) for kind, n in re.findall(r'(\w+) count (\d+);', line)}
        return records, Counter(line['kind'] for line in bad), Counter(skipped), said

    return verify


def test_a_tar(verify, tmp_path):
    members = [('good.png', PNG), ('good.txt', b'a cat'), ('label.png', PNG), ('label.cls', b'3')]
    for kind, data in BAD.items():
        members += [(f'{kind}.jpg', data), (f'{kind}.txt', b'a cat')]
    members += [
        *[('words.png', PNG), ('words.txt', b'\xff\xfe\xfd'), ('silent.png', PNG)],
        *[('good.png', JPEG), ('odd.bmp', PNG), ('good.syn.txt', b'b'), ('alone.txt', b'c')],
        *[('alone.cls', b'1'), ('good.json', b'{}'), ('../up.png', PNG), ('link.png', None)],
    ]
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data or b''), tarfile.REGTYPE if data is not None else b'2'
            tar.addfile(info, io.BytesIO(data or b''))
    with path.open('ab') as file:
        file.write(b'what a failed download leaves')
    records, bad, skipped, said = verify(f'tars:{path}')
    assert bad == dict.fromkeys([*BAD, 'not_utf8', 'no_caption'], 1)
    assert skipped == {
        **dict.fromkeys(('duplicate_member', 'unused_image', 'unused_caption', 'other_file'), 1),
        **dict.fromkeys(('caption_without_image', 'label_without_image', 'not_a_file'), 1),
        **dict.fromkeys(('unsafe_name', 'bytes_after_end'), 1),
    }
    for name in ('odd.bmp', 'good.syn.txt', 'alone.txt', 'alone.cls', 'up.png', 'link.png'):
        assert name in said
    with tarfile.open(path, ignore_zeros=True) as tar:
        there = [member.name for member in tar]
    # A record has an image, and all but one a caption or a label.
    assert 2 * records - 1 + skipped.total() - skipped['bytes_after_end'] == len(there)


def test_a_table(verify, tmp_path):
    rows = [('good.png', 'a cat', '0'), ('good.png', 'two cats', '0')]
    (tmp_path / 'good.png').write_bytes(PNG)
    for kind, data in BAD.items():
        (tmp_path / f'{kind}.jpg').write_bytes(data)
        rows.append((f'{kind}.jpg', 'a cat', '0'))
    rows += [
        *[('gone.png', 'a cat', '0'), ('/dev/zero', 'zeros', '0'), ('', 'a cat', '0')],
        *[('good.png', 'a cat', '0'), ('good.png', '', '0'), ('good.png', 'dogs', '1')],
    ]
    path = tmp_path / 'a.csv'
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([('image', 'caption', 'label'), *rows, ('one value',)])
    records, bad, skipped, said = verify(f'table:{path}')
    assert bad == {**dict.fromkeys(BAD, 1), 'no_image': 3}
    names = 'duplicate_row', 'empty_caption', 'other_label', 'unparsable_row'
    assert skipped == dict.fromkeys(names, 1)
    for number in (12, 13, 14, 15):
        assert f'a.csv: row {number}' in said
    with path.open(newline='') as file:
        there = list(csv.reader(file))[1:]
    captions = {(row[0], row[1]) for row in there if len(row) == 3 and row[1]}
    lost = skipped.total() - skipped['other_label']  # whose caption is used
    assert len(captions) + lost == len(there)
    assert records == len({image for image, _ in captions})


def test_a_folder(verify, tmp_path):
    root = tmp_path / 'set'
    (root / 'cats').mkdir(parents=True)
    for name, data in {'good.png': PNG, **{f'{k}.jpg': x for k, x in BAD.items()}}.items():
        (root / 'cats' / name).write_bytes(data)
    (root / 'cats' / os.fsdecode(b'caf\xe9.png')).write_bytes(PNG)
    (root / 'cats' / 'linked.png').symlink_to('good.png')
    (root / 'cats' / 'broken.png').symlink_to('gone.png')
    (root / 'cats' / 'notes.pdf').touch()
    (root / 'cats' / '.hidden.png').touch()
    (root / 'alone.png').write_bytes(PNG)
    os.mkfifo(root / 'cats' / 'pipe.png')
    (root / 'again').symlink_to('.')
    records, bad, skipped, said = verify(f'folder:{root}')
    assert bad == dict.fromkeys(BAD, 1)
    assert skipped == {
        **dict.fromkeys(('other_file', 'hidden', 'no_class', 'repeated_folder'), 1),
        'not_a_file': 2,
    }
    for name in ('broken.png', 'pipe.png', 'notes.pdf', 'alone.png', 'again'):
        assert name in said
    files = sum(len(names) for _, _, names in os.walk(root))
    assert records + skipped.total() - skipped['repeated_folder'] == files
