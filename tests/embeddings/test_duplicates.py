"""Near-duplicates are those that NumPy finds among all pairs, however the work is divided."""

import itertools
import json
import signal
import subprocess
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from PIL import Image
from support.process import clip_jax_command, environment, free_port
from support.runs import command
from support.stored import store
from support.vectors import unit

from clip_jax.data import kept_list
from clip_jax.embeddings import _bound, _groups
from clip_jax.planning import topologies
from clip_jax.reports import curation

SEED = 3


def planted(count: int, width: int = 24) -> np.ndarray:
    """Rows of which many are copies of others, near and less near: chains, pairs and twins."""
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(count, width))
    for i in range(1, count):
        if rng.random() < 0.3:
            other = rows[rng.integers(i)]
            rows[i] = other + rng.choice([0, 0.1, 0.3, 0.4]) * rng.normal(size=width)
    return unit(rows)


def brute_force(rows: np.ndarray, threshold: float) -> np.ndarray:
    """The first row of the group of each row, from all pairs."""
    near = np.triu(rows.astype(float) @ rows.astype(float).T >= threshold, 1)
    first = np.arange(len(rows))
    for i, j in np.argwhere(near):
        low, high = sorted((first[i], first[j]))
        first[first == high] = low
    return first


@pytest.fixture(scope='module')
def rows() -> np.ndarray:
    return planted(700)


@pytest.fixture(scope='module')
def embedded(rows, tmp_path_factory) -> str:
    """The rows as a folder of embeddings of small pictures."""
    return store(tmp_path_factory.mktemp('rows'), rows)


@pytest.fixture(scope='module')
def evaluation_set(rows, tmp_path_factory) -> tuple[str, np.ndarray]:
    """An evaluation set of which every third row is near a row of the data."""
    rng = np.random.default_rng(SEED + 1)
    own = unit(rng.normal(size=(90, rows.shape[1])))
    own[::3] = unit(rows[5:35] + 0.03 * rng.normal(size=(30, rows.shape[1])))
    return store(tmp_path_factory.mktemp('evaluation'), own), own


@pytest.fixture(autouse=True)
def no_figure(request, monkeypatch):
    """Drawing takes most of the time of a small search; one test draws."""
    if 'drawn' not in request.node.name:
        monkeypatch.setattr(curation, 'pairs', lambda *_, **__: None)


