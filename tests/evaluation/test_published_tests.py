"""Scores on published layouts are those of the published definitions, computed from the files."""

import csv
import glob
import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import annotations
from support.reports import flat

from clip_jax.evaluation import evaluate


@pytest.fixture(scope='module')
def embedded(clip):
    """Unit-length float64 embeddings of a text, and of a picture, by their content."""
    cache = {}

    def text(words):
        if words not in cache:
            cache[words] = clip.encode_text([words])[0].astype(np.float64)
        return cache[words]

    def image(content):
        return clip.encode_image([content])[0].astype(np.float64)

    return image, text


def report(clip, name, spec, kind=None, **options):
    kind = kind or spec.partition(':')[0]
    return evaluate.prepare(name, {}, spec, {kind: options}).report(clip)


def test_sugar_crepe(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'compositional', annotations.sugar_crepe(tmp_path), root=str(tmp_path))
    accuracies = {}
    for file in sorted(tmp_path.glob('*.json')):
        right = []
        for row in json.loads(file.read_text()).values():
            features = image((tmp_path / 'val2017' / row['filename']).read_bytes())
            own, other = text(row['caption'].strip()), text(row['negative_caption'])
            right.append(bool(own @ features > other @ features))
        accuracies[file.stem] = np.mean(right)
    assert len(set(accuracies.values())) == 2
    rows = {name: value for name, _, value, *_ in found['groups']['accuracy']}
    assert rows == pytest.approx(accuracies)
    assert flat(found)['mean_per_group'] == pytest.approx(np.mean(list(accuracies.values())))


def test_relations_of_aro(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'compositional', annotations.aro(tmp_path, 'relation'))
    rows = json.loads((tmp_path / 'visual_genome_relation.json').read_text())
    right = {}
    for row in rows:
        whole = Image.open(tmp_path / 'images' / row['image_path']).convert('RGB')
        left, top = row['bbox_x'], row['bbox_y']
        part = whole.crop((left, top, left + row['bbox_w'], top + row['bbox_h']))
        # The published order: false, true.
        scores = [image(part) @ text(row[key]) for key in ('false_caption', 'true_caption')]
        right.setdefault(row['relation_name'], []).append(np.argmax(scores) == 1)
    macro = np.mean([np.mean(own) for own in right.values()])
    assert 0 < macro < 1
    assert flat(found)['mean_per_group'] == pytest.approx(macro)
    assert flat(found)['accuracy'] == np.mean([x for own in right.values() for x in own])


def test_order_of_aro(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'compositional', annotations.order(tmp_path))
    predicted, equal = [], 0
    for file in sorted(glob.glob(f'{tmp_path}/*.parquet')):
        for row in pq.read_table(file).to_pylist():
            options = [row['correct_caption'], *(row[f'hard_text_{k}'] for k in range(1, 5))]
            equal += options[1:].count(options[0])
            features = image(row['images']['bytes'])
            predicted.append(np.argmax([features @ text(option) for option in options]))
    assert equal and 0 < np.mean(np.array(predicted) == 0) < 1
    # The published script takes the first of equal captions, the right one.
    assert flat(found)['accuracy'] == np.mean(np.array(predicted) == 0)
    assert flat(found)['equal_texts'] == equal


def test_winoground(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'compositional', annotations.winoground(tmp_path))
    results = []
    for line in (tmp_path / 'examples.jsonl').read_text().splitlines():
        row = json.loads(line)
        files = [(tmp_path / f'images/{row[f"image_{k}"]}.png').read_bytes() for k in (0, 1)]
        s = [[text(row[f'caption_{c}']) @ image(file) for file in files] for c in (0, 1)]
        text_score = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        image_score = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        results.append([text_score, image_score, text_score and image_score])
    expected = np.mean(results, axis=0)
    names = ('text_score', 'image_score', 'group_score')
    assert [flat(found)[name] for name in names] == pytest.approx(expected.tolist())


def test_winogavil(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'compositional', annotations.winogavil(tmp_path))
    scores = []
    with (tmp_path / 'winogavil_dataset.csv').open(newline='') as file:
        for row in csv.DictReader(file):
            candidates, right = json.loads(row['candidates']), json.loads(row['associations'])
            word = row['cue'].lower()
            cue = text(f'An {word}' if word[0] in 'aeiou' else f'A {word}')
            files = [tmp_path / f'winogavil_images/{name}.jpg' for name in candidates]
            cosines = [image(file.read_bytes()) @ cue for file in files]
            chosen = {candidates[k] for k in np.argsort(cosines)[-len(right) :]}
            scores.append(len(chosen & {*right}) / len(chosen | {*right}))
    assert flat(found)['jaccard'] == pytest.approx(np.mean(scores))
    assert [row[0] for row in found['groups']['jaccard']] == [f'{n} candidates' for n in (5, 6, 10)]


def recall(images, texts, owner, k):
    """Recall at k of CLIP_benchmark: one right item at least among the k nearest."""
    similarity = texts @ images.T
    of_images = [np.argsort(-row)[:k] for row in similarity.T]
    to_text = np.mean([any(owner[t] == i for t in top) for i, top in enumerate(of_images)])
    of_texts = [np.argsort(-row)[:k] for row in similarity]
    return to_text, np.mean([owner[t] in top for t, top in enumerate(of_texts)])


def test_crossmodal(clip, embedded, tmp_path):
    image, text = embedded
    found = report(clip, 'multilingual', annotations.crossmodal(tmp_path), captions=1)
    rows = list(map(json.loads, (tmp_path / 'captions.jsonl').read_text().splitlines()))
    for language in ('en', 'de', 'quz'):
        own = [row for row in rows if language in row]
        files = [(tmp_path / f'images/{row["image/key"]}.jpg').read_bytes() for row in own]
        images = np.stack([image(file) for file in files])
        texts = np.stack([text(row[language]['caption'][0]) for row in own])
        for k in (1, 5, 10):
            values = recall(images, texts, np.arange(len(own)), k)
            for way, value in zip(('image to text', 'text to image'), values, strict=True):
                table = {row[0]: row[1:3] for row in found['groups'][f'recall@{k}, {way}']}
                assert table[language] == [len(own), pytest.approx(value)]


def test_retrieval_on_a_karpathy_split(clip, embedded, tmp_path):
    image, text = embedded
    found = flat(report(clip, 'retrieval', annotations.karpathy_coco(tmp_path)))
    entries = json.loads((tmp_path / 'dataset_coco.json').read_text())['images']
    entries = [one for one in entries if one['split'] == 'test']
    files = [(tmp_path / one['filepath'] / one['filename']).read_bytes() for one in entries]
    captions = [sentence['raw'] for one in entries for sentence in one['sentences']]
    owner = np.repeat(np.arange(len(entries)), [len(one['sentences']) for one in entries])
    assert (found['images'], found['texts']) == (4, 21) == (len(entries), len(captions))
    values = recall(
        np.stack(list(map(image, files))), np.stack(list(map(text, captions))), owner, 1
    )
    assert (found['image_to_text/recall@1'], found['text_to_image/recall@1']) == values


def test_captions_without_wrong_ones_are_no_questions(clip, tmp_path):
    spec = annotations.karpathy_coco(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f'{spec} has no questions')):
        report(clip, 'compositional', spec)


def test_pictures_are_small_and_different():
    sizes = {Image.open(io.BytesIO(annotations.picture(k))).size for k in range(annotations.COUNT)}
    assert len(sizes) == annotations.COUNT
