"""A folder's files are its plug-ins, and a wrong name says what there is."""

import sys
import types

import pytest

from clip_jax import lookup


@pytest.fixture
def fruit(tmp_path, monkeypatch):
    """A plug-in folder `clip_jax.fruit` with two plug-ins and a private file."""
    (tmp_path / 'pear.py').write_text("COLOR = 'green'\n")
    (tmp_path / 'apple.py').write_text("COLOR = 'red'\n")
    (tmp_path / '_peel.py').write_text("raise AssertionError('a private file was imported')\n")
    (tmp_path / 'notes.txt').write_text('no plug-in')
    package = types.ModuleType('clip_jax.fruit')
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, 'clip_jax.fruit', package)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith('clip_jax.fruit.')]:
        del sys.modules[name]


def test_lists_plug_ins_in_order_without_private_files(fruit):
    assert lookup.names('fruit') == ['apple', 'pear']


def test_lists_in_order_although_the_files_lie_in_several_places(fruit):
    (fruit / 'more').mkdir()
    (fruit / 'more/banana.py').write_text("COLOR = 'yellow'\n")
    sys.modules['clip_jax.fruit'].__path__.append(str(fruit / 'more'))
    assert lookup.names('fruit') == ['apple', 'banana', 'pear']


def test_lists_what_the_package_has():
    assert {'bpe', 'sentencepiece'} <= set(lookup.names('tokenizers'))
    assert '_rows' not in lookup.names('tokenizers')


def test_a_new_file_is_a_plug_in(fruit):
    (fruit / 'plum.py').write_text("COLOR = 'blue'\n")
    assert lookup.module('fruit', 'plum').COLOR == 'blue'


def test_listing_imports_no_plug_in(fruit):
    (fruit / 'rotten.py').write_text("raise AssertionError('imported')\n")
    assert 'rotten' in lookup.names('fruit')
    assert lookup.module('fruit', 'pear').COLOR == 'green'


def test_a_wrong_name_gets_the_nearest_and_all(fruit):
    with pytest.raises(ValueError) as error:
        lookup.module('fruit', 'aple')
    assert str(error.value) == (
        "fruit: there is no 'aple'. Did you mean 'apple'? There are: apple, pear."
    )


def test_a_name_near_to_nothing_gets_no_suggestion(fruit):
    with pytest.raises(ValueError) as error:
        lookup.module('fruit', 'zzz')
    assert 'Did you mean' not in str(error.value)
    assert str(error.value).endswith('There are: apple, pear.')


def test_private_files_cannot_be_looked_up(fruit):
    with pytest.raises(ValueError, match="no '_peel'"):
        lookup.module('fruit', '_peel')


def test_an_error_names_nested_folders_as_paths():
    with pytest.raises(ValueError, match=r'^models/image: there is no'):
        lookup.module('models.image', 'nothing')


def test_check_returns_the_name_and_takes_any_iterable():
    assert lookup.check('b', iter('abc'), what='letters') == 'b'


@pytest.mark.parametrize('name', [None, 3])
def test_a_name_of_another_type_is_an_error_like_any_other(name):
    with pytest.raises(ValueError, match=f'letters: there is no {name}'):
        lookup.check(name, 'abc', what='letters')
