"""Every file of evals/ keeps what the folder promises: tested the moment it exists."""

import inspect
import json

import numpy as np
import pytest

from clip_jax import lookup

NAMES = ['red', 'green', 'blue', 'white', 'black', 'grey', 'pink']


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


def encode(things):
    rows = [np.random.default_rng([*str(thing).encode()]).normal(size=8) for thing in things]
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope='module', params=lookup.names('evals'))
def evaluate(request):
    return lookup.module('evals', request.param).evaluate


def test_takes_encoders_and_data_and_options_by_keyword(evaluate):
    first, *options = inspect.signature(evaluate).parameters.items()
    assert [first[0], *(name for name, _ in options[:2])] == ['encode_image', 'encode_text', 'data']
    for _, option in options[2:]:
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty
    assert evaluate.__doc__


def test_the_report_is_json_with_scores_from_0_to_1_at_the_top(evaluate):
    report = evaluate(encode, encode, Toy(50))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    scores = [value for value in report.values() if isinstance(value, float)]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    assert report['images'] == 50


def test_the_same_again_gives_the_same_and_leaves_the_data_alone(evaluate):
    data = Toy(50)
    assert evaluate(encode, encode, data) == evaluate(encode, encode, data)
    assert data.records == Toy(50).records


def test_one_record_is_enough(evaluate):
    assert evaluate(encode, encode, Toy(1))['images'] == 1
