"""Zero-shot accuracy is what a plain loop over images and classes finds."""

import json

import numpy as np
import pytest
from absl import logging
from sklearn import metrics
from support.reports import flat
from support.vectors import unit

from clip_jax.evals import _embed, _tables, zeroshot

DIM = 63
TEMPLATES = ['a {}', 'the {}!', '{} here']


class Toy:
    """A labeled set whose image i is the number i."""

    def __init__(self, labels, label_names=()):
        self.labels, self.label_names = labels, list(label_names)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {'image': i, 'texts': [], 'label': int(self.labels[i])}

    def where(self, i):
        return f'toy record {i}'

    def __str__(self):
        return 'toy'


class Unlabeled(Toy):
    def __getitem__(self, i):
        return {'image': i}


class Encoders:
    """Random unit rows [DIM] for every image number and for every text, the same each time."""

    def __init__(self, seed=0):
        self.seed = seed
        self.rows = {}

    def row(self, thing):
        rng = np.random.default_rng([self.seed, *str(thing).encode()])
        return self.rows.setdefault(thing, unit(rng.normal(size=DIM)))

    def image(self, images):
        return np.stack([self.row(i) for i in images])

    text = image

    def set_class(self, name, row):
        for template in TEMPLATES:
            self.rows[template.replace('{}', name)] = row


def evaluate(encoders, data, **options):
    options = {'templates': TEMPLATES, **options}
    return flat(zeroshot.evaluate(encoders.image, encoders.text, data, **options))


def brute_force(encoders, labels, names):
    """Shares of the images with label >= 0 whose class ranks first, and among the first five."""
    vectors = []
    for name in names:
        mean = np.zeros(DIM)
        for template in TEMPLATES:
            mean += encoders.row(template.replace('{}', name))
        vectors.append(mean / np.linalg.norm(mean))
    ranks = []
    for i, label in enumerate(labels):
        if label >= 0:
            cosines = [float(encoders.row(i) @ vector) for vector in vectors]
            ranks.append(sum(cosine >= cosines[label] for cosine in cosines))
    return np.mean(np.array(ranks) == 1), np.mean(np.array(ranks) <= 5)


NAMES = [f'thing {k}' for k in range(9)]


@pytest.mark.parametrize('seed', range(5))
def test_accuracy_is_that_of_a_loop_over_images_and_classes(seed):
    encoders = Encoders(seed)
    labels = np.random.default_rng(seed).integers(-1, 9, 300)
    report = evaluate(encoders, Toy(labels, NAMES))
    top1, top5 = brute_force(encoders, labels, NAMES)
    assert (report['top1'], report['top5']) == (top1, top5)
    assert 0 < top1 < top5 < 1
    assert report['images'] == (labels >= 0).sum()
    assert report['unlabeled'] == (labels == -1).sum() > 0
    assert (report['classes'], report['chance']) == (9, 1 / 9)


def test_an_image_without_a_class_does_not_count():
    encoders, labels = Encoders(), np.arange(9)
    alone = evaluate(encoders, Toy(labels, NAMES))
    mixed = evaluate(encoders, Toy([*labels, -1, -1], NAMES))
    assert {**mixed, 'unlabeled': 0} == alone
    assert mixed['unlabeled'] == 2


def test_a_perfect_and_a_worst_encoder():
    encoders, names = Encoders(), [f'thing {k}' for k in range(6)]
    directions = unit(np.eye(DIM))
    for k, name in enumerate(names):
        encoders.set_class(name, directions[k])
        encoders.rows[k] = directions[k]
    report = evaluate(encoders, Toy(range(6), names))
    assert (report['top1'], report['top5']) == (1, 1)
    for k in range(6):
        encoders.rows[k] = -directions[k]
    report = evaluate(encoders, Toy(range(6), names))
    assert (report['top1'], report['top5']) == (0, 0)


