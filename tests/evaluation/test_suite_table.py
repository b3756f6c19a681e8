"""The table of a suite: averages over what every checkpoint has, and effective robustness."""

import numpy as np
import pytest

from clip_jax.evaluation import robustness, suite_table


def row(task, values, unit='fraction'):
    states = ['missing' if value is None else 'done' for value in values]
    same = {'type': 'zeroshot', 'data': 'x:y', 'score': '', 'better': 'higher'}
    found = {'values': values, 'states': states, 'messages': len(values) * ['']}
    found['intervals'] = len(values) * [None]
    return {'task': task, 'unit': unit, **same, **found}


def test_an_average_is_over_what_every_checkpoint_has_and_says_of_how_many():
    rows = [row('a', [0.5, 0.7]), row('b', [0.1, None]), row('c', [0.2, 0.4])]
    rows.append(row('d', [3, 4], 'rank'))
    page = {'tasks': dict.fromkeys('abcd'), 'averages': {'all': ('a', 'b', 'c', 'd'), 'b': ('b',)}}
    table = suite_table.table(rows, ['m', 'n'], page)
    assert table['averages'] == [
        {'name': 'all', 'tasks': 2, 'of': 4, 'values': pytest.approx([0.35, 0.55])}
    ]
    assert 'means' not in table
    assert '| **all**, 2 of 4 |  |  | 35.00 | 55.00 |' in suite_table.markdown(table)


ORIGINAL = [0.3, 0.5, 0.6, 0.8]


def shifted(line, extra):
    x = np.log(np.array(ORIGINAL) / (1 - np.array(ORIGINAL)))
    return (1 / (1 + np.exp(-(line[0] * x + line[1]))) + extra).tolist()


def page(**options):
    return {
        'tasks': dict.fromkeys(('original', 'shifted')),
        'robustness': {'of': 'original', 'tasks': ('shifted',), **options},
    }


def test_a_model_above_the_line_of_others_is_effectively_robust():
    line, extra = (0.9, -0.7), np.array([0, 0.125, 0, 0])
    models = ['a', 'zeroshot', 'b', 'c']
    rows = [row('original', ORIGINAL), row('shifted', shifted(line, extra))]
    given = page(baseline=('a', 'b', 'c'))
    suite_table.check(given, models)
    table = suite_table.table(rows, models, given)
    (found,) = table['robustness']['tasks']
    assert (found['slope'], found['intercept']) == pytest.approx(line)
    assert found['values'] == pytest.approx(extra, abs=1e-12)
    text = suite_table.markdown(table)
    assert '| shifted: effective robustness |  |  | ' in text and ' | +12.50 | ' in text
    # Without a baseline the line goes through all.
    (found,) = suite_table.table(rows, models, page())['robustness']['tasks']
    assert found['values'][1] < 0.12 and min(found['values']) < 0


def test_two_models_or_accuracies_without_a_logit_have_no_line():
    values = shifted((1, 0), np.zeros(4))
    for known in (ORIGINAL[:2], [0.5, 0.5, 0.5], [0.0, 0.4, 0.6], [0.4, 0.6, 1.0]):
        assert robustness.fit(known, values[: len(known)]) is None
    rows = [row('original', [*ORIGINAL[:2], None]), row('shifted', values[:3])]
    table = suite_table.table(rows, ['a', 'b', 'c'], page())
    assert table['robustness'] == {'of': 'original', 'tasks': []}
    assert 'robustness' not in suite_table.markdown(table)


def test_a_model_that_was_not_scored_or_has_no_logit_has_no_robustness():
    original, values = [*ORIGINAL, None, 1.0], [*shifted((1, -1), np.zeros(4)), 0.3, 0.9]
    rows = [row('original', original), row('shifted', values)]
    table = suite_table.table(rows, [*'abcdef'], page())
    assert table['robustness']['tasks'][0]['values'] == [
        *(pytest.approx(0, abs=1e-12) for _ in range(4)),
        *(None, None),
    ]
    text = suite_table.markdown(table)
    (line,) = [line for line in text.splitlines() if 'effective robustness' in line]
    assert line.endswith('|  |  |')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'averages': {'all': ('original', 'shiftd')}}, "all: there is no 'shiftd'. Did you mean"),
        ({'averages': {'all': 'original'}}, "all is 'original'; expected names of tasks"),
        ({'averages': {'all': ()}}, r'all is \(\); expected names of tasks'),
        ({'robustness': {'of': 'original'}}, "robustness: there is no 'tasks'"),
        ({'robustness': {'of': 'x', 'tasks': ()}}, "robustness: there is no 'x'"),
        ({'robustness': {'off': 'original'}}, "there is no 'off'. Did you mean 'of'"),
        (page(baseline=('z',)), "baseline: there is no 'z'"),
    ],
)
def test_wrong_averages_are_found_before_anything_runs(change, message):
    with pytest.raises(ValueError, match=message):
        suite_table.check({**page(), 'robustness': {}, **change}, ['a', 'b'])


def test_intervals_stand_behind_the_values():
    rows = [row('pets', [0.5, 0.625, None])]
    rows[0]['intervals'] = [[0.45, 0.57], None, None]
    table = suite_table.table(rows, ['a', 'b', 'c'], {'tasks': {}})
    assert '| 50.00 ± 6.00 | 62.50 | missing |' in suite_table.markdown(table)
