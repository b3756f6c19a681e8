"""Small data sets in the published layouts of tests of composition, of captions in several
languages and of the Karpathy splits, with drawn pictures.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from clip_jax.data.sources import open_source

COLORS = ('red', 'green', 'blue', 'white', 'black')
SHAPES = ('circle', 'square')
COUNT = 10


def picture(k: int) -> bytes:
    """A PNG of one of ten shapes on noise; all sizes differ."""
    rng = np.random.default_rng(k)
    noise = rng.integers(90, 160, (40 + k, 48 + 2 * k, 3), np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if k % 2 else draw.rectangle
    shape((6 + k, 8, 30 + k, 32), fill=COLORS[k // 2])
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def caption(k: int) -> str:
    return f'a {COLORS[k // 2]} {SHAPES[1 - k % 2]}'


def pictures(folder: Path, names: list[str]) -> None:
    """Writes picture k under the name k."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(k))


def sugar_crepe(path: Path) -> str:
    """Two files of rows by key, as in RAIVNLab/sugar-crepe; images are shared."""
    pictures(path, [f'val2017/{k:012}.jpg' for k in range(COUNT)])
    rng = np.random.default_rng(0)
    for category, count in ('swap_att', 9), ('replace_obj', 14):
        rows = {}
        for n in range(count):
            k, other = rng.choice(COUNT, 2, replace=False).tolist()
            rows[f'{3 * n}'] = {
                'filename': f'{k:012}.jpg',
                'caption': f'{caption(k)} ',
                'negative_caption': caption(other),
            }
        (path / f'{category}.json').write_text(json.dumps(rows, indent=4))
    return f'choices:{path}/*.json'


RELATIONS = ('on', 'near', 'under')


