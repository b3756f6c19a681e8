"""table: rows are read, numbered and named exactly, and broken ones are counted, not guessed."""

import http.server
import io
import json
import os
import pathlib
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _table_readers, open_source, table

KINDS = ['csv', 'tsv', 'jsonl', 'parquet']


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def other_spelling(path: str, number: int) -> str:
    """Another path of the same file, so that a row is an image of its own."""
    return ''.join('./' if bit == '1' else './/' for bit in f'{number:b}') + path


def write(path, rows: list[dict], quote: bool = False, repeat: bool = False) -> str:
    """Writes rows in the format of the path's ending; each is an image of its own, or repeats."""
    seen, stored = set(), []
    for number, row in enumerate(rows):
        name = row.get('image')
        again = isinstance(name, str) and name in seen and not repeat
        stored.append(row | {'image': other_spelling(name, number)} if again else row)
        seen.update([name] if isinstance(name, str) else [])
    rows = stored
    path = pathlib.Path(path)
    if path.suffix == '.parquet':
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    else:
        separator = {'.csv': ',', '.tsv': '\t'}[path.suffix]
        lines = [list(rows[0])]
        for row in rows:
            cells = ['' if value is None else str(value) for value in row.values()]
            quoted = separator == ',' or quote
            lines.append(['"' + c.replace('"', '""') + '"' if quoted else c for c in cells])
        path.write_text('\n'.join(map(separator.join, lines)) + '\n')
    return str(path)


@pytest.fixture
def album(tmp_path):
    """A folder with the images 0.png to 9.png in images/."""
    (tmp_path / 'images').mkdir()
    for i in range(10):
        (tmp_path / f'images/{i}.png').write_bytes(png(i))
    return tmp_path


def rows(count: int = 10) -> list[dict]:
    return [
        {'image': f'images/{i % 10}.png', 'caption': f'picture {i}', 'label': i % 4, 'size': i / 2}
        for i in range(count)
    ]


