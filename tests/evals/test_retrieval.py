"""Recall is what a plain loop over images and captions finds."""

import statistics

import numpy as np
import pytest
from support.reports import flat
from support.vectors import unit

from clip_jax.evals import _embed, _paired, _similarity, retrieval


class Toy:
    """A set whose image i is the number i, with the given captions."""

    label_names = []

    def __init__(self, captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, i):
        return {'image': i, 'texts': list(self.captions[i])}

    def where(self, i):
        return f'toy record {i}'


def brute_force(image, text, captions):
    """Recall at 1, 5 and 10 in both directions, one comparison after the other."""
    pairs = [(i, caption) for i, own in enumerate(captions) for caption in own]
    image, text = image.astype(np.float64), {k: v.astype(np.float64) for k, v in text.items()}
    to_text, to_image = [], []
    for i in range(len(captions)):
        best = max(image[i] @ text[caption] for caption in captions[i])
        others = [image[i] @ text[caption] for k, caption in pairs if k != i]
        to_text.append(1 + sum(other >= best for other in others))
    for i, caption in pairs:
        others = [image[k] @ text[caption] for k in range(len(captions)) if k != i]
        to_image.append(1 + sum(other >= image[i] @ text[caption] for other in others))
    shares = {f'image_to_text/recall@{k}': np.mean(np.array(to_text) <= k) for k in (1, 5, 10)}
    shares |= {f'text_to_image/recall@{k}': np.mean(np.array(to_image) <= k) for k in (1, 5, 10)}
    return shares | {
        'image_to_text/median_rank': statistics.median_low(to_text),
        'text_to_image/median_rank': statistics.median_low(to_image),
    }


def evaluate(image, text, captions):
    return flat(
        retrieval.evaluate(
            lambda images: image[images],
            lambda texts: np.stack([text[t] for t in texts]),
            Toy(captions),
        )
    )


def scores(report):
    return {name: value for name, value in report.items() if '_to_' in name}


def example(seed, n, dim=12, most=5):
    """Images with 1 to `most` captions of their own, both near a common direction."""
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(n, dim)))
    captions = [[f'{i}-{k}' for k in range(rng.integers(1, most + 1))] for i in range(n)]
    text = {
        c: unit(image[i] + 0.5 * rng.normal(size=dim))
        for i, own in enumerate(captions)
        for c in own
    }
    return image, text, captions


@pytest.mark.parametrize('seed', range(5))
def test_recall_is_that_of_a_loop_over_images_and_captions(seed):
    image, text, captions = example(seed, 60)
    report = evaluate(image, text, captions)
    assert scores(report) == brute_force(image, text, captions)
    assert len(set(scores(report).values())) > 3
    assert (report['images'], report['texts']) == (60, len(text))


@pytest.mark.parametrize('block', [1, 7, 59, 60])
def test_numbers_do_not_depend_on_how_much_is_handled_at_a_time(monkeypatch, block):
    image, text, captions = example(0, 60)
    expected = evaluate(image, text, captions)
    monkeypatch.setattr(_similarity, 'COLUMNS', block)
    monkeypatch.setattr(_embed, 'CHUNK', block)
    report = evaluate(image, text, captions)
    assert report == expected
    assert scores(report) == brute_force(image, text, captions)


def test_recall_has_an_interval_over_images_with_all_their_captions():
    image, text, captions = example(1, 30)
    report = retrieval.evaluate(
        lambda images: image[images], lambda t: np.stack([text[x] for x in t]), Toy(captions)
    )
    found = report['scores']['text_to_image/recall@1']
    owner = np.repeat(np.arange(30), [len(own) for own in captions])
    rows = np.stack([text[c] for own in captions for c in own])
    hits = (rows @ image.T).argmax(axis=1) == owner
    assert found['value'] == hits.mean()
    rng, values = np.random.default_rng(0), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(owner == i) for i in rng.integers(0, 30, 30)])
        values.append(hits[rows].mean())
    low, high = np.quantile(values, [0.025, 0.975])
    np.testing.assert_allclose(found['interval'], [low, high], atol=0.1 * (high - low))
    value = report['scores']['image_to_text/recall@1']['value']
    correct = report['correct']['image_to_text/recall@1']
    assert _paired.unpacked(correct).mean() == value and correct['images'] == 30
    assert 'interval' not in report['scores']['image_to_text/median_rank']


def test_any_own_caption_among_the_first_is_a_hit():
    near, far = unit(np.eye(4)[0]), unit(np.eye(4)[1])
    image = np.stack([near, unit(np.eye(4)[2])])
    text = {'good': near, 'bad': -near, 'other': far}
    report = evaluate(image, text, [['bad', 'good'], ['other']])
    assert report['image_to_text/recall@1'] == 0.5  # 'other' ties with 'bad' and 'good' at 0
    assert report['text_to_image/recall@1'] == 1 / 3  # 'bad' and 'other' have a nearer image


def test_own_captions_that_are_equal_are_no_rivals():
    image = unit(np.eye(4)[:2])
    text = {'one': unit(np.eye(4)[0]), 'two': unit(np.eye(4)[1])}
    report = evaluate(image, text, [['one', 'one', 'one'], ['two']])
    assert set(scores(report).values()) == {1}


