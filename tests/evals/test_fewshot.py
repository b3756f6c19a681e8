"""A few-shot probe is scikit-learn's regression on k images a class, the same choice each time."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from support.labeled import Toy, classes, encode_image, several
from support.reports import flat

from clip_jax.evals import fewshot

NAMES = ['cat', 'dog', 'bird', 'fish']


def sets(n=400, **options):
    options = {'overlap': 2, **options}
    train, test = classes(n, seed=0, **options), classes(300, seed=1, **options)
    return Toy(*train, NAMES, 'train'), Toy(*test, NAMES, 'test')


def evaluate(train, test, **options):
    return flat(fewshot.evaluate(encode_image, None, test, train=train, **options))


def test_scores_are_those_of_scikit_learn_on_the_same_images():
    train, test = sets()
    report = evaluate(train, test, shots=[4, 1, 16], seeds=3, C=0.5)
    assert [row[0] for row in report['shots']] == [1, 4, 16]
    for k, mean, spread, scores in report['shots']:
        expected = []
        for seed in range(3):
            places, rank = fewshot._few_of_each(np.asarray(train.labels), 16, seed)
            some = places[rank < k]
            assert np.bincount(train.labels[some]).tolist() == [k] * 4
            model = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000)
            model.fit(train.images[some].astype(float), train.labels[some])
            expected.append(model.score(test.images, test.labels))
        np.testing.assert_allclose(scores, expected, atol=1 / 300 + 1e-9)
        assert mean == report[f'accuracy@{k}'] == pytest.approx(np.mean(scores))
        assert spread == pytest.approx(np.std(scores))
        assert len({*scores}) > 1
    assert report['accuracy@1'] < report['accuracy@4'] < report['accuracy@16']


def test_few_are_chosen_anew_by_each_seed_and_the_same_again():
    labels = np.asarray(sets()[0].labels)
    chosen = [fewshot._few_of_each(labels, 8, seed) for seed in range(4)]
    for seed, (places, rank) in enumerate(chosen):
        again, _ = fewshot._few_of_each(labels, 8, seed)
        np.testing.assert_array_equal(places, again)
        assert len({*places.tolist()}) == 32
        fewer, _ = fewshot._few_of_each(labels, 3, seed)
        assert {*fewer.tolist()} == {*places[rank < 3].tolist()}
    assert len({tuple(places) for places, _ in chosen}) == 4


def test_the_same_again_gives_the_same():
    train, test = sets()
    options = {'shots': 2, 'seeds': 2}
    assert evaluate(train, test, **options) == evaluate(train, test, **options)


def test_with_a_validation_set_c_is_found_for_each_choice():
    train, test = sets()
    validation = Toy(*classes(200, seed=2, overlap=2), NAMES)
    report = evaluate(train, test, validation=validation, shots=[2, 8], seeds=2)
    for k, chosen in report['C_of_shots']:
        for seed, C in enumerate(chosen):
            places, rank = fewshot._few_of_each(np.asarray(train.labels), 8, seed)
            some = places[rank < k]

            def score(C, data, some=some):
                model = LogisticRegression(C=C, tol=1e-9, max_iter=20_000)
                model.fit(train.images[some].astype(float), train.labels[some])
                return model.score(data.images, data.labels)

            coarse = [score(10.0**e, validation) for e in range(-6, 7, 2)]
            assert score(C, validation) >= max(coarse) - 0.011  # two images of 200
    fixed = evaluate(train, test, validation=validation, shots=[2, 8], seeds=2, C=3)
    assert [row[1] for row in fixed['C_of_shots']] == [[3, 3], [3, 3]]


def test_default_shots_and_seeds():
    report = evaluate(*sets())
    assert [row[0] for row in report['shots']] == [1, 2, 4, 8, 16]
    assert {len(row[3]) for row in report['shots']} == {5}


TRAIN, TEST = sets(n=60)
LEAST = np.bincount(TRAIN.labels).argmin()


@pytest.mark.parametrize(
    ('train', 'test', 'options', 'message'),
    [
        (
            TRAIN,
            TEST,
            {'shots': [1, 50]},
            f'train has {np.bincount(TRAIN.labels)[LEAST]} images of {NAMES[LEAST]!r}; expected '
            '50 of each class',
        ),
        (TRAIN, TEST, {'shots': []}, 'shots is []; expected integers above 0'),
        (TRAIN, TEST, {'shots': [0, 1]}, 'shots is [0, 1]; expected integers above 0'),
        (TRAIN, TEST, {'shots': 'few'}, "shots is 'few'; expected integers above 0"),
        (TRAIN, TEST, {'seeds': 0}, 'seeds is 0; expected an integer above 0'),
        (TRAIN, TEST, {'C': -1}, 'C is -1; expected a number above 0'),
        (TRAIN, TEST, {'features': 'head'}, "there is no 'head'"),
        (TRAIN, TEST, {'metric': 'roc_auc'}, 'which has 4 classes'),
        (
            Toy(*several(60), NAMES, 'train'),
            Toy(*several(60, seed=1), NAMES, 'test'),
            {'metric': 'map_11_point'},
            'test has several labels per image; expected one',
        ),
        (
            Toy(*several(60), NAMES, 'train'),
            Toy(*several(60, seed=1), NAMES, 'test'),
            {},
            'test has several labels per image; expected one',
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(train, test, options, message):
    with pytest.raises(ValueError) as error:
        evaluate(train, test, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