def examples(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def bad(source, i: int) -> BadRecord:
    with pytest.raises(BadRecord) as error:
        source[i]
    assert '\n' not in str(error.value)
    return error.value


@pytest.mark.parametrize('kind', KINDS)
def test_every_row_comes_back_as_written(album, kind):
    path = write(album / f'a.{kind}', rows())
    source = open_source(f'table:{path}')
    assert str(source) == f'table:{path}'
    assert examples(source) == [
        {'image': png(i), 'texts': [f'picture {i}'], 'label': i % 4} for i in range(10)
    ]
    assert [source.where(i) for i in (0, 9)] == [f'{path}: row 1', f'{path}: row 10']
    assert source.skipped == {} and source.label_names == []


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
@pytest.mark.parametrize(
    ('stored', 'labels', 'names'),
    [
        ([[3, 1], [], [2]], [[3, 1], [], [2]], []),
        ([['dog', 'cat'], [' cow '], ['cat']], [[2, 0], [1], [0]], ['cat', 'cow', 'dog']),
        ([None, [0], [4, 4]], [[], [0], [4, 4]], []),
    ],
)
def test_lists_are_several_labels(album, kind, stored, labels, names):
    lines = [{'image': f'images/{i}.png', 'label': own} for i, own in enumerate(stored)]
    source = table.source(write(album / f'a.{kind}', lines))
    expected = [{'image': png(i), 'labels': own} for i, own in enumerate(labels)]
    assert examples(source) == expected
    assert source.label_names == names
    assert examples(pickle.loads(pickle.dumps(source))) == expected


@pytest.mark.parametrize('kind', KINDS)
def test_a_separator_cuts_labels(album, kind):
    stored = ['dog| cat', '', 'cow', 'cat||dog']
    lines = [{'image': f'images/{i}.png', 'label': own} for i, own in enumerate(stored)]
    path = write(album / f'a.{kind}', lines)
    source = table.source(path, label_separator='|')
    assert source.label_names == ['cat', 'cow', 'dog']
    assert [source[i]['labels'] for i in range(4)] == [[2, 0], [], [1], [0, 2]]
    assert examples(pickle.loads(pickle.dumps(source))) == examples(source)
    assert 'label' in table.source(path)[0]
    numbers = [{'image': 'images/0.png', 'label': own} for own in ('3 1', '2')]
    source = table.source(write(album / f'b.{kind}', numbers), label_separator=' ')
    assert [source[i]['labels'] for i in range(2)] == [[3, 1], [2]] and source.label_names == []


def test_lists_and_single_labels_may_be_mixed_in_jsonl(album):
    lines = [{'image': 'images/0.png', 'label': own} for own in (5, [1, 2], None, '3', [])]
    source = table.source(write(album / 'a.jsonl', lines))
    assert [source[i]['labels'] for i in range(5)] == [[5], [1, 2], [], [3], []]
    # In files of their own they have columns of different types.
    write(album / 'b0.jsonl', lines[:1])
    write(album / 'b1.jsonl', [lines[1] | {'image': 'images/1.png'}])
    source = table.source(f'{album}/b*.jsonl')
    assert [source[i]['labels'] for i in range(2)] == [[5], [1, 2]]


@pytest.mark.parametrize('kind', KINDS)
def test_captions_keep_their_commas_quotes_lines_and_letters(album, kind):
    captions = [
        'a, b\tc',
        'he said "no"',
        'one\ntwo',
        'sm\u00f8rrebr\u00f8d \U0001f370',
        'NA',
        '007',
    ]
    stored = [{'image': 'images/0.png', 'caption': caption} for caption in captions]
    options = {'quoting': 'double'} if kind == 'tsv' else {}
    source = table.source(write(album / f'a.{kind}', stored, quote=True), **options)
    assert [source[i]['texts'] for i in range(len(captions))] == [[c] for c in captions]


@pytest.mark.parametrize('kind', KINDS)
def test_missing_and_empty_captions_and_labels_are_none(album, kind):
    captions = ['x', '', ' ', None]
    stored = [
        {'image': 'images/0.png', 'caption': caption, 'label': label}
        for caption, label in zip(captions, [7, None, 5, None], strict=True)
    ]
    source = table.source(write(album / f'a.{kind}', stored))
    assert [source[i]['texts'] for i in range(4)] == [['x'], [], [], []]
    assert [source[i]['label'] for i in range(4)] == [7, -1, 5, -1]


@pytest.mark.parametrize('kind', KINDS)
def test_names_of_classes_are_numbered_in_sorted_order_over_all_files(album, kind):
    for file, names in ('1', ['wren', ' auk ', '']), ('2', ['gull', 'wren', '12']):
        stored = [{'image': f'images/{file}.png', 'label': name} for name in names]
        write(album / f'{file}.{kind}', stored)
    source = table.source(f'{album}/?.{kind}')
    assert source.label_names == ['12', 'auk', 'gull', 'wren']
    assert [source[i]['label'] for i in range(6)] == [3, 1, -1, 2, 3, 0]
    assert 'texts' not in source[0]


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_written_with_a_point_are_whole_and_fractions_are_refused(album, kind):
    stored = [{'image': 'images/0.png', 'label': label} for label in (2.0, None, 3.0)]
    source = table.source(write(album / f'a.{kind}', stored))
    assert [source[i]['label'] for i in range(3)] == [2, -1, 3]
    stored.append({'image': 'images/0.png', 'label': 0.5})
    with pytest.raises(ValueError, match=r"label_key: column 'label' holds fractions"):
        table.source(write(album / f'a.{kind}', stored))


@pytest.mark.parametrize('kind', KINDS)
def test_columns_are_chosen_and_several_give_several_captions(album, kind):
    stored = [
        {'file': '0.png', 'en': 'a star', 'de': 'ein Stern', 'class': 1},
        {'file': '1.png', 'en': 'a moon', 'de': '', 'class': 0},
    ]
    source = table.source(
        write(album / f'a.{kind}', stored),
        image_key='file',
        text_key=['de', 'en'],
        label_key='class',
        root=str(album / 'images'),
    )
    both = {'de': ['ein Stern'], 'en': ['a star']}
    assert examples(source) == [
        {'image': png(0), 'texts': ['ein Stern', 'a star'], 'fields': both, 'label': 1},
        {'image': png(1), 'texts': ['a moon'], 'fields': {'en': ['a moon']}, 'label': 0},
    ]
    assert source.text_fields == ('de', 'en')


def test_rows_of_one_image_have_their_captions_by_column(album):
    stored = [
        {'image': 'images/0.png', 'a.b': 'one', 'wrong': 'x'},
        {'image': 'images/0.png', 'a.b': 'two', 'wrong': ''},
    ]
    source = table.source(write(album / 'a.csv', stored, repeat=True), text_key=('a.b', 'wrong'))
    (example,) = examples(source)
    assert example['texts'] == ['one', 'x', 'two']
    assert example['fields'] == {'a_b': ['one', 'two'], 'wrong': ['x']}
    assert source.text_fields == ('a_b', 'wrong')
    for nothing in ('', (), [1]):
        with pytest.raises(ValueError, match=r'text_key is .* expected a name'):
            table.source(str(album / 'a.csv'), text_key=nothing)


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_a_list_of_captions_is_several(album, kind):
    captions = [['a', 'b'], [], None, ['c', None, '']]
    stored = [{'image': 'images/0.png', 'caption': caption} for caption in captions]
    source = table.source(write(album / f'a.{kind}', stored))
    assert [source[i]['texts'] for i in range(4)] == [['a', 'b'], [], [], ['c']]


@pytest.mark.parametrize('kind', KINDS)
def test_a_glob_takes_the_files_in_sorted_order(album, kind):
    for number in (2, 0, 1):
        write(album / f'x-{number}.{kind}', rows(10)[3 * number : 3 * number + 3])
    for address in (f'x-*.{kind}', f'x-{{0..2}}.{kind}'):
        source = table.source(f'{album}/{address}')
        assert [source[i]['texts'] for i in range(9)] == [[f'picture {i}'] for i in range(9)]
        assert source.where(4) == f'{album}/x-1.{kind}: row 2'


@pytest.mark.parametrize('kind', KINDS)
def test_threads_and_pickled_copies_read_the_same(album, kind):
    source = table.source(write(album / f'a.{kind}', rows(40)))
    want = examples(source)
    order = np.random.default_rng(0).integers(40, size=400).tolist()
    data = pickle.dumps(source)
    assert len(data) < 1_000  # files are read again, not sent
    for reader in (source, pickle.loads(data)):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(reader.__getitem__, order)) == [want[i] for i in order]
    write(album / f'a.{kind}', rows(41))
    with pytest.raises(ValueError, match=r'had 40 rows .* now it has 41'):
        pickle.loads(data)


