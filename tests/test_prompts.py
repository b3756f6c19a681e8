"""Templates and class names come from text files."""

import importlib.resources

import pytest

from clip_jax import prompts

SETS = sorted(
    file.name.removesuffix('.txt')
    for file in (importlib.resources.files('clip_jax') / 'assets/prompts').iterdir()
)


@pytest.mark.parametrize('name', SETS)
def test_every_set_is_full_of_different_templates_with_one_place_for_the_name(name):
    templates = prompts.templates(name)
    assert templates
    assert len(set(templates)) == len(templates)
    assert all(template.count('{}') == 1 for template in templates)


def test_the_sets_are_those_that_configs_name():
    assert {'general', 'plain', 'shapes'} <= set(SETS)
    assert prompts.templates('plain') == ['a photo of a {}.']
    assert len(prompts.templates('general')) >= 10


def test_a_list_stays_as_it_is():
    assert prompts.templates(['{} here', 'a {}']) == ['{} here', 'a {}']


def test_a_file_may_have_comments_and_blank_lines(tmp_path):
    file = tmp_path / 'mine.txt'
    file.write_bytes('\ufeff# mine\r\n\r\n  a {} ü \r\n# end\r\n{}!'.encode())
    assert prompts.templates(str(file)) == ['a {} ü', '{}!']


def test_an_unknown_set_says_what_there_is():
    with pytest.raises(ValueError, match=r"Did you mean 'general'.*general, plain, shapes"):
        prompts.templates('generel')


def test_a_template_without_a_place_for_the_name_is_pointed_at(tmp_path):
    file = tmp_path / 'mine.txt'
    file.write_text('# mine\na {}\n\na photo\n')
    with pytest.raises(ValueError, match=r"mine\.txt', line 4: 'a photo' lacks the \{\}"):
        prompts.templates(str(file))
    with pytest.raises(ValueError, match="template 2: 'a photo' lacks"):
        prompts.templates(['a {}', 'a photo'])


def test_no_templates_are_an_error(tmp_path):
    file = tmp_path / 'mine.txt'
    file.write_text('# nothing\n')
    for source in ([], str(file)):
        with pytest.raises(ValueError, match='no templates'):
            prompts.templates(source)


def test_class_names_keep_their_order(tmp_path):
    file = tmp_path / 'names.txt'
    file.write_text('# pets\nsiamese cat\n\n  dog\nDog\ncat {1}\n')
    assert prompts.class_names(str(file)) == ['siamese cat', 'dog', 'Dog', 'cat {1}']


def test_a_class_name_that_stands_twice_is_pointed_at(tmp_path):
    file = tmp_path / 'names.txt'
    file.write_text('# pets\ncat\ndog\n\ncat \n')
    with pytest.raises(ValueError, match=r"names\.txt': 'cat' stands in line 2 and in line 5"):
        prompts.class_names(str(file))


def test_no_class_names_are_an_error(tmp_path):
    file = tmp_path / 'names.txt'
    file.write_text('\n# none\n')
    with pytest.raises(ValueError, match='empty'):
        prompts.class_names(str(file))


@pytest.mark.parametrize('read', [prompts.templates, prompts.class_names])
def test_a_missing_file_is_named(read):
    with pytest.raises(ValueError, match=r"no file '/no/such\.txt'"):
        read('/no/such.txt')
