"""`clip-jax eval suite` runs a page of evaluations: what is there runs once, the rest is listed."""

import dataclasses
import functools
import importlib.util
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from support.process import COLORS, ROOT
from support.reports import flat

from clip_jax import build, lookup, pretrained, prompts
from clip_jax.cli import main
from clip_jax.evals import retrieval
from clip_jax.evaluation import evaluate, suite, suite_table

COUNT = 27  # data sets of the paper


@pytest.fixture(scope='module')
def older(tiny_run, tmp_path_factory):
    """The same run some steps before its end."""
    older = tmp_path_factory.mktemp('suite') / 'older'
    shutil.copytree(tiny_run, older)
    shutil.rmtree(max((older / 'checkpoints').iterdir(), key=lambda path: int(path.name)))
    return older


@pytest.fixture
def page(tiny_tars, tmp_path):
    """A page of two lines over the tiny set, and one whose data is not there."""
    page = tmp_path / 'page.py'
    page.write_text(f"""
from ml_collections import ConfigDict

def get_config(more=''):
    tasks = {{
        'colors': {{
            'type': 'zeroshot', 'data': {tiny_tars!r}, 'score': 'top1',
            'classes': {list(COLORS)}, 'templates': ('a {{}} picture',),
        }},
        'captions': {{
            'type': 'retrieval', 'data': {tiny_tars!r},
            'score': ('text_to_image/recall@5', 'text_to_image/recall@10'),
        }},
        'absent': {{'type': 'zeroshot', 'data': 'folder:/no/such/place'}},
    }}
    if more == 'unnamed':
        tasks['unnamed'] = {{'type': 'zeroshot', 'data': {tiny_tars!r}}}
    return ConfigDict({{'tasks': ConfigDict(tasks, sort_keys=False), 'options': {{}}}})
""")
    return page


@pytest.fixture
def run(page, capfd, monkeypatch):
    """Runs the page: returns exit code, table and what was said meanwhile."""
    # Python keeps what a page of an earlier test defined.
    monkeypatch.delitem(sys.modules, 'suite_config', raising=False)

    def run(*arguments, more=''):
        with pytest.raises(SystemExit) as end:
            main.main(['eval', 'suite', f'--suite={page}{more}', *map(str, arguments)])
        return end.value.code, *capfd.readouterr()

    return run


def evaluated(tiny_tars, model, name, **options):
    clip = pretrained.load(model)
    source = build.source(tiny_tars, {})
    evaluate = lookup.module('evals', name).evaluate
    return flat(evaluate(clip.encode_image, clip.encode_text, source, **options))


def cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f'| {name} ')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_the_table_holds_the_numbers_of_single_evaluations(
    run, tiny_run, older, tiny_tars, tmp_path
):
    out = tmp_path / 'out'
    code, table, said = run(f'--model={tiny_run}', f'--model={older}', f'--out={out}')
    assert code == 0
    assert cells(table, 'task') == ['task', 'type', 'score', str(tiny_run), str(older)]
    colors, captions = [], []
    for model in (tiny_run, older):
        options = {'classes': list(COLORS), 'templates': ['a {} picture']}
        colors.append(evaluated(tiny_tars, model, 'zeroshot', **options)['top1'])
        report = evaluated(tiny_tars, model, 'retrieval')
        both = [report[f'text_to_image/recall@{k}'] for k in (5, 10)]
        captions.append(sum(both) / 2)
    assert cells(table, 'colors')[3:] == [f'{100 * x:.2f}' for x in colors]
    assert cells(table, 'captions')[3:] == [f'{100 * x:.2f}' for x in captions]
    assert cells(table, 'absent')[3:] == ['missing', 'missing']
    means = [line for line in table.splitlines() if line.startswith('| **mean of 1**')]
    assert [line.split(' | ')[1] for line in means] == ['zeroshot', 'retrieval']
    assert 'Not on this machine:\n\n* absent (folder:/no/such/place): ' in table
    assert 'Failed' not in table
    assert [line.split()[1] for line in said.splitlines()] == 2 * [
        'colors,',
        'captions,',
        'absent,',
    ]

    assert (out / 'suite.md').read_text() in table
    written = json.loads((out / 'suite.json').read_text())
    assert [row['task'] for row in written['tasks']] == ['colors', 'captions', 'absent']
    assert written['tasks'][0]['values'] == colors
    assert written['means'][0] == {'type': 'zeroshot', 'tasks': 1, 'values': colors}
    found = [json.loads(path.read_text())['scores']['top1'] for path in out.glob('*/colors.json')]
    intervals = written['tasks'][0]['intervals']
    assert sorted(map(str, intervals)) == sorted(str(score.get('interval')) for score in found)
    assert written['tasks'][1]['intervals'] == [None, None]  # the score is a mean of two
    size = sum(x.size for x in jax.tree.leaves(pretrained.load(tiny_run).variables['params']))
    assert written['parameters'] == [size, size]
    reports = sorted(str(path.relative_to(out)) for path in out.glob('*/*.json'))
    assert len(reports) == 4 and all(
        path.endswith(('colors.json', 'captions.json')) for path in reports
    )
    report = json.loads((out / reports[1]).read_text())
    assert report['fingerprint'] and report['model'] in (str(tiny_run), str(older))
    assert report['options']['templates'] == ['a {} picture'] and report['seconds'] > 0