def duplicates(*arguments: object) -> str:
    done = command('data', 'duplicates', *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept(folder) -> list[int]:
    return kept_list.read(f'{folder}/kept.parquet').records.tolist()


@pytest.mark.parametrize('block_size', [64, 700])
def test_the_first_of_each_group_of_numpy_is_kept(rows, embedded, tmp_path, block_size):
    first = brute_force(rows, 0.95)
    expected = np.flatnonzero(first == np.arange(len(rows)))
    assert 350 < len(expected) < 650
    said = duplicates(embedded, f'--out={tmp_path / "x"}', f'--block-size={block_size}')
    assert kept(tmp_path / 'x') == expected.tolist()
    table = pq.read_table(tmp_path / 'x/duplicates.parquet').to_pydict()
    assert table['record'] == np.flatnonzero(first != np.arange(len(rows))).tolist()
    assert table['other'] == first[table['record']].tolist() and {*table['of']} == {''}
    cosines = np.einsum('nd,nd->n', rows[table['record']], rows[table['other']], dtype=float)
    np.testing.assert_allclose(table['cosine'], cosines, atol=1e-6)
    assert f'kept                 {len(expected)}\n' in said
    pairs = f'{700 * 699 // 2:,}'
    assert f'pairs                {pairs}\n' in said


def test_the_files_are_the_same_from_eight_devices(embedded, tmp_path, monkeypatch, all_devices):
    monkeypatch.setattr(_bound, 'CPU_TILE', 16)
    assert jax.local_device_count() == 8
    for name, size in (('x', 300), ('y', 65_536)):
        duplicates(embedded, f'--out={tmp_path / name}', f'--block-size={size}')
    files = [(tmp_path / name / 'duplicates.parquet').read_bytes() for name in 'xy']
    assert files[0] == files[1] and kept(tmp_path / 'x') == kept(tmp_path / 'y')


def test_what_accelerators_compute_leaves_the_same(rows, embedded, tmp_path, monkeypatch):
    duplicates(embedded, f'--out={tmp_path / "x"}')
    comparison = _bound.Comparison

    def in_bfloat16(threshold, width, block_size):
        made = comparison(threshold, width, block_size)
        made.dtype = 'bfloat16'
        made.bar = np.float32(threshold - _bound.slack(width, made.dtype))
        return made

    monkeypatch.setattr(_bound, 'Comparison', in_bfloat16)
    duplicates(embedded, f'--out={tmp_path / "y"}')
    assert kept(tmp_path / 'x') == kept(tmp_path / 'y')


@pytest.mark.parametrize('within_set', [True, False])
def test_what_is_in_an_evaluation_set_is_left_out(
    rows, embedded, evaluation_set, tmp_path, within_set
):
    spec, own = evaluation_set
    cosines = rows.astype(float) @ own.T.astype(float)
    near = (cosines >= 0.95).any(axis=1)
    assert 30 <= near.sum() < 100
    flags = () if within_set else ('--no-within-set',)
    duplicates(embedded, f'--against={spec}', f'--out={tmp_path / "x"}', '--block-size=50', *flags)
    first, expected = brute_force(rows, 0.95), []
    for group in sorted({*first}):
        members = np.flatnonzero(first == group)
        clean = members[~near[members]].tolist()
        expected += clean[:1] if within_set else clean
    assert kept(tmp_path / 'x') == sorted(expected)
    lines = pq.read_table(tmp_path / 'x/duplicates.parquet').to_pylist()
    found = [(line['record'], line['other']) for line in lines if line['of'] == spec]
    assert found == [(i, cosines[i].argmax()) for i in np.flatnonzero(near)]
    of_set = [line['cosine'] for line in lines if line['of'] == spec]
    np.testing.assert_allclose(of_set, cosines[near].max(axis=1), atol=1e-6)


def test_only_records_of_a_list_are_looked_at(rows, embedded, tmp_path):
    duplicates(embedded, f'--out={tmp_path / "all"}')
    of = kept_list.read(f'{tmp_path}/all/kept.parquet').of
    some = np.arange(1, 700, 2)
    kept_list.KeptList(of, some).write(epath.Path(tmp_path / 'some.parquet'))
    duplicates(embedded, f'--out={tmp_path / "x"}', f'--within={tmp_path}/some.parquet')
    first = brute_force(rows[some], 0.95)
    assert kept(tmp_path / 'x') == some[first == np.arange(len(some))].tolist()


def test_a_set_without_duplicates_stays_whole(tmp_path):
    spec = store(tmp_path / 'different', np.eye(20, dtype=np.float32))
    assert 'groups               0\n' in duplicates(spec, f'--out={tmp_path / "x"}')
    assert kept(tmp_path / 'x') == list(range(20))
    assert not (tmp_path / 'x/pairs.png').exists()


def test_a_set_of_one_image_keeps_it(tmp_path):
    spec = store(tmp_path / 'same', np.tile(planted(1), (150, 1)))
    duplicates(spec, f'--out={tmp_path / "x"}', '--block-size=40')
    assert kept(tmp_path / 'x') == [0]


def test_killed_at_any_moment_it_goes_on_to_the_same_files(embedded, tmp_path):
    out = tmp_path / 'x'
    arguments = 'data', 'duplicates', embedded, f'--out={out}', '--block-size=10'
    process = subprocess.Popen(
        clip_jax_command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    begun = time.monotonic()
    while len(list(out.glob('work/block-*.npz'))) < 3:
        assert process.poll() is None and time.monotonic() - begun < 280
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = {path: path.stat().st_mtime_ns for path in out.glob('work/block-*.npz')}
    assert len(there) < 70 and not (out / 'kept.parquet').exists()
    damaged = max(there)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert command(*arguments).returncode == 0
    assert all(path.stat().st_mtime_ns == there[path] for path in there if path != damaged)
    duplicates(embedded, f'--out={tmp_path / "y"}')
    tables = [(tmp_path / name / 'duplicates.parquet').read_bytes() for name in 'xy']
    assert tables[0] == tables[1] and kept(out) == kept(tmp_path / 'y')


@pytest.mark.slow
def test_two_processes_find_what_one_does(embedded, evaluation_set, tmp_path):
    shared = 'data', 'duplicates', embedded, f'--against={evaluation_set[0]}', '--block-size=90'
    address = f'--coordinator=localhost:{free_port()}'
    running = [
        subprocess.Popen(
            clip_jax_command(
                *shared,
                f'--out={tmp_path / "x"}',
                address,
                '--num-processes=2',
                f'--process-id={i}',
            ),
            env=environment(2),
        )
        for i in range(2)
    ]
    assert [process.wait(280) for process in running] == [0, 0]
    assert command(*shared, f'--out={tmp_path / "y"}').returncode == 0
    tables = [(tmp_path / name / 'duplicates.parquet').read_bytes() for name in 'xy']
    assert tables[0] == tables[1] and kept(tmp_path / 'x') == kept(tmp_path / 'y')


def test_pairs_are_drawn(embedded, evaluation_set, tmp_path):
    duplicates(embedded, f'--against={evaluation_set[0]}', f'--out={tmp_path / "x"}')
    report = json.loads((tmp_path / 'x/duplicates.json').read_text())
    cosines = [pair['cosine'] for pair in report['examples']]
    assert len(cosines) == 12 and cosines == sorted(cosines)
    with Image.open(tmp_path / 'x/pairs.png') as picture:
        assert picture.size[0] > 1000 and len(set(picture.convert('RGB').getdata())) > 100


@pytest.mark.parametrize('width', [8, 24, 200])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_bound_is_never_less_than_the_cosine(width, dtype):
    rows = planted(400, width)
    cosines = rows.astype(float) @ rows.astype(float).T
    for size in (1, 5, width):
        basis = np.linalg.qr(np.random.default_rng(size).normal(size=(width, size)))[0]
        short = _bound.sketch(rows, basis).astype(jax.numpy.dtype(dtype)).astype(np.float32)
        slack = _bound.slack(size + 1, dtype)
        assert (short @ short.T + slack >= cosines).all()
        if size < width / 4:
            assert (short @ short.T - cosines).max() > 0.1
    assert (short @ short.T - slack - 1e-6 <= cosines).all()  # all coordinates


def test_few_coordinates_are_enough_for_rows_that_vary_in_few_directions():
    rng = np.random.default_rng(SEED)
    rows = unit(rng.normal(size=(2000, 96)) * 0.8 ** np.arange(96) + 0.3)
    assert _bound.basis(rows, 0.95).shape == (96, 16)
    assert _bound.basis(unit(rng.normal(size=(2000, 96))), 0.95).shape[1] > 16
    assert _bound.basis(unit(rows[:, :12]), 0.95).shape == (12, 12)


def test_groups_do_not_depend_on_batches(monkeypatch):
    rng = np.random.default_rng(SEED)
    pairs = rng.integers(0, 300, (180, 2))
    expected = np.arange(300)
    for i, j in pairs:
        low, high = sorted((expected[i], expected[j]))
        expected[expected == high] = low
    for at_once, size in itertools.product((1, 50, 10_000), (1, 7, 180)):
        monkeypatch.setattr(_groups, 'AT_ONCE', at_once)
        batches = [pairs[k : k + size] for k in range(0, 180, size)]
        assert _groups.firsts(300, batches).tolist() == expected.tolist()
        shorter = [_groups.stars(batch) for batch in batches]
        assert _groups.firsts(300, shorter).tolist() == expected.tolist()
    assert len(_groups.stars(np.array([[i, j] for i in range(20) for j in range(20)]))) == 19


def test_the_plan_says_how_much_work_it_is(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(topologies, 'chip_of', lambda _: topologies.Chip(80, 100, 1, 1e12))
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    lines = duplicates(embedded, f'--out={tmp_path / "x"}', '--block-size=64').splitlines()
    said = dict(line.split(maxsplit=1) for line in lines[:9])
    pairs, width = 700 * 699 // 2, int(said['sketch'].split()[0])
    assert said['blocks'] == '11' and said['sketch'] == f'{width} numbers of 24'
    assert float(said['tflop']) == pytest.approx(2 * width * pairs / 1e12, rel=0.01)
    assert float(said['seconds_at_peak']) == pytest.approx(8 * pairs / 1e12, rel=0.01)


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [('NVIDIA H100 80GB HBM3', 989), ('TPU v5 lite', 197), ('TPU v4', 275), ('cpu', None)],
)
def test_devices_whose_peak_is_known(kind, peak):
    chip = topologies.chip_of(kind)
    assert (chip and chip.peak_tflops) == peak


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--threshold=95',), '--threshold is 95.0; expected a cosine from 0.5 to below 1'),
        (('--block-size=0',), '--block-size is 0; expected at least 1'),
        (('--no-within-set',), '--no-within-set: nothing is compared; give --against'),
        (('--against=folder:x',), 'folder:x: expected embeddings:DIR, which clip-jax embed'),
        (('--against=embeddings:/no/x',), '/no/x: not a folder of embeddings'),
        (('--within=/no/list',), '/no/list: there is no such file'),
        (('--text_key=x',), "there is no flag '--text_key=x'"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(embedded, tmp_path, arguments, message):
    done = command('data', 'duplicates', embedded, f'--out={tmp_path / "x"}', *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith('clip-jax data: ') and done.stderr.count('\n') == 1
    assert not (tmp_path / 'x').exists()


def test_folders_and_data_that_do_not_fit_are_one_line(rows, embedded, tmp_path):
    out = f'--out={tmp_path / "x"}'
    duplicates(embedded, out)
    done = command('data', 'duplicates', embedded, out, '--threshold=0.9')
    assert 'started with other settings: threshold was 0.95, is 0.9. Give the same' in done.stderr
    other = store(tmp_path / 'other', rows[:20], model='another')
    done = command('data', 'duplicates', embedded, f'--against={other}', f'--out={tmp_path / "y"}')
    assert 'are embeddings of different models' in done.stderr
    (tmp_path / 'other/data/03.png').write_bytes((tmp_path / 'other/data/04.png').read_bytes())
    done = command('data', 'duplicates', other, f'--out={tmp_path / "y"}')
    assert 'record 3 of folder:' in done.stderr and 'has another image than when' in done.stderr
    for k in range(9):
        (tmp_path / f'other/data/0{k}.png').unlink()
    done = command('data', 'duplicates', other, f'--out={tmp_path / "y"}')
    assert 'had 20 records when it was embedded, and has 11' in done.stderr
    assert not (tmp_path / 'y').exists()
