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
    assert '_tokens' not in lookup.names('tokenizers')


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
    assert str(error.value).startswith(
        "fruit: there is no 'aple'. Did you mean 'apple'? There are: apple, pear."
    )
    assert 'my_package.my_module' in str(error.value)  # the other way to name a plug-in


def test_a_name_near_to_nothing_gets_no_suggestion(fruit):
    with pytest.raises(ValueError) as error:
        lookup.module('fruit', 'zzz')
    assert 'Did you mean' not in str(error.value)
    assert 'There are: apple, pear.' in str(error.value)


def test_private_files_cannot_be_looked_up(fruit):
    with pytest.raises(ValueError, match="no '_peel'"):
        lookup.module('fruit', '_peel')


def test_an_error_names_nested_folders_as_paths():
    with pytest.raises(ValueError, match=r'^models/image: there is no'):
        lookup.module('models.image', 'nothing')


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package that is not ours, importable as `grove`."""
    (tmp_path / 'grove').mkdir()
    (tmp_path / 'grove/__init__.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / 'grove'
    for name in [name for name in sys.modules if name.partition('.')[0] == 'grove']:
        del sys.modules[name]


def test_a_name_with_a_dot_is_an_import_path(fruit, outside):
    (outside / 'fig.py').write_text("COLOR = 'purple'\n")
    assert lookup.module('fruit', 'grove.fig', 'COLOR').COLOR == 'purple'
    assert lookup.label('models.image', 'grove.fig') == 'grove.fig'
    assert lookup.label('models.image', 'vit') == 'models/image/vit'


@pytest.mark.parametrize('path', ['grove.nothing', 'nowhere.nothing', 'grove.', '.grove', '..'])
def test_a_path_that_cannot_be_imported_says_where_it_must_lie(fruit, outside, path):
    with pytest.raises(ValueError) as error:
        lookup.module('models.image', path)
    for words in ('models/image', repr(path), 'PYTHONPATH', 'config file'):
        assert words in str(error.value)
    assert '\n' not in str(error.value)


def test_what_a_module_raises_on_import_is_named(fruit, outside):
    (outside / 'rotten.py').write_text("raise RuntimeError('two\\nlines')\n")
    (outside / 'typo.py').write_text('def f(:\n')
    for name, words in (('rotten', 'RuntimeError: two lines'), ('typo', 'SyntaxError')):
        with pytest.raises(ValueError, match=words):
            lookup.module('fruit', f'grove.{name}')


def test_a_plug_in_that_lacks_an_attribute_is_refused(fruit, outside):
    (outside / 'fig.py').write_text("COLOR = 'purple'\n")
    with pytest.raises(ValueError, match=r'fruit: grove\.fig lacks taste, weight; see .*fruit'):
        lookup.module('fruit', 'grove.fig', 'COLOR', 'taste', 'weight')
    with pytest.raises(ValueError, match=r'clip_jax\.fruit\.pear lacks taste'):
        lookup.module('fruit', 'pear', 'taste')


def test_check_returns_the_name_and_takes_any_iterable():
    assert lookup.check('b', iter('abc'), what='letters') == 'b'


@pytest.mark.parametrize('name', [None, 3])
def test_a_name_of_another_type_is_an_error_like_any_other(name):
    with pytest.raises(ValueError, match=f'letters: there is no {name}'):
        lookup.check(name, 'abc', what='letters')
