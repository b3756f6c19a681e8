"""Torch's files are read to the bit, and nothing in them is ever run."""

import pathlib
import sys
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from support import torch_writer as torch

from clip_jax.convert import _files, _pickle, _torch_file
from clip_jax.runtime.foreign_arrays import Array

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared/golden/torch_containers'
REFUSED = sorted((GOLDEN / 'refuse').iterdir()) if GOLDEN.is_dir() else []
NUMBERS = np.arange(24, dtype=np.float32)
OVERHEAD = 2**17  # bytes that reading the smallest file takes: directory of the archive, stack

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason='reference outputs are not on this machine'
)


def tensors(x, path='') -> dict[str, Array]:
    """All tensors in a tree of containers, by path."""
    if isinstance(x, Array):
        return {path: x}
    pairs = (
        x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list | tuple) else ()
    )
    found = {}
    for key, inner in pairs:
        found |= tensors(inner, f'{path}/{key}' if path else str(key))
    return found


@pytest.fixture(params=['zip', 'legacy'])
def write(request, tmp_path):
    """Writes a root that is made of a `Storages`, in each container."""

    def write(make):
        legacy = request.param == 'legacy'
        storages = torch.Storages('cuda:0', legacy=legacy)
        writer = torch.write_legacy if legacy else torch.write_zip
        return writer(tmp_path / 'x.pt', make(storages), storages)

    return write


def test_views_are_what_torch_makes_of_them(write):
    views = {
        'whole': (0, (24,), (1,)),
        'matrix': (0, (4, 6), (6, 1)),
        'transposed': (0, (6, 4), (1, 6)),
        'part': (7, (2, 3), (6, 1)),
        'expanded': (3, (5, 2), (0, 1)),
        'number': (5, (), ()),
        'nothing': (0, (0, 3), (3, 1)),
    }
    path = write(lambda s: {n: s.view(NUMBERS, *view) for n, view in views.items()})
    expected = {
        'whole': NUMBERS,
        'matrix': NUMBERS.reshape(4, 6),
        'transposed': NUMBERS.reshape(4, 6).T,
        'part': NUMBERS.reshape(4, 6)[1:3, 1:4],
        'expanded': np.tile(NUMBERS[3:5], (5, 1)),
        'number': NUMBERS[5],
        'nothing': NUMBERS[:0].reshape(0, 3),
    }
    arrays, kind = _torch_file.state_dict(path)
    assert kind == 'state_dict' and arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array.read(), expected[name])
        assert array.shape == expected[name].shape and array.dtype == np.float32


@pytest.mark.parametrize('dtype', torch.STORAGES)
def test_types(write, dtype):
    path = write(lambda s: {'x': s.tensor(NUMBERS.astype(dtype))})
    (array,) = _torch_file.state_dict(path)[0].values()
    assert array.read().dtype == array.dtype == dtype
    np.testing.assert_array_equal(array.read(), NUMBERS.astype(dtype))


def test_tensors_share_a_storage(write):
    def make(storages):
        storage = storages.storage(NUMBERS)
        rebuild = torch.name('torch._utils', '_rebuild_tensor_v2')
        return {
            n: torch.call(rebuild, storage, start, (3,), (1,), False, torch.ORDERED_DICT)
            for n, start in (('a', 0), ('b', 21))
        }

    arrays, _ = _torch_file.state_dict(write(make))
    assert [*arrays['a'].read(), *arrays['b'].read()] == [0, 1, 2, 21, 22, 23]


def test_of_a_training_checkpoint_the_model_is_taken(write):
    def make(storages):
        model = {f'module._orig_mod.{n}': storages.tensor(NUMBERS) for n in ('a.weight', 'b.bias')}
        optimizer = {
            'state': {0: {'exp_avg': storages.tensor(NUMBERS)}},
            'lr': 1e-3,
            'n': [1, None],
        }
        return {'epoch': 3, 'name': 'x', 'state_dict': model, 'optimizer': optimizer}

    path = write(make)
    assert _torch_file.state_dict(path)[1] == 'training'
    assert set(_files.arrays(path)) == {'a.weight', 'b.bias'}


def test_notes_of_versions_are_dropped(write):
    note = torch.value({'_metadata': {'': {'version': 1}}})
    weights = lambda s: torch.Raw(  # noqa: E731
        torch.ORDERED_DICT + b'(' + torch.value('w') + s.tensor(NUMBERS) + b'u' + note + b'b'
    )
    arrays, _ = _torch_file.state_dict(write(weights))
    assert set(arrays) == {'w'}


