"""Templates and class names come from text and JSON files, class embeddings from prompts."""

import json

import numpy as np
import pytest

from clip_jax import prompts


@pytest.mark.parametrize('name', prompts.sets())
def test_every_set_is_full_of_different_templates_with_one_place_for_the_name(name):
    templates = prompts.templates(name)
    assert templates
    assert len(set(templates)) == len(templates)
    assert all(template.count('{}') == 1 for template in templates)


def test_the_sets_are_those_that_configs_name():
    assert {'general', 'plain', 'shapes'} <= set(prompts.sets())
    assert prompts.templates('plain') == ['a photo of a {}.']
    assert len(prompts.templates('general')) >= 10


def test_a_list_stays_as_it_is():
    assert prompts.templates(['{} here', 'a {}']) == ['{} here', 'a {}']


def test_one_template_is_a_list_of_one():
    assert prompts.templates('a {} / {}') == ['a {} / {}']
    assert prompts.templates('the {c}') == ['the {}']
    assert prompts.templates('{}') == ['{}']


def test_a_template_may_be_a_function_of_the_name():
    templates = [lambda c: f'a photo of a {c}.', 'the {}']
    for given, expected in (
        (templates, ['a photo of a cat.', 'the cat']),
        (templates[0], ['a photo of a cat.']),
    ):
        assert prompts.filled('cat', prompts.templates(given)) == expected


def test_each_class_may_have_its_own_prompts():
    own = {'my_dog': ['a furry {}', 'dogs bark']}
    assert prompts.filled('my dog', prompts.templates(own)) == ['a furry my dog', 'dogs bark']
    assert prompts.templates(prompts.templates(own)) == prompts.templates(own)
    with pytest.raises(ValueError, match="'cat' has none"):
        prompts.templates({'cat': []})
    with pytest.raises(ValueError, match='expected a list of texts for each'):
        prompts.templates({'cat': 'a cat'})


@pytest.mark.parametrize(
    ('template', 'message'),
    [(len, 'template 2: the function returned 3'), (5, 'template 2: 5 is neither a text nor')],
)
def test_what_gives_no_text_is_no_template(template, message):
    with pytest.raises(ValueError, match=message):
        prompts.templates(['a {}', template])


def test_names_may_be_a_text_with_commas_if_there_is_no_such_file(tmp_path, monkeypatch):
    assert prompts.class_names('cat, red fox,dog') == ['cat', 'red fox', 'dog']
    with pytest.raises(ValueError, match='name 2 is empty'):
        prompts.class_names('cat,,dog')
    with pytest.raises(ValueError, match=r"no such file: 'cat'; .*cat,dog"):
        prompts.class_names('cat')
    with pytest.raises(ValueError, match=r'no such file: .*a,b\.txt'):
        prompts.class_names('a,b.txt')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cat,dog').write_text('van\nbus\n')
    assert prompts.class_names('cat,dog') == ['van', 'bus']


def test_a_file_may_have_comments_and_blank_lines(tmp_path):
    file = tmp_path / 'mine.txt'
    file.write_bytes('\ufeff# mine\r\n\r\n  a {} ü \r\n# end\r\n{}!'.encode())
    assert prompts.templates(str(file)) == ['a {} ü', '{}!']


def test_an_unknown_set_says_what_there_is():
    with pytest.raises(ValueError, match=r"Did you mean 'general'.*general, .*plain, .*shapes"):
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


def test_a_class_name_may_stand_twice(tmp_path):
    # As 'missile' and 'sunglasses' among the published names of ImageNet.
    file = tmp_path / 'names.txt'
    file.write_text('# pets\ncat\ndog\n\ncat \n')
    assert prompts.class_names(str(file)) == ['cat', 'dog', 'cat']


def test_no_class_names_are_an_error(tmp_path):
    file = tmp_path / 'names.txt'
    file.write_text('\n# none\n')
    with pytest.raises(ValueError, match='empty'):
        prompts.class_names(str(file))


@pytest.mark.parametrize('read', [prompts.templates, prompts.class_names])
def test_a_missing_file_is_named(read):
    with pytest.raises(ValueError, match=r'/no/such\.txt'):
        read('/no/such.txt')


@pytest.mark.parametrize('ending', ['txt', 'json'])
@pytest.mark.parametrize('read', [prompts.templates, prompts.class_names])
def test_a_file_in_another_encoding_is_named(read, ending, tmp_path):
    file = tmp_path / f'latin.{ending}'
    file.write_bytes('["café {}"]'.encode('latin-1'))
    with pytest.raises(ValueError, match=rf"latin\.{ending}' .*UTF-8"):
        read(str(file))


# JSON, as CLIP_benchmark writes it


@pytest.fixture
def stored(tmp_path):
    """Writes JSON to a file: returns its path."""

    def write(content) -> str:
        path = tmp_path / 'mine.json'
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_json_holds_a_list_or_several(stored):
    path = stored(['a {c} ü', '{c}, {c}', 'the {}'])
    assert prompts.templates(path) == ['a {} ü', '{}, {}', 'the {}']
    path = stored({'pets': ['a {c}'], 'cars': ['my {c}']})
    assert prompts.templates(path, key='cars') == ['my {}']
    path = stored({'pets': ['cat ', 'dog'], 'cars': ['van']})
    assert prompts.class_names(path, key='pets') == ['cat', 'dog']
    assert prompts.class_names(stored(['van', 'bus'])) == ['van', 'bus']