def test_what_is_finished_is_not_run_again(run, tiny_run, older, tmp_path, monkeypatch):
    out = f'--out={tmp_path / "out"}'
    _, first, _ = run(f'--model={tiny_run}', out)
    count = []
    original = evaluate.Evaluation.report

    def counted(self, *arguments, **options):
        count.append(self.settings['type'])
        return original(self, *arguments, **options)

    monkeypatch.setattr(evaluate.Evaluation, 'report', counted)
    code, again, said = run(f'--model={tiny_run}', out)
    assert (code, again, count) == (0, first, [])
    assert said.count('(read)') == 2
    # Another checkpoint, other settings, a report that is gone.
    run(f'--model={tiny_run}', f'--model={older}', out)
    assert count == ['zeroshot', 'retrieval']
    run(f'--model={tiny_run}', out, "--suite.tasks.colors.templates=('something {}',)")
    assert count[2:] == ['zeroshot']
    (tmp_path / 'out').joinpath(suite._slug(str(tiny_run)), 'captions.json').unlink()
    run(f'--model={tiny_run}', out, "--suite.tasks.colors.templates=('something {}',)")
    assert count[3:] == ['retrieval']


def test_a_checkpoint_that_has_changed_is_evaluated_again(run, tiny_run, tmp_path):
    model, out = tmp_path / 'model', f'--out={tmp_path / "out"}'
    shutil.copytree(tiny_run, model)
    run(f'--model={model}', out)
    shutil.rmtree(max((model / 'checkpoints').iterdir(), key=lambda path: int(path.name)))
    _, _, said = run(f'--model={model}', out)
    assert '(read)' not in said


def test_a_line_that_fails_is_listed_and_the_others_run(run, tiny_run, tmp_path):
    out = tmp_path / 'out'
    code, table, _ = run(f'--model={tiny_run}', f'--out={out}', more=':unnamed')
    assert code == 1
    assert cells(table, 'unnamed')[3] == 'failed'
    assert 'Failed:\n\n* unnamed (tars:' in table and 'does not name its classes' in table
    assert cells(table, 'colors')[3] != 'failed' and not list(out.glob('*/unnamed.json'))


def test_the_table_is_shown_even_if_it_cannot_be_written(run, tiny_run, tmp_path, monkeypatch):
    code, table, said = run(f'--model={tiny_run}', f'--out={tmp_path / "page.py" / "out"}')
    assert (code, table) == (1, '') and 'page.py is not a folder' in said  # before anything runs

    def full(*_):
        raise OSError('no space left')

    monkeypatch.setattr(suite_table, 'write', full)
    code, table, said = run(f'--model={tiny_run}', f'--out={tmp_path / "out"}')
    assert code == 1 and said.endswith('clip-jax eval: no space left\n')
    assert float(cells(table, 'colors')[3]) > 0