def test_a_script_is_the_tensors_of_its_modules(tmp_path):
    storages = torch.Storages()
    arrays = {'a.b.weight': NUMBERS, 'a.0.bias': NUMBERS[:3], 'scale': np.float32(2)}
    path = torch.write_zip(
        tmp_path / 'x.pt', torch.script_of(arrays, storages), storages, script=True
    )
    found, kind = _torch_file.state_dict(path)
    assert kind == 'torchscript' and found.keys() == arrays.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array.read(), arrays[name])


def test_big_endian_machines_wrote_files_too(tmp_path):
    storages = torch.Storages()
    root = {'x': storages.tensor(NUMBERS)}
    storages.bytes['0'] = NUMBERS.astype('>f4').tobytes()
    path = torch.write_zip(tmp_path / 'x.pt', root, storages, more=[('any/byteorder', b'big')])
    np.testing.assert_array_equal(_torch_file.state_dict(path)[0]['x'].read(), NUMBERS)


def view(**changes):
    """A root with one tensor that is wrong in one thing."""
    fields = {'offset': 0, 'size': (4,), 'stride': (1,)}
    storage = {k: v for k, v in changes.items() if k not in fields}
    fields |= {k: v for k, v in changes.items() if k in fields}
    return lambda s: {'x': s.view(NUMBERS, *fields.values(), **storage)}


def root(raw: bytes):
    return lambda s: {'x': torch.Raw(raw)}


SYSTEM = torch.name('os', 'system')
WRONG = {
    'calls a function': (root(torch.call(SYSTEM, 'true')), r'names os\.system'),
    'names a function': (root(SYSTEM), r'names os\.system'),
    'names it from the stack': (root(b'X\x02\0\0\0osX\x06\0\0\0system\x93'), r'names os\.system'),
    'calls a class of a script': (
        root(torch.call(torch.name('__torch__.evil', 'run'))),
        r'calls __torch__\.evil\.run',
    ),
    'makes an object': (
        root(torch.name('torch.nn', 'Linear') + b')\x81'),
        r'names torch\.nn\.Linear',
    ),
    'sets attributes': (
        root(torch.name('torch', 'Size') + torch.value({'a': 1}) + b'b'),
        'sets attributes of a Name',
    ),
    'an instruction of another time': (root(b'(ios\nsystem\n'), r"opcode b'i'"),
    'a key that is a tuple': (lambda s: {(1, 2): s.tensor(NUMBERS)}, r'has the key \?'),
    'a key that is a number': (lambda s: {7: s.tensor(NUMBERS)}, 'has the key 7, expected a name'),
    'a value never kept': (root(b'h\x07'), 'memo entry that was never written'),
    'too few values': (root(b'\x87'), 'pops an empty stack'),
    'a mark too few': (root(b't'), 'pops to a mark that was never set'),
    'many marks': (root(b'(' * 200 + b't' * 200), 'nested too deeply'),
    'much on the stack': (root(b'N' * 200_000), 'nested too deeply'),
    'a reference to a module': (
        root(torch.value(('module', 'x')) + b'Q'),
        'persistent id is no tensor storage',
    ),
    'a view of a view': (view(view=('k', 0, 1)), 'a view of another'),
    'an unknown type': (
        view(type=torch.name('torch', 'QInt8Storage')),
        r'names torch\.QInt8Storage|of another dtype',
    ),
    'a negative offset': (view(offset=-1), 'impossible view'),
    'a negative size': (view(size=(-4,)), 'impossible view'),
    'a negative stride': (view(stride=(-1,)), 'impossible view'),
    'a size that is true': (view(size=(True,)), 'impossible view'),
    'a size with a fraction': (view(size=(4.0,)), 'impossible view'),
    'ranks that differ': (view(size=(2, 2)), '2 sizes and 1 strides'),
    'no size': (view(size=4), 'no size'),
    'a view that ends outside': (view(size=(25,)), 'beyond the end'),
    'an offset outside': (view(offset=24), 'beyond the end'),
    'a terabyte of one number': (view(size=(2**40,), stride=(0,)), 'larger than the file'),
    'a product that overflows': (view(size=(2**33, 2**33), stride=(0, 0)), 'larger than the file'),
    'many axes': (view(size=(1,) * 70, stride=(0,) * 70), '70 sizes'),
    'a negative count': (view(count=-24), 'persistent id is no tensor storage'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_what_is_wrong_is_refused(write, kind):
    make, message = WRONG[kind]
    path = write(make)
    with pytest.raises(ValueError, match=message) as raised:
        _torch_file.state_dict(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'key': '../data.pkl'}, 'lacks the record'),
        ({'key': '7'}, 'lacks the record any/data/7'),
        ({'count': 25}, 'is 96 bytes, expected 100'),
    ],
)
def test_storages_that_are_not_there_are_refused(tmp_path, changes, message):
    storages = torch.Storages()
    path = torch.write_zip(tmp_path / 'x.pt', view(**changes)(storages), storages)
    with pytest.raises(ValueError, match=message):
        _torch_file.load(path)