def test_json_may_have_prompts_of_each_class(stored):
    path = stored({'pets': {'dog': ['dogs bark', 'a {c}'], 'cat': ['cats purr']}})
    templates = prompts.templates(path, key='pets')
    assert prompts.filled('dog', templates) == ['dogs bark', 'a dog']
    assert prompts.filled('cat', templates) == ['cats purr']
    with pytest.raises(ValueError, match=r"1 of 2 classes.*'cow'.*'dog', 'cat'"):
        prompts.class_embeddings(encode, ['cat', 'cow'], templates)
    # Names of data sets have spaces where they are class names.
    templates = prompts.templates(stored({'pets': {'my_dog': ['a dog', '{c}']}}), key='pets')
    assert prompts.filled('my dog', templates) == ['a dog', 'my dog']
    assert prompts.filled('my_dog', templates) == ['a dog', 'my_dog']


@pytest.mark.parametrize(
    ('content', 'key', 'message'),
    [
        ({'pets': ['a {c}'], 'cars': ['a {c}']}, '', "has several sets ('pets', 'cars')"),
        (
            {'pets': ['a {c}'], 'cars': ['a {c}']},
            'pet',
            "key: there is no 'pet'. Did you mean 'pets'",
        ),
        ({}, '', 'has several sets (nothing)'),
        (['a {c}', 'a photo'], '', "template 2: 'a photo' lacks the {}"),
        ([], '', 'no templates'),
        ({'pets': {'cat': []}}, 'pets', "'cat'"),
        ([1, 2], '', 'expected a list of texts, found [1, 2]'),
        ({'pets': {'cat': 'a cat'}}, 'pets', 'expected a list of texts'),
        (3, '', 'expected a list of texts, found 3'),
        ('{"a', '', 'not valid JSON'),
    ],
)
def test_json_that_holds_no_templates(stored, content, key, message):
    with pytest.raises(ValueError) as error:
        prompts.templates(stored(content), key=key)
    assert 'mine.json' in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ('content', 'key', 'message'),
    [
        (['cat', ' '], '', 'item 2 is empty'),
        ([], '', 'empty'),
        ({'pets': {'cat': ['a']}}, 'pets', 'found an object, expected a list of names'),
        ({'pets': ['cat']}, '', "several sets ('pets')"),
    ],
)
def test_json_that_holds_no_class_names(stored, content, key, message):
    with pytest.raises(ValueError) as error:
        prompts.class_names(stored(content), key=key)
    assert 'mine.json' in str(error.value) and message in str(error.value)


MAPPED = {'n01440764': 'tench', 'n01443537': 'gold fish'}


def test_names_by_wordnet_id_are_read_in_every_format(stored, tmp_path):
    lines = tmp_path / 'LOC_synset_mapping.txt'
    lines.write_text('n01440764 tench, Tinca tinca\nn01443537 gold fish, Carassius auratus\n')
    assert prompts.class_names(str(lines)) == MAPPED
    keras = {'0': ['n01440764', 'tench'], '1': ['n01443537', 'gold_fish']}
    assert prompts.class_names(stored(keras)) == MAPPED
    assert prompts.class_names(stored(MAPPED)) == MAPPED
    # One line of another kind makes it a list.
    lines.write_text('n01440764 tench\ngold fish\n')
    assert prompts.class_names(str(lines)) == ['n01440764 tench', 'gold fish']


def test_names_by_number_are_a_list(stored):
    assert prompts.class_names(stored({'1': 'dog', '0': 'cat'})) == ['cat', 'dog']


def test_prompts_by_class_need_no_key(stored):
    path = stored({'tench': ['A tench is a fish.', 'tenches'], 'gold_fish': ['A gold fish.']})
    assert prompts.class_names(path) == ['tench', 'gold_fish']
    templates = prompts.templates(path)
    assert prompts.filled('tench', templates) == ['A tench is a fish.', 'tenches']
    assert prompts.filled('gold fish', templates) == ['A gold fish.']
    # Several sets of templates do, and names are no templates.
    for content in {'pets': ['a {c}'], 'cars': ['my {c}']}, {'0': 'cat'}:
        with pytest.raises(ValueError, match='has several sets'):
            prompts.templates(stored(content))


# class embeddings


def encode(texts):
    rows = np.stack([np.random.default_rng([*t.encode()]).normal(size=32) for t in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    'templates', [['a {}'], ['a {}', 'the {}!', '{}'], {'x': ['one'], 'y': ['a {}', '{}', 'z']}]
)
def test_a_class_embedding_is_the_normalized_mean_of_its_prompts(templates):
    vectors = prompts.class_embeddings(encode, ['x', 'y'], templates)
    for name, vector in zip(['x', 'y'], vectors, strict=True):
        own = templates[name] if isinstance(templates, dict) else templates
        mean = np.mean([encode([t.replace('{}', name)])[0] for t in own], axis=0, dtype=float)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-7)
    assert vectors.dtype == np.float32
