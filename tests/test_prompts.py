"""Templates and class names come from text and JSON files; class vectors are means of prompts."""

import dataclasses
import gc
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
    with pytest.raises(ValueError, match=r"no file '/no/such\.txt'"):
        read('/no/such.txt')


@pytest.mark.parametrize('ending', ['txt', 'json'])
@pytest.mark.parametrize('read', [prompts.templates, prompts.class_names])
def test_a_file_in_another_encoding_is_named(read, ending, tmp_path):
    file = tmp_path / f'latin.{ending}'
    file.write_bytes('["café {}"]'.encode('latin-1'))
    with pytest.raises(ValueError, match=rf"latin\.{ending}' is no text in UTF-8"):
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
    with pytest.raises(ValueError, match=r"none for 1 of 2 classes, first 'cow'.*'dog', 'cat'"):
        prompts.class_vectors(encode, ['cat', 'cow'], templates)
    # Names of data sets have spaces where they are class names.
    templates = prompts.templates(stored({'pets': {'my_dog': ['a dog', '{c}']}}), key='pets')
    assert prompts.filled('my dog', templates) == ['a dog', 'my dog']
    assert prompts.filled('my_dog', templates) == ['a dog', 'my_dog']


@pytest.mark.parametrize(
    ('content', 'key', 'message'),
    [
        ({'pets': ['a {c}'], 'cars': ['a {c}']}, '', "has several sets ('pets', 'cars'); say with"),
        (
            {'pets': ['a {c}'], 'cars': ['a {c}']},
            'pet',
            "key: there is no 'pet'. Did you mean 'pets'",
        ),
        ({}, '', 'has several sets (nothing)'),
        (['a {c}', 'a photo'], '', "template 2: 'a photo' lacks the {}"),
        ([], '', 'no templates'),
        ({'pets': {'cat': []}}, 'pets', "there is none for the class 'cat'"),
        ([1, 2], '', 'expected a list of texts, found [1, 2]'),
        ({'pets': {'cat': 'a cat'}}, 'pets', 'expected a list of texts'),
        (3, '', 'expected a list of texts, found 3'),
        ('{"a', '', 'no JSON'),
    ],
)
def test_json_that_holds_no_templates(stored, content, key, message):
    with pytest.raises(ValueError) as error:
        prompts.templates(stored(content), key=key)
    assert 'mine.json' in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ('content', 'key', 'message'),
    [
        (['cat', ' '], '', 'place 2 is empty'),
        ([], '', 'empty'),
        ({'pets': {'cat': ['a']}}, 'pets', 'found an object, expected a list of names'),
        ({'pets': ['cat']}, '', "several sets ('pets')"),
    ],
)
def test_json_that_holds_no_class_names(stored, content, key, message):
    with pytest.raises(ValueError) as error:
        prompts.class_names(stored(content), key=key)
    assert 'mine.json' in str(error.value) and message in str(error.value)


# class vectors


def encode(texts):
    rows = np.stack([np.random.default_rng([*t.encode()]).normal(size=32) for t in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    'templates', [['a {}'], ['a {}', 'the {}!', '{}'], {'x': ['one'], 'y': ['a {}', '{}', 'z']}]
)
def test_a_class_vector_is_the_mean_of_its_prompts_at_length_1(templates):
    vectors = prompts.class_vectors(encode, ['x', 'y'], templates)
    for name, vector in zip(['x', 'y'], vectors, strict=True):
        own = templates[name] if isinstance(templates, dict) else templates
        mean = np.mean([encode([t.replace('{}', name)])[0] for t in own], axis=0, dtype=float)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-7)
    assert vectors.dtype == np.float32


@dataclasses.dataclass(frozen=True)
class Model:
    """Counts how often it embeds texts; as `pretrained.Clip` it never changes."""

    calls: list
    sign: float = 1.0

    def encode_text(self, texts):
        self.calls.append(texts)
        return self.sign * encode(texts)


def test_a_model_embeds_the_same_prompts_once():
    model = Model([])
    first = prompts.class_vectors(model.encode_text, ['x', 'y'], ['a {}', '{}'])
    first[:] = 0  # what callers do to theirs stays theirs
    again = prompts.class_vectors(model.encode_text, ['x', 'y'], ['a {}', '{}'])
    assert len(model.calls) == 1
    np.testing.assert_array_equal(again, prompts.class_vectors(encode, ['x', 'y'], ['a {}', '{}']))
    for names, templates in ((['y', 'x'], ['a {}', '{}']), (['x', 'y'], ['{}', 'a {}'])):
        found = prompts.class_vectors(model.encode_text, names, templates)
        np.testing.assert_array_equal(found, prompts.class_vectors(encode, names, templates))
    assert len(model.calls) == 3


def test_only_what_was_used_last_is_remembered(monkeypatch):
    monkeypatch.setattr(prompts, 'REMEMBERED', 3)
    model = Model([])
    for name in 'a', 'b', 'c', 'a', 'd':  # 'b' has to go
        prompts.class_vectors(model.encode_text, [name], ['{}'])
    assert len(model.calls) == 4
    for name in 'a', 'c', 'd':
        prompts.class_vectors(model.encode_text, [name], ['{}'])
    assert len(model.calls) == 4
    found = prompts.class_vectors(model.encode_text, ['b'], ['{}'])
    assert len(model.calls) == 5
    np.testing.assert_array_equal(found, encode(['b']))


def test_another_model_embeds_anew():
    # As in training, where the variables of each evaluation are others.
    model, names, templates = Model([]), ['x', 'y'], ['a {}']
    vectors = prompts.class_vectors(model.encode_text, names, templates)
    other = dataclasses.replace(model, sign=-1.0)
    np.testing.assert_array_equal(
        prompts.class_vectors(other.encode_text, names, templates), -vectors
    )


def test_vectors_go_with_their_model():
    before = len(prompts._remembered)
    for sign in (1.0, -1.0) * 20:  # Python uses the place of one for the next
        model = Model([], sign)
        found = prompts.class_vectors(model.encode_text, ['x'], ['a {}'])
        np.testing.assert_array_equal(found, sign * encode(['a x']))
        del model
    gc.collect()
    assert len(prompts._remembered) == before


def test_what_may_change_is_not_remembered():
    @dataclasses.dataclass
    class Changing:
        sign: float = 1.0

        def encode_text(self, texts):
            return self.sign * encode(texts)

    model = Changing()
    vectors = prompts.class_vectors(model.encode_text, ['x'], ['a {}'])
    model.sign = -1.0
    np.testing.assert_array_equal(
        prompts.class_vectors(model.encode_text, ['x'], ['a {}']), -vectors
    )