@pytest.mark.parametrize('kind', KINDS)
def test_indices_out_of_range(album, kind):
    source = table.source(write(album / f'a.{kind}', rows()))
    for i in (10, -1):
        with pytest.raises(IndexError, match='10 rows'):
            source[i]
    assert source[np.int64(3)] == source[3]


def test_paths_may_be_absolute_remote_or_below_a_root(album):
    fsspec.filesystem('memory').pipe('/bucket/far.png', png(200))
    paths = [str(album / 'images/3.png'), 'memory://bucket/far.png', '4.png', './x/../5.png']
    path = write(album / 'a.csv', [{'image': p} for p in paths])
    source = table.source(path, root=str(album / 'images'))
    (album / 'images/x').mkdir()
    assert [example['image'] for example in examples(source)] == [png(i) for i in (3, 200, 4, 5)]
    above = table.source(write(album / 'b.csv', [{'image': '../images/1.png'}]))
    assert 'leaves the folder' in str(bad(above, 0))


@pytest.mark.parametrize('kind', KINDS)
def test_tables_and_images_may_be_remote(album, kind):
    memory = fsspec.filesystem('memory')
    for number in range(2):
        stored = rows(10)[5 * number : 5 * number + 5]
        path = write(album / f'{number}.{kind}', stored)
        memory.pipe(f'/set-{kind}/{number}.{kind}', pathlib.Path(path).read_bytes())
    for i in range(10):
        memory.pipe(f'/set-{kind}/images/{i}.png', png(i))
    source = open_source(f'table:memory://set-{kind}/*.{kind}')
    assert examples(source) == examples(table.source(f'{album}/?.{kind}'))
    assert source.where(7).endswith(f'set-{kind}/1.{kind}: row 3')
    assert 'memory://' in source.where(7)
    with pytest.raises(ValueError, match=rf'no file matches.*holds: 0\.{kind}, 1\.{kind}, images'):
        table.source(f'memory://set-{kind}/*.none')
    memory.rm(f'/set-{kind}/images/3.png')
    assert bad(source, 3).kind == 'no_image'


