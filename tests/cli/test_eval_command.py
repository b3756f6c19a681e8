"""`clip-jax eval`: reports, and bad input."""

import json

import pytest


@pytest.fixture
def evaluate(line, tiny_run, tiny_tars, tmp_path):
    """Evaluates the tiny run, which fails: returns the line that says why."""

    def evaluate(name, *options, model=tiny_run, data=tiny_tars) -> str:
        out = f'--out={tmp_path / "report.json"}'
        return line('eval', name, f'--model={model}', f'--data={data}', out, *options)

    return evaluate


def test_an_unknown_evaluation_or_option(evaluate, tiny_tars):
    assert "Did you mean 'zeroshot'?" in evaluate('zerosht')
    assert "Did you mean 'classes'?" in evaluate('zeroshot', '--clases=all')
    assert "no 'templates'" in evaluate('retrieval', '--templates=plain')
    assert "Did you mean 'text_exts'?" in evaluate('zeroshot', '--data.text_ext=txt')
    assert "there is no flag '--fast'" in evaluate('zeroshot', '--fast')
    assert "there is no flag 'more'" in evaluate('zeroshot', 'more')
    assert "Did you mean 'general'?" in evaluate('zeroshot', '--classes=all', '--templates=generel')


def test_data_that_cannot_be_evaluated(evaluate, bad_tar, one_name):
    assert "no file matches '/no/x.tar'" in evaluate('zeroshot', data='tars:/no/x.tar')
    assert 'not of the form KIND:ADDRESS' in evaluate('zeroshot', data='/no/x.tar')
    assert 'does not name its classes' in evaluate('zeroshot')
    assert "are named 'red'" in evaluate('zeroshot', f'--classes={one_name}')
    few = '--classes=["red", "green"]'
    assert 'classes is an empty list' in evaluate('zeroshot', '--classes=[]')
    json_file = one_name.with_suffix('.json')
    json_file.write_text('{"a": ["red"], "b": ["x"]}')
    assert 'with `key`' in evaluate('zeroshot', f'--classes={json_file}')
    assert 'lacks the {}' in evaluate('zeroshot', few, '--templates=["a photo"]')
    assert 'go up to 3, but there are 2 class names' in evaluate('zeroshot', few)
    names = '--classes=["red", "green", "blue", "white"]'
    for name, options in ('zeroshot', [names]), ('retrieval', []):
        line = evaluate(name, *options, data=bad_tar)
        assert 'bad.tar: 00020.jpg: ' in line
        assert 'not a readable image' in line


def test_data_without_questions_languages_or_images(evaluate, tmp_path):
    assert 'has no questions; expected data such as choices:FILES' in evaluate('compositional')
    assert "languages: there is no 'en'" in evaluate('multilingual', '--languages=en')
    file = tmp_path / 'dataset.json'
    file.write_text('{"images": [{"filename": "x.jpg", "split": "test", "sentences": []}]}')
    said = evaluate('retrieval', data=f'karpathy:{file}')
    assert f'1 of 1 images are not in {tmp_path}; give their folder as root: x.jpg' in said
    said = evaluate('retrieval', '--data.split=tset', data=f'karpathy:{file}')
    assert "split: there is no 'tset'. Did you mean 'test'?" in said
    said = evaluate('multilingual', data=f'multilingual:{file}')
    assert 'no names of images' in said


def test_flags_that_do_not_go_together(line, tiny_run, tiny_tars):
    model, data = f'--model={tiny_run}', f'--data={tiny_tars}'
    for flags in ([model], [model, model, data], [model, data, '--suite=x.py']):
        said = line('eval', 'retrieval', *flags)
        assert '--data=SPEC, one --model=PATH' in said
    assert '--model must be given' in line('eval', 'retrieval', data)


@pytest.mark.parametrize('option', ['--classes=5', '--classes=[1, 2, 3, 4]', '--templates=5'])
def test_options_of_a_wrong_type(evaluate, option):
    options = [option] if 'classes' in option else [option, '--classes=["a", "b", "c", "d"]']
    name = option[2:].partition('=')[0]
    assert name in evaluate('zeroshot', *options)


def test_a_model_that_is_not_there(evaluate, tmp_path):
    names = '--classes=["red", "green", "blue", "white"]'
    for path, message in (
        (tmp_path / 'none', 'no such file or folder'),
        (tmp_path, 'no checkpoint found'),
    ):
        line = evaluate('zeroshot', names, model=path)
        assert line.startswith(f'{path}: {message}')


def test_a_report_that_exists_is_not_overwritten(evaluate, tmp_path):
    (tmp_path / 'report').mkdir()
    assert 'report exists; name a new file' in evaluate('retrieval')
    (tmp_path / 'report.json').write_text('mine')
    assert 'report.json exists; name a new file' in evaluate('retrieval')
    assert 'a name that ends in .json' in evaluate('retrieval', f'--out={tmp_path / "r"}')
    remote = evaluate('retrieval', '--out=gs://bucket/r.json')
    assert '--out: gs://bucket/r.json: expected a local path' in remote


