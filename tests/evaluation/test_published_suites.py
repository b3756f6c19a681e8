"""Suites of published evaluation sets: what is copied to a folder is scored, the rest is listed."""

import json

import pytest
from support import wds_sets
from support.process import ROOT
from support.runs import command

from clip_jax.cli import config_file
from clip_jax.evaluation import suite


def page(name: str) -> dict:
    return config_file.read(name, flag='suite').to_dict()


@pytest.mark.parametrize('name', ['datacomp38', 'clip_benchmark', 'imagenet_variants'])
def test_the_tasks_of_a_suite_are_evaluations_of_sets_on_the_hub(name):
    tasks = suite.tasks(page(name))
    for task in tasks:
        if task.name == 'winogavil':  # a file and its images
            assert task.type == 'compositional' and task.data.startswith('choices:data/')
            continue
        assert task.data.startswith('wds:hf://datasets/') and '//' not in task.data[18:]
    assert len({task.data for task in tasks if 'objective' not in str(task.source)}) > 5
    text = (ROOT / f'configs/suites/{name}.py').read_text()
    assert f'clip-jax eval suite --suite={name} ' in text
    assert f'## {name}.py' in (ROOT / 'configs/suites/README.md').read_text()


def test_the_tasks_are_as_many_as_are_published():
    found = page('datacomp38')
    averages = {name: len(own) for name, own in found['averages'].items()}
    shifts = {'ImageNet distribution shifts': 6}
    assert averages == {**shifts, 'VTAB': 13, 'retrieval': 3, 'average': 38}
    assert len(page('clip_benchmark')['tasks']) == 41
    assert next(iter(page('imagenet_variants')['tasks'])) == 'imagenet'


@pytest.fixture
def evaluate(tiny_run, tmp_path):
    """Runs a suite over the sets in the folder `sets`; returns its end and its table."""

    def run(name, *models):
        out = tmp_path / 'out'
        models = [f'--model={model}' for model in models or [tiny_run]]
        root = f'--suite.options.wds.root={tmp_path / "sets"}'
        done = command('eval', 'suite', f'--suite={name}', *models, root, f'--out={out}')
        return done, json.loads((out / 'suite.json').read_text())

    return run


def test_datacomp_scores_groups_columns_and_retrieval(evaluate, tmp_path):
    sets = tmp_path / 'sets'
    wds_sets.classes(sets / 'wds_vtab-caltech101_test', 50)
    wds_sets.regions(sets / 'wds_wilds-fmow_test')
    wds_sets.faces(sets / 'wds_fairface_test')
    wds_sets.captions(sets / 'wds_flickr30k')
    done, table = evaluate('datacomp38')
    assert done.returncode == 0, done.stderr
    rows = {row['task']: row for row in table['tasks']}
    faces = [f'fairface_{what}' for what in ('race', 'gender', 'age')]
    ran = ['caltech101', 'fmow', 'flickr30k', *faces]
    assert [name for name, row in rows.items() if row['states'] == ['done']] == ran
    assert {row['states'][0] for name, row in rows.items() if name not in ran} == {'missing'}
    own = [rows[name]['values'][0] for name in ran[:3]]
    average = {'tasks': 3, 'of': len(rows) - 6, 'values': [pytest.approx(sum(own) / 3)]}
    assert table['averages'][-1] == {'name': 'average', **average}
    assert rows['fmow']['score'] == 'worst_group'
    report = json.loads(next((tmp_path / 'out').glob('*/fmow.json')).read_text())
    groups = report['groups']['top1 by group']
    assert [name for name, *_ in groups] == ['region 9', 'region 10', 'region 11']
    assert rows['fmow']['values'] == [min(row[2] for row in groups)]
    assert report['data_options']['wds']['group_by'] == ['region']