def test_an_address_that_nothing_can_read_is_an_error_in_words(album):
    with pytest.raises(ValueError, match=r'nowhere://a\.csv: .*nowhere'):
        table.source('nowhere://a.csv')
    # One such row of many is a bad record; the others can be used.
    assert bad(table.source(write(album / 'a.csv', [{'image': 'htps://x/y.png'}])), 0).kind == (
        'no_image'
    )


def test_answers_of_a_server_that_are_no_image_are_bad_records_and_its_failures_are_not(album):
    pytest.importorskip('aiohttp', reason='fsspec reads http:// with aiohttp')

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = int(self.path[1:4])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(png(8) if status == 200 else b'')

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f'http://127.0.0.1:{server.server_port}'
        stored = [{'image': f'{host}/{status}.png'} for status in (200, 403, 404, 410, 500)]
        source = table.source(write(album / 'a.csv', stored))
        assert source[0]['image'] == png(8)
        assert [bad(source, i).kind for i in (1, 2, 3)] == ['no_image'] * 3
        with pytest.raises(Exception, match='500') as error:
            source[4]
        assert not isinstance(error.value, BadRecord)
        server.shutdown()


def test_images_that_are_not_there_are_bad_records(album):
    (album / 'images/folder.png').mkdir()
    paths = ['images/10.png', '', 'images/folder.png', 'images/0.png/x', 'a b' * 2000, '../1.png']
    source = table.source(write(album / 'a.csv', [{'image': p, 'label': 1} for p in paths]))
    assert [bad(source, i).kind for i in range(6)] == ['no_image'] * 6
    assert 'images/10.png' in str(bad(source, 0))
    null = table.source(write(album / 'a.jsonl', [{'image': None}, {'image': 'a\0b'}]))
    assert [bad(null, i).kind for i in range(2)] == ['no_image'] * 2


def test_an_image_that_fails_for_another_reason_is_no_bad_record(album, monkeypatch):
    source = table.source(write(album / 'a.csv', rows()))

    def broken(*args, **kwargs):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr('builtins.open', broken)
    with pytest.raises(OSError, match='Input/output'):
        source[0]


@pytest.mark.parametrize('kind', KINDS)
def test_captions_that_are_not_utf8_are_bad_records(album, kind):
    path = pathlib.Path(write(album / f'a.{kind}', rows(4)))
    path.write_bytes(path.read_bytes().replace(b'picture 2', b'pict\xffre 2'))
    source = table.source(str(path))
    assert len(source) == 4 and source.skipped == {}
    assert source[1]['texts'] == ['picture 1']
    assert bad(source, 2).kind == 'not_utf8'
    assert r"b'pict\xffre 2'" in str(bad(source, 2))


@pytest.mark.parametrize(('kind', 'separator'), [('csv', ','), ('tsv', '\t')])
def test_rows_of_another_length_are_left_out_and_counted(album, kind, separator, monkeypatch):
    lines = [['image', 'caption', 'label']]
    broken = [2, 3, 900, 1700, 3999, 4000, 4001]
    for n in range(1, 4002):
        line = [other_spelling(f'images/{n % 10}.png', n), f'picture {n} ' + 50 * 'x', str(n)]
        lines.append(line[:2] if n in broken[::2] else [*line, 'y'] if n in broken else line)
    path = album / f'a.{kind}'
    path.write_text('\n'.join(map(separator.join, lines)))
    source = table.source(str(path))
    assert len(source) == 4001 - len(broken)
    numbers = [n for n in range(1, 4002) if n not in broken]
    assert [source.where(i) for i in range(len(source))] == [f'{path}: row {n}' for n in numbers]
    assert source[1]['label'] == 4
    assert source.skipped == {
        'unparsable_row': (7, [f'{path}: row {n}' for n in (2, 3, 900, 1700, 3999)])
    }


class SlowFile(io.FileIO):
    """Reads as from afar: whoever still reads ahead in the background is then in the way."""

    def read(self, size: int = -1) -> bytes:
        time.sleep(0.002)
        return super().read(size)


@pytest.mark.parametrize('kind', KINDS)
def test_no_row_of_a_file_of_many_blocks_is_lost(album, kind, monkeypatch):
    count = 20_000
    # 20 megabytes: readers take one to eight at a time, which end in the middle of captions.
    text = 50 * ('\n' + 19 * 'x')
    stored = [{'image': 'images/0.png', 'caption': f'{i} {text}'} for i in range(count)]
    path = write(album / f'a.{kind}', stored, quote=True)
    monkeypatch.setattr(table._files, 'open_file', SlowFile)
    source = table.source(path, **({'quoting': 'double'} if kind == 'tsv' else {}))
    assert len(source) == count
    assert source.skipped == {}
    monkeypatch.undo()
    for i in range(0, count, 499):
        assert source[i]['texts'] == [f'{i} {text}']
        assert source.where(i) == f'{path}: row {i + 1}'


