"""Scores by group: each image counts in its own, and the worst group is the headline of all."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from support.labeled import Toy, encode_image

from clip_jax.evals import _groups, _scores, zeroshot

NAMES = [f'class {k}' for k in range(7)]


class Grouped(Toy):
    """A labeled set whose images have groups."""

    def __init__(self, rows, labels, groups):
        super().__init__(rows, labels, NAMES)
        self.groups = groups

    def __getitem__(self, i):
        group = {} if self.groups[i] is None else {'group': self.groups[i]}
        return {**super().__getitem__(i), **group}


def encode_text(texts):
    """The embedding of class k is the k-th unit vector."""
    return np.eye(7, dtype=np.float32)[[int(text.split()[-1].strip('.')) for text in texts]]


def data(groups=('region 2', 'region 10', 'region 1')):
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=90)
    rows = np.eye(7)[labels] + rng.normal(0, 0.8, (90, 7))
    labels[::9] = -1
    return Grouped(rows, labels, [groups[i % len(groups)] for i in range(90)])


def test_each_group_has_its_own_accuracy_and_the_worst_is_a_score():
    source = data()
    report = zeroshot.evaluate(encode_image, encode_text, source)
    ranks = np.argsort(np.argsort(-np.array(source.images), axis=1), axis=1)
    labels = np.array(source.labels)
    own = np.array([ranks[i, k] if k >= 0 else 99 for i, k in enumerate(labels)])
    groups = np.array(source.groups)
    for name, most in ('top1', 1), ('top5', 5):
        want = [
            [group, int(np.sum(mine)), np.mean(own[mine] < most)]
            for group in ('region 1', 'region 2', 'region 10')
            for mine in [(groups == group) & (labels >= 0)]
        ]
        rows = report['groups'][f'{name} by group']
        assert [row[:3] for row in rows] == want
        assert all(low < value < high for _, _, value, low, high in rows)
        assert len({value for *_, value in want}) > 1
        key = 'worst_group' if most == 1 else 'worst_group_top5'
        assert report['scores'][key]['value'] == min(value for *_, value in want)
    assert report['counts']['groups'] == 3 and report['counts']['unlabeled'] == 10


def test_without_groups_the_report_has_none():
    report = zeroshot.evaluate(encode_image, encode_text, data((None,)))
    assert 'groups' not in report and 'worst_group' not in report['scores']


def test_only_some_images_with_a_group_are_an_error():
    with pytest.raises(ValueError, match='45 of 90 images have a group; expected one for each'):
        zeroshot.evaluate(encode_image, encode_text, data(('a', None)))


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_with_images():
    rng = np.random.default_rng(1)
    labels, guess = rng.integers(1, 6, 80), rng.integers(0, 8, 80)
    present = np.unique(labels)
    want = f1_score(labels, guess, average='macro', labels=present, zero_division=0)
    assert _scores.macro_f1(guess, labels, 9) == pytest.approx(want, abs=1e-12)


def test_groups_are_in_the_order_of_their_numbers():
    names = ['year 0, region 10', 'year 0, region 9', 'year 0', 'b', 'a 2', 'a 10']
    want = ['a 2', 'a 10', 'b', 'year 0', 'year 0, region 9', 'year 0, region 10']
    assert sorted(names, key=_groups._order) == want
