"""What was saved comes back bit for bit, on any number of devices, and damage is never believed."""

import contextlib
import hashlib
import json
import math
import os
import pwd
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from support.small_training import batch, setup

from clip_jax import checkpoint, sharding
from clip_jax.runtime import atomic, checksums, retention
from clip_jax.step import skip_updates
from clip_jax.step.state import TrainState
from clip_jax.training import listing

ABOUT = {
    'card': {'model': {'image': {'name': 'vit', 'norm_eps': 1e-5}}, 'mean': [0.1, 0.25], 'ü': 'é'},
    'config': {'seed': 0, 'flip': 0.5, 'nothing': None, 'yes': True, 'empty': {}},
    'input': {'global_next_index': 2**40},
    'seconds': 1.25,
}


def state(step, devices=8):
    """A state of random bits on the first so many devices; the step decides all numbers."""
    key = jax.random.key(step)
    params = {
        'image': {'kernel': jax.random.normal(key, (24, 5)), 'bias': jnp.full(5, 1e-40)},
        'logit_scale': jnp.float32(1 / 3),
    }
    optimizer = optax.adamw(optax.linear_schedule(1.0, 0.0, 100))
    updates, opt_state = optimizer.update(params, optimizer.init(params), params)
    everywhere = sharding.replicated(sharding.make_mesh(jax.devices()[:devices]))
    return jax.device_put(
        TrainState(
            step=jnp.int32(step),
            params=optax.apply_updates(params, updates),
            buffers={'batch_stats': {'image': {'mean': jax.random.normal(key, (5,))}}},
            opt_state=opt_state,
            ema={},
            rng=jax.random.key_data(jax.random.fold_in(key, 7)),
            skip_state={
                **skip_updates.init(),
                'losses': jax.random.normal(key, (skip_updates.WINDOW,)),
            },
        ),
        everywhere,
    )