def test_any_error_is_that_of_its_line(run, tiny_run, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError('RESOURCE_EXHAUSTED:\nout of memory')

    monkeypatch.setattr(retrieval, 'evaluate', lambda a, b, data: out_of_memory())
    code, table, _ = run(f'--model={tiny_run}')
    assert code == 1
    assert '* captions (tars:' in table and ': RESOURCE_EXHAUSTED: out of memory' in table
    assert float(cells(table, 'colors')[3]) >= 0


def test_an_unknown_score_is_an_error_that_names_those_there_are(run, tiny_run):
    code, table, _ = run(f'--model={tiny_run}', '--suite.tasks.colors.score=top2')
    assert code == 1
    assert "score: there is no 'top2'. Did you mean 'top" in table and ' There are: ' in table


def test_a_report_is_kept_even_if_it_lacks_the_score(run, tiny_run, tmp_path):
    out = tmp_path / 'out'
    code, table, _ = run(f'--model={tiny_run}', f'--out={out}', '--suite.tasks.colors.score=top2')
    assert code == 1 and cells(table, 'colors')[3] == 'failed'
    _, table, said = run(f'--model={tiny_run}', f'--out={out}')
    assert said.count('(read)') == 2 and 0 <= float(cells(table, 'colors')[3]) <= 100


def test_a_score_that_is_no_share_is_shown_as_it_is(run, tiny_run, tiny_tars):
    rank = evaluated(tiny_tars, tiny_run, 'retrieval')['text_to_image/median_rank']
    score = '--suite.tasks.captions.score=text_to_image/median_rank'
    code, table, said = run(f'--model={tiny_run}', score)
    assert code == 0 and cells(table, 'captions')[3] == f'{rank:g}'
    assert f'captions, {tiny_run}: {rank:g} (' in said
    assert table.count('**mean of') == 1  # ranks are not averaged with shares


def test_other_texts_under_the_same_name_are_other_settings(
    run, page, tiny_run, tmp_path, monkeypatch
):
    classes, templates = tmp_path / 'classes.txt', tmp_path / 'templates.txt'
    classes.write_text('\n'.join(COLORS))
    templates.write_text('a {} picture')
    text = page.read_text().replace(repr(list(COLORS)), repr(str(classes)))
    page.write_text(text.replace("('a {} picture',)", repr(str(templates))))
    arguments = f'--model={tiny_run}', f'--out={tmp_path / "out"}'
    assert '(read)' not in run(*arguments)[2]
    assert run(*arguments)[2].count('(read)') == 2
    templates.write_text('something {}')
    assert run(*arguments)[2].count('(read)') == 1
    classes.write_text('\n'.join([*COLORS, 'black']))
    assert run(*arguments)[2].count('(read)') == 1
    page.write_text(text.replace("'templates': ('a {} picture',)", "'templates': 'plain'"))
    run(*arguments)
    assert run(*arguments)[2].count('(read)') == 2
    monkeypatch.setattr(prompts, '_read_set', lambda name: 'a drawing of a {}')
    assert run(*arguments)[2].count('(read)') == 1


def test_another_card_or_arithmetic_is_another_checkpoint(run, tiny_run, tmp_path, monkeypatch):
    model, out = f'--model={tiny_run}', f'--out={tmp_path / "out"}'
    run(model, out)
    assert run(model, out)[2].count('(read)') == 2
    assert '(read)' not in run(model, out, '--dtype=bfloat16')[2]
    report = json.loads(next((tmp_path / 'out').glob('*/colors.json')).read_text())
    assert (report['compute_dtype'], report['device']) == ('bfloat16', 'cpu')
    load = pretrained.load

    def with_another_mean(*arguments, **options):
        clip = load(*arguments, **options)
        preprocess = {**clip.card['preprocess'], 'mean': [0.1, 0.2, 0.3]}
        return dataclasses.replace(clip, card={**clip.card, 'preprocess': preprocess})

    monkeypatch.setattr(pretrained, 'load', with_another_mean)
    assert '(read)' not in run(model, out, '--dtype=bfloat16')[2]


def test_options_of_a_wrong_type_are_named(run, tiny_run, page):
    page.write_text(page.read_text().replace("('a {} picture',)", '5'))
    code, table, _ = run(f'--model={tiny_run}')
    assert code == 1 and 'evals/zeroshot: templates is 5; expected a name' in table


def test_nothing_that_could_run_is_an_error(run, tiny_run):
    absent = [f'--suite.tasks.{name}.data=folder:/no/{name}' for name in ('colors', 'captions')]
    code, table, _ = run(f'--model={tiny_run}', *absent)
    assert code == 1 and table.count('missing') == 3


def test_options_of_sources(run, tiny_run, page):
    text = page.read_text()
    changed = "'options': {'tars': {'text_exts': ['none']}}"
    page.write_text(text.replace("'options': {}", changed))
    code, table, _ = run(f'--model={tiny_run}')
    assert code == 1 and 'has no caption' in table
    own = "'source': {'text_exts': ['txt']}, 'type': 'retrieval'"
    page.write_text(text.replace("'options': {}", changed).replace("'type': 'retrieval'", own))
    assert run(f'--model={tiny_run}')[0] == 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (("'type': 'retrieval', ", ''), "suite: task captions: there is no 'type'"),
        (("'type': 'retrieval'", "'type': 'retrieve'"), "Did you mean 'retrieval'?"),
        (("'classes':", "'clases':"), "task colors: evals/zeroshot: option: there is no 'clases'"),
        (("'options': {}", "'option': {}"), "suite: there is no 'option'. Did you mean 'options'?"),
        (("'colors':", "'a/b':"), 'suite: task a/b: '),
        (("'tasks': ConfigDict(tasks, sort_keys=False)", "'tasks': {}"), 'has no tasks'),
        (('get_config', 'get_suite'), "no attribute 'get_config'"),
        (("'data': 'folder:/no/such/place'", "'data': None"), "task absent: there is no 'data'"),
        (
            ("'type': 'retrieval'", "'type': 'linear_probe', 'train': 'x:y', 'save': 'probe.npz'"),
            'task captions: save: ',
        ),
    ],
)
def test_a_wrong_page_is_an_error_before_anything_runs(
    run, page, tiny_run, tmp_path, change, message
):
    page.write_text(page.read_text().replace(*change))
    code, table, error = run(f'--model={tiny_run}', f'--out={tmp_path / "out"}')
    assert code == 1 and table == '' and message in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'at least one --model=PATH'),
        (['--model=x', '--data=y'], 'and no --data'),
        (['--model=x', '--top=3'], "there is no flag '--top=3'; expected --suite.key=value"),
        (['--model=x', '--suite.tasks.colrs.data=y'], "Did you mean 'colors'?"),
        (['--model=/no/x', '--model=/no/x'], 'expected different checkpoints'),
        (['--model=/no/x'], '/no/x: no such file or folder'),
        (['--model=x', '--dtype=float16'], "dtype: there is no 'float16'"),
    ],
)
def test_wrong_flags_are_an_error(run, arguments, message):
    code, table, error = run(*arguments)
    assert (code, table) == (1, '') and message in error and error.count('\n') == 1


