"""wds: evaluation sets are read where CLIP_benchmark would read them, and as it would."""

import numpy as np
import pytest
from support import wds_sets
from support.hub import hub  # noqa: F401
from support.wds_sets import COLORS, TEMPLATES

from clip_jax.data.errors import DataNotFound
from clip_jax.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture
def colors(tmp_path):
    return wds_sets.classes(tmp_path / 'wds_colors', shards=12)


def labels(source) -> list[int]:
    return [source[i]['label'] for i in range(len(source))]


def test_names_and_templates_come_from_the_set_and_shards_in_the_order_of_numbers(colors):
    source = open_source(f'wds:{colors}')
    assert source.label_names == source.label_texts == [*COLORS]
    assert source.templates == [*TEMPLATES] and source.evaluation == 'zeroshot'
    assert len(source) == 42 and labels(source) == [i % 7 for i in range(42)]
    assert source.where(41).endswith('test/11.tar: s0000041.jpg') and not source.skipped


@pytest.mark.parametrize('end', ['', '/', '/test', '/test/'])
def test_an_address_is_that_of_a_set_or_of_a_split(colors, end):
    assert len(open_source(f'wds:{colors}{end}')) == 42


def test_splits(colors):
    wds_sets.classes(colors, 9, split='train', shards=1)
    assert len(open_source(f'wds:{colors}')) == 42
    assert len(open_source(f'wds:{colors}', split='train')) == 9
    assert len(open_source(f'wds:{colors}/train')) == 9
    with pytest.raises(ValueError, match="is the split 'train', but split is 'test'"):
        open_source(f'wds:{colors}/train', split='test')


def test_an_address_may_be_relative_or_hold_what_a_glob_would_read(tmp_path, monkeypatch):
    wds_sets.classes(tmp_path / 'sets[1]{a,b}' / 'colors')
    monkeypatch.chdir(tmp_path / 'sets[1]{a,b}' / 'colors')
    for address in (tmp_path / 'sets[1]{a,b}' / 'colors', '.', 'test'):
        assert len(open_source(f'wds:{address}')) == 42


def test_copies_of_sets_of_the_hub_are_read_below_root(colors, tmp_path):
    for address in (
        'hf://datasets/djghosh/wds_colors',
        'hf://datasets/djghosh/wds_colors@v1/test',
        'https://huggingface.co/datasets/djghosh/wds_colors',
        'https://huggingface.co/datasets/djghosh/wds_colors/tree/v1/',
        'wds_colors',
        'wds_colors/test',
    ):
        assert len(open_source(f'wds:{address}', root=str(tmp_path))) == 42
    for address in (str(colors), 'gs://bucket/wds_colors'):
        with pytest.raises(ValueError, match=r'root is .*, which has no effect on'):
            open_source(f'wds:{address}', root=str(tmp_path))
    with pytest.raises(DataNotFound, match=r'no data set in .*/wds_cars'):
        open_source('wds:hf://datasets/djghosh/wds_cars', root=str(tmp_path))


def test_a_set_of_the_hub_is_read_in_place(hub, tmp_path):  # noqa: F811
    colors = wds_sets.classes(tmp_path / 'colors', 9)
    files = {str(f.relative_to(colors)): f.read_bytes() for f in colors.rglob('*') if f.is_file()}
    hub.add('datasets/owner/wds_colors', files)
    page = 'https://huggingface.co/datasets/owner/wds_colors/tree/main'
    for address in (
        'hf://datasets/owner/wds_colors',
        'hf://datasets/owner/wds_colors/test',
        page,
    ):
        source = open_source(f'wds:{address}')
        assert str(source) == f'wds:{address}'
        assert source.label_names == [*COLORS] and labels(source) == [*range(7), 0, 1]
        assert source[3] == open_source(f'wds:{colors}')[3]
    with pytest.raises(DataNotFound, match=r'no data set in .*owner/wds_cars'):
        open_source('wds:hf://datasets/owner/wds_cars')
    with pytest.raises(DataNotFound, match=r'there is no train/nshards.txt'):
        open_source('wds:hf://datasets/owner/wds_colors', split='train')


def test_marks_of_several_classes(tmp_path):
    source = open_source(f'wds:{wds_sets.several_classes(tmp_path / "several")}')
    assert source.evaluation == 'zeroshot'
    found = [source[i]['labels'] for i in range(len(source))]
    own = [wds_sets_labels(i) for i in range(len(source))]
    assert found == own and {len(one) for one in found} == {1, 2}


def wds_sets_labels(i: int) -> list[int]:
    """The classes of picture `i` of `several_classes`, drawn again."""
    rng = np.random.default_rng(0)
    for _ in range(i):
        rng.integers(len(COLORS), size=2)
        rng.normal(0, 40, (28, 28, 3))
    return sorted({*rng.integers(len(COLORS), size=2).tolist()})


def test_captions(tmp_path):
    source = open_source(f'wds:{wds_sets.captions(tmp_path / "captions")}')
    assert source.evaluation == 'retrieval' and source.label_names == source.templates == []
    assert source[8]['texts'] == ['a green picture number 8', 'something green and 64']
    assert 'label' not in source[8]


def test_columns_of_an_array_are_groups(tmp_path):
    spec = f'wds:{wds_sets.regions(tmp_path / "regions")}'
    source = open_source(spec, columns=['region', 'year', 'y'], group_by=['region'])
    assert [source[i]['group'] for i in range(4)] == [f'region {k}' for k in (9, 10, 11, 9)]
    assert labels(source) == [i % 7 for i in range(42)] and 'texts' not in source[0]
    source = open_source(spec, columns='region,year,y', group_by='year,region')
    assert source[4] == {**source[4], 'group': 'year 0, region 10', 'label': 4}
    assert 'group' not in open_source(spec)[0]


