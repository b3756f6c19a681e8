"""Archives and NumPy files of others: every error of a library is one ValueError."""

import errno
import io
import zipfile

import numpy as np
import pytest

from clip_jax.runtime import foreign_arrays


def test_arrays_are_read_lazily(tmp_path):
    arrays = {'a': np.arange(6.0).reshape(2, 3), 'b': np.int8(3), 'c': np.array('text')}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / 'x.npz', **arrays)
        found = foreign_arrays.open_npz(tmp_path / 'x.npz')
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            assert (array.shape, array.dtype) == (arrays[name].shape, arrays[name].dtype)
            np.testing.assert_array_equal(array.read(), arrays[name])


def test_arrays_in_columns_are_as_they_were(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / 'x.npz', a=array)
    np.testing.assert_array_equal(foreign_arrays.open_npz(tmp_path / 'x.npz')['a'].read(), array)


@pytest.mark.parametrize(
    'error',
    [
        zipfile.BadZipFile('x'),
        NotImplementedError('x'),
        RuntimeError('encrypted'),
        RecursionError(),
        MemoryError(),
        OverflowError('x'),
        SyntaxError('x'),
        KeyError('x'),
        EOFError(),
        OSError('Invalid data stream'),
        OSError(errno.EINVAL, 'Invalid argument'),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'x'),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_of_damage_are_one_line(error):
    message = r'^file: damaged .*; copy or download it again$'
    with pytest.raises(ValueError, match=message), foreign_arrays.whole('file'):
        raise error


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOENT, errno.EACCES, errno.ESTALE])
def test_errors_of_the_disk_are_no_damage(number):
    with pytest.raises(OSError) as raised, foreign_arrays.whole('file'):
        raise OSError(number, 'x')
    assert raised.value.errno == number


def test_objects_are_never_read(tmp_path):
    np.savez(tmp_path / 'x.npz', a=np.array([print], object))
    array = foreign_arrays.open_npz(tmp_path / 'x.npz')['a']
    with pytest.raises(ValueError, match=r'x\.npz: a\.npy: damaged \(Object arrays cannot be'):
        array.read()


def test_a_later_version_of_the_format_is_named():
    with pytest.raises(ValueError, match=r'unknown version \(9, 0\)'):
        foreign_arrays.header(io.BytesIO(b'\x93NUMPY\x09\x00' + bytes(100)), 108)