@pytest.mark.parametrize(('twins', 'top1', 'top5'), [(1, 1, 1), (2, 0, 1), (5, 0, 1), (6, 0, 0)])
@pytest.mark.parametrize('images', [1, 17, 61])
def test_a_class_that_ties_with_the_right_one_counts_as_nearer(twins, top1, top5, images):
    # Random numbers, so that sums in another order would differ in their last bit.
    encoders = Encoders()
    row = encoders.row('class')
    names = NAMES[:6]
    for name in names[:twins]:
        encoders.set_class(name, row)
    for name in names[twins:]:
        encoders.set_class(name, -row)
    for i in range(images):
        encoders.rows[i] = unit(row + 0.1 * encoders.row(f'noise {i}'))
    report = evaluate(encoders, Toy(np.arange(images) % twins, names))
    assert (report['top1'], report['top5']) == (top1, top5)


@pytest.mark.parametrize('seed', range(3))
def test_of_classes_with_one_name_the_first_is_nearer_as_in_an_argmax(seed):
    encoders = Encoders(seed)
    names = ['missile', 'dog', 'missile', 'cat', 'dog', 'missile']
    labels = np.random.default_rng(seed).integers(0, 6, 200)
    report = evaluate(encoders, Toy(labels), classes=names)
    vectors = np.stack([_vector(encoders, name) for name in names]).astype(np.float64)
    cosines = np.stack([encoders.row(i) for i in range(200)]).astype(np.float64) @ vectors.T
    order = np.argsort(-cosines, axis=1, kind='stable')  # of equal ones, the first
    assert report['top1'] == np.mean(order[:, 0] == labels) > 0
    assert report['top5'] == np.mean((order[:, :5] == labels[:, None]).any(axis=1)) < 1
    matrix = np.zeros((6, 6), int)
    np.add.at(matrix, (labels, order[:, 0]), 1)
    assert report['confusion']['matrix'] == matrix.tolist()
    assert report['equal_names'] == ['missile', 'dog']
    assert evaluate(encoders, Toy(labels, NAMES[:6]))['equal_names'] == []


def test_classes_of_one_name_have_one_vector_whatever_batch_their_texts_are_in(monkeypatch):
    encoders = Encoders()
    monkeypatch.setattr(_embed, 'CHUNK', 3)  # a class at a time

    def text(texts):
        rows = encoders.text(texts)
        encoders.rows.update(
            {t: unit(encoders.row(t) + 0.3 * encoders.row('noise')) for t in texts}
        )
        return rows  # another one the next time

    names = ['cat', 'dog', 'cat']
    data = Toy(np.arange(60) % 2)
    report = zeroshot.evaluate(encoders.image, text, data, classes=names, templates=TEMPLATES)
    assert report['per_class'][0][2] > 0 and report['confusion']['matrix'][0][2] == 0


@pytest.mark.parametrize('seed', range(3))
def test_of_two_classes_the_area_under_the_roc_curve_is_that_of_scikit_learn(seed, monkeypatch):
    encoders = Encoders(seed)
    labels = np.random.default_rng(seed).integers(-1, 2, 90)
    monkeypatch.setattr(_embed, 'CHUNK', 7)
    report = evaluate(encoders, Toy(labels, NAMES[:2]))
    vectors = np.stack([_vector(encoders, name) for name in NAMES[:2]]).astype(np.float64)
    cosines = np.stack([encoders.row(i) for i in range(90)]).astype(np.float64) @ vectors.T
    scored = labels >= 0
    expected = metrics.roc_auc_score(labels[scored], (cosines[:, 1] - cosines[:, 0])[scored])
    assert report['roc_auc'] == pytest.approx(expected, rel=1e-12)
    # One class has no image, or there are three.
    assert 'roc_auc' not in evaluate(encoders, Toy([0, 0], NAMES[:2]))
    assert 'roc_auc' not in evaluate(encoders, Toy(labels, NAMES[:3]))


def test_names_of_a_set_have_spaces_for_underscores():
    encoders, labels = Encoders(), np.arange(30) % 2
    expected = evaluate(encoders, Toy(labels), classes=['apple pie', 'baby back ribs'])
    assert evaluate(encoders, Toy(labels, ['apple_pie', 'baby_back_ribs'])) == expected
    assert 'a apple_pie' not in encoders.rows
    # Given names stay as they are, and may be those of the set.
    evaluate(encoders, Toy(labels, ['apple_pie', 'ribs']), classes=['apple_pie', 'ribs'])
    assert 'a apple_pie' in encoders.rows


