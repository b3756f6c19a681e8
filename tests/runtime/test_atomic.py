"""A file is there as a whole or not at all."""

import contextlib
import json
import os

import pytest
from etils import epath

from clip_jax.runtime import atomic


def test_texts_and_bytes_are_written_into_new_folders(tmp_path):
    path = tmp_path / 'a/b.txt'
    atomic.write(path, 'ä\n')
    assert path.read_bytes() == 'ä\n'.encode()
    atomic.write(str(path), b'\x00')
    assert path.read_bytes() == b'\x00'
    assert [p.name for p in path.parent.iterdir()] == ['b.txt']


def test_what_was_there_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / 'x'
    atomic.write(path, 'old')

    def full(path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(atomic, '_sync', full)
    with pytest.raises(OSError, match='No space left'):
        atomic.write(path, 'new')
    assert path.read_text() == 'old'
    assert atomic.unexpected_files(epath.Path(tmp_path)) == ['x']


def test_own_files_are_no_others_whole_or_not(tmp_path):
    for name in ('a.json', 'b.json.0123abcd.partial', 'c.json.0123abcd.partial', 'd'):
        (tmp_path / name).touch()
    found = atomic.unexpected_files(epath.Path(tmp_path), 'a.json', 'b.json')
    assert found == ['c.json.0123abcd.partial', 'd']


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / 'x'
    with atomic.writing(path) as one, atomic.writing(path) as other:
        one.write('one')
        other.write('other')
    assert path.read_text() == 'one'  # which ended last
    assert [file.name for file in tmp_path.iterdir()] == ['x']


def test_a_link_is_replaced_not_followed(tmp_path):
    target, path = tmp_path / 'target', tmp_path / 'x'
    target.write_text('mine')
    path.symlink_to(target)
    atomic.write(path, 'new')
    assert target.read_text() == 'mine' and path.read_text() == 'new' and not path.is_symlink()


@pytest.mark.parametrize('folder', [False, True])
def test_what_killed_writers_left_is_removed_by_the_next(tmp_path, folder):
    leftover, others = 'x.01234567.partial', {'y.01234567.partial', 'x.partial'}
    for name in {leftover} | others:
        if folder:
            (tmp_path / name / 'in').mkdir(parents=True)
        else:
            (tmp_path / name).touch()
    with atomic.writing(tmp_path / 'x') as alive:
        atomic.write(tmp_path / 'x', 'new')
        alive.write('newer')
        assert (tmp_path / 'x').read_text() == 'new'
    assert (tmp_path / 'x').read_text() == 'newer'
    assert {path.name for path in tmp_path.iterdir()} == {'x', *others}


def test_of_two_writers_of_one_folder_one_fails(tmp_path):
    def write(text, then=lambda: None):
        with atomic.new_folder(tmp_path / 'x') as partial:
            (partial / 'file').write_text(text)
            then()

    with pytest.raises(OSError, match='not empty'):
        write('one', lambda: write('other'))
    assert (tmp_path / 'x/file').read_text() == 'other'
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def test_a_place_is_on_this_machine_and_can_be_written_to(tmp_path):
    atomic.check_place(tmp_path / 'a' / 'b', '--out')
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(ValueError, match=r'^--out: .*/file is not a folder$'):
        atomic.check_place(tmp_path / 'file' / 'a' / 'b', '--out')
    with pytest.raises(ValueError, match=r'^save: gs://a/b: expected a local path$'):
        atomic.check_place('gs://a/b', 'save')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


def test_names_in_any_bytes_are_stored_and_read_again(tmp_path):
    name = os.fsdecode(b'caf\xe9 \xc3\xa9')
    atomic.write_json(tmp_path / 'x.json', {'where': name})
    assert json.loads((tmp_path / 'x.json').read_text(encoding='utf-8')) == {'where': name}
    assert atomic.decoded(atomic.encoded(name)) == name


def test_a_file_and_a_folder_have_their_names_when_they_are_complete(tmp_path):
    file, folder = tmp_path / 'in/file', tmp_path / 'in/folder'
    for fails in (True, False):
        with contextlib.suppress(KeyError), atomic.writing(file) as opened:
            opened.write(os.fsdecode(b'caf\xe9'))
            assert not file.exists()
            if fails:
                raise KeyError
        with contextlib.suppress(KeyError), atomic.new_folder(folder) as partial:
            (partial / 'x').write_text('x')
            assert not folder.exists()
            if fails:
                raise KeyError
        found = sorted(path.name for path in file.parent.iterdir())
        assert found == ([] if fails else ['file', 'folder'])
    assert (folder / 'x').read_text() == 'x'
    assert file.read_bytes() == b'caf\\udce9'
