"""Reports on the same data are compared image by image, and others are not."""

import html
import json
import re

import numpy as np
import pytest
from support.reports import classified

from clip_jax import evals
from clip_jax.evals import _paired
from clip_jax.reports import compared, html_report


@pytest.fixture
def report(tmp_path):
    """Writes a report of which images are right: returns its path."""

    def write(name, right, **changes):
        scores = {'top1': evals.score(np.mean(right), interval=(0.1, 0.9))}
        made = {**classified(), 'scores': scores, 'correct': {'top1': _paired.packed(right, 'x')}}
        path = tmp_path / name / 'pets.json'
        path.parent.mkdir()
        path.write_text(json.dumps(made | changes))
        return path

    return write


def cells(section):
    return [[row.name, *row.cells] for row in section.table.rows]


def test_each_pair_has_a_row_with_the_test(report):
    paths = [report('a', [1] * 8 + [0] * 2), report('b', [1] * 2 + [0] * 8), report('c', [1] * 10)]
    [section] = compared.sections(paths)
    a, b, c = map(str, paths)
    rows = cells(section)
    assert [row[0] for row in rows] == [f'{a} and {b}', f'{a} and {c}', f'{b} and {c}']
    assert rows[0][1:6] == ['top1', '10', '6', '0', '+60.00'] and rows[0][7] == '0.031'
    assert rows[1][3:] == ['0', '2', '-20.00', '-50.00 to +0.00', '0.5']
    assert "McNemar's exact" in section.subtitle and '3 reports' in section.title
    assert [image.name for image in section.images] == ['scores']
    page = html_report.compare_page([], [section])
    assert re.search(r'<td class="n">-50.00 to \+0.00</td>', page)


def test_what_is_not_compared_has_a_reason(report):
    base = report('a', [1, 0])
    others = [
        report('b', [1, 0], data='folder:cars'),
        report('c', [1, 0, 1]),
        report('d', [1, 0], type='retrieval'),
    ]
    [same, why] = compared.sections([base, *others])
    assert same.table is None and '2 reports' in same.title
    assert 'different images: 2 and 3 of them' in why.subtitle
    assert 'different data: folder:test and folder:cars' in why.subtitle
    assert 'retrieval' not in why.subtitle  # of another evaluation nobody expects it
    assert compared.sections([base]) == compared.sections([]) == []
    assert compared.sections([base, others[2]]) == []


def test_many_reasons_are_counted(report):
    paths = [report(str(k), [1, 0], data=f'folder:{k}') for k in range(6)]
    [why] = compared.sections(paths)
    assert why.subtitle.count('different data') == 8 and 'and 7 more pairs' in why.subtitle


def test_a_page_shows_intervals(report):
    section = html_report.report_file_section(report('a', [1, 0]))
    assert section.cards == [('top1', '50.0 %', '95 %: 10.0 to 90.0 %')]
    page = html.unescape(html_report.compare_page([], [section]))
    assert '<b>50.0 %</b><span>top1</span><small>95 %: 10.0 to 90.0 %</small>' in page
    wrong = {'top1': {**evals.score(0.5), 'interval': [0.1]}}
    with pytest.raises(ValueError, match=r'the interval of score top1 is \[0\.1\]'):
        html_report.report_file_section(report('b', [1, 0], scores=wrong))
