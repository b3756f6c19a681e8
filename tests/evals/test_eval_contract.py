"""Every file of evals/ keeps what the folder promises: tested the moment it exists."""

import inspect
import json

import numpy as np
import pytest

from clip_jax import evals, lookup
from clip_jax.data.sources import Question

NAMES = ['red', 'green', 'blue', 'white', 'black', 'gray', 'pink']


class Toy:
    """Images with captions, labels and questions, in memory: the same dicts at each reading."""

    label_names, text_fields = NAMES, ('en', 'de')

    def __init__(self, n):
        texts = [{'en': [f'caption {i}'], 'de': [NAMES[i % 7]]} for i in range(n)]
        self.records = [
            {'image': i, 'texts': [*own['en'], *own['de']], 'fields': own, 'label': i % 7}
            for i, own in enumerate(texts)
        ]
        self.questions = [
            Question((i,), (f'caption {i}', 'another', 'a third'), ((0, 0),), NAMES[i % 7])
            for i in range(n)
        ]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError
        return self.records[i]

    def where(self, i):
        return f'toy record {i}'


def encode(things, *, features='embedding'):
    rows = [np.random.default_rng([*str(thing).encode()]).normal(size=8) for thing in things]
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# What an evaluation cannot do without, and what makes it quick.
NEEDED = {
    'linear_probe': {'train': Toy(70)},
    'fewshot': {'train': Toy(70), 'shots': [1, 2], 'seeds': 2},
}
NEEDED_OPTIONS = ('train',)
# Parts of a report that are not the same again.
SECONDS = ('seconds_of',)


@pytest.fixture(scope='module', params=lookup.names('evals'))
def name(request):
    return request.param


@pytest.fixture(scope='module')
def evaluate(name):
    def run(data):
        report = lookup.module('evals', name).evaluate(encode, encode, data, **NEEDED.get(name, {}))
        return {key: value for key, value in report.items() if key not in SECONDS}

    return run


def test_takes_encoders_and_data_and_options_by_keyword(name):
    evaluate = lookup.module('evals', name).evaluate
    first, *options = inspect.signature(evaluate).parameters.items()
    assert [first[0], *(name for name, _ in options[:2])] == ['encode_image', 'encode_text', 'data']
    for key, option in options[2:]:
        assert option.kind is option.KEYWORD_ONLY
        assert (option.default is option.empty) == (key in NEEDED_OPTIONS)
    assert evaluate.__doc__


def test_the_report_is_json_with_declared_scores_counts_and_facts(evaluate):
    report = evaluate(Toy(50))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report['scores']
    for score in report['scores'].values():
        assert score == evals.score(**score)
        assert 0 <= score['value'] <= (1 if score['unit'] == 'fraction' else 100)
    assert next(iter(report['scores'].values()))['unit'] == 'fraction'
    assert report['counts']['images'] == 50
    assert all(type(count) is int for count in report['counts'].values())
    assert all(isinstance(x, str | int | float | list) for x in report.get('info', {}).values())


def test_a_score_has_one_of_two_directions():
    assert evals.score(np.float32(2), better='lower', unit='nats') == {
        'value': 2.0,
        'better': 'lower',
        'unit': 'nats',
    }
    with pytest.raises(ValueError, match='better'):
        evals.score(1.0, better='max')


def test_the_same_again_gives_the_same_and_leaves_the_data_alone(evaluate):
    data = Toy(50)
    assert evaluate(data) == evaluate(data)
    assert data.records == Toy(50).records


def test_one_record_is_enough(evaluate):
    assert evaluate(Toy(1))['counts']['images'] == 1