@pytest.mark.parametrize('equal', ['images', 'texts'])
@pytest.mark.parametrize(('n', 'group'), [(2, 2), (6, 6), (11, 11), (18, 6), (22, 11)])
@pytest.mark.parametrize('dim', [16, 63, 64, 128, 192])
def test_what_ties_with_the_right_one_counts_as_ranked_before_it(equal, n, group, dim):
    # Random numbers and many sizes: sums in another order would differ in their last bit.
    base = unit(np.random.default_rng(n).normal(size=(n, dim)))
    groups = base[np.arange(n) // group]
    image, text = (groups, base) if equal == 'images' else (base, groups)
    report = evaluate(
        image, {f'{i}': row for i, row in enumerate(text)}, [[f'{i}'] for i in range(n)]
    )
    direction = 'text_to_image' if equal == 'images' else 'image_to_text'
    for k in (1, 5, 10):
        if k < group:
            assert report[f'{direction}/recall@{k}'] == 0


@pytest.mark.parametrize('seed', range(5))
def test_equal_captions_of_different_images_tie(seed):
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(50, 63)))
    captions = [[f'{rng.integers(12)}' for _ in range(rng.integers(1, 4))] for _ in range(50)]
    text = {f'{k}': unit(rng.normal(size=63)) for k in range(12)}
    assert scores(evaluate(image, text, captions)) == brute_force(image, text, captions)


def test_equal_captions_tie_although_an_encoder_rounds_them_differently():
    # As encoders do that embed the last texts in a smaller batch.
    rng = np.random.default_rng(0)
    image, base = unit(rng.normal(size=(40, 16))), unit(rng.normal(size=(4, 16)))
    captions = [[f'{i % 4}'] for i in range(40)]

    def noisy(texts):
        rows = np.stack([base[int(t)] for t in texts])
        return unit(rows + 1e-6 * rng.normal(size=rows.shape))

    report = flat(retrieval.evaluate(lambda images: image[images], noisy, Toy(captions)))
    text = {f'{k}': base[k] for k in range(4)}
    assert report['image_to_text/recall@1'] == 0
    for k in (5, 10):
        name = f'image_to_text/recall@{k}'
        assert report[name] == brute_force(image, text, captions)[name]


def test_equal_images_tie():
    rng = np.random.default_rng(0)
    image = np.repeat(unit(rng.normal(size=(20, 63))), 2, 0)
    captions = [[f'{i}'] for i in range(40)]
    text = {f'{i}': unit(image[i] + 0.01 * rng.normal(size=63)) for i in range(40)}
    report = evaluate(image, text, captions)
    assert report['text_to_image/recall@1'] == 0
    assert report['text_to_image/recall@5'] == 1


def test_the_sample_holds_similarities_of_images_with_a_caption_of_theirs():
    image, text, captions = example(0, 60)
    sample = evaluate(image, text, captions)['similarity']
    indices, texts = sample['indices'], sample['texts']
    assert len(indices) == len(texts) == len(set(indices)) > 1
    assert all(caption in captions[i] for i, caption in zip(indices, texts, strict=True))
    expected = image[indices] @ np.stack([text[t] for t in texts]).T
    np.testing.assert_allclose(sample['matrix'], expected, atol=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_queries_show_what_is_nearest_and_mark_what_is_right(seed):
    image, text, captions = example(seed, 60)
    owner = {caption: i for i, own in enumerate(captions) for caption in own}
    names = list(owner)
    cosines = image.astype(np.float64) @ np.stack([text[c] for c in names]).astype(np.float64).T
    queries = evaluate(image, text, captions)['queries']
    assert len(queries['image_to_text']) == len(queries['text_to_image']) == retrieval.QUERIES
    for query in queries['image_to_text']:
        i = query['index']
        nearest = np.argsort(-cosines[i])
        assert [name for name, _, _ in query['top']] == [names[k] for k in nearest[:5]]
        np.testing.assert_allclose(
            [c for _, c, _ in query['top']], cosines[i, nearest[:5]], atol=1e-4
        )
        assert [right for _, _, right in query['top']] == [
            owner[names[k]] == i for k in nearest[:5]
        ]
        others_before = [owner[names[k]] == i for k in nearest].index(True)
        assert query['rank'] == 1 + others_before
    for query in queries['text_to_image']:
        k = names.index(query['text'])
        nearest = np.argsort(-cosines[:, k])
        assert query['index'] == owner[query['text']]
        assert [i for i, _, _ in query['top']] == nearest[:5].tolist()
        assert [right for _, _, right in query['top']] == (nearest[:5] == query['index']).tolist()
        assert query['rank'] == 1 + nearest.tolist().index(query['index'])


def test_one_image_is_enough():
    image, text, captions = example(0, 1)
    report = evaluate(image, text, captions)
    assert set(scores(report).values()) == {1}
    assert len(report['similarity']['matrix']) == 1


def test_an_image_without_a_caption_is_named():
    image, text, captions = example(0, 10)
    captions[4] = []
    with pytest.raises(ValueError, match='toy record 4 has no caption'):
        evaluate(image, text, captions)


@pytest.mark.parametrize('chunk', [1, 4, 1024])
def test_an_unreadable_image_is_named(monkeypatch, chunk):
    image, text, captions = example(0, 20)

    def encode(images):
        if 13 in images:
            raise ValueError('not a readable image')
        return image[images]

    monkeypatch.setattr(_embed, 'CHUNK', chunk)
    with pytest.raises(ValueError, match=r'^toy record 13: not a readable image$'):
        retrieval.evaluate(encode, lambda t: np.stack([text[x] for x in t]), Toy(captions))


@pytest.mark.parametrize('which', ['image', 'text'])
def test_embeddings_that_are_no_numbers_are_an_error_and_no_score(which):
    # Every comparison with NaN is false: nothing would rank before the right one.
    image, text, captions = example(0, 10)
    if which == 'image':
        image[3] = np.nan
    else:
        text[captions[3][0]][:] = np.nan
    with pytest.raises(ValueError, match=f'{which}.* are not finite'):
        evaluate(image, text, captions)