def aro(path: Path, kind: str) -> str:
    """visual_genome_relation.json or visual_genome_attribution.json: parts of images."""
    pictures(path, [f'images/{k}.jpg' for k in range(COUNT)])
    rng, rows = np.random.default_rng(1), []
    for n in range(20):
        k, other = rng.choice(COUNT, 2, replace=False).tolist()
        box = rng.integers((0, 0, 24, 24), (10, 12, 70, 60)).tolist()  # some leave the image
        row = dict(zip(('bbox_x', 'bbox_y', 'bbox_w', 'bbox_h'), box, strict=True))
        row |= {'image_id': k, 'image_path': f'{k}.jpg'}
        row |= {'true_caption': caption(k), 'false_caption': caption(other)}
        relation = {'relation_name': RELATIONS[min(n // 8, 2)]}
        attributes = {'attributes': ['white', 'black'] if n < 12 else ['old', 'new']}
        rows.append(row | (relation if kind == 'relation' else attributes))
    (path / f'visual_genome_{kind}.json').write_text(json.dumps(rows))
    return f'choices:{path}/visual_genome_{kind}.json'


def order(path: Path) -> str:
    """ARO's shuffled captions in Parquet files of two shards, some of them as before."""
    path.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(2), []
    for n in range(16):
        words = caption(n % COUNT).split()
        row = {'images': {'bytes': picture(n % COUNT), 'path': None}}
        row |= {'correct_caption': ' '.join(words)}
        rows.append(row | {f'hard_text_{k}': ' '.join(rng.permutation(words)) for k in range(1, 5)})
    for shard in range(2):
        table = pa.Table.from_pylist(rows[8 * shard : 8 * shard + 8])
        pq.write_table(table, path / f'test-0000{shard}-of-00002.parquet', row_group_size=3)
    return f'choices:{path}/test-*.parquet'


def winoground(path: Path) -> str:
    """data/examples.jsonl and the folder of images.zip beside it."""
    names = [f'ex_{k // 2}_img_{k % 2}' for k in range(COUNT)]
    pictures(path, [f'images/{name}.png' for name in names])
    rows = []
    for n in range(COUNT // 2):
        row = {'id': n, 'tag': '', 'secondary_tag': '', 'num_main_preds': 1}
        row |= {'image_0': names[2 * n], 'image_1': names[2 * n + 1]}
        row |= {'caption_0': caption(2 * n), 'caption_1': caption(2 * n + 1)}
        rows.append(row | {'collapsed_tag': ('Object', 'Relation')[n % 2]})
    (path / 'examples.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return f'choices:{path}/examples.jsonl'


WORDS = ('eagle', 'tea party', 'ash', 'metal', 'factory', 'card', 'Game', 'yak', 'spy', 'moon')


def winogavil(path: Path) -> str:
    """winogavil_dataset.csv with lists as JSON, and the folder of winogavil_images.zip."""
    pictures(path, [f'winogavil_images/{word}.jpg' for word in WORDS])
    rng, rows = np.random.default_rng(3), []
    for n in range(12):
        size = (5, 6, 10)[n % 3]
        candidates = [str(word) for word in rng.permutation(WORDS)[:size]]
        right = [str(word) for word in rng.permutation(candidates)[: rng.integers(2, 4)]]
        cue = caption(int(rng.integers(COUNT))).split()[1 + n % 2] if n else 'Azure'
        listed = {'candidates': json.dumps(candidates), 'associations': json.dumps(right)}
        rows.append({'': n, 'cue': cue, **listed, 'num_associations': len(right), 'ID': n})
    with (path / 'winogavil_dataset.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return f'choices:{path}/winogavil_dataset.csv'


LANGUAGES = {'de': 'ein Bild: {}', 'jp': '\u7d75 {}', 'es': 'una imagen, {}'}


def xtd10(path: Path) -> str:
    """Captions line by line in three folders, and images in COCO's two."""
    names = [f'COCO_{("train", "val")[k % 2]}2014_{k:012}.jpg' for k in range(COUNT)]
    pictures(path, [f'{name.split("_")[1]}/{name}' for name in names])
    for folder, language in ('MIC', 'de'), ('STAIR', 'jp'), ('XTD10', 'es'):
        lines = [LANGUAGES[language].format(caption(k)) for k in range(COUNT)]
        (path / folder).mkdir()
        (path / folder / f'test_1kcaptions_{language}.txt').write_text('\n'.join(lines) + '\n')
    (path / 'XTD10/test_image_names.txt').write_text('\n'.join(names) + '\n')
    return f'multilingual:{path}/{{XTD10,MIC,STAIR}}/*.txt'


def crossmodal(path: Path) -> str:
    """captions.jsonl with an object for each language; one image has no caption in Quechua."""
    pictures(path, [f'images/{k:016x}.jpg' for k in range(COUNT)])
    rows = []
    for k in range(COUNT):
        row = {'image/key': f'{k:016x}', 'image/locale': 'en'}
        for language, count in ('en', 2), ('de', 3), ('quz', 1):
            texts = [f'{caption(k)} {n} {language}' for n in range(count)]
            if (language, k) != ('quz', 4):
                row[language] = {'caption': texts, 'caption/tokenized': texts}
        rows.append(json.dumps(row))
    (path / 'captions.jsonl').write_text('\n'.join(rows))
    return f'multilingual:{path}/captions.jsonl'


def karpathy_coco(path: Path) -> str:
    """dataset_coco.json; images in the folders of COCO 2014."""
    splits = ['test', 'train', 'val', 'test', 'restval'] * 2
    images = []
    for k, split in enumerate(splits):
        folder = 'train2014' if split == 'train' else 'val2014'
        name = f'COCO_{folder}_{k:012}.jpg'
        raw = [f'{caption(k)} number {n}' for n in range(5 + (k == 3))]
        sentences = [{'tokens': text.split(), 'raw': text, 'imgid': k} for text in raw]
        images.append(
            {'filepath': folder, 'filename': name, 'split': split, 'sentences': sentences}
        )
    pictures(path, [f'{one["filepath"]}/{one["filename"]}' for one in images])
    (path / 'dataset_coco.json').write_text(json.dumps({'images': images, 'dataset': 'coco'}))
    return f'karpathy:{path}/dataset_coco.json'


def error_of(spec: str, **options) -> str:
    """The one line of the error of a SPEC that cannot be opened."""
    with pytest.raises(ValueError) as found:
        open_source(spec, **options)
    assert '\n' not in str(found.value)
    return str(found.value)