def test_prompts_are_averaged_before_classes_are_compared():
    encoders = Encoders()
    encoders.rows['a cat'] = encoders.rows['a dog'] = unit(np.eye(DIM)[0])
    encoders.rows['cat!'], encoders.rows['dog!'] = unit(np.eye(DIM)[1]), unit(np.eye(DIM)[2])
    encoders.rows[0] = unit(np.eye(DIM)[0] + 0.1 * np.eye(DIM)[2])
    data = Toy([1], ['cat', 'dog'])
    assert evaluate(encoders, data, templates=['a {}', '{}!'])['top1'] == 1
    assert evaluate(encoders, data, templates=['a {}'])['top1'] == 0  # a tie


def test_present_lets_only_classes_compete_that_some_image_has():
    encoders = Encoders()
    labels = np.random.default_rng(0).choice([1, 4, 7], 100)
    data = Toy(labels, NAMES)
    report = evaluate(encoders, data, classes='present')
    renumbered = Toy(np.searchsorted([1, 4, 7], labels), [NAMES[k] for k in (1, 4, 7)])
    # The labels of the data set say which images a report is of, whatever classes compete.
    one, other = report.pop('correct')['top1'], evaluate(encoders, renumbered)
    assert one['bits'] == other.pop('correct')['top1']['bits'] and report == other
    assert one == evaluate(encoders, data)['correct']['top1'] | {'bits': one['bits']}
    assert report['classes'] == 3
    assert report['top1'] > evaluate(encoders, data, classes='all')['top1']


def test_names_may_come_from_a_file_or_as_a_list(tmp_path):
    encoders, labels = Encoders(), np.arange(30) % 9
    expected = evaluate(encoders, Toy(labels, NAMES))
    file = tmp_path / 'names.txt'
    file.write_text('\n'.join(NAMES))
    assert evaluate(encoders, Toy(labels), classes=str(file)) == expected
    assert evaluate(encoders, Toy(labels), classes=NAMES) == expected
    assert evaluate(encoders, Toy(labels, ['x'] * 9), classes=NAMES) == expected
    # Names that no image has compete all the same.
    assert evaluate(encoders, Toy(labels), classes=[*NAMES, 'other'])['classes'] == 10


def test_numbers_do_not_depend_on_how_many_records_are_read_at_a_time(monkeypatch):
    encoders = Encoders()
    data = Toy(np.random.default_rng(0).integers(-1, 9, 100), NAMES)
    expected = evaluate(encoders, data)
    for chunk in (1, 7, 64, 99, 100):
        monkeypatch.setattr(_embed, 'CHUNK', chunk)
        assert evaluate(encoders, data) == expected


