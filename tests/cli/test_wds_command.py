"""`clip-jax eval --data=wds:PLACE`: the set says what it is for and how its prompts read."""

import json

import pytest
from support import wds_sets
from support.runs import command


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    wds_sets.classes(folder / 'colors')
    wds_sets.captions(folder / 'captions')
    wds_sets.several_classes(folder / 'several')
    return folder


@pytest.fixture
def evaluate(tiny_run, sets, tmp_path):
    """Evaluates the tiny run on a set; returns the report."""

    def evaluate(name, *options):
        out = tmp_path / f'{len([*tmp_path.iterdir()])}.json'
        arguments = f'--model={tiny_run}', f'--data=wds:{sets / name}', f'--out={out}', *options
        done = command('eval', *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())

    return evaluate


def test_without_a_name_the_set_chooses_the_evaluation(evaluate):
    for name, type_, headline in (
        ('colors', 'zeroshot', 'top1'),
        ('several', 'zeroshot', 'map_11_point'),
        ('captions', 'retrieval', 'image_to_text/recall@1'),
    ):
        report = evaluate(name)
        assert (report['type'], next(iter(report['scores']))) == (type_, headline)


def test_options_come_before_what_the_set_says(evaluate, sets):
    of_set = evaluate('colors')
    names = ','.join(wds_sets.COLORS)
    templates = json.dumps([*wds_sets.TEMPLATES])
    same = evaluate('colors', f'--classes={names}', f'--templates={templates}')
    assert same['scores'] == of_set['scores'] and same['examples'] == of_set['examples']
    others = evaluate('colors', '--templates=general')
    assert others['examples'] != of_set['examples']
    renamed = evaluate('colors', '--classes=a,b,c,d,e,f,g')
    assert {row[0] for row in renamed['per_class']} == {*'abcdefg'}


def test_what_does_not_fit_is_one_line(line, tiny_run, tiny_tars, sets, tmp_path):
    model = f'--model={tiny_run}'
    said = line('eval', 'zeroshot', model, f'--data=wds:{sets}/captions')
    assert 'captions is a retrieval set' in said and 'use the evaluation retrieval' in said
    said = line('eval', 'retrieval', model, f'--data=wds:{sets}/colors')
    assert 's0000000.webp has no caption' in said
    said = line('eval', model, f'--data={tiny_tars}')
    assert 'does not say which evaluation it is made for' in said
    unnamed = wds_sets.classes(tmp_path / 'unnamed', names=())
    said = line('eval', model, f'--data=wds:{unnamed}')
    assert 'unnamed does not name its classes; give a file' in said
    said = line('eval', model, f'--data=wds:{sets}/colors', '--data.split=train')
    assert 'there is no train/nshards.txt' in said
    assert '--data=SPEC, one --model=PATH' in line('eval', model)