def test_a_row_may_be_of_another_length_and_not_utf8(album):
    lines = [
        b'image,caption,gr\xc3\xb6\xc3\x9fe',
        b'images/1.png,\xc3\xa4',
        b'images/2.png,\xff,7,8',
    ]
    lines += [b'images/3.png,\xc3\xa4,7', b'images/4.png,\xff,8']
    (album / 'a.csv').write_bytes(b'\xef\xbb\xbf' + b'\n'.join(lines))
    source = table.source(f'{album}/a.csv', label_key='gr\u00f6\u00dfe')
    assert source.skipped['unparsable_row'].examples == [f'{album}/a.csv: row {n}' for n in (1, 2)]
    assert source[0] == {'image': png(3), 'texts': ['\u00e4'], 'label': 7}
    assert bad(source, 1).kind == 'not_utf8'
    assert r'\xff' in str(bad(source, 1))


def test_broken_lines_of_json_are_left_out_and_counted(album, monkeypatch):
    monkeypatch.setattr(
        _table_readers, '_BLOCK', 300
    )  # so that blocks are many, and some of them are sound
    broken = {
        3: '{"image": "images/3.png", "caption": "x"',
        4: 'hello',
        9: '["images/9.png"]',
        20: '{"image": 7}',
        21: '{"image": "a.png", "caption": {"en": "x"}}',
        22: '{"image": "a.png", "label": true}',
        23: '[' * 100_000,
        30: '',
    }
    stored = [r | {'image': other_spelling(r['image'], i)} for i, r in enumerate(rows(40))]
    lines = [json.dumps(row) for row in stored]
    for n, line in broken.items():
        lines[n - 1] = line
    path = album / 'a.jsonl'
    path.write_text('\ufeff' + '\n'.join(lines))
    source = table.source(str(path))
    numbers = [n for n in range(1, 41) if n not in broken]
    assert [source.where(i) for i in range(len(source))] == [f'{path}: row {n}' for n in numbers]
    assert [source[i]['texts'] for i in range(len(source))] == [
        [f'picture {n - 1}'] for n in numbers
    ]
    # An empty line is nothing that could be a row.
    assert source.skipped == {
        'unparsable_row': (7, [f'{path}: row {n}' for n in (3, 4, 9, 20, 21)])
    }


def test_lines_of_json_may_have_values_of_several_types_and_lack_some(album, monkeypatch):
    lines = [
        {'image': 'images/0.png', 'caption': 'a', 'label': 3},
        {'image': 'images/1.png', 'caption': ['b', 'c'], 'more': {'x': [1]}},
        {'image': 'images/2.png', 'label': '4'},
        {'image': 'images/3.png', 'caption': None, 'label': 5.0},
    ]
    want = [['a'], ['b', 'c'], [], []], [3, -1, 4, 5]
    for block in (1, 1 << 20):
        monkeypatch.setattr(_table_readers, '_BLOCK', block)
        source = table.source(write(album / 'a.jsonl', lines))
        got = examples(source)
        assert ([e['texts'] for e in got], [e['label'] for e in got]) == want
        assert source.skipped == {}


def test_a_caption_that_is_not_utf8_beside_a_broken_line_is_a_bad_record(album):
    path = pathlib.Path(write(album / 'a.jsonl', rows(4)))
    path.write_bytes(path.read_bytes().replace(b'picture 2', b'pict\xffre 2') + b'{"image":\n')
    source = table.source(str(path))
    assert len(source) == 4
    assert source.skipped == {'unparsable_row': (1, [f'{path}: row 5'])}
    assert bad(source, 2).kind == 'not_utf8'
    assert source[3]['texts'] == ['picture 3']


def test_a_line_of_json_with_half_a_character_is_a_bad_record(album):
    (album / 'a.jsonl').write_text('{"image": "images/0.png", "caption": "\\ud83c"}\n')
    assert bad(table.source(f'{album}/a.jsonl'), 0).kind == 'not_utf8'


