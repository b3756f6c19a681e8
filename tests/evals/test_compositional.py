"""Scores of choices between texts and images are what loops over the questions find."""

import numpy as np
import pytest
from support.reports import flat
from support.vectors import unit

from clip_jax.data.sources import Question
from clip_jax.evals import _paired, compositional


def without_intervals(report):
    return {title: [row[:3] for row in rows] for title, rows in report['groups'].items()}


class Asked:
    """Images that are numbers, with questions about them."""

    label_names = []

    def __init__(self, count, questions):
        self.count, self.questions = count, questions

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {'image': i, 'texts': []}

    def where(self, i):
        return f'image {i}'

    def __str__(self):
        return 'asked'


IMAGES = unit(np.random.default_rng(0).normal(size=(30, 8)))


def vector(text):
    return unit(np.random.default_rng([*text.encode()]).normal(size=8))


def evaluate(questions, **options):
    texts = options.pop('vectors', {})

    def encode_text(captions):
        return np.stack([texts.get(text, vector(text)) for text in captions])

    data = Asked(len(IMAGES), questions)
    return compositional.evaluate(lambda i: IMAGES[i], encode_text, data, **options)


def choices(count=60, seed=1):
    """A right text and one to three wrong ones, in three groups of different sizes."""
    rng = np.random.default_rng(seed)
    return [
        Question(
            (int(rng.integers(30)),),
            tuple(f'{k}-{n}' for n in range(rng.integers(2, 5))),
            ((0, 0),),
            ('add', 'swap', 'replace')[min(k // 10, 2)],
        )
        for k in range(count)
    ]


def cosine(image, text):
    return float(IMAGES[image].astype(np.float64) @ vector(text).astype(np.float64))


def test_accuracy_counts_right_texts_above_all_wrong_ones():
    questions = choices()
    right = {'add': [], 'swap': [], 'replace': []}
    for q in questions:
        own, *others = [cosine(q.images[0], text) for text in q.texts]
        right[q.group].append(all(own > other for other in others))
    report = evaluate(questions)
    found = flat(report)
    everything = [x for own in right.values() for x in own]
    assert found['accuracy'] == np.mean(everything)
    assert found['mean_per_group'] == pytest.approx(np.mean([np.mean(x) for x in right.values()]))
    assert 0.1 < found['accuracy'] < 0.9 and found['mean_per_group'] != found['accuracy']
    assert without_intervals(report) == {
        'accuracy': [[name, len(x), pytest.approx(np.mean(x))] for name, x in right.items()]
    }
    assert next(iter(report['scores'])) == 'mean_per_group'
    assert (found['questions'], found['images'], found['equal_texts']) == (60, 30, 0)
    assert found['chance'] == pytest.approx(np.mean([1 / len(q.texts) for q in questions]))


def test_scores_and_groups_have_intervals_and_questions_say_which_are_right():
    report = evaluate(choices())
    for entry in report['scores'].values():
        assert entry['interval'][0] < entry['value'] < entry['interval'][1]
    for _, _, value, low, high in report['groups']['accuracy']:
        assert low < value < high
    right = _paired.unpacked(report['correct']['accuracy'])
    assert right.mean() == report['scores']['accuracy']['value'] and len(right) == 60


@pytest.mark.parametrize('options', [{'min_examples': 11}, {'leave_out': ['add', 'swap', 'none']}])
def test_groups_that_do_not_count_stay_in_the_table(options):
    report = evaluate(choices(), **options)
    rows = {name: value for name, _, value, *_ in report['groups']['accuracy']}
    assert set(rows) == {'add', 'swap', 'replace'}
    assert flat(report)['mean_per_group'] == rows['replace']


def test_groups_may_be_named_in_a_file_or_with_commas(tmp_path):
    file = tmp_path / 'symmetric.txt'
    file.write_text('add\nswap\n')
    expected = evaluate(choices(), leave_out=['add', 'swap'])
    assert evaluate(choices(), leave_out=str(file)) == expected
    assert evaluate(choices(), leave_out='add,swap') == expected
    assert evaluate(choices(), leave_out='add') == evaluate(choices(), leave_out=['add'])


def test_a_tie_is_wrong():
    own = vector('right')
    question = [Question((0,), ('right', 'wrong'), ((0, 0),), 'one')]
    found = flat(evaluate(question, vectors={'wrong': own}))
    assert (found['accuracy'], found['ties']) == (0, 1)
    found = flat(evaluate(question, vectors={'wrong': unit(own - IMAGES[0])}))
    assert (found['accuracy'], found['ties']) == (1, 0)
    both = [Question((0, 1), ('right', 'wrong'), ((0, 0), (1, 1)), 'one')]
    assert flat(evaluate(both, vectors={'wrong': own}))['ties'] == 1


def test_wrong_texts_that_equal_the_right_one_are_no_choice():
    texts = ('right', 'right', 'far')
    vectors = {'right': IMAGES[0], 'far': -IMAGES[0]}
    asked = [Question((0,), texts, ((0, 0),), 'order'), Question((0,), texts[:2], ((0, 1),), 'x')]
    found = flat(evaluate(asked, vectors=vectors))
    assert (found['accuracy'], found['equal_texts'], found['chance']) == (1, 2, 0.75)
    vectors = {'right': -IMAGES[0], 'far': IMAGES[0]}
    assert flat(evaluate(asked, vectors=vectors))['accuracy'] == 0.5


def pairs(count=40, seed=5):
    rng = np.random.default_rng(seed)
    return [
        Question(
            tuple(map(int, rng.choice(30, 2, replace=False))),
            (f'{k}-0', f'{k}-1'),
            ((0, 0), (1, 1)),
            ('Object', 'Relation')[k % 2],
        )
        for k in range(count)
    ]


def winoground(q):
    """The scores of arXiv 2204.03162, section 3: f, g and h."""
    c0_i0, c1_i0 = (cosine(q.images[0], text) for text in q.texts)
    c0_i1, c1_i1 = (cosine(q.images[1], text) for text in q.texts)
    text = c0_i0 > c1_i0 and c1_i1 > c0_i1
    image = c0_i0 > c0_i1 and c1_i1 > c1_i0
    return text, image, text and image


def test_text_image_and_group_scores_are_those_of_winoground():
    questions = pairs()
    expected = np.array([winoground(q) for q in questions])
    report = evaluate(questions)
    names = ['text_score', 'image_score', 'group_score']
    assert [*report['scores']] == names
    np.testing.assert_allclose([flat(report)[name] for name in names], expected.mean(axis=0))
    assert len(set(expected.mean(axis=0))) == 3
    for k, name in enumerate(('text score', 'image score', 'group score')):
        rows = [['Object', 20, expected[::2, k].mean()], ['Relation', 20, expected[1::2, k].mean()]]
        assert without_intervals(report)[name] == rows
    assert flat(report)['chance'] == 0.25


def associations(count=40, seed=3):
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        size = (5, 6, 10)[k % 3]
        right = np.sort(rng.choice(size, rng.integers(2, 4), replace=False)).tolist()
        images = tuple(map(int, rng.choice(30, size, replace=False)))
        made.append(Question(images, (f'cue {k}',), tuple((i, 0) for i in right), f'{size}'))
    return made


def test_the_jaccard_index_is_that_of_the_nearest_images():
    questions, expected = associations(), []
    for q in questions:
        right = {i for i, _ in q.matches}
        cosines = [cosine(image, q.texts[0]) for image in q.images]
        nearest = set(np.argsort(cosines)[-len(right) :].tolist())
        expected.append(len(right & nearest) / len(right | nearest))
    report = evaluate(questions)
    assert flat(report)['jaccard'] == pytest.approx(np.mean(expected))
    many = [value for value, q in zip(expected, questions, strict=True) if len(q.images) > 6]
    assert flat(report)['jaccard_10_12'] == pytest.approx(np.mean(many)) != np.mean(expected)
    few = [question for question in questions if len(question.images) <= 6]
    assert 'jaccard_10_12' not in flat(evaluate(few))
    assert without_intervals(report)['jaccard'] == [
        [size, len(expected[k::3]), pytest.approx(np.mean(expected[k::3]))]
        for k, size in enumerate(('5', '6', '10'))
    ]


def test_images_that_tie_at_the_border_are_the_wrong_ones():
    # Images 0 and 1 tie: the right one is not among the nearest.
    same = Question((0, 0, 1), ('cue',), ((0, 0),), 'x')
    found = flat(evaluate([same], vectors={'cue': IMAGES[0]}))
    assert (found['jaccard'], found['ties']) == (0, 1)
    both = same._replace(matches=((0, 0), (1, 0)))
    assert flat(evaluate([both], vectors={'cue': IMAGES[0]}))['jaccard'] == 1


def test_the_chance_of_a_jaccard_index_is_that_of_the_data_card():
    # https://huggingface.co/datasets/nlphuji/winogavil: 0.298 for 2 of 5 images, 0.46 for 3 of 5.
    for right, expected in (2, 0.298), (3, 0.46):
        question = Question((0, 1, 2, 3, 4), ('x',), tuple((i, 0) for i in range(right)), '5')
        assert flat(evaluate([question]))['chance'] == pytest.approx(expected, abs=3e-3)


def test_wrong_data_and_options():
    with pytest.raises(ValueError, match='asked has no questions; expected data such as choices:'):
        evaluate([])
    with pytest.raises(ValueError, match='asked has questions of different kinds'):
        evaluate(choices(2) + pairs(2))
    with pytest.raises(ValueError, match='none of 3 groups is left; the largest has 40'):
        evaluate(choices(), min_examples=41)
    with pytest.raises(ValueError, match=r'nowhere are no groups\. There are: add, swap'):
        evaluate(choices(), leave_out=['nowhere'])
    for options in {'min_examples': 2}, {'leave_out': 'Object'}:
        with pytest.raises(ValueError, match='only questions with one image have; leave them out'):
            evaluate(pairs(), **options)
