"""The page of a suite's models: numbers of the table, and what it is drawn by."""

import json
import re

import pytest
from support.reports import suite_table

from clip_jax.reports import suites

LINES = suite_table()['robustness']['tasks']


@pytest.fixture
def folder(tmp_path):
    """A folder with the table of a suite; changes to it are arguments."""

    def write(**changes):
        (tmp_path / 'suite.json').write_text(json.dumps(suite_table() | changes))
        return tmp_path

    return write


def test_the_page_has_every_score_with_its_interval_and_the_figures(folder):
    table = suites.read(folder())
    page = suites.suite_page(table, 'mine')
    for k, row in enumerate(table['tasks']):
        for value in row['values'][: 3 - (k == 3)]:
            assert f'{100 * value:.1f} ± 2.0 %' in page
    assert page.count('<img') == 3 and '>—<' in page
    assert '<h1>mine</h1>' in page and 'mean of zeroshot' in page and '+1.0' in page
    assert len(re.findall('class="n best"', page)) == 5  # of four tasks and a mean
    del table['robustness']
    assert suites.suite_page(table, 'mine').count('<img') == 2
    for row in table['tasks']:
        row.pop('intervals')  # of an older version
    assert '±' not in suites.suite_page(table, 'mine')


def test_one_model_and_ranks_have_a_page_too(folder):
    table = suite_table(1, ('flickr',))
    table['tasks'][0] |= {'values': [3.0], 'intervals': [None], 'unit': 'rank', 'better': 'lower'}
    del table['robustness'], table['parameters'], table['means']
    page = suites.suite_page(
        suites.read(folder(**table, means=[], robustness={}, parameters=[])), 'mine'
    )
    assert '<img' not in page and '>3<' in page


def test_what_models_are_drawn_by():
    table = suite_table()
    assert suites.axes_of(table, None, None) == ('parameters', 'mean/zeroshot')
    assert suites.axes_of(table, 'sketch', None) == ('sketch', 'mean/zeroshot')
    assert suites.axes_of(table, None, 'pets') == ('parameters', 'pets')
    assert suites.axes_of(table, 'mean/zeroshot', None) == ('mean/zeroshot', 'pets')
    assert suites.axes_of(table, None, 'parameters') == ('imagenet', 'parameters')
    table['parameters'] = [5, 5, 5]
    assert suites.axes_of(table, None, None) == ('imagenet', 'mean/zeroshot')
    del table['parameters']
    assert suites.axes_of(table, None, None) == ('imagenet', 'mean/zeroshot')
    table['averages'] = [{'name': 'shifted', 'values': [0.1, 0.2, 0.3]}]
    assert suites.axes_of(table, None, None) == ('imagenet', 'shifted')
    assert suites.axes_of(suite_table(1), None, None) is None
    with pytest.raises(ValueError, match=r"--y: there is no 'pet'.*'pets'"):
        suites.axes_of(table, None, 'pet')


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'models': ['a']}, 'a row has not a value for each of 1 models'),
        ({'models': []}, 'no "models"'),
        ({'tasks': []}, 'no "tasks"'),
        ({'parameters': [1]}, 'a value for each of 3 models'),
        ({'averages': [{'name': 'a'}]}, 'a row has no "values"'),
        ({'robustness': {'of': 'cars', 'tasks': LINES}}, '"robustness" names a task'),
        ({'tasks': [{'task': 5}]}, 'task'),
        ({'parameters': 'many'}, 'parameters'),
    ],
)
def test_a_damaged_table_is_named(folder, changes, said):
    with pytest.raises(ValueError, match=rf'suite\.json.*{said}'):
        suites.read(folder(**changes))


def test_a_folder_without_a_table(tmp_path):
    with pytest.raises(ValueError, match=r'suite\.json: no such file; expected a folder of'):
        suites.read(tmp_path)