# Parquet with the images inside


def stored_images(path, count=20, group=4, **options) -> str:
    arrow = pa.table(
        {
            'image': [{'bytes': png(i), 'path': f'{i}.png'} for i in range(count)],
            'caption': [f'picture {i}' for i in range(count)],
            'label': pa.array([i % 2 for i in range(count)], pa.int8()),
        }
    )
    pq.write_table(arrow, path, row_group_size=group, **options)
    return str(path)


def test_images_stored_in_parquet(album):
    stored_images(album / 'a.parquet')
    pq.write_table(pa.table({'image': [png(i) for i in range(20, 23)]}), album / 'b.parquet')
    source = table.source(f'{album}/*.parquet')
    assert examples(source)[:20] == [
        {'image': png(i), 'texts': [f'picture {i}'], 'label': i % 2} for i in range(20)
    ]
    assert examples(source)[20:] == [
        {'image': png(i), 'texts': [], 'label': -1} for i in range(20, 23)
    ]
    assert source.where(21) == f'{album}/b.parquet: row 2'


def test_bytes_come_before_the_path_and_without_either_there_is_no_image(album):
    images = [
        {'bytes': None, 'path': 'images/5.png'},
        {'bytes': b'', 'path': 'images/5.png'},
        {'bytes': None, 'path': None},
        None,
    ]
    source = table.source(write(album / 'a.parquet', [{'image': image} for image in images]))
    assert [source[i]['image'] for i in range(2)] == [png(5), b'']
    assert [bad(source, i).kind for i in (2, 3)] == ['no_image'] * 2
    source = table.source(write(album / 'b.parquet', [{'image': png(1)}, {'image': None}]))
    assert source[0]['image'] == png(1)
    assert bad(source, 1).kind == 'no_image'


def test_names_of_classes_that_datasets_noted(album):
    noted = {'info': {'features': {'label': {'names': ['cat', 'dog'], '_type': 'ClassLabel'}}}}
    arrow = pq.read_table(stored_images(album / 'a.parquet'))
    arrow = arrow.replace_schema_metadata({'huggingface': json.dumps(noted)})
    pq.write_table(arrow, album / 'a.parquet')
    assert table.source(f'{album}/a.parquet').label_names == ['cat', 'dog']


@pytest.mark.parametrize(
    'kind', [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_of_every_arrow_type(album, kind):
    arrow = pa.table(
        {
            name: pa.array(values, kind)
            for name, values in {
                'image': ['images/1.png', 'images/2.png'],
                'caption': ['x', None],
                'label': ['b', 'a'],
            }.items()
        }
    )
    pq.write_table(arrow, album / 'a.parquet')
    source = table.source(f'{album}/a.parquet')
    assert examples(source) == [
        {'image': png(1), 'texts': ['x'], 'label': 1},
        {'image': png(2), 'texts': [], 'label': 0},
    ]


def test_each_row_group_is_read_once_for_all_threads_and_few_stay(album, monkeypatch):
    path = stored_images(album / 'a.parquet', count=80, group=8)
    read, lock = [], threading.Lock()
    plain = _table_readers.StoredImages._read

    def counting(self, group):
        with lock:
            read.append(group)
        return plain(self, group)

    monkeypatch.setattr(_table_readers.StoredImages, '_read', counting)
    source = table.source(path)
    assert read == []  # nothing is decoded when a table is opened
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: source[i]['image'], [*range(80), *range(80)]))
    assert images == 2 * [png(i) for i in range(80)]
    assert sorted(read) == list(range(10))
    monkeypatch.setattr(_table_readers, 'CACHE_BYTES', 1)
    source = table.source(path)
    read.clear()
    for i in (0, 7, 8, 0):  # one group stays, even if it is large
        source[i]
    assert read == [0, 1, 0]


def test_a_damaged_row_group_spoils_its_own_rows_only(album):
    path = pathlib.Path(stored_images(album / 'a.parquet', compression='snappy'))
    place = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start = place.dictionary_page_offset or place.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + place.total_compressed_size] = bytes(place.total_compressed_size)
    path.write_bytes(data)
    source = table.source(str(path))
    assert [bad(source, i).kind for i in range(8, 12)] == ['damaged'] * 4
    assert [source[i]['image'] for i in (7, 12)] == [png(7), png(12)]


