"""No row of a table is lost without being counted: an independent count by csv and json."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax.data.sources import table

WORDS = ['a cat', 'two dogs', 'a "red" hat', 'one, two', 'x;y|z', "it's", 'ä ö', '"quoted"']
WORDS += [' sp ', '', ' ']


def rows_of(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Rows of images and captions, of which many repeat an image and some a whole row."""
    names = [f'{i}.png' for i in range(max(2, count // 3))]
    return [(str(rng.choice(names)), str(rng.choice(WORDS))) for _ in range(count)]


def as_text(rng: np.random.Generator, rows: list[tuple[str, str]], ragged: list[int]) -> bytes:
    """Delimited text with a random delimiter, quoting, line ending and encoding."""
    file = io.StringIO(newline='')
    delimiter = str(rng.choice([',', ';', '|']))
    quoting = int(rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    ending = str(rng.choice(['\n', '\r\n']))
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=ending)
    writer.writerow(['image', 'caption'])
    for i, row in enumerate(rows):
        writer.writerow([*row, 'more', 'values'] if i in ragged else row)
    return file.getvalue().encode(str(rng.choice(['utf-8', 'utf-8-sig', 'utf-16'])))


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        Image.new('RGB', (20, 20), (10 * i, 0, 0)).save(tmp_path / f'{i}.png')
    return tmp_path


@pytest.mark.parametrize('kind', ['csv', 'txt', 'jsonl', 'parquet'])
@pytest.mark.parametrize('seed', range(8))
def test_rows_are_captions_duplicates_or_counted_losses(folder, kind, seed):
    rng = np.random.default_rng(seed)
    rows = rows_of(rng, int(rng.integers(5, 50)))
    lost = sorted(rng.choice(len(rows), int(rng.integers(0, 3)), replace=False).tolist())
    path = folder / f'pairs.{kind}'
    if kind == 'jsonl':
        bad = 'null', '[1]', '{"image": "0.png", "cap'
        lines = [json.dumps(dict(zip(('image', 'caption'), row, strict=True))) for row in rows]
        lines = [str(rng.choice(bad)) if i in lost else line for i, line in enumerate(lines)]
        path.write_text('\n'.join(lines) + '\n')
    elif kind == 'parquet':  # has no rows that cannot be parsed
        lost = []
        columns = dict(zip(('image', 'caption'), zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), path, row_group_size=7)
    else:
        path.write_bytes(as_text(rng, rows, lost))
    source = table.source(str(path))

    kept = [row for i, row in enumerate(rows) if i not in lost]
    expected: dict[str, list[str]] = {}
    for name, caption in dict.fromkeys(kept):
        expected.setdefault(name, []).extend(filter(None, [caption.strip()]))
    assert len(source) == len(expected)
    for i, (name, captions) in enumerate(expected.items()):
        example = source[i]
        assert example['image'] == (folder / name).read_bytes()
        assert example.get('texts', []) == captions
    counts = {kind: found.count for kind, found in source.skipped.items()}
    assert counts.get('unparsable_row', 0) == len(lost)
    assert counts.get('duplicate_row', 0) == len(kept) - len(dict.fromkeys(kept))
    captions = sum(len(source[i]['texts']) for i in range(len(source)))
    # An image whose only row has no caption is a record without one.
    names = [name for name, _ in kept]
    alone = sum(not own and names.count(name) == 1 for name, own in expected.items())
    assert captions + alone + sum(counts.values()) == len(rows)


def test_a_table_of_captions_is_the_folder_with_lines_of_captions(folder):
    """As a text-to-image evaluation needs it: each image once, with all of its captions."""
    rng, by_image = np.random.default_rng(0), folder / 'album'
    by_image.mkdir()
    rows = []
    for i in range(6):
        captions = [f'caption {k} of {i}' for k in range(5)]
        (folder / f'{i}.png').rename(by_image / f'{i}.png')
        (by_image / f'{i}.txt').write_text('\n'.join(captions))
        rows += [(f'{i}.png', caption) for caption in captions]
    order = np.argsort(np.repeat(rng.permutation(6), 5), kind='stable')
    with (by_image / 'captions.csv').open('w', newline='') as file:
        csv.writer(file).writerows([('image', 'caption'), *(rows[i] for i in order)])
    from clip_jax.data.sources import folder as folders

    ours, theirs = table.source(f'{by_image}/captions.csv'), folders.source(str(by_image))
    assert len(ours) == len(theirs) == 6
    found = {ours[i]['image']: ours[i]['texts'] for i in range(6)}
    assert found == {theirs[i]['image']: theirs[i]['texts'] for i in range(6)}
