"""Every file of evals/ keeps what the folder promises: tested the moment it exists."""

import inspect
import json

import numpy as np
import pytest

from clip_jax import lookup

NAMES = ['red', 'green', 'blue', 'white', 'black', 'gray', 'pink']


class Toy:
    """Images with captions and labels, held in memory: the same dicts at each reading."""

    label_names = NAMES

    def __init__(self, n):
        self.records = [
            {'image': i, 'texts': [f'caption {i}', NAMES[i % 7]], 'label': i % 7} for i in range(n)
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
        assert (option.default is option.empty) == (key == 'train')
    assert evaluate.__doc__


def test_the_report_is_json_with_scores_from_0_to_1_at_the_top(evaluate):
    report = evaluate(Toy(50))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    scores = [v for v in report.values() if isinstance(v, float)]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    assert report['images'] == 50


def test_the_same_again_gives_the_same_and_leaves_the_data_alone(evaluate):
    data = Toy(50)
    assert evaluate(data) == evaluate(data)
    assert data.records == Toy(50).records


def test_one_record_is_enough(evaluate):
    assert evaluate(Toy(1))['images'] == 1