def test_large_row_groups_are_warned_of(album, monkeypatch, caplog):
    monkeypatch.setattr(table, '_LARGE_GROUP', 100)
    table.source(stored_images(album / 'a.parquet'))
    assert 'row groups' in caplog.text


# What is refused


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ({'image_key': 'imge'}, r"image_key: there is no 'imge'. Did you mean 'image'\?"),
        ({'text_key': 'captions'}, r"text_key: there is no 'captions'. Did you mean 'caption'\?"),
        ({'text_key': ('caption', 'text')}, r"text_key: there is no 'text'"),
        ({'label_key': 'lable'}, 'There are: caption, image, label, size'),
    ],
)
def test_a_column_that_is_not_there_is_an_error_with_those_that_are(album, kind, option, said):
    with pytest.raises(ValueError, match=said) as error:
        table.source(write(album / f'a.{kind}', rows()), **option)
    assert f'a.{kind}' in str(error.value)
    assert '\n' not in str(error.value)


def test_columns_of_a_wrong_type_are_refused(album):
    path = write(album / 'a.parquet', rows())
    for option, said in (
        ({'image_key': 'label'}, r"image_key: column 'label' holds int64; expected paths"),
        ({'text_key': 'label'}, r"'label': is a column of int64; expected strings"),
        ({'label_key': 'size'}, r"column 'size' holds fractions"),
    ):
        with pytest.raises(ValueError, match=said):
            table.source(path, **option)
    lists = write(album / 'b.parquet', [{'image': 'x', 'label': {'a': 1}}])
    with pytest.raises(ValueError, match=r'label_key: column .* holds neither integers nor names'):
        table.source(lists)


@pytest.mark.parametrize(
    ('address', 'said'),
    [
        ('none-*.csv', r'no file matches .*none-\*\.csv.*holds: a\.csv, a\.tsv'),
        ('missing/deep/a.csv', r'no file matches .*holds: a\.csv'),
        ('images', 'no file matches'),
        ('a.*', r'several formats, \.csv, \.tsv'),
        (
            'notes.log',
            r"extension: there is no '\.log'.*There are: \.csv, \.jsonl, \.parquet, \.tsv",
        ),
    ],
)
def test_wrong_addresses(album, address, said):
    for name in ('a.csv', 'a.tsv'):
        write(album / name, rows())
    (album / 'notes.log').write_text('hello')
    with pytest.raises(ValueError, match=said) as error:
        table.source(f'{album}/{address}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'data', 'said'),
    [
        ('a.csv', b'', 'a.csv: is empty'),
        ('a.csv', b'image,caption\n', 'has no rows'),
        ('a.jsonl', b'', 'has no rows'),
        ('a.jsonl', b'\n\n', 'has no rows'),
        (
            'a.jsonl',
            b'[\n{"image": "a"},\n{"image": "b"}\n]',
            'a.jsonl: starts with a list',
        ),
        ('a.csv', b'image,caption\nx\ny\n', 'no row can be parsed; 2 are left out, .*a.csv: row 1'),
        ('a.csv', b'image,caption\n"x,1\ny,2\n', 'a.csv: line 3: a quote is not closed'),
        ('a.jsonl', b'hello\nthere\n', 'no row can be parsed; 2 are left out, .*a.jsonl: row 1'),
        ('a.parquet', b'', 'a.parquet: cannot be read'),
        ('a.parquet', b'PAR1' + bytes(100), 'a.parquet: cannot be read'),
        ('a.csv', bytes(range(256)) * 9, 'a.csv: '),
    ],
)
def test_tables_without_rows_and_other_files(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=said) as error:
        table.source(str(tmp_path / name))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', KINDS)
def test_many_rows_take_little_memory(album, kind):
    count = 20_000
    before = pa.total_allocated_bytes()
    stored = [row | {'image': f'images/{i}.png'} for i, row in enumerate(rows(count))]
    path = write(album / f'a.{kind}', stored)
    source = table.source(path)
    held = sum(c.nbytes for part in source._parts for c in part.columns.values())
    assert held + source._labels.nbytes + source._ends.nbytes < 70 * count
    assert pa.total_allocated_bytes() - before < 140 * count
    (album / f'images/{count - 1}.png').write_bytes(png(0))
    assert source[count - 1]['texts'] == [f'picture {count - 1}']
    assert os.path.basename(source.where(count - 1)) == f'a.{kind}: row {count}'


