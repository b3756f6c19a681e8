"""Damaged and hostile files of every kind: each is refused in one line, or read as before.

No traceback, no death or hang of the process, no code of a file run, bounded memory. A file is
made from a seed and its number, which a failure names: see `campaign`.
"""

from pathlib import Path

import pytest

from fuzz.campaign import MEMORY, SECONDS, Campaign, Case, problem
from fuzz.mutations import TRAP

SEED = 19
FILES = 1_000


@pytest.fixture(scope='module')
def campaign(tmp_path_factory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp('fuzz'), SEED)


def check(campaign: Campaign, numbers: range) -> None:
    campaign.outcomes.clear()
    campaign.problems.clear()
    campaign.run(numbers)
    print(f'seed {SEED}, numbers {numbers}:', dict(campaign.outcomes))
    assert not campaign.problems, '\n'.join([f'seed {SEED}', *campaign.problems])
    assert sum(campaign.outcomes.values()) == len(numbers)
    assert min(campaign.outcomes['refused'], campaign.outcomes['accepted']) > len(numbers) / 10


def test_files_are_refused_in_one_line_or_read_as_before(campaign):
    check(campaign, range(FILES // 2))


@pytest.mark.slow
@pytest.mark.parametrize('part', range(-1, 30))
def test_many_files_are_refused_in_one_line_or_read_as_before(campaign, part):
    check(campaign, range(FILES * (part + 1), FILES * (part + 2)))


CASE = Case(7, 'open_clip', 'x.json', 'drop', 1_000, may_differ=False)
FINE = {'outcome': 'accepted', 'detail': ['a'], 'warned': 0, 'seconds': 0.1, 'memory': 1_000}


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        ({}, ''),
        ({'outcome': 'refused', 'detail': 'PLACE/x.json: no'}, ''),
        ({'detail': ['bad: damaged']}, ''),
        ({'detail': ['b'], 'warned': 1}, ''),
        ({'detail': ['b']}, 'differs from the original'),
        ({'detail': []}, 'differs from the original'),
        ({'outcome': 'refused', 'detail': 'no such thing'}, 'does not name the file'),
        ({'outcome': 'refused', 'detail': 'PLACE/x.json:\nno'}, 'not one line'),
        ({'outcome': 'traceback', 'detail': 'KeyError'}, 'traceback: KeyError'),
        ({'outcome': 'death', 'detail': 'exit status -11'}, 'death: exit status -11'),
        ({'outcome': 'hang', 'detail': 'no answer'}, 'hang'),
        ({'seconds': SECONDS + 1}, '11.0 s'),
        ({'memory': MEMORY + 3_000}, 'MiB for 1000 bytes'),
    ],
)
def test_what_counts_as_a_problem(tmp_path, change, found):
    answer = {**FINE, **change}
    if isinstance(answer['detail'], str):
        answer['detail'] = answer['detail'].replace('PLACE', str(tmp_path))
    said = problem(CASE, answer, ['a'], tmp_path)
    assert found in said and bool(said) == bool(found)


def test_a_program_that_ran_is_a_problem(tmp_path):
    Path(tmp_path / TRAP).touch()
    assert problem(CASE, FINE, ['a'], tmp_path) == 'code of the file was run'