def good(tmp_path, **options) -> pathlib.Path:
    storages = torch.Storages()
    return torch.write_zip(tmp_path / 'x.pt', {'w': storages.tensor(NUMBERS)}, storages, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'compression': zipfile.ZIP_DEFLATED}, 'is compressed'),
        ({'more': [('other/data.pkl', b'N.')]}, 'has 2 records data.pkl'),
        ({'more': [('any/data/0', b'')]}, 'two entries have the same name'),
    ],
)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_that_torch_does_not_write_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _torch_file.load(good(tmp_path, **options))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'it is empty'),
        (b'\x80\x04}\x94.', 'not a torch.save file'),
    ],
)
def test_what_is_no_file_of_torch_is_refused(tmp_path, content, message):
    (tmp_path / 'x.pt').write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _torch_file.load(tmp_path / 'x.pt')
    assert not _torch_file.sniff(tmp_path / 'x.pt')


@pytest.mark.parametrize('share', [0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(write, share):
    path = write(lambda s: {'w': s.tensor(NUMBERS)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'damaged|refused'):
        _torch_file.load(path)


def test_a_flipped_bit_is_found_when_the_numbers_are_read(tmp_path):
    path = good(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(NUMBERS.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'damaged .*copy or download it again'):
        _torch_file.state_dict(path)[0]['w'].read()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda s: [1, 2], 'holds a list, expected a dict of tensors'),
        (lambda s: {'epoch': 3, 'lr': 0.1}, 'holds no named tensors; found epoch, lr'),
        (lambda s: {}, 'holds no named tensors; found none'),
    ],
)
def test_a_file_without_a_model_says_what_it_holds(write, make, message):
    with pytest.raises(ValueError, match=message):
        _torch_file.state_dict(write(make))


def test_nothing_of_pickle_is_used():
    for module in (_pickle, _torch_file):
        assert 'import pickle' not in pathlib.Path(module.__file__).read_text()
    assert 'torch' not in sys.modules


def bounded(path: pathlib.Path) -> None:
    """Refuses a file within the time and memory that are promised."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=path.name):
            _torch_file.state_dict(path)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 0.1 and peak <= 2 * path.stat().st_size + OVERHEAD


@pytest.mark.parametrize('kind', ['many marks', 'a terabyte of one number'])
def test_refusing_is_quick_and_takes_little_memory(write, kind):
    bounded(write(WRONG[kind][0]))


@needs_golden
@pytest.mark.parametrize('path', REFUSED, ids=lambda p: p.name)
def test_every_file_that_must_be_refused_is(path):
    bounded(path)


@needs_golden
def test_there_are_36_of_them():
    assert len(REFUSED) == 36


@needs_golden
@pytest.mark.parametrize('name', ['edge_zip.pt', 'edge_legacy.pt'])
def test_edge_cases_of_torch(name):
    value, expected = _torch_file.load(GOLDEN / name), dict(np.load(GOLDEN / 'edge_expected.npz'))
    found = tensors(value)
    assert found.keys() == expected.keys()
    for key, array in found.items():
        read = array.read()
        assert read.shape == array.shape == expected[key].shape
        wide = read.astype(expected[key].dtype)
        np.testing.assert_array_equal(wide, expected[key])
    assert found['bfloat16'].dtype == ml_dtypes.bfloat16
    plain = {
        k: value[k] for k in ('epoch', 'lr', 'name', 'none', 'flag', 'big', 'negative', 'size')
    }
    assert plain == {
        'epoch': 7,
        'lr': 1e-3,
        'name': 'golden ☃',
        'none': None,
        'flag': True,
        'big': 2**40,
        'negative': -5,
        'size': (1, 2),
    }


@needs_golden
@pytest.mark.parametrize('name', ['ordereddict_zip.pt', 'protocol4_zip.pt'])
def test_state_dicts_of_torch(name):
    arrays, kind = _torch_file.state_dict(GOLDEN / name)
    assert kind == 'state_dict' and set(arrays) == {'weight', 'bias'}
    assert all(np.isfinite(array.read()).all() for array in arrays.values())


@needs_golden
def test_a_script_of_torch():
    arrays, kind = _torch_file.state_dict(GOLDEN / 'scripted.pt')
    expected = np.load(GOLDEN / 'scripted_expected.npz')
    # 'plain' is an attribute that a state dict leaves out; the archive does not tell.
    assert kind == 'torchscript' and arrays.keys() - {'plain'} == set(expected.files)
    for key in expected.files:
        np.testing.assert_array_equal(arrays[key].read(), expected[key])