# Rows of one image, and text as other programs write it


@pytest.mark.parametrize('kind', KINDS)
def test_rows_of_one_path_are_one_image_also_over_files(album, kind):
    stored = [
        {'image': f'images/{i}.png', 'caption': caption, 'label': label}
        for i, caption, label in [(3, 'a', 1), (1, 'b', 0), (3, 'c', 1), (3, 'a', 1), (1, 'd', 2)]
    ]
    write(album / f'x0.{kind}', stored[:3], repeat=True)
    write(album / f'x1.{kind}', stored[3:], repeat=True)
    source = table.source(f'{album}/x?.{kind}')
    assert examples(source) == [
        {'image': png(3), 'texts': ['a', 'c'], 'label': 1},
        {'image': png(1), 'texts': ['b', 'd'], 'label': 0},
    ]
    assert source.where(1) == f'{album}/x0.{kind}: row 2'
    assert source.skipped == {
        'duplicate_row': (1, [f'{album}/x1.{kind}: row 1']),
        'other_label': (1, [f'{album}/x1.{kind}: row 2']),
    }
    assert examples(pickle.loads(pickle.dumps(source))) == examples(source)


def test_relative_paths_of_tables_in_two_folders_are_two_images(album):
    for folder in 'ab':
        (album / folder).mkdir()
        (album / folder / 'x.png').write_bytes(png(ord(folder)))
        write(album / folder / 't.csv', [{'image': 'x.png'}, {'image': f'{album}/images/1.png'}])
    source = table.source(f'{album}/?/t.csv')
    assert [e['image'] for e in examples(source)] == [png(97), png(1), png(98)]


@pytest.mark.parametrize(
    ('name', 'data', 'options'),
    [
        ('a.csv', b'image;caption\nimages/1.png;"x, ""y"" z"', {}),
        ('a.csv', b'image| label| caption\nimages/1.png|3| x, "y" z', {}),
        ('a.csv', b'filepath\ttitle\nimages/1.png\tx, "y" z', {}),
        ('captions.txt', b'image,caption\nimages/1.png,"x, ""y"" z"', {}),
        ('a.tsv', 'image\tcaption\nimages/1.png\tx, "y" z'.encode('utf-16'), {}),
        ('a.tsv', b'images/1.png\tx, "y" z', {'column_names': ('image', 'caption')}),
        ('a.csv', b'image,caption\nimages/1.png,"x, \\"y\\" z"', {'quoting': 'backslash'}),
    ],
)
def test_text_as_other_programs_write_it(album, name, data, options):
    (album / name).write_bytes(data)
    source = table.source(str(album / name), **options)
    assert source[0]['image'] == png(1) and source[0]['texts'] == ['x, "y" z']
    assert len(source) == 1 and source.skipped == {}


def test_a_quote_begins_a_caption_of_a_tsv_and_swallows_nothing(album):
    (album / 'a.tsv').write_text('image\tcaption\nimages/1.png\t"a\nimages/2.png\tb\n')
    assert [e['texts'] for e in examples(table.source(f'{album}/a.tsv'))] == [['"a'], ['b']]


@pytest.mark.parametrize('first', ['null', '7', ''])
def test_lines_of_json_that_are_no_objects_do_not_end_the_process(album, first):
    (album / 'a.jsonl').write_text(first + '\n{"image": "images/1.png"}\nnull\n')
    source = table.source(f'{album}/a.jsonl')
    assert len(source) == 1 and source[0]['image'] == png(1)
    assert source.skipped['unparsable_row'].count == 1 + bool(first)


def test_rows_name_regular_files_and_known_protocols_only(album):
    os.mkfifo(album / 'pipe')
    named = ['/dev/zero', 'pipe', 'zip://x::file:///etc/passwd', 'ftp://127.0.0.1/x', 'file:///x']
    source = table.source(write(album / 'a.csv', [{'image': name} for name in named]))
    assert [bad(source, i).kind for i in range(5)] == ['no_image'] * 5


def test_a_file_of_more_bytes_than_an_image_has_is_not_read(album):
    with (album / 'images/huge.png').open('wb') as file:
        file.truncate(1 << 40)  # no blocks on the disk
    source = table.source(write(album / 'a.csv', [{'image': 'images/huge.png'}]))
    found = bad(source, 0)
    assert found.kind == 'too_large' and '1,099,511,627,776 bytes' in str(found)
