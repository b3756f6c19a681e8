"""`clip-jax embed` writes the same files however it is run, and evaluations take them in place of
model and data.
"""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from PIL import Image
from support.files import hashes
from support.process import COLORS, ROOT, clip_jax_command, environment, free_port
from support.runs import command

import clip_jax
from clip_jax import build, lookup
from clip_jax.cli import main
from clip_jax.data.sources import open_source
from clip_jax.embeddings import captions, embed, source_model
from clip_jax.evaluation import encoders
from clip_jax.runtime import lock

SLOW = pytest.mark.slow
SMALL = '--shard-size=10', '--batch-size=4'
FIXTURES = ROOT / 'tests/convert/fixtures'


def run(*arguments: object, code: int = 0) -> None:
    """Runs a command in this process."""
    with pytest.raises(SystemExit) as end:
        main.main([str(argument) for argument in arguments])
    assert end.value.code == code


def start(*arguments: object, devices: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        clip_jax_command(*map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(devices),
    )


def finish(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def files(folder: Path) -> dict[str, str]:
    """All files with their hashes, but what says how long it took."""
    found = hashes(folder)
    found.pop('summary.json', None)
    return found


@pytest.fixture(scope='module')
def arguments(tiny_run, tiny_tars) -> list[str]:
    return ['embed', f'--model={tiny_run}', f'--data={tiny_tars}', *SMALL]


@pytest.fixture(scope='module')
def folder(arguments, tmp_path_factory) -> Path:
    """The embeddings of the tiny set by the tiny run, computed on one device."""
    folder = tmp_path_factory.mktemp('embed') / 'embedded'
    said = command(*arguments, f'--out={folder}').stdout
    assert 'images               64\n' in said and f'--data=embeddings:{folder}' in said
    return folder


@pytest.fixture
def spoilt(tiny_tars, tmp_path) -> str:
    """SPEC of the tiny set, of which pictures 3, 20 and 40 are spoilt, and caption 21."""
    path = tmp_path / 'spoilt.tar'
    changed = {'00003.jpg': b'x' * 9, '00020.jpg': b'', '00040.jpg': b'', '00021.txt': b'caf\xe9'}
    with tarfile.open(tiny_tars.removeprefix('tars:')) as old, tarfile.open(path, 'w') as new:
        for member in old:
            data = changed.get(member.name, old.extractfile(member).read())
            if member.name == '00040.jpg':
                data = old.extractfile('00039.jpg').read()[:100]
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


def test_rows_captions_labels_and_places_are_those_of_the_data(folder, clip, source):
    stored = open_source(f'embeddings:{folder}')
    records = [source[i] for i in range(64)]
    assert len(stored) == 64
    images = clip.encode_image([record['image'] for record in records])
    np.testing.assert_allclose(stored.embeddings(), images, rtol=0, atol=2e-6)
    captions, texts = stored.texts()
    assert captions == [text for record in records for text in record['texts']]
    np.testing.assert_allclose(texts, clip.encode_text(captions), rtol=0, atol=2e-6)
    for i in range(64):
        example = stored[i]
        np.testing.assert_array_equal(example.pop('embedding'), stored.embeddings()[i])
        assert example == {k: records[i][k] for k in ('texts', 'label')}
        assert stored.where(i) == source.where(i)


def test_the_files_can_be_read_without_clip_jax(folder):
    description = json.loads((folder / 'embeddings.json').read_text())
    assert description['shards'] == [[10, 20]] * 6 + [[4, 8]]
    rows = np.concatenate([np.load(path) for path in sorted(folder.glob('images-*.npy'))])
    assert (rows.dtype, rows.shape) == (np.float32, (64, 16))
    table = pq.read_table(folder / 'records-00006.parquet').to_pydict()
    assert table['record'] == [60, 61, 62, 63]
    assert table['label'] == [0, 1, 2, 3] and table['labels'] == [None] * 4
    assert all(len(texts) == 2 for texts in table['texts'])
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['seconds'] > 0 and summary['versions']['jax'] == jax.__version__
    assert not list(folder.glob('*.partial'))


def test_files_are_the_same_from_eight_devices(arguments, folder, tmp_path, all_devices):
    run(*arguments, f'--out={tmp_path / "x"}', '--threads=5')
    assert files(tmp_path / 'x') == files(folder)


@pytest.mark.parametrize(
    'batch_size', [pytest.param(1, marks=SLOW), 7, pytest.param(64, marks=SLOW)]
)
def test_rows_and_scores_do_not_depend_on_the_batch(
    tiny_run, tiny_tars, folder, tmp_path, batch_size
):
    out = tmp_path / 'x'
    shared = f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}'
    run('embed', *shared, f'--batch-size={batch_size}', '--shard-size=100')
    ours, expected = (open_source(f'embeddings:{path}') for path in (out, folder))
    np.testing.assert_allclose(ours.embeddings(), expected.embeddings(), rtol=0, atol=2e-6)
    for name, options in EVALUATIONS:
        assert_same(scores(name, options, out), scores(name, options, folder))


# In another order than the labels, so that the scores are neither 0 nor 1.
CLASSES = ['green', 'red', *list(COLORS)[2:]]
EVALUATIONS = (
    ('zeroshot', {'classes': CLASSES, 'templates': ['a {} picture', 'something {}']}),
    ('retrieval', {}),
)


def scores(name: str, options: dict, folder: Path) -> dict[str, float]:
    data = build.source(f'embeddings:{folder}', {}, embeddings=True)
    encode = encoders.encoders_for(None, [data], load=source_model.source_model)
    return lookup.module('evals', name).evaluate(*encode, data, **options)['scores']


def assert_same(ours: dict, theirs: dict) -> None:
    """Asserts that scores are equal; of probabilities, to rounding."""
    assert ours.keys() == theirs.keys() and ours
    for name, score in ours.items():
        expected = theirs[name]['value']
        if name in ('ece', 'nll'):
            expected = pytest.approx(expected, abs=1e-6)
        assert score == {**theirs[name], 'value': expected}


@pytest.mark.parametrize(('name', 'options'), EVALUATIONS)
def test_evaluations_give_the_numbers_of_the_model(folder, clip, source, name, options):
    evaluate = lookup.module('evals', name).evaluate
    encode = encoders.encoders_for(clip, [source])
    expected = evaluate(*encode, source, **options)['scores']
    assert_same(scores(name, options, folder), expected)
    assert len({score['value'] for score in expected.values()}) > 1


@pytest.mark.parametrize(('name', 'options'), EVALUATIONS)
def test_the_command_line_needs_no_model(tiny_run, tiny_tars, folder, tmp_path, name, options):
    flags = [f'--{key}={value!r}' for key, value in options.items()]
    reports = []
    for k, data in enumerate(
        ([f'--data={tiny_tars}', f'--model={tiny_run}'], [f'--data=embeddings:{folder}'])
    ):
        out = tmp_path / f'{k}.json'
        run('eval', name, *data, *flags, f'--out={out}')
        reports.append(json.loads(out.read_text()))
    assert_same(*(report['scores'] for report in reports))


def test_retrieval_reads_the_rows_of_captions(folder, monkeypatch):
    def load(*_):
        raise AssertionError('no model is needed')

    monkeypatch.setattr(source_model, 'source_model', load)
    assert scores('retrieval', {}, folder)


def test_what_a_kill_left_of_the_first_file_is_no_other_thing(arguments, tmp_path):
    out = tmp_path / 'x'
    out.mkdir()
    (out / 'embeddings.json.0123abcd.partial').write_text('{"comp')
    run(*arguments, f'--out={out}')
    assert len(open_source(f'embeddings:{out}')) == 64


@pytest.mark.parametrize(
    'signal_after', [pytest.param(0, marks=SLOW), 2, pytest.param(5, marks=SLOW)]
)
def test_killed_at_any_moment_it_goes_on_to_the_same_files(
    arguments, folder, tmp_path, signal_after
):
    out, rng = tmp_path / 'x', np.random.default_rng(signal_after)
    process = start(*arguments, f'--out={out}')
    begun = time.monotonic()
    while len(list(out.glob('shard-*.json'))) < signal_after or not out.exists():
        assert process.poll() is None and time.monotonic() - begun < 280
    time.sleep(rng.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = {path.name: path.stat().st_mtime_ns for path in out.glob('shard-*.json')}
    if len(there) < 7:  # else it was quicker than the signal
        with pytest.raises(ValueError, match=r'not a folder of embeddings|not complete'):
            open_source(f'embeddings:{out}')
    run(*arguments, f'--out={out}')
    assert files(out) == files(folder)
    assert all((out / name).stat().st_mtime_ns == time for name, time in there.items())


def test_a_shard_that_was_damaged_is_written_again(arguments, folder, tmp_path):
    out = tmp_path / 'x'
    shutil.copytree(folder, out)
    (out / 'images-00001.npy').write_bytes(b'')
    (out / 'texts-00002.npy').unlink()
    (out / 'shard-00003.json').unlink()
    run(*arguments, f'--out={out}')
    assert files(out) == files(folder)
    assert json.loads((out / 'summary.json').read_text())['records_now'] == 30


def test_what_is_complete_is_left_alone(arguments, folder, capfd):
    before = hashes(folder)
    run(*arguments, f'--out={folder}')
    assert 'records_now          0\n' in capfd.readouterr().out
    assert hashes(folder) == before


def test_two_processes_write_the_files_of_one(arguments, folder, tmp_path):
    address = f'--coordinator=localhost:{free_port()}'
    out = tmp_path / 'x'
    running = [
        start(
            *arguments, f'--out={out}', address, '--num-processes=2', f'--process-id={i}', devices=2
        )
        for i in range(2)
    ]
    said = [finish(process) for process in running]
    assert files(out) == files(folder)
    assert 'processes            2\n' in said[0] and 'records_now          64\n' in said[0]
    assert 'images' not in said[1]


def test_what_cannot_be_used_is_left_out_and_listed(tiny_run, spoilt, tmp_path, capfd):
    out, clip = tmp_path / 'x', clip_jax.load(tiny_run)
    run('embed', f'--model={tiny_run}', f'--data={spoilt}', f'--out={out}', *SMALL)
    said = capfd.readouterr().out
    assert 'bad_records          empty 1; not_an_image 1; not_utf8 1; truncated 1\n' in said
    lines = [json.loads(line) for line in (out / 'bad_records.jsonl').read_text().splitlines()]
    assert [(line['record'], line['kind']) for line in lines] == [
        (3, 'not_an_image'),
        (20, 'empty'),
        (21, 'not_utf8'),
        (40, 'truncated'),
    ]
    assert 'spoilt.tar: 00020.jpg' in lines[1]['where']
    stored, source = open_source(f'embeddings:{out}'), build.source(spoilt, {})
    usable = [i for i in range(64) if i not in (3, 20, 21, 40)]
    assert len(stored) == 60
    assert [stored.record(i)['record'] for i in range(60)] == usable
    rows = clip.encode_image([source[i]['image'] for i in usable])
    np.testing.assert_allclose(stored.embeddings(), rows, rtol=0, atol=2e-6)
    assert stored.skipped['empty'].count == 1


def test_too_much_that_cannot_be_used_is_an_error(tiny_run, spoilt, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(embed, 'MIN_BAD', 3)
    shared = f'--model={tiny_run}', f'--data={spoilt}', f'--out={tmp_path / "x"}', *SMALL
    run('embed', *shared, '--max-bad-fraction=0.03', code=1)
    error = capfd.readouterr().err
    assert 'of 22 records are bad, more than --max-bad-fraction, 3.0%: ' in error
    assert not list((tmp_path / 'x').glob('shard-00002.json'))
    run('embed', *shared, '--max-bad-fraction=0.2')


def test_data_without_a_usable_record_is_an_error(tiny_run, tmp_path, capfd):
    (tmp_path / 'images').mkdir()
    for i in range(3):
        (tmp_path / f'images/{i}.png').write_bytes(b'none')
    shared = f'--model={tiny_run}', f'--data=folder:{tmp_path}/images', f'--out={tmp_path / "x"}'
    run('embed', *shared, code=1)
    assert 'none of its records can be used: not_an_image 3' in capfd.readouterr().err


def test_half_precision_is_near_and_has_length_1(arguments, folder, tmp_path):
    out = tmp_path / 'x'
    run(*arguments, f'--out={out}', '--save-dtype=float16')
    assert np.load(out / 'images-00000.npy').dtype == np.float16
    half, full = (open_source(f'embeddings:{path}') for path in (out, folder))
    for ours, theirs in (
        (half.embeddings(), full.embeddings()),
        (half.texts()[1], full.texts()[1]),
    ):
        assert ours.dtype == np.float32
        assert 1e-6 < np.abs(ours - theirs).max() < 1e-3
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_trunk_features_are_the_rows_before_the_projection(
    arguments, folder, clip, source, tmp_path
):
    out = tmp_path / 'x'
    run(*arguments, f'--out={out}', '--features=pre_projection')
    stored = open_source(f'embeddings:{out}')
    rows = stored.embeddings('pre_projection')
    assert rows.shape == (64, 32)  # the width of the encoder
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() > 0.1
    projected = rows @ np.asarray(clip.variables['params']['image_projection']['kernel'])
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(
        projected, open_source(f'embeddings:{folder}').embeddings(), atol=1e-5
    )
    assert not list(out.glob('texts-*')) and stored[0]['texts'] == source[0]['texts']


@pytest.mark.parametrize('features', ['patches', 'attention:-1'])
def test_features_with_more_axes_are_stored_as_they_are(
    features, arguments, clip, source, tmp_path, capfd
):
    out = tmp_path / 'x'
    run(*arguments, f'--out={out}', f'--features={features}', '--save-dtype=float16')
    stored = open_source(f'embeddings:{out}')
    rows = stored.embeddings(features)
    expected = clip.encode_image([source[i]['image'] for i in range(3)], features=features)
    assert rows.shape == (64, *clip.feature_shape(features)) and rows.ndim == expected.ndim
    np.testing.assert_allclose(rows[:3], expected, atol=5e-3)
    assert stored.description.shape == [*clip.feature_shape(features)]
    capfd.readouterr()
    with pytest.raises(ValueError, match=f'holds the features {features!r}'):
        stored.embeddings('embedding')


@pytest.mark.parametrize('features', ['tokens', 'block:-1', 'pre_projection'])
def test_features_of_captions_beside_those_of_images(
    features, arguments, folder, clip, source, tmp_path
):
    out = tmp_path / 'x'
    run(*arguments, f'--out={out}', f'--text-features={features}')
    stored = open_source(f'embeddings:{out}')
    texts, rows = stored.texts()
    assert rows.shape == (128, *clip.text_feature_shape(features))
    assert texts == [text for i in range(64) for text in source[i]['texts']]
    expected = clip.encode_text(texts[:4], features=features)
    np.testing.assert_allclose(rows[:4], expected, atol=2e-5)
    images = open_source(f'embeddings:{folder}').embeddings()
    np.testing.assert_array_equal(stored.embeddings(), images)
    # An evaluation embeds the captions itself.
    encode = encoders.encoders_for(clip, [stored])[1]
    np.testing.assert_allclose(encode(texts[:4]), clip.encode_text(texts[:4]), atol=1e-6)


@pytest.mark.parametrize('flag', ['--features', '--text-features'])
def test_a_block_that_the_encoder_has_not_leaves_nothing(flag, arguments, tmp_path, capfd):
    run(*arguments, f'--out={tmp_path / "x"}', f'{flag}=block:9', code=1)
    assert "features 'block:9': the encoder has" in capfd.readouterr().err
    assert not (tmp_path / 'x').exists()


def test_rows_too_large_for_half_precision_are_an_error(arguments, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(captions, 'rows', lambda *_: np.full((1, 16), 7e4, np.float32))
    run(*arguments, f'--out={tmp_path / "x"}', '--save-dtype=float16', code=1)
    assert '70,000 overflow float16; give --save-dtype=float32' in capfd.readouterr().err


def test_captions_are_kept_where_there_is_no_tokenizer(tiny_run, folder, tmp_path):
    """As of a published checkpoint beside which no tokenizer lies."""
    bare, out = tmp_path / 'bare', tmp_path / 'x'
    run('convert', tiny_run, bare, '--layout=open_clip')
    for path in bare.iterdir():
        if 'token' in path.name or path.suffix == '.model':
            path.unlink()
    data = json.loads((folder / 'embeddings.json').read_text())['data']
    run('embed', f'--model={bare}', f'--data={data}', f'--out={out}', *SMALL)
    stored = open_source(f'embeddings:{out}')
    assert stored.description.captions == 'none' and not list(out.glob('texts-*'))
    assert len(stored[0]['texts']) == 2


# wrong input


@pytest.fixture
def fails(capfd):
    """Runs a command that fails: returns its one line."""

    def run_(*arguments: object) -> str:
        run(*arguments, code=1)
        *_, last, end = capfd.readouterr().err.split('\n')
        assert end == ''
        return last

    return run_


def test_an_image_encoder_alone_embeds_images_and_a_text_encoder_nothing(
    tiny_tars, fails, tmp_path
):
    data, out = f'--data={tiny_tars}', f'--out={tmp_path / "x"}'
    line = fails('embed', f'--model={FIXTURES / "CLIPTextModelWithProjection"}', data, out)
    assert 'this model has no image encoder' in line and not (tmp_path / 'x').exists()
    model = FIXTURES / 'Dinov2Model'
    run('embed', f'--model={model}', data, out, *SMALL)
    stored = open_source(f'embeddings:{tmp_path / "x"}')
    image = open_source(tiny_tars)[5]['image']
    expected = clip_jax.load(model).encode_image([image])
    np.testing.assert_allclose(stored.embeddings()[5:6], expected, atol=2e-6)
    assert (stored.description.scale, stored.description.captions) == (0.0, 'none')


def test_other_options_in_a_folder_are_named(arguments, folder, fails, tiny_config, tmp_path):
    before, out = hashes(folder), f'--out={folder}'
    for option, message in (
        ('--features=pre_projection', 'features was embedding, is pre_projection'),
        ('--save-dtype=float16', 'save_dtype was float32, is float16'),
        ('--shard-size=20', 'shard_size was 10, is 20'),
        ('--batch-size=5', 'batch_size was 4, is 5'),
        ('--gray16=scale', "'gray16': 'scale'"),
        ('--max-pixels=10000', "'max_pixels': 10000"),
        ("--data.text_exts=['x']", "data_options was {}, is {'text_exts': ['x']}"),
    ):
        assert message in fails(*arguments, out, option)
    assert 'source_records was 64, is 63' not in fails(*arguments, out, '--batch-size=5')
    assert hashes(folder) == before


def test_other_names_of_classes_are_refused(folder, fails, tiny_run, tmp_path):
    for name, color in ('blue', (0, 0, 255)), ('red', (255, 0, 0)):
        (tmp_path / 'pets' / name).mkdir(parents=True)
        Image.new('RGB', (24, 24), color).save(tmp_path / 'pets' / name / '0.png')
    arguments = 'embed', f'--model={tiny_run}', f'--data=folder:{tmp_path}/pets', *SMALL
    run(*arguments, f'--out={tmp_path / "x"}')
    (tmp_path / 'pets' / 'blue').rename(tmp_path / 'pets' / 'sky')  # the second one now
    before = hashes(tmp_path / 'x')
    message = fails(*arguments, f'--out={tmp_path / "x"}')
    assert 'the names or the order of the classes' in message
    assert hashes(tmp_path / 'x') == before


def other_run(run_directory: Path, place: Path) -> Path:
    """The same model a few steps earlier."""
    shutil.copytree(run_directory, place)
    shutil.rmtree(max((place / 'checkpoints').iterdir(), key=lambda path: int(path.name)))
    return place


def test_another_model_is_refused(folder, fails, tiny_run, tiny_tars, tmp_path):
    other = other_run(tiny_run, tmp_path / 'other')
    data, out = f'--data={tiny_tars}', f'--out={folder}'
    message = fails('embed', f'--model={other}', data, out, *SMALL)
    assert f'the model is another one, {other}' in message
    for name in ('zeroshot', 'retrieval'):
        message = fails('eval', name, f'--model={other}', f'--data=embeddings:{folder}')
        assert f'are embeddings of another model: of {tiny_run}' in message
        assert f'not of {other}' in message


def test_the_same_model_at_another_place_is_the_same(folder, tiny_run, tiny_tars, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(tiny_run, moved)
    before = hashes(folder)
    run('embed', f'--model={moved}', f'--data={tiny_tars}', f'--out={folder}', *SMALL)
    run('eval', 'retrieval', f'--model={moved}', f'--data=embeddings:{folder}')
    assert hashes(folder) == before


def test_texts_need_the_model_that_made_the_folder(tiny_run, tiny_tars, tmp_path, fails):
    moved, out = tmp_path / 'moved', tmp_path / 'x'
    shutil.copytree(tiny_run, moved)
    run('embed', f'--model={moved}', f'--data={tiny_tars}', f'--out={out}', *SMALL)
    shutil.rmtree(moved)
    zeroshot = 'eval', 'zeroshot', f'--data=embeddings:{out}', f'--classes={list(COLORS)}'
    message = fails(*zeroshot)
    assert f'its model cannot be loaded from {moved}' in message
    assert 'give the model that made it as --model=PATH' in message
    run('eval', 'retrieval', f'--data=embeddings:{out}')  # captions have their rows
    run(*zeroshot, f'--model={tiny_run}')
    other_run(tiny_run, moved)
    assert f'{moved} holds another model now' in fails(*zeroshot)


def test_images_need_a_model(tiny_tars, fails):
    message = fails('eval', 'retrieval', f'--data={tiny_tars}')
    assert f'--model must be given: the images of {tiny_tars} must be embedded' in message


def test_folders_of_different_models_do_not_go_together(folder, tiny_run, tiny_tars, tmp_path):
    other = other_run(tiny_run, tmp_path / 'other')
    out = tmp_path / 'x'
    run('embed', f'--model={other}', f'--data={tiny_tars}', f'--out={out}', *SMALL)
    both = [open_source(f'embeddings:{path}') for path in (folder, out)]
    with pytest.raises(ValueError, match=r'of different models: of .* and of .*other'):
        encoders.encoders_for(None, both)


def test_trunk_features_are_no_embeddings(arguments, tmp_path, fails):
    out = tmp_path / 'x'
    run(*arguments, f'--out={out}', '--features=pre_projection')
    message = fails('eval', 'retrieval', f'--data=embeddings:{out}')
    assert "holds the features 'pre_projection', this evaluation needs 'embedding'" in message


def test_a_folder_stands_where_no_images_are_needed_only(folder, tiny_config, tmp_path, fails):
    spec, started = f'embeddings:{folder}', tmp_path / 'run'
    train = 'train', f'--config={tiny_config}', f'--workdir={started}'
    embed_ = 'embed', f'--model={tmp_path}', f'--out={tmp_path / "x"}'
    for arguments in (
        (*train, f'--config.data.train={spec}'),
        (*train, f'--config.evals.retrieval.data={spec}'),
        ('data', 'inspect', spec),
        ('data', 'verify', spec),
        ('data', 'import', spec, tmp_path, '--name=x'),
        (*embed_, f'--data={spec}'),
        ('eval', 'retrieval', f'--data={spec} + {spec}'),
    ):
        assert 'a folder of embeddings has no images; it stands, alone, only' in fails(*arguments)
    assert not started.exists() and not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            '--features=pre_projektion',
            "--features: there is no 'pre_projektion'. Did you mean 'pre_projection'?",
        ),
        ('--save-dtype=bfloat16', "--save-dtype: there is no 'bfloat16'."),
        ('--dtype=float16', "dtype: there is no 'float16'."),
        ('--shard-size=0', '--shard-size is 0; expected at least 1'),
        ('--batch-size=0', '--batch-size is 0; expected at least 1'),
        ('--threads=0', '--threads is 0; expected at least 1'),
        ('--max-bad-fraction=2', '--max-bad-fraction is 2.0; expected a fraction'),
        ('--classes=x', 'there is no flag --classes; options of the data are --data.classes'),
        ('--data.text_ext=x', "Did you mean 'text_exts'?"),
        ('--num-processes=2', '--process-id'),
        ('--data=tars:/no/x.tar', "no file matches '/no/x.tar'"),
        ('--model=/no/run', 'no such file or folder'),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    arguments, tmp_path, fails, option, message
):
    assert message in fails(*arguments, f'--out={tmp_path / "x"}', option)
    assert not (tmp_path / 'x').exists()


def test_a_folder_with_other_things_stays_as_it_is(arguments, tmp_path, fails):
    (tmp_path / 'notes.txt').write_text('mine')
    assert 'holds other files (notes.txt)' in fails(*arguments, f'--out={tmp_path}')
    assert 'is a file; name a folder' in fails(*arguments, f'--out={tmp_path / "notes.txt"}')
    assert list(hashes(tmp_path)) == ['notes.txt']


def test_only_one_run_writes_at_a_time(arguments, tmp_path, fails):
    out = tmp_path / 'x'
    out.mkdir()
    held = lock.Lock(epath.Path(out), what='embed')
    with contextlib.closing(held):
        held.open()
        assert 'another embed writes to it' in fails(*arguments, f'--out={out}')
