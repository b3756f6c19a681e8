"""`clip-jax eval --data=wds:PLACE`: the set says what it is for and how its prompts read."""

import pytest
from support import wds_sets
from support.runs import command

from clip_jax.evaluation import single


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    wds_sets.classes(folder / 'colors')
    wds_sets.captions(folder / 'captions')
    wds_sets.several_classes(folder / 'several')
    return folder


def test_without_a_name_the_set_chooses_the_evaluation(tiny_run, sets):
    for name, headline in (
        ('colors', 'top1'),
        ('several', 'map_11_point'),
        ('captions', 'image_to_text/recall@1'),
    ):
        done = command('eval', f'--model={tiny_run}', f'--data=wds:{sets / name}')
        assert done.returncode == 0 and done.stdout.split()[0] == headline


def test_an_option_with_spaces_is_no_name(line, tiny_run, sets):
    flags = f'--model={tiny_run}', f'--data=wds:{sets}/colors'
    assert "'a photo' lacks the {}" in line('eval', *flags, '--templates=["a photo"]')


def test_options_come_before_what_the_set_says(tiny_run, sets):
    def report(**options):
        return single.run('zeroshot', options, f'wds:{sets}/colors', model=str(tiny_run))

    of_set = report()
    same = report(classes=[*wds_sets.COLORS], templates=[*wds_sets.TEMPLATES])
    assert same['scores'] == of_set['scores'] and same['examples'] == of_set['examples']
    assert report(templates='general')['examples'] != of_set['examples']
    assert {row[0] for row in report(classes='a,b,c,d,e,f,g')['per_class']} == {*'abcdefg'}


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
