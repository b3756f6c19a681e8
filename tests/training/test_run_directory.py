"""A run directory belongs to one config; what does not change the result may change."""

import json

import pytest
from etils import epath

from clip_jax.runtime import lock
from clip_jax.training import run_directory

CONFIG = {'seed': 0, 'mesh': {'fsdp': 1}, 'checkpoint': {'every': 10}, 'optimizer': {'b1': 0.9}}


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
    return epath.Path(tmp_path)


def test_a_run_is_complete_with_its_summary(workdir):
    assert not run_directory.is_complete(workdir, CONFIG)
    (workdir / 'summary.json').write_text('{}')
    assert run_directory.is_complete(workdir, CONFIG)


def test_what_is_traced_and_how_it_is_compiled_may_change(workdir):
    other = {**CONFIG, 'profile': {'start_step': 5, 'steps': 2}, 'compiler_options': 'auto'}
    assert not run_directory.is_complete(workdir, other)


def test_how_and_where_it_is_computed_may_change(workdir, capsys):
    other = {**CONFIG, 'mesh': {'fsdp': 4, 'tensor': 2}, 'checkpoint': {'every': 20}}
    assert not run_directory.is_complete(workdir, other)
    said = capsys.readouterr().out
    for change in ('mesh.fsdp 4', '1'), ('mesh.tensor 2', '-'), ('checkpoint.every 20', '10'):
        assert f'{change[0]}, which was {change[1]}' in said


def test_what_is_computed_may_not(workdir):
    other = {**CONFIG, 'seed': 1, 'mesh': {'fsdp': 4}, 'optimizer': {'b1': 0.5}}
    message = r'another config \(seed is 0 there, 1 now; optimizer.b1 is 0.9 there, 0.5 now\)'
    with pytest.raises(ValueError, match=message):
        run_directory.is_complete(workdir, other)


def test_a_run_is_extended_or_its_data_moved_if_the_user_says_so(workdir):
    (workdir / 'config.json').write_text(json.dumps({**CONFIG, 'total_steps': 12}))
    (workdir / 'summary.json').write_text('{"step": 12}')
    longer = {**CONFIG, 'total_steps': 24}
    with pytest.raises(ValueError, match=r'total_steps is 12 there.*--allow-change=total_steps'):
        run_directory.is_complete(workdir, longer)
    assert not run_directory.is_complete(workdir, longer, ['total_steps'])
    other = {**longer, 'optimizer': {'b1': 0.5}}
    with pytest.raises(ValueError, match=r'b1 is 0.9 there.*--allow-change=optimizer\.b1'):
        run_directory.is_complete(workdir, other, ['total_steps'])
    assert not run_directory.is_complete(workdir, other, ['total_steps', 'optimizer.b1'])
    seed = {**longer, 'seed': 3}
    with pytest.raises(ValueError, match=r'seed is 0 there') as error:
        run_directory.is_complete(workdir, seed, ['total_steps'])
    assert '--allow-change' not in str(error.value)
    with pytest.raises(ValueError, match=r'--allow-change: seed cannot change in a run'):
        run_directory.is_complete(workdir, seed, ['seed'])


def test_every_key_that_may_change_is_one_of_the_default_config():
    import sys

    from support.process import ROOT

    sys.path.insert(0, str(ROOT / 'configs'))
    try:
        import default
    finally:
        sys.path.pop(0)
    config = default.get_config()
    for key in (*run_directory.FREE, *run_directory.ALLOWABLE):
        place = config
        for part in key.split('.'):
            assert part in place, key
            place = place[part]


def test_a_folder_of_something_else_is_refused(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / lock.name()).write_text('')
    assert not run_directory.is_complete(folder, CONFIG)
    (folder / 'config.json.0123abcd.partial').write_text('{"se')  # killed in its first file
    assert not run_directory.is_complete(folder, CONFIG)
    (folder / 'thesis.tex').write_text('')
    with pytest.raises(ValueError, match='not empty and no run directory'):
        run_directory.is_complete(folder, CONFIG)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path / 'a/b.json')
    run_directory.write_json(path, {'ä': 1.5})
    assert json.loads(path.read_text()) == {'ä': 1.5}
    with pytest.raises(TypeError):
        run_directory.write_json(path, {'x': object()})
    assert json.loads(path.read_text()) == {'ä': 1.5}