def test_examples_show_the_nearest_classes_of_scored_images():
    encoders = Encoders()
    labels = [-1 if i % 2 else i % 9 for i in range(100)]
    examples = evaluate(encoders, Toy(labels, NAMES))['examples']
    assert 1 < len(examples) <= 50
    for example in examples:
        i = example['index']
        assert example['label'] == NAMES[labels[i]]
        cosines = encoders.row(i) @ np.stack([_vector(encoders, name) for name in NAMES]).T
        nearest = np.argsort(-cosines)[:5]
        assert [name for name, _ in example['top']] == [NAMES[k] for k in nearest]
        np.testing.assert_allclose([c for _, c in example['top']], cosines[nearest], atol=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_mean_per_class_confusion_and_mistakes_are_those_of_a_loop(seed):
    encoders = Encoders(seed)
    labels = np.random.default_rng(seed).integers(-1, 8, 200)  # no image has the ninth class
    report = evaluate(encoders, Toy(labels, NAMES))
    vectors = np.stack([_vector(encoders, name) for name in NAMES]).astype(np.float64)
    matrix, wrong = np.zeros((9, 9), int), []
    for i, label in enumerate(labels):
        if label >= 0:
            cosines = vectors @ encoders.row(i).astype(np.float64)
            guess = int(cosines.argmax())
            matrix[label, guess] += 1
            if guess != label:
                wrong.append((cosines[guess] - cosines[label], i, guess, cosines))
    assert report['confusion'] == {'classes': NAMES, 'matrix': matrix.tolist(), 'of': 9}
    count = matrix.sum(axis=1)
    recall = matrix.diagonal()[:8] / count[:8]
    assert report['mean_per_class'] == pytest.approx(recall.mean(), rel=1e-14)
    assert report['per_class'] == [[NAMES[k], count[k], recall[k]] for k in range(8)]
    expected = sorted(wrong, key=lambda x: -x[0])[: _tables.MISTAKES]
    assert len(expected) == len(report['mistakes']) == _tables.MISTAKES
    for mistake, (_, i, guess, cosines) in zip(report['mistakes'], expected, strict=True):
        assert mistake == {
            'index': i,
            'label': NAMES[labels[i]],
            'guess': NAMES[guess],
            'score': round(float(cosines[guess]), 4),
            'score_of_label': round(float(cosines[labels[i]]), 4),
        }


def test_a_class_that_ties_with_the_right_one_is_taken_for_it_in_all_tables():
    encoders = Encoders()
    for name in NAMES[:2]:
        encoders.set_class(name, encoders.row('class'))
    for i in range(10):
        encoders.rows[i] = unit(encoders.row('class') + 0.05 * encoders.row(f'noise {i}'))
    report = evaluate(encoders, Toy([0, 1] * 5, NAMES[:3]))
    assert report['confusion']['matrix'] == [[0, 5, 0], [5, 0, 0], [0, 0, 0]]
    assert report['top1'] == report['mean_per_class'] == 0
    assert all(m['score'] == m['score_of_label'] for m in report['mistakes'])


def test_of_many_classes_the_confusion_matrix_has_those_that_are_mistaken_most():
    names = [f'thing {k}' for k in range(300)]
    labels = np.repeat(np.arange(300), 3)
    predicted = labels.copy()
    predicted[::3] = (predicted[::3] + 1) % 300  # each class is once taken for the next
    predicted[labels == 7] = 250
    predicted[labels == 200] = 3, 3, 200
    found = _tables.confusion(predicted, labels, names)
    assert len(found['classes']) == _tables.CLASSES and found['of'] == 300
    assert {'thing 7', 'thing 250', 'thing 200', 'thing 3'} <= {*found['classes']}
    at = {name: k for k, name in enumerate(found['classes'])}
    matrix = np.array(found['matrix'])
    assert matrix[at['thing 7'], at['thing 250']] == 3
    assert matrix[at['thing 200'], at['thing 3']] == 2
    assert matrix[at['thing 200'], at['thing 200']] == 1
    assert matrix.sum() < 3 * _tables.CLASSES  # some are taken for classes that are not shown
    assert found['classes'] == sorted(found['classes'], key=names.index)
    chosen = [names.index(name) for name in found['classes']]
    expected = [[int(np.sum((labels == i) & (predicted == j))) for j in chosen] for i in chosen]
    assert found['matrix'] == expected


class Several(Toy):
    """A set whose images have lists of labels."""

    def __getitem__(self, i):
        return {'image': i, 'labels': list(self.labels[i])}


@pytest.mark.parametrize('seed', range(3))
def test_images_of_several_classes_are_ranked_class_by_class(seed):
    encoders, rng = Encoders(seed), np.random.default_rng(seed)
    targets = rng.random((80, 9)) < 0.25
    targets[:, 8] = False  # a class without images competes, and has no score
    data = Several([np.flatnonzero(own).tolist() for own in targets], NAMES)
    report = evaluate(encoders, data)
    vectors = np.stack([_vector(encoders, name) for name in NAMES]).astype(np.float64)
    cosines = np.stack([encoders.row(i) for i in range(80)]).astype(np.float64) @ vectors.T
    precisions = metrics.average_precision_score(targets[:, :8], cosines[:, :8], average=None)
    assert report['mean_average_precision'] == pytest.approx(precisions.mean(), rel=1e-12)
    points = []
    for k in range(8):
        curve = metrics.precision_recall_curve(targets[:, k], cosines[:, k])
        precision, recall = curve[0][:-1], curve[1][:-1]  # without the point that it adds at 0
        points.append([precision[recall >= t / 10 - 1e-12].max() for t in range(11)])
    assert report['map_11_point'] == pytest.approx(np.mean(points), rel=1e-12)
    assert [name for name, _, _ in report['per_class']] == NAMES[:8]
    assert [n for _, n, _ in report['per_class']] == targets[:, :8].sum(axis=0).tolist()
    np.testing.assert_allclose([x for _, _, x in report['per_class']], precisions, rtol=1e-12)
    assert (report['images'], report['classes']) == (80, 9)
    assert report['unlabeled'] == (~targets.any(axis=1)).sum() > 0
    assert report['chance'] == targets[:, :8].mean()  # of the classes that have a score
    assert 'top1' not in report and 'confusion' not in report
    for mistake in report['mistakes']:
        i = mistake['index']
        assert mistake['guess'] == NAMES[cosines[i].argmax()]
        own = np.flatnonzero(targets[i])
        assert mistake['guess'] not in [NAMES[k] for k in own]
        assert mistake['label'] == NAMES[own[cosines[i, own].argmax()]]
    # Only classes that some image has compete.
    present = evaluate(encoders, data, classes='present')
    assert present['classes'] == 8 and present['map_11_point'] == report['map_11_point']


def test_single_labels_count_as_lists_of_one_where_some_images_have_lists():
    encoders = Encoders()
    data = Several([[0, 2], [1], [], [2]], NAMES[:3])

    class Mixed(Several):
        def __getitem__(self, i):
            return (
                {'image': i, 'label': [0, 1, -1, 2][i]} if i in (1, 2) else super().__getitem__(i)
            )

    assert evaluate(encoders, Mixed(data.labels, NAMES[:3])) == evaluate(encoders, data)


def test_names_and_templates_may_come_from_json(tmp_path):
    encoders, data = Encoders(), Toy(np.arange(30) % 9)
    expected = evaluate(encoders, Toy(data.labels, NAMES))
    names, templates = tmp_path / 'names.json', tmp_path / 'templates.json'
    names.write_text(json.dumps({'things': NAMES, 'pets': ['cat']}))
    templates.write_text(json.dumps({'things': [t.replace('{}', '{c}') for t in TEMPLATES]}))
    options = {'classes': str(names), 'templates': str(templates), 'key': 'things'}
    assert evaluate(encoders, data, **options) == expected
    whole = {name: [t.replace('{}', name) for t in TEMPLATES] for name in NAMES}
    templates.write_text(json.dumps({'things': whole}))
    assert evaluate(encoders, data, **options) == expected


IDS = [f'n0144{k:04}' for k in range(9)]


def test_wordnet_ids_get_names_and_a_warning_without_them(tmp_path, monkeypatch):
    encoders, labels = Encoders(), np.arange(30) % 9
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
    expected = evaluate(encoders, Toy(labels, NAMES))
    assert not said
    assert evaluate(encoders, Toy(labels, IDS)) != expected
    (line,) = said
    assert 'WordNet ids (n01440000)' in line and 'LOC_synset_mapping.txt' in line
    mapping = tmp_path / 'map.txt'
    mapping.write_text('\n'.join(f'{x} {name}, other' for x, name in zip(IDS, NAMES, strict=True)))
    assert evaluate(encoders, Toy(labels, IDS), classes=str(mapping)) == expected
    assert len(said) == 1
    # Some of the folders.
    some = [7, 2, 5]
    found = evaluate(encoders, Toy(labels % 3, [IDS[k] for k in some]), classes=str(mapping))
    assert found == evaluate(encoders, Toy(labels % 3, [NAMES[k] for k in some]))
    with pytest.raises(ValueError, match=r"'cat' is not among them"):
        evaluate(encoders, Toy([0, 1], ['cat', IDS[0]]), classes=str(mapping))
    with pytest.raises(ValueError, match=r'toy: it does not name its classes'):
        evaluate(encoders, Toy([0, 1]), classes=str(mapping))


def _vector(encoders, name):
    return unit(np.mean([encoders.row(t.replace('{}', name)) for t in TEMPLATES], axis=0))


@pytest.mark.parametrize(
    ('data', 'options', 'message'),
    [
        (Unlabeled([0, 1], NAMES), {}, 'toy has images without a label; expected a labeled'),
        (Toy([0, 12, 3], NAMES), {}, 'labels of toy go up to 12, but there are 9 class names'),
        (Toy([0, 2]), {'classes': ['cat', 'dog']}, 'go up to 2, but there are 2 class names'),
        (Toy([0, 1]), {}, 'toy does not name its classes; give a file'),
        (Toy([0, 1]), {'classes': 'present'}, 'toy does not name its classes'),
        (Toy([-1, -1], NAMES), {}, 'no image of toy belongs to a class'),
        (Toy([0, 1], ['cat', 'cat']), {}, "toy are named 'cat'"),
        (Toy([0, 0], ['cat']), {}, "toy are named 'cat'"),
        (Toy([2, 2], NAMES), {'classes': 'present'}, "toy are named 'thing 2'"),
        (
            Toy([0, 1], ['a_cat', 'dog']),
            {'classes': ['dog', 'a cat']},
            "the names of toy in another order: 'dog' for label 0, which is 'a cat'",
        ),
        (Toy([0, 1]), {'classes': '/no/such.txt'}, "'/no/such.txt'"),
        (Toy([0, 1]), {'classes': []}, 'classes is an empty list; expected at least one name'),
        (
            Toy([0, 1], NAMES),
            {'classes': ['cat', 'dog']},
            "has 9 classes ('thing 0' …), and classes",
        ),
        (
            Toy([0, 1], NAMES),
            {'classes': [*NAMES, 'x']},
            "gives 10 names ('thing 0' …); expected one",
        ),
        (
            Toy([0, 1], NAMES),
            {'key': 'pets'},
            "key is 'pets', but neither classes nor templates is",
        ),
        (Toy([0, 1], NAMES), {'key': 5}, 'key is 5; expected a text'),
        (Several([[0], [12, 3]], NAMES), {}, 'go up to 12, but there are 9 class names'),
        (Several([[], []], NAMES), {}, 'no image of toy belongs to a class'),
        (Toy([0, 1], NAMES), {'templates': 'generel'}, "Did you mean 'general'"),
        (Toy([0, 1], NAMES), {'templates': ['a photo']}, 'lacks the {}'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, options, message):
    with pytest.raises(ValueError) as error:
        evaluate(Encoders(), data, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (Unlabeled([0, 1], NAMES), 'toy has images without a label'),
        (Toy([0, 0], ['cat']), 'are named .cat.'),
    ],
)
def test_what_the_first_image_shows_is_said_before_any_is_embedded(data, message):
    def encode(images):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        zeroshot.evaluate(encode, Encoders().text, data)


@pytest.mark.parametrize('chunk', [1, 4, 1024])
def test_an_unreadable_image_is_named(monkeypatch, chunk):
    encoders = Encoders()

    def encode(images):
        if 13 in images:
            raise ValueError('not a readable image')
        return encoders.image(images)

    monkeypatch.setattr(_embed, 'CHUNK', chunk)
    with pytest.raises(ValueError, match=r'^toy record 13: not a readable image$'):
        zeroshot.evaluate(encode, encoders.text, Toy([0] * 20, NAMES))


def test_an_error_of_no_single_image_is_not_swallowed():
    encoders = Encoders()

    def encode(images):
        if len(images) > 1:
            raise ValueError('too many images')
        return encoders.image(images)

    with pytest.raises(ValueError, match='too many images'):
        zeroshot.evaluate(encode, encoders.text, Toy([0] * 20, NAMES))


@pytest.mark.parametrize('which', ['image', 'text'])
def test_embeddings_that_are_no_numbers_are_an_error_and_no_score(which):
    # Every comparison with NaN is false: nothing would rank before the right class.
    encoders = Encoders()
    if which == 'image':
        encoders.rows[3] = np.full(DIM, np.nan, np.float32)
    else:
        encoders.set_class(NAMES[3], np.full(DIM, np.nan, np.float32))
    with pytest.raises(ValueError, match=f'{which}.* are not finite'):
        evaluate(encoders, Toy(np.arange(9), NAMES))