def test_an_objective_has_its_own_names_templates_and_labels(tmp_path):
    spec = f'wds:{wds_sets.faces(tmp_path / "faces")}'
    columns = {'columns': ('age', 'gender', 'race', 'race_binary')}
    source = open_source(spec, **columns, objective='gender', group_by=['race'])
    assert source.label_names == ['man', 'woman']
    assert source.templates == ['a photo of a {c}.', 'a {c}.']
    found = [source[i] for i in range(5)]
    assert [(one['label'], one['group']) for one in found] == [
        *((0, 'race 0'), (1, 'race 1'), (0, 'race 2'), (1, 'race 0'), (0, 'race 1'))
    ]
    assert labels(open_source(spec, **columns, objective='age'))[:6] == [0, 1, 2, 3, 0, 1]
    with pytest.raises(ValueError, match=r"objective: there is no 'race_binary'.*age, gender"):
        open_source(spec, **columns, objective='race_binary')


def test_missing_shards_are_named(colors):
    (colors / 'test' / '3.tar').unlink()
    (colors / 'test' / '7.tar').unlink()
    with pytest.raises(ValueError, match=r'says 12 shards, but 10 are there: .*/3.tar is missing'):
        open_source(f'wds:{colors}')


@pytest.mark.parametrize('number', ['', 'two', '0', '-1', '1.5', '99999999'])
def test_a_number_of_shards_that_is_none(colors, number):
    (colors / 'test' / 'nshards.txt').write_text(number)
    with pytest.raises(ValueError, match=r'nshards.txt holds .*; expected the number of shards'):
        open_source(f'wds:{colors}')


def test_a_folder_that_is_no_set_says_what_it_holds(colors):
    (colors / 'test' / 'nshards.txt').unlink()
    with pytest.raises(DataNotFound, match=r'no test/nshards.txt. .*classnames.txt.*or of a split'):
        open_source(f'wds:{colors}')


@pytest.mark.parametrize(
    ('file', 'text', 'message'),
    [
        ('classnames.txt', 'red\n\ngreen\n', 'classnames.txt: line 2 is empty'),
        ('classnames.txt', '', 'classnames.txt: line 1 is empty'),
        ('zeroshot_classification_templates.txt', 'a {c}.\na photo', "line 2 is 'a photo'; "),
        ('zeroshot_classification_templates.txt', 'a {c}.\n\na {c}', "line 2 is ''; expected a"),
        ('dataset_type.txt', 'retreival', "no 'retreival'. Did you mean 'retrieval'?"),
        ('dataset_type.txt', b'\xff\xfe', 'dataset_type.txt: the caption is not UTF-8'),
    ],
)
def test_files_that_are_not_as_expected_are_one_line(colors, file, text, message):
    (colors / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        open_source(f'wds:{colors}')
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_label_beyond_the_names_says_where_it_is(colors):
    (colors / 'classnames.txt').write_text('red\ngreen\nblue\ngray\nyellow\n')
    source = open_source(f'wds:{colors}')
    message = r'5\..*: expected a label below 5, .*classnames.txt, found 5. Write it again'
    with pytest.raises(ValueError, match=message):
        source[5]


def test_a_set_without_names_or_templates_has_none(tmp_path):
    source = open_source(f'wds:{wds_sets.classes(tmp_path / "a", names=(), templates=())}')
    assert source.label_names == source.label_texts == source.templates == []
    assert labels(source)[:8] == [*range(7), 0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'columns': ['region']}, 'columns has no effect without group_by or objective'),
        ({'group_by': ['region']}, "'region' is a column of the .npy members, but columns is"),
        ({'columns': ['a', 'b'], 'group_by': ['c']}, "columns: there is no 'c'"),
        ({'columns': ['a', ''], 'group_by': ['a']}, 'expected names of columns'),
        ({'objective': 'age'}, "'age' is a column of the .npy members, but columns is empty"),
    ],
)
def test_columns_that_fit_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(f'wds:{wds_sets.regions(tmp_path / "regions")}', **options)


def test_columns_that_are_not_those_of_the_arrays(tmp_path):
    options = {'columns': ['region', 'year'], 'group_by': ['region']}
    source = open_source(f'wds:{wds_sets.regions(tmp_path / "regions")}', **options)
    with pytest.raises(ValueError, match=r's0000000.png: expected 2 numbers.*, found 3'):
        source[0]
    source = open_source(f'wds:{wds_sets.classes(tmp_path / "colors")}', **options)
    with pytest.raises(ValueError, match=r's0000000.webp: expected a .npy member'):
        source[0]
    with pytest.raises(ValueError, match='members of a multilabel set are its labels'):
        open_source(f'wds:{wds_sets.several_classes(tmp_path / "several")}', **options)


def test_an_answer_beyond_the_names_of_an_objective(tmp_path):
    faces = wds_sets.faces(tmp_path / 'faces')
    text = (faces / 'classnames.txt').read_text()
    (faces / 'classnames.txt').write_text(text.replace('gender:woman\n', ''))
    options = {'columns': ['age', 'gender', 'race', 'race_binary'], 'objective': 'gender'}
    source = open_source(f'wds:{faces}', **options)
    with pytest.raises(ValueError, match=r's0000001.png: expected gender below 1, .*, found 1'):
        source[1]