def test_a_report_is_written(run, tiny_run, tiny_tars, tmp_path):
    out = tmp_path / 'new' / 'report.json'
    flags = f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}'
    code, printed, error = run('eval', 'retrieval', *flags)
    assert (code, error) == (0, '')
    report = json.loads(out.read_text())
    assert f'recall@10      {report["scores"]["text_to_image/recall@10"]["value"]:.4f}' in printed
    assert f'report: {out}\nfigures in {out.parent}/report: similarity.png, queries.png' in printed
    assert {path.name for path in out.parent.iterdir()} == {'report', 'report.json'}
    assert (report['model'], report['data'], report['options']) == (str(tiny_run), tiny_tars, {})
    assert (report['compute_dtype'], report['device']) == ('float32', 'cpu')
    assert report['data_options'] == report['skipped'] == {}


def test_names_and_a_template_as_they_are_typed(run, tiny_run, tiny_tars):
    model, data = f'--model={tiny_run}', f'--data={tiny_tars}'
    lists = '--classes=["red", "green", "blue", "white"]', '--templates=["a {} picture"]'
    typed = '--classes=red,green,blue,white', '--templates', 'a {} picture'
    scores = []
    for options in lists, typed:
        code, printed, error = run('eval', 'zeroshot', model, data, *options)
        assert (code, error) == (0, '')
        scores.append([line for line in printed.splitlines() if 'seconds' not in line])
    assert scores[0] == scores[1] and scores[0][0].startswith('top1')


def test_scores_are_printed_with_intervals_and_calibration(run, tiny_run, tiny_tars, tmp_path):
    out = tmp_path / 'report.json'
    flags = f'--model={tiny_run}', f'--data={tiny_tars}', f'--validation={tiny_tars}'
    # The model knows the colors: two wrong names, so that it is not always right.
    names = '--classes=green,red,blue,white', '--templates=a {} picture'
    code, printed, error = run('eval', 'zeroshot', *flags, *names, f'--out={out}')
    assert (code, error) == (0, '')
    report = json.loads(out.read_text())
    scores = report['scores']
    value, (low, high) = scores['top1']['value'], scores['top1']['interval']
    assert f'{value:.4f}   95 %: {low:.4f} to {high:.4f}\n' in printed and low < value < high
    assert [*scores][-4:] == ['ece', 'nll', 'fitted/ece', 'fitted/nll']
    # It is fitted on the images that are scored.
    assert scores['fitted/nll']['value'] <= scores['nll']['value']
    assert (tmp_path / 'report' / 'calibration.png').exists()
    assert report['calibration']['fitted']['temperature'] == report['info']['temperature']


def test_options_of_data_are_those_of_a_mixture_and_stand_in_the_report(
    run, evaluate, tiny_run, tiny_tars, tmp_path
):
    out, mixed = tmp_path / 'report.json', f'3 * {tiny_tars} + 1 * {tiny_tars}'
    assert 'has no caption' in evaluate('retrieval', '--data.text_exts=["cap"]', data=mixed)
    several = f'{tiny_tars} + folder:{tmp_path}'
    said = evaluate('retrieval', '--data.text_exts=["cap"]', data=several)
    assert '--data.text_exts: SPEC names several kinds of sources (tars, folder)' in said
    arguments = f'--model={tiny_run}', f'--data={mixed}', f'--out={out}', '--dtype=bfloat16'
    assert run('eval', 'retrieval', *arguments, '--data.text_exts=["txt"]')[0] == 0
    report = json.loads(out.read_text())
    assert report['data_options'] == {'tars': {'text_exts': ['txt']}}
    assert report['compute_dtype'] == 'bfloat16'
    assert "dtype: there is no 'half'" in evaluate('retrieval', '--dtype=half')
    assert report['versions']['jax'] and report['seconds'] > 0


def test_an_evaluation_of_ones_own(run, tiny_run, tiny_tars, tmp_path, monkeypatch):
    (tmp_path / 'my_evals').mkdir()
    (tmp_path / 'my_evals' / 'share.py').write_text(
        'from clip_jax import evals\n\n'
        'def evaluate(encode_image, encode_text, data, *, texts):\n'
        '    found = len(encode_text(texts))\n'
        "    return {'scores': {'share': evals.score(found / len(data))}, 'counts': {'t': found}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = f'--model={tiny_run}', f'--data={tiny_tars}', '--texts=["a", "b"]'
    code, printed, error = run('eval', 'my_evals.share', *flags)
    assert (code, error) == (0, '')
    assert [line.split() for line in printed.splitlines()[:2]] == [['share', '0.0312'], ['t', '2']]
