"""`clip-jax data filter` keeps what NumPy keeps, and training and evaluations take its list."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.process import clip_jax_command, environment, free_port
from support.runs import command

from clip_jax.data import kept_list
from clip_jax.data.sources import open_source
from clip_jax.embeddings import filter

SMALL = '--shard-size=10', '--batch-size=4'


@pytest.fixture(scope='module')
def embedded(tiny_run, tiny_tars, tmp_path_factory) -> str:
    """SPEC of the embeddings of the tiny set."""
    out = tmp_path_factory.mktemp('filter') / 'x'
    done = command('embed', f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}', *SMALL)
    assert done.returncode == 0, done.stderr
    return f'embeddings:{out}'


@pytest.fixture(scope='module')
def cosines(embedded) -> np.ndarray:
    """The cosine of each image and each of its two captions, [64, 2]."""
    source = open_source(embedded)
    texts = source.texts()[1].reshape(64, 2, -1).astype(float)
    images = source.embeddings().astype(float)
    found = np.einsum('nd,ncd->nc', images, texts)
    return found / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(texts, axis=2)


def filtered(*arguments: object) -> str:
    done = command('data', 'filter', *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(folder) -> list[int]:
    return kept_list.read(str(folder / 'kept.parquet')).records.tolist()


@pytest.mark.parametrize('captions', ['mean', 'best', 'first'])
def test_the_list_is_that_of_numpy(embedded, cosines, tmp_path, captions):
    scores = {'mean': cosines.mean(axis=1), 'best': cosines.max(axis=1), 'first': cosines[:, 0]}
    expected = scores[captions]
    low = float(np.sort(expected)[20:22].mean())
    for flag, wanted in (
        (f'--min-score={low}', np.flatnonzero(expected >= low)),
        ('--keep=0.3', np.sort(np.argsort(-expected)[:19])),
    ):
        out = tmp_path / flag
        filtered(embedded, flag, f'--captions={captions}', f'--out={out}')
        found = kept_list.read(str(out / 'kept.parquet'))
        assert found.records.tolist() == wanted.tolist()
        np.testing.assert_allclose(found.scores, expected[wanted], rtol=0, atol=1e-7)


def test_of_equal_scores_the_first_records_are_kept():
    rule = filter.Rule(keep=0.5)
    assert filter.choose(np.array([1.0, 2, 2, 2, 0, 2]), rule).nonzero()[0].tolist() == [1, 2, 3]
    assert filter.choose(np.arange(100.0), filter.Rule(keep=0.29)).sum() == 29


def test_the_report_and_the_picture_say_what_was_kept(embedded, cosines, tmp_path):
    said = filtered(embedded, '--keep=0.25', f'--out={tmp_path / "x"}')
    assert 'scored               64\n' in said and 'kept                 16\n' in said
    assert f'train on it with --config.data.train=kept:{tmp_path}/x/kept.parquet' in said
    report = json.loads((tmp_path / 'x/filter.json').read_text())
    mean = np.sort(cosines.mean(axis=1))
    assert report['lowest_kept_score'] == pytest.approx(mean[-16])
    assert report['score_quantiles']['50 %'] == pytest.approx(np.median(mean))
    assert sum(report['histogram']['counts']) == 64
    with Image.open(tmp_path / 'x/scores.png') as picture:
        assert picture.size[0] > 800 and len(set(picture.convert('RGB').getdata())) > 50


def test_a_set_is_embedded_by_the_model_and_a_killed_run_gives_the_same_list(
    tiny_run, tiny_tars, embedded, tmp_path
):
    out = tmp_path / 'x'
    arguments = 'data', 'filter', tiny_tars, f'--model={tiny_run}', '--keep=0.4', f'--out={out}'
    process = subprocess.Popen(
        clip_jax_command(*arguments, '--batch-size=4'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    begun = time.monotonic()
    while not (out / 'embeddings/embeddings.json').exists():
        assert process.poll() is None and time.monotonic() - begun < 280
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / 'kept.parquet').exists()
    assert command(*arguments, '--batch-size=4').returncode == 0
    filtered(embedded, '--keep=0.4', f'--out={tmp_path / "y"}')
    assert records(out) == records(tmp_path / 'y')


@pytest.mark.slow
def test_two_processes_give_the_list_of_one(tiny_run, tiny_tars, embedded, tmp_path):
    out, address = tmp_path / 'x', f'--coordinator=localhost:{free_port()}'
    arguments = 'data', 'filter', tiny_tars, f'--model={tiny_run}', '--keep=0.4', f'--out={out}'
    running = [
        subprocess.Popen(
            clip_jax_command(*arguments, address, '--num-processes=2', f'--process-id={i}'),
            env=environment(alone=False),
        )
        for i in range(2)
    ]
    assert [process.wait(280) for process in running] == [0, 0]
    filtered(embedded, '--keep=0.4', f'--out={tmp_path / "y"}')
    assert records(out) == records(tmp_path / 'y')


def by_hand(spec: str, wanted: list[int], path) -> str:
    """A list of some records of a data set."""
    of = kept_list.DataSet.of(open_source(spec), spec, {})
    kept_list.KeptList(of, np.array(wanted)).write(epath.Path(path))
    return str(path)


def test_lists_are_combined(tiny_tars, embedded, cosines, tmp_path):
    a = by_hand(tiny_tars, [*range(0, 64, 3)], tmp_path / 'a.parquet')
    b = by_hand(tiny_tars, [*range(20, 50)], tmp_path / 'b.parquet')
    common, best = [*range(21, 50, 3)], np.argsort(-cosines.mean(axis=1)).tolist()
    for name, spec in (('c', tiny_tars), ('d', embedded)):
        filtered(spec, f'--within={a}', f'--within={b}', f'--out={tmp_path / name}')
        assert records(tmp_path / name) == common
    said = filtered(embedded, f'--within={b}', '--keep=0.5', f'--out={tmp_path / "e"}')
    assert records(tmp_path / 'e') == sorted([i for i in best if 20 <= i < 50][:15])
    assert 'outside_the_lists    34\n' in said
    part = by_hand(f'kept:{a}', [0, 1], tmp_path / 'part.parquet')
    done = command('data', 'filter', tiny_tars, f'--within={part}', f'--out={tmp_path / "f"}')
    assert done.returncode == 1 and 'are lists of different data' in done.stderr


def test_training_and_evaluations_take_the_list(tiny_run, tiny_config, embedded, tmp_path):
    filtered(embedded, '--keep=0.5', f'--out={tmp_path / "x"}')
    spec = f'kept:{tmp_path}/x/kept.parquet'
    changes = 'total_steps=2', 'optimizer.warmup_steps=1', f'data.train={spec}'
    flags = [f'--config.{change}' for change in changes]
    done = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', *flags)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / 'run/summary.json').read_text())
    assert about['step'] == 2 if 'step' in about else about
    out = tmp_path / 'report.json'
    done = command('eval', 'retrieval', f'--model={tiny_run}', f'--data={spec}', f'--out={out}')
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())['counts']['images'] == 32


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), '--min-score or --keep must be given, or lists to combine (--within)'),
        (('--keep=0.3', '--min-score=0.2'), '--min-score and --keep are both given'),
        (('--keep=1.3',), '--keep is 1.3; expected a share above 0, at most 1'),
        (('--min-score=30',), '--min-score is 30.0; expected a cosine from -1 to 1'),
        (('--min-score=0.999',), 'no record is kept, the highest score is 0.'),
        (('--keep=0.3', '--captions=all'), "--captions: there is no 'all'"),
        (('--keep=0.3', '--model=x'), '--model: embeddings:DIR has the embeddings; leave it out'),
        (('--keep=0.3', '--batch-size=8'), '--batch-size: embeddings:DIR has the embeddings'),
        (('--keep=0.3', '--text_key=x'), "there is no 'text_key'"),
        (('--within=/no/list',), '/no/list: there is no such file'),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(embedded, tmp_path, arguments, message):
    done = command('data', 'filter', embedded, f'--out={tmp_path / "x"}', *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith('clip-jax data: ') and done.stderr.count('\n') == 1
    assert not (tmp_path / 'x').exists()


def test_data_that_cannot_be_filtered_are_one_line(tiny_tars, embedded, tmp_path):
    out = f'--out={tmp_path / "x"}'
    for arguments, message in (
        ((tiny_tars, '--keep=0.3'), '--model must be given'),
        ((f'{tiny_tars} + 2 * {tiny_tars}', '--keep=0.3'), 'not of a mixture'),
        ((tiny_tars, '--within=x', '--model=y'), '--model: no record is scored; leave it out'),
    ):
        done = command('data', 'filter', *arguments, out)
        assert done.returncode == 1 and message in done.stderr
    filtered(embedded, '--keep=0.3', out)
    done = command('data', 'filter', embedded, '--keep=0.4', out)
    assert 'holds a list with other settings: keep was 0.3, is 0.4' in done.stderr
    filtered(embedded, '--keep=0.3', out)  # the same again
    (tmp_path / 'x/notes.txt').write_text('mine')
    done = command('data', 'filter', embedded, '--keep=0.3', out)
    assert 'holds other files (notes.txt)' in done.stderr