def test_a_second_checkpoint_that_is_none_is_an_error_before_the_first_runs(
    run, tiny_run, tmp_path
):
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'a.txt').write_text('mine')
    code, table, error = run(f'--model={tiny_run}', f'--model={tmp_path / "notes"}')
    assert (code, table, error.count('\n')) == (1, '', 1) and 'no checkpoint found' in error


def test_reports_stay_in_their_folder():
    assert suite._slug('..') == suite._slug('.') == suite._slug('/') == 'model'
    assert suite._slug('../runs/a') == '.._runs_a'


def test_options_of_a_mixture_are_those_of_each_of_its_kinds():
    (line,) = suite.tasks(
        {
            'tasks': {
                'mixed': {
                    'type': 'retrieval',
                    'data': '3 * tars:a.tar + 1 * tars:b.tar',
                    'source': {'text_exts': ['cap']},
                }
            }
        }
    )
    assert line.source == {'tars': {'text_exts': ['cap']}}


def test_a_page_that_is_not_there(capfd, tmp_path):
    with pytest.raises(SystemExit):
        main.main(['eval', 'suite', f'--suite={tmp_path}/pge.py', '--model=x'])
    assert '--suite: there is no file' in capfd.readouterr().err


# configs/suites/clip27.py


def clip27(*arguments):
    path = ROOT / 'configs/suites/clip27.py'
    spec = importlib.util.spec_from_file_location('clip27', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config(*arguments).to_dict()


def test_the_papers_sets_are_all_there_for_both_evaluations():
    module, page = clip27()
    assert len(module.SETS) == COUNT and len(page['tasks']) == 2 * COUNT
    for kind in ('zeroshot', 'linear_probe'):
        lines = clip27(kind)[1]['tasks']
        assert len(lines) == COUNT and {line['type'] for line in lines.values()} == {kind}
        assert [*lines] == [f'{name}_{kind}' for name in module.SETS]
    metrics = [metric for *_, metric, _ in module.SETS.values()]
    assert metrics.count('mean_per_class') == 4
    assert metrics.count('map_11_point') == metrics.count('roc_auc') == 1


def test_the_names_of_tfds_are_those_that_it_builds():
    import tensorflow_datasets as tfds

    module, _ = clip27()
    specs = [spec for train, test, *_ in module.SETS.values() for spec in (train, test)]
    assert {*module.VALIDATION} <= {*module.SETS}
    for name, validation in module.VALIDATION.items():
        assert validation == f'{module.SETS[name][0].removesuffix("/train")}/validation'
        splits = tfds.builder(validation.split(':')[1].rpartition('/')[0]).info.splits
        assert not splits or 'validation' in splits
    names = {spec.split(':')[1].split('/')[0] for spec in specs if spec.startswith('tfds:')}
    assert names <= {*tfds.list_builders(with_community_datasets=False)} and len(names) == 16
    folders = {spec for spec in specs if spec.startswith('folder:')}
    assert len(folders) == 2 * (COUNT - 16)


def test_the_readme_says_which_sets_are_folders():
    text = (ROOT / 'configs/suites/README.md').read_text()
    module, _ = clip27()
    for name, (_, test, *_) in module.SETS.items():
        told = test.startswith('folder:') or name in module.CLASSES
        assert (f'`{name}`' in text) == told


def test_the_pages_lines_are_evaluations_with_prompt_sets_that_exist():
    module, page = clip27()
    lines = suite.tasks(page)
    assert len(lines) == 2 * COUNT
    prompts = {path.stem for path in (ROOT / 'clip_jax/prompts/templates').glob('*.txt')}
    assert {name for *_, name in module.SETS.values()} <= prompts


def test_the_names_of_classes_are_as_many_as_tfds_has():
    import tensorflow_datasets as tfds

    module, page = clip27('zeroshot')
    for name, count in ('eurosat', 10), ('patch_camelyon', 2):
        classes = page['tasks'][f'{name}_zeroshot']['classes']
        spec = module.SETS[name][1].removeprefix('tfds:').rpartition('/')[0]
        assert len(classes) == count == tfds.builder(spec).info.features['label'].num_classes
    assert page['tasks']['sun397_zeroshot']['classes'] == 'data/sun397/classes.txt'


def test_a_set_without_its_file_of_names_is_missing(run, page, tiny_run):
    page.write_text(page.read_text().replace(repr(list(COLORS)), "'/no/classes.txt'"))
    code, table, _ = run(f'--model={tiny_run}')
    assert code == 0 and cells(table, 'colors')[3] == 'missing'


class Few:
    """Images 0, 1, …, with a label each, or as `several` lists of them."""

    def __init__(self, classes, several):
        self.label_names, self.several = [f'class {k}' for k in range(classes)], several

    def __len__(self):
        return 40

    def __getitem__(self, i):
        label = i % len(self.label_names)
        return {'image': i, **({'labels': [label]} if self.several else {'label': label})}


def encode(things, *, features='embedding'):
    rows = [np.random.default_rng([*str(thing).encode()]).normal(size=8) for thing in things]
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@functools.cache
def reported(name, metric):
    """The report of an evaluation on a set that the metric is for."""
    data = Few(2 if metric == 'roc_auc' else 6, metric == 'map_11_point')
    options = {'train': data, 'metric': metric, 'C': 1.0} if name == 'linear_probe' else {}
    return lookup.module('evals', name).evaluate(encode, encode, data, **options)


def test_every_score_of_the_page_is_one_that_its_evaluation_reports():
    module, page = clip27()
    for line in suite.tasks(page):
        metric = module.SETS[line.name.removesuffix(f'_{line.type}')][2]
        assert 0 <= suite._score(line, reported(line.type, metric))['value'] <= 1