def bits(tree):
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return structure, [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@pytest.fixture
def opened(tmp_path):
    """Opens the run directory's checkpoints, and closes them in the end."""
    every = []

    def open_them(keep=3, **options):
        every.append(checkpoint.Checkpoints(tmp_path, keep=keep, **options))
        return every[-1]

    yield open_them
    for checkpoints in every:
        checkpoints.close()


def saved(opened, *steps, keep=3):
    checkpoints = opened(keep)
    for step in steps:
        checkpoints.save(step, state(step), {**ABOUT, 'of': step})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize('devices', [1, 3, 8])
def test_what_was_saved_comes_back_bit_for_bit_onto_any_devices(opened, devices):
    saved(opened, 4)
    like = state(0, devices)
    restored = opened().restore(4, like)
    assert bits(restored) == bits(state(4))
    assert bits(restored) != bits(like)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert got.sharding == wanted.sharding


MESHES = {
    '2 devices': {'devices': 2},
    '4 devices': {'devices': 4},
    '8 devices': {'devices': 8},
    'fsdp': {'devices': 8, 'fsdp': 4},
    'tensor': {'devices': 8, 'tensor': 2},
    'all three': {'devices': 8, 'fsdp': 2, 'tensor': 2},
    'slices, optimizer over data': {
        'devices': 8,
        'slices': 2,
        'fsdp': 2,
        'shard_optimizer': True,
    },
}
QUICK = ('2 devices', 'all three', 'slices, optimizer over data')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A model after some steps on one device, what it is saved in, and the loss of its next."""
    current, step, put = setup(1)
    for i in range(5):
        current, _ = step(current, put(batch(i)))
    folder = tmp_path_factory.mktemp('trained')
    with contextlib.closing(checkpoint.Checkpoints(folder, keep=2)) as checkpoints:
        checkpoints.save(5, current, ABOUT)
    return current, folder, float(step(current, put(batch(5)))[1]['loss'])


@pytest.mark.parametrize(
    'mesh',
    [
        pytest.param(mesh, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, mesh in MESHES.items()
    ],
)
def test_training_goes_on_on_another_mesh(trained, mesh, tmp_path):
    current, folder, loss = trained
    start, step, put = setup(**mesh)
    with contextlib.closing(checkpoint.Checkpoints(folder, keep=2)) as checkpoints:
        restored = checkpoints.restore(checkpoints.newest()[0], start)
    assert bits(restored) == bits(current)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(start), strict=True):
        assert got.sharding == wanted.sharding
    np.testing.assert_allclose(float(step(restored, put(batch(5)))[1]['loss']), loss, rtol=1e-6)
    # And from there back to one device.
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(5, restored, ABOUT)
        assert bits(checkpoints.restore(5, setup(1)[0])) == bits(current)


def test_without_running_statistics_there_are_parameters_alone(opened):
    checkpoints, current = opened(), state(4).replace(buffers={})
    checkpoints.save(4, current, ABOUT)
    restored = checkpoints.restore(4, state(0).replace(buffers={}))
    assert restored.variables.keys() == {'params'}
    assert bits(restored) == bits(current)


def test_the_state_saved_is_that_at_the_call(opened):
    # Training goes on, and may reuse the memory, while a checkpoint is being written.
    checkpoints, current = opened(), state(4)
    expected = bits(current)
    checkpoints.save(4, current, ABOUT)
    current = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(current)
    checkpoints.wait()
    assert bits(current) != expected
    assert bits(checkpoints.restore(4, state(0))) == expected


def test_the_newest_is_known_after_saving_and_after_opening_again(opened):
    assert opened().newest() == (None, {})
    assert saved(opened, 4, 12).newest() == (12, {})
    assert opened().newest() == (12, {})


def test_an_older_step_can_be_restored(opened):
    checkpoints = saved(opened, 4, 8)
    assert bits(checkpoints.restore(4, state(0))) == bits(state(4))


@pytest.mark.parametrize('keep', [1, 2])
def test_the_newest_so_many_stay(opened, tmp_path, keep):
    saved(opened, 2, 4, 10, keep=keep)
    there = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert there == [2, 4, 10][-keep:]
    # Also over a restart.
    saved(opened, 12, keep=keep)
    there = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert there == [2, 4, 10, 12][-keep:]


def test_the_json_part_comes_back(opened, tmp_path):
    saved(opened, 4, 8)
    for step in 4, 8:
        about = checkpoint.read_about(tmp_path / f'checkpoints/{step}')
        assert about == {**ABOUT, 'of': step}


def test_a_checkpoint_folder_is_read_without_its_run(opened, tmp_path):
    saved(opened, 4)
    folder = (tmp_path / 'checkpoints/4').rename(tmp_path / 'mine')
    mesh = sharding.make_mesh(jax.devices()[:2])
    shapes = jax.eval_shape(lambda: state(0).variables)
    variables = checkpoint.read_variables(checkpoint.find(folder), shapes, mesh)
    assert variables.keys() == {'params', 'batch_stats'}
    assert bits(variables) == bits(state(4).variables)
    assert {x.sharding for x in jax.tree.leaves(variables)} == {sharding.replicated(mesh)}
    assert checkpoint.read_about(checkpoint.find(folder)) == {**ABOUT, 'of': 4}


def test_find_takes_a_run_its_folder_or_one_checkpoint(opened, tmp_path):
    saved(opened, 8, 12, 100)  # 8 is the last by alphabet
    newest = tmp_path / 'checkpoints/100'
    for path in (tmp_path, str(tmp_path), tmp_path / 'checkpoints', newest):
        assert checkpoint.find(path) == newest
    assert checkpoint.find(tmp_path / 'checkpoints/8') == tmp_path / 'checkpoints/8'


LEFT = '9.unsealed.orbax-checkpoint-tmp', '9.unsealed', '9.deleting'


@pytest.mark.parametrize('name', LEFT)
def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleared_away(opened, tmp_path, name):
    saved(opened, 8)
    left = tmp_path / 'checkpoints' / name
    shutil.copytree(tmp_path / 'checkpoints/8', left)
    (tmp_path / 'checkpoints/.DS_Store').write_text('')
    assert checkpoint.find(tmp_path) == tmp_path / 'checkpoints/8'
    assert left.exists()  # whoever only reads changes nothing
    assert opened().newest() == (8, {})
    assert not left.exists()


def test_paths_of_object_storage_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(checkpoint.absolute('gs://bucket/run')) == 'gs://bucket/run'
    assert checkpoint.absolute('run') == tmp_path / 'run'
    assert checkpoint.absolute('~/run') == epath.Path('~/run').expanduser()


def test_find_says_what_is_there_instead(tmp_path):
    with pytest.raises(ValueError, match=r'none: no such file or folder; expected a run'):
        checkpoint.find(tmp_path / 'none')
    (tmp_path / 'picture.jpg').write_text('')
    for path, found in (tmp_path, 'picture.jpg'), (tmp_path / 'picture.jpg', 'a file'):
        with pytest.raises(ValueError, match=f'no checkpoint found; expected .*found.*{found}'):
            checkpoint.find(path)


def other(change):
    """A state of the same numbers with another `params/image`."""
    current = state(4)
    image = change(current.params['image'])
    return current.replace(params={**current.params, 'image': image})


CHANGES = {
    'shape': (
        lambda x: {**x, 'kernel': x['kernel'][:, :4]},
        r'params/image/kernel is float32 \(24, 5\), expected float32 \(24, 4\)',
    ),
    'type': (
        lambda x: {**x, 'bias': x['bias'].astype(jnp.bfloat16)},
        r'params/image/bias is float32 \(5,\), expected bfloat16 \(5,\)',
    ),
    'missing': (
        lambda x: {**x, 'more': x['bias']},
        r'params/image/more is missing, expected float32 \(5,\)',
    ),
    'left over': (
        lambda x: {'kernel': x['kernel']},
        r'params/image/bias is float32 \(5,\), expected none',
    ),
}


@pytest.mark.parametrize(('change', 'message'), CHANGES.values(), ids=CHANGES)
def test_another_model_cannot_be_restored_from_it(opened, tmp_path, change, message):
    saved(opened, 4)
    with pytest.raises(ValueError, match=f'not the arrays of this model: .*{message}'):
        opened().restore(4, other(change))
    with pytest.raises(ValueError, match=message):
        checkpoint.read_variables(
            checkpoint.find(tmp_path), other(change).variables, sharding.make_mesh()
        )


# Which steps stay


def test_what_stays_is_new_or_due_or_good():
    def stay(last=1, every=0, best=0):
        scores = {10: 0.5, 20: 0.9, 30: 0.1, 40: 0.9}
        there = [50, 10, 40, 30, 20]
        return retention.kept(there, scores, last=last, every=every, best=best)

    assert stay() == {50}
    assert stay(last=3) == {30, 40, 50}
    assert stay(every=20) == {20, 40, 50}
    assert stay(best=1) == {40, 50}  # of equals the newer
    assert stay(best=3) == {10, 20, 40, 50}
    assert stay(best=9) == {10, 20, 30, 40, 50}
    assert stay(every=25) == {30, 50}  # saved later than due
    scores = {1: 0.9, 2: math.nan, 3: 0.1}
    assert retention.kept([1, 2, 3, 4], scores, last=1, every=0, best=1) == {1, 4}


def test_the_best_and_every_so_manieth_stay_on_disk(opened, tmp_path):
    checkpoints = opened(1, keep_every=4, keep_best=1)
    for step, score in {2: 0.9, 4: 0.2, 6: 0.3, 10: 0.1}.items():
        checkpoints.save(step, state(step), ABOUT)
        checkpoints.scores[step] = score
    checkpoints.wait()
    assert checkpoint.steps(tmp_path / 'checkpoints') == [10, 4, 2]


# Damage


@pytest.fixture(scope='module')
def saved_once(tmp_path_factory):
    """A folder with the checkpoints of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp('saved')
    with contextlib.closing(checkpoint.Checkpoints(folder, keep=3)) as checkpoints:
        for step in 4, 8, 12:
            checkpoints.save(step, state(step), ABOUT)
    return folder


@pytest.fixture
def three(saved_once, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files_of(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def kind(path, folder):
    """Files of a checkpoint by what they are for: names of data are random."""
    name = str(path.relative_to(folder))
    return name.rpartition('/d/')[0] + '/d' if '/d/' in name else name


def newest_file(folder, name):
    return next(path for path in files_of(folder) if kind(path, folder) == name)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def zero_64_bytes(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(len(content[middle : middle + 64]))
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DATA = 'variables/ocdbt.process_0/d'
KINDS = (
    'manifest.json',
    'commit_success.txt',
    '_CHECKPOINT_METADATA',
    'about/metadata',
    'about/commit_success.txt',
    'variables/_sharding',
    'variables/array_metadatas/process_0',
    *(
        f'{item}/{name}'
        for item in ('variables', 'training')
        for name in (
            '_METADATA',
            'commit_success.txt',
            'manifest.ocdbt',
            'd',
            'ocdbt.process_0/manifest.ocdbt',
            'ocdbt.process_0/d',
        )
    ),
)
FAULTS = {
    **{f'a flipped bit in {name}': (flip_a_bit, name) for name in KINDS},
    **{f'{name} gone': (os.remove, name) for name in KINDS},
    **{f'64 bytes of zeros in {name}': (zero_64_bytes, name) for name in (DATA, 'manifest.json')},
    **{f'{name} cut': (cut, name) for name in (DATA, 'manifest.json', 'about/metadata')},
}


def fallen_back(opened, tmp_path):
    """Asserts that step 12 is not believed, step 8 taken, and that nothing is lost; says why."""
    damaged = {
        str(p.relative_to(tmp_path / 'checkpoints/12'))
        for p in files_of(tmp_path)
        if p.is_relative_to(tmp_path / 'checkpoints/12')
    }
    step, why = opened().newest()
    assert (step, [*why]) == (8, [12])
    aside = tmp_path / 'checkpoints/12.damaged'
    assert {str(p.relative_to(aside)) for p in files_of(aside)} == damaged
    return why[12]


def test_the_number_of_a_damaged_step_is_free_again(opened, three):
    flip_a_bit(newest_file(three / 'checkpoints/12', DATA))
    checkpoints = opened()
    assert checkpoints.newest()[0] == 8
    assert bits(checkpoints.restore(8, state(0))) == bits(state(8))
    checkpoints.save(12, state(12), ABOUT)
    checkpoints.wait()
    assert opened().newest() == (12, {})
    flip_a_bit(newest_file(three / 'checkpoints/12', DATA))
    assert opened().newest()[0] == 8
    aside = {path.name for path in (three / 'checkpoints').iterdir()}
    assert aside == {'4', '8', '12.damaged', '12.damaged-2'}


def test_every_kind_of_corrupt_file_is_found(three):
    """Each kind of file of a checkpoint, with each fault."""
    folder = epath.Path(three / 'checkpoints/12')
    assert {kind(path, folder) for path in files_of(three / 'checkpoints/12')} == {*KINDS}
    assert checksums.verify(folder) == []
    for damage, name in FAULTS.values():
        path = newest_file(three / 'checkpoints/12', name)
        content = path.read_bytes()
        damage(path)
        (error,) = checksums.verify(folder)
        assert str(path.relative_to(folder)) in error
        # Inference does not need the item `training`.
        assert bool(checksums.verify(folder, only=checkpoint.USED)) != name.startswith('training')
        path.write_bytes(content)
    assert checksums.verify(folder) == []


@pytest.mark.parametrize(
    'fault',
    [f'a flipped bit in {DATA}', 'manifest.json gone', 'training/d cut in half'],
)
def test_a_corrupt_step_is_quarantined_and_the_step_before_is_used(opened, three, fault):
    damage, name = {**FAULTS, 'training/d cut in half': (cut, 'training/d')}[fault]
    folder = three / 'checkpoints/12'
    path = newest_file(folder, name)
    damage(path)
    assert checkpoint.find(three).name == ('12' if name.startswith('training') else '8')
    (error,) = fallen_back(opened, three)
    assert str(path.relative_to(folder)) in error


def test_a_missing_item_an_empty_folder_and_foreign_files_are_found(opened, three):
    tmp_path = three
    folder = tmp_path / 'checkpoints/12'
    whole = shutil.copytree(folder, tmp_path / 'whole')

    def again():
        for name in '12', '12.damaged':
            shutil.rmtree(tmp_path / 'checkpoints' / name, ignore_errors=True)
        shutil.copytree(whole, folder)

    for item in 'variables', 'about':
        shutil.rmtree(folder / item)
        assert any(f'{item}/' in why for why in fallen_back(opened, tmp_path))
        again()
    (folder / 'variables/notes.txt').write_text('mine')
    assert fallen_back(opened, tmp_path) == ['variables/notes.txt is not in manifest.json']
    again()
    shutil.rmtree(folder)
    folder.mkdir()
    assert fallen_back(opened, tmp_path) == ['an empty folder']
    again()
    shutil.rmtree(folder)
    folder.write_text('not a folder')
    checkpoints = opened()
    assert checkpoints.newest() == (8, {12: ['a file, where a folder was expected']})
    assert (tmp_path / 'checkpoints/12.damaged').read_text() == 'not a folder'


def test_where_no_step_is_whole_nothing_is_touched(opened, three):
    tmp_path = three
    for step in 4, 8, 12:
        flip_a_bit(newest_file(tmp_path / f'checkpoints/{step}', DATA))
    message = r'no valid checkpoint: step 12: the content of .* does not match its checksum; step 8'
    with pytest.raises(ValueError, match=message):
        opened().newest()
    with pytest.raises(ValueError, match=message):
        checkpoint.find(tmp_path)
    with pytest.raises(ValueError, match='12: this checkpoint is corrupt: the content of'):
        checkpoint.find(tmp_path / 'checkpoints/12')
    assert checkpoint.steps(tmp_path / 'checkpoints') == [12, 8, 4]


def test_what_cannot_be_read_is_not_taken_for_damaged(opened, three, monkeypatch):

    def no_permission(*args, **options):
        raise PermissionError(13, 'Permission denied')

    checkpoints = opened()
    monkeypatch.setattr(checksums, 'verify', no_permission)
    with pytest.raises(ValueError, match=r'cannot be read: .*/12: .*Permission denied'):
        checkpoints.newest()
    assert checkpoint.steps(three / 'checkpoints') == [12, 8, 4]


def test_what_fails_to_be_looked_at_is_not_taken_for_damaged_or_for_nothing(
    opened, three, monkeypatch
):
    """epath's is_dir says False of what it cannot look at."""
    checkpoints, folder = opened(), epath.Path(three / 'checkpoints')

    def broken(*args, **options):
        raise OSError(5, 'Input/output error')

    with monkeypatch.context() as m:
        m.setattr(os, 'stat', broken)
        with pytest.raises(ValueError, match=r'cannot be read: .*/12: .*Input/output error'):
            checkpoints.newest()
    with monkeypatch.context() as m:
        m.setattr(type(folder), 'iterdir', broken)
        with pytest.raises(OSError, match='Input/output error'):
            checkpoint.steps(folder)
    assert checkpoint.steps(folder) == [12, 8, 4]


def test_files_of_owners_without_a_name_are_read(opened, three, monkeypatch):
    """As in containers that run under a bare number."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    assert opened().newest() == (12, {})
    assert [entry.step for entry in listing.entries(three, contents='all')] == [12, 8, 4]


def test_a_step_that_training_deletes_meanwhile_is_not_listed(opened, three, monkeypatch):
    def deleted(folder, **options):
        if folder.name == '8':
            folder.rmtree()
        return verify(folder, **options)

    verify = checksums.verify
    monkeypatch.setattr(checksums, 'verify', deleted)
    assert [entry.step for entry in listing.entries(three, contents='all')] == [12, 4]


def test_files_of_a_save_that_come_and_go_meanwhile_are_no_error(opened, three, monkeypatch):
    def renamed(folder):
        if folder.name in busy:
            raise FileNotFoundError(2, 'No such file', f'{folder}/d/x.__lock')
        return size(folder)

    size = checksums.size
    monkeypatch.setattr(checksums, 'size', renamed)
    folder = three / 'checkpoints'
    busy = ['16.unsealed.x', '4.deleting']
    for name in busy:
        (folder / name).mkdir()
    steps = [entry.step for entry in listing.entries(three, contents='none')]
    assert steps == [12, 8, 4]
    busy.append('8')
    for path in three, folder / '8':
        with pytest.raises(FileNotFoundError):
            list(listing.entries(path, contents='none'))


def test_on_object_storage_what_has_no_manifest_is_no_step(opened, three, monkeypatch, caplog):
    """A save that was killed has the name of a step there, also the first of all."""
    monkeypatch.setattr(atomic, 'is_remote', lambda path: True)
    for step in 4, 8, 12:
        (three / f'checkpoints/{step}/manifest.json').unlink()
    assert checkpoint.steps(three / 'checkpoints') == []
    assert checkpoint.newest_about(epath.Path(three)) is None
    assert opened().newest() == (None, {})
    assert '12: without manifest.json, kept as *.damaged' in caplog.text
    assert {path.name for path in (three / 'checkpoints').iterdir()} == {
        '4.damaged',
        '8.damaged',
        '12.damaged',
    }
    assert saved(opened, 4).newest() == (4, {})


def test_the_card_comes_from_the_newest_checkpoint_with_a_whole_one(opened, three):
    workdir = epath.Path(three)
    assert checkpoint.newest_about(workdir / 'none') is None
    assert checkpoint.newest_about(workdir)[1]['card'] == ABOUT['card']
    flip_a_bit(three / 'checkpoints/12/about/metadata')
    assert checkpoint.newest_about(workdir)[1]['card'] == ABOUT['card']
    for step in 4, 8:
        flip_a_bit(three / f'checkpoints/{step}/about/metadata')
    with pytest.raises(ValueError, match='no valid checkpoint: step 12'):
        checkpoint.newest_about(workdir)


def test_what_cannot_be_deleted_stops_nothing(opened, tmp_path, monkeypatch, caplog):
    checkpoints = saved(opened, 4, keep=1)
    rename = type(checkpoints.folder).rename

    def broken(path):
        raise RuntimeError('503')  # as clients of object storage do

    def busy(path, target):
        if path.name == '4':
            raise OSError(39, 'Directory not empty')
        return rename(path, target)

    with monkeypatch.context() as m:
        m.setattr(type(checkpoints.folder), 'rename', busy)
        checkpoints.save(8, state(8), ABOUT)
        checkpoints.wait()
    assert '4 cannot be deleted: [Errno 39]' in caplog.text
    (checkpoints.folder / '2.deleting').mkdir()
    with monkeypatch.context() as m:
        m.setattr(type(checkpoints.folder), 'rmtree', broken)
        assert opened().newest()[0] == 8
    assert '2.deleting cannot be deleted: 503' in caplog.text
    assert checkpoint.steps(checkpoints.folder) == [8, 4]
    checkpoints.save(12, state(12), ABOUT)
    checkpoints.wait()
    assert checkpoint.steps(checkpoints.folder) == [12]


def test_a_step_is_on_the_disk_before_it_has_its_name(opened, tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def note(number):
        synced.add(os.readlink(f'/proc/self/fd/{number}'))
        fsync(number)

    monkeypatch.setattr(os, 'fsync', note)
    checkpoints = saved(opened, 4)
    folder = tmp_path / 'checkpoints/4'
    expected = {f'{folder}.unsealed/{path.relative_to(folder)}' for path in files_of(folder)}
    assert expected <= synced and str(checkpoints.folder) in synced


def test_a_sample_reads_small_files_and_some_of_the_large(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, 'SMALL', 100)
    folder = tmp_path / 'x'
    folder.mkdir()
    for i in range(64):
        (folder / f'large-{i}').write_bytes(bytes([i]) * 101)
    (folder / 'small').write_bytes(bytes(100))
    folder = epath.Path(folder)
    checksums.write(folder)
    for path in folder.glob('*-*'):
        flip_a_bit(path)
    flip_a_bit(folder / 'small')
    assert len(checksums.verify(folder)) == 65
    assert checksums.verify(folder, contents='none') == []
    found = checksums.verify(folder, contents='sampled')
    assert any('small' in text for text in found) and 4 <= len(found) <= 20
    # Several processes read all of it together.
    parts = [checksums.verify(folder, part=(i, 3)) for i in range(3)]
    assert sorted(text for part in parts for text in part) == sorted(checksums.verify(folder))
    assert max(map(len, parts)) < 24


def test_the_manifest_holds_sizes_and_hashes_that_others_can_check(opened, tmp_path):
    saved(opened, 4)
    folder = tmp_path / 'checkpoints/4'
    files = json.loads((folder / 'manifest.json').read_text())['files']
    assert {folder / name for name in files} == {*files_of(folder)} - {folder / 'manifest.json'}
    for name, about in files.items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == tuple(about.values())


def test_a_save_that_fails_is_said_and_harms_nothing(opened, tmp_path, monkeypatch):
    checkpoints = saved(opened, 4)

    def full(folder):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checksums, 'write', full)
    checkpoints.save(8, state(8), ABOUT)
    with pytest.raises(
        ValueError, match=r'step 8 could not be written: .*No space left.*step 4 is valid'
    ):
        checkpoints.wait()
    monkeypatch.undo()
    assert opened().newest() == (4, {})
    assert bits(checkpoints.restore(4, state(0))) == bits(state(4))
