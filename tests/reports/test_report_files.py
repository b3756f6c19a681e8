"""A report and its figures are written all or not at all."""

import json
import os
import pathlib

import pytest
from support.reports import classified, pictures, probe_report, queries_report

from clip_jax.reports import drawing, files


def load(spec, indices):
    return pictures(len(indices))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def test_the_figures_lie_beside_the_report(tmp_path):
    out = tmp_path / 'new' / 'folder' / 'pets.json'
    files.check(out)
    paths = drawing.write_with_figures(queries_report(2), out, load)
    assert json.loads(out.read_text()) == queries_report(2)
    figures = ['similarity.png', 'queries.png']
    assert paths == [out, *(out.with_suffix('') / name for name in figures)]
    assert names(out.parent) == ['pets', 'pets.json', 'pets/queries.png', 'pets/similarity.png']
    assert names(tmp_path) == ['new', 'new/folder', *(f'new/folder/{x}' for x in names(out.parent))]


def test_without_figures_there_is_no_folder(tmp_path):
    report = {'type': 'other', 'data': 'x', 'scores': {}}
    written = drawing.write_with_figures(report, tmp_path / 'a.json', load)
    assert written == [tmp_path / 'a.json']
    assert names(tmp_path) == ['a.json']


def test_lists_have_a_line_for_each_item():
    report = {**classified(), **probe_report(), 'ü': 'ü', 'empty': [], 'flat': [1, 2]}
    text = files.as_json(report)
    assert json.loads(text) == report
    assert ' "ü": "ü",\n "empty": [],\n "flat": [1, 2]\n}\n' in text
    assert '\n  [0.01, 0.76],\n' in text
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize('where', ['figure', 'report', 'rename'])
def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch, where):
    def fail(*_, **__):
        raise RuntimeError('no')

    out = tmp_path / 'new' / 'a.json'
    if where == 'figure':
        # The first figures are drawn by then.
        fail.shows = drawing.queries.shows
        monkeypatch.setattr(drawing, 'queries', fail)
    elif where == 'report':
        monkeypatch.setattr(files, 'as_json', fail)
    else:
        monkeypatch.setattr(drawing.pathlib.Path, 'mkdir', fail)
    with pytest.raises(RuntimeError):
        drawing.write_with_figures(queries_report(2), out, load)
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match=r'expected a name that ends in \.json'):
        files.check(tmp_path / 'a')
    (tmp_path / 'a').mkdir()
    with pytest.raises(ValueError, match='/a exists; name a new file'):
        files.check(tmp_path / 'a.json')
    (tmp_path / 'b.json').write_text('mine')
    with pytest.raises(ValueError, match=r'/b\.json exists'):
        files.check(tmp_path / 'b.json')


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(ValueError, match=r'--out: .*/file is not a folder'):
        files.check(tmp_path / 'file' / 'more' / 'a.json')
    files.check(tmp_path / 'new' / 'a.json')
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)  # as not for root
    with pytest.raises(ValueError, match=rf'--out: no permission to write to {tmp_path}$'):
        files.check(tmp_path / 'new' / 'a.json')


def test_the_home_folder_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    out = pathlib.Path('~/new/pets.json')
    files.check(out)
    written = drawing.write_with_figures({'type': 'other'}, out, load)
    assert written == [tmp_path / 'new' / 'pets.json']
    assert names(tmp_path) == ['new', 'new/pets.json']
    with pytest.raises(ValueError, match=r'pets\.json exists'):
        files.check(out)
