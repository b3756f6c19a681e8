"""Numbers that were written come back, resumed runs tell one story, and no TensorFlow is needed."""

import io
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import build, metrics
from clip_jax.metrics import tensorboard
from clip_jax.runtime import atomic

ROOT = pathlib.Path(__file__).parents[2]


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def events(folder):
    """Returns what TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing import event_accumulator

    accumulator = event_accumulator.EventAccumulator(str(folder), {'scalars': 0, 'images': 0})
    accumulator.Reload()
    return accumulator


def steps_and_values(accumulator, tag):
    return [(e.step, e.value) for e in accumulator.Scalars(tag)]


def test_jsonl_keeps_every_kind_of_number_and_is_valid_json(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    writer = metrics.JsonlWriter(path)
    writer.write_scalars(np.int64(3), {'a': 1, 'b': np.float32(0.5), 'c': jnp.bfloat16(0.25)})
    writer.write_scalars(4, {'a': math.nan, 'b': math.inf, 'c': np.array([2.0])})
    # Read before the writer is closed: a line is on disk once the call returns.
    lines = path.read_text().splitlines()
    refuse = {'parse_constant': lambda word: pytest.fail(f'{word} is not JSON')}
    assert json.loads(lines[0], **refuse) == {'step': 3, 'a': 1, 'b': 0.5, 'c': 0.25}
    assert json.loads(lines[1], **refuse) == {'step': 4, 'a': None, 'b': None, 'c': 2.0}
    first, second = metrics.read_jsonl(path)
    assert first == {'step': 3, 'a': 1, 'b': 0.5, 'c': 0.25}
    assert math.isnan(second['a'])
    assert math.isnan(second['b'])


def test_a_metric_that_is_no_number_is_named(tmp_path):
    writer = metrics.JsonlWriter(tmp_path / 'metrics.jsonl')
    with pytest.raises(ValueError, match=r"'grad_norm' has shape \(2,\)"):
        writer.write_scalars(1, {'loss': 1.0, 'grad_norm': np.ones(2)})


@pytest.mark.parametrize('cut', range(0, 24, 3))
def test_a_cut_last_line_is_left_out_and_mended(tmp_path, cut):
    path = tmp_path / 'metrics.jsonl'
    whole, last = b'{"step": 1, "loss": 2.5}\n', b'{"step": 2, "loss": 2.0}\n'
    path.write_bytes(whole + last[:cut])
    assert [row['step'] for row in metrics.read_jsonl(path)] == [1]
    writer = metrics.JsonlWriter(path)
    writer.write_scalars(3, {'loss': 1.5})
    assert [row['step'] for row in metrics.read_jsonl(path)] == [1, 3]
    assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 3]


def test_a_last_line_without_its_line_break_is_kept(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    metrics.JsonlWriter(path).write_scalars(3, {})
    assert [row['step'] for row in metrics.read_jsonl(path)] == [1, 2, 3]


def test_a_spoilt_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2,\n{"step": 3}\n')
    with pytest.raises(ValueError, match=rf'^{path}, line 2: '):
        metrics.read_jsonl(path)


def test_resume_drops_the_lines_of_later_steps(tmp_path, monkeypatch):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(''.join(f'{{"step": {n}, "run": 1}}\n' for n in range(10)) + '{"step": 10, "ru')
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda number: synced.append(number))
    writer = metrics.JsonlWriter(path, resume_step=6)
    assert len(synced) == 2  # the content, then its name
    writer.write_scalars(7, {'run': 2})
    rows = [(row['step'], row['run']) for row in metrics.read_jsonl(path)]
    assert rows == [*((n, 1) for n in range(7)), (7, 2)]
    assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_lines_are_dropped_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / 'metrics.jsonl'
    before = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(before)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    monkeypatch.setattr(pathlib.Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.JsonlWriter(path, resume_step=1)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_tensorboard_reads_scalars_and_images(tmp_path):
    writer = tensorboard.TensorBoardWriter(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, [5, 7, 3], np.uint8)
    writer.write_scalars(1, {'loss': 2.5, 'zeroshot/top1': jnp.float32(0.25)})
    writer.write_scalars(2, {'loss': np.float32(2.0)})
    writer.write_images(2, {'one': picture, 'two': np.stack([picture, 255 - picture])})
    writer.flush()
    shown = events(tmp_path)
    assert steps_and_values(shown, 'loss') == [(1, 2.5), (2, 2.0)]
    assert steps_and_values(shown, 'zeroshot/top1') == [(1, 0.25)]
    assert sorted(shown.Tags()['images']) == ['one', 'two/0', 'two/1']
    for tag, want in ('one', picture), ('two/0', picture), ('two/1', 255 - picture):
        [image] = shown.Images(tag)
        assert (image.step, image.height, image.width) == (2, 5, 7)
        got = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(got, want)


def test_tensorboard_forgets_later_steps_on_resume(tmp_path):
    first = tensorboard.TensorBoardWriter(tmp_path)
    for step in range(1, 10):
        first.write_scalars(step, {'loss': 1.0})
    first.close()
    second = tensorboard.TensorBoardWriter(tmp_path, resume_step=4)
    second.write_scalars(7, {'loss': 2.0})
    second.close()
    want = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (7, 2.0)]
    assert steps_and_values(events(tmp_path), 'loss') == want


def test_object_storage_gets_whole_files_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, 'is_remote', lambda path: True)
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1}\n{"step": 2}\n')
    writer = metrics.JsonlWriter(path, resume_step=1)
    writer.write_scalars(2, {'loss': 1.0})
    assert len(metrics.read_jsonl(path)) == 1
    writer.flush()
    assert [row['step'] for row in metrics.read_jsonl(path)] == [1, 2]
    writer = metrics.JsonlWriter(path, upload_every=0.0)
    writer.write_scalars(3, {'loss': 1.0})
    assert len(metrics.read_jsonl(path)) == 3
    writer = metrics.JsonlWriter(path)
    writer.write_scalars(4, {'loss': 1.0})
    writer.close()
    assert [row['step'] for row in metrics.read_jsonl(path)] == [1, 2, 3, 4]


def test_object_storage_gets_event_files(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, 'is_remote', lambda path: True)
    writer = tensorboard.TensorBoardWriter(tmp_path / 'run', resume_step=-1)
    writer.write_scalars(1, {'loss': 2.5})
    assert not (tmp_path / 'run').exists()
    writer.flush()
    assert steps_and_values(events(tmp_path / 'run'), 'loss') == [(1, 2.5)]
    writer.write_scalars(2, {'loss': 2.0})
    writer.close()
    assert steps_and_values(events(tmp_path / 'run'), 'loss') == [(1, 2.5), (2, 2.0)]


def test_multi_writer_takes_any_writer_with_clus_methods():
    class Recorder:
        def __init__(self):
            self.calls = []

        def write_scalars(self, step, scalars):
            self.calls.append(('scalars', step, dict(scalars)))

        def write_images(self, step, images):
            self.calls.append(('images', step, list(images)))

        def flush(self):
            self.calls.append('flush')

        def close(self):
            self.calls.append('close')

    recorders = Recorder(), Recorder()
    writer = metrics.MultiWriter([*recorders, metrics.Writer()])
    writer.write_scalars(1, {'loss': 1.0})
    writer.write_images(1, {'pictures': np.zeros([2, 4, 4, 3], np.uint8)})
    writer.flush()
    writer.close()
    want = [('scalars', 1, {'loss': 1.0}), ('images', 1, ['pictures']), 'flush', 'close']
    assert [r.calls for r in recorders] == [want, want]


def progress(clock, **options):
    stream = io.StringIO()
    return metrics.Progress(4000, 128, stream=stream, clock=clock, **options), stream


def test_progress_tells_speed_and_time_left():
    clock = Clock()
    writer, stream = progress(clock)
    clock.now += 60  # of which most is compilation
    writer.write_scalars(1, {'loss': 4.8521, 'accuracy/image_to_text': 0.0078})
    clock.now += 100
    writer.write_scalars(1000, {'loss': 1.2344, 'accuracy/image_to_text': 0.614})
    with writer.pause():
        clock.now += 50
        writer.write_scalars(1000, {'zeroshot/top1': 0.25, 'zeroshot/images': 10_000})
    clock.now += 100
    assert writer.rate(2000) == pytest.approx(1000 * 128 / 100)
    writer.write_scalars(2000, {'loss': 0.51234, 'accuracy/image_to_text': 1.0})
    assert writer.rate(2000) == 0
    clock.now += 200
    writer.write_scalars(4000, {'loss': 0.1})
    assert stream.getvalue().splitlines() == [
        'step     1/4,000   0 %  loss  4.852  accuracy   0.8 %         2 pairs/s',
        'step 1,000/4,000  25 %  loss  1.234  accuracy  61.4 %     1,279 pairs/s  5 min 00 s left',
        'step 1,000/4,000  25 %  zeroshot: top1 0.2500  images 10,000',
        'step 2,000/4,000  50 %  loss 0.5123  accuracy 100.0 %     1,280 pairs/s  4 min 10 s left',
        'step 4,000/4,000 100 %  loss 0.1000     1,280 pairs/s  8 min 30 s in all',
    ]


def test_progress_of_a_resumed_run_counts_from_where_it_began():
    clock = Clock()
    writer, stream = progress(clock, start_step=1000, unit='images')
    clock.now += 10
    writer.write_scalars(1010, {'loss': 1.0})
    clock.now += 10
    writer.write_scalars(1020, {'loss': 1.0})
    first, second = stream.getvalue().splitlines()
    assert first.endswith(' 128 images/s')
    assert second.endswith(' 128 images/s  49 min 40 s left')


def test_progress_gives_each_group_of_an_evaluation_a_line():
    writer, stream = progress(Clock())
    writer.write_scalars(
        200, {'retrieval/a/recall@1': 0.5, 'retrieval/a/recall@5': 0.75, 'retrieval/b/x': 1e-6}
    )
    assert stream.getvalue().splitlines() == [
        'step   200/4,000   5 %  retrieval/a: recall@1 0.5000  recall@5 0.7500',
        'step   200/4,000   5 %  retrieval/b: x 1.000e-06',
    ]


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (-1, '0.0 s'),
        (4.24, '4.2 s'),
        (59.4, '59 s'),
        (59.6, '1 min 00 s'),
        (133, '2 min 13 s'),
        (3599.6, '1 h 00 min'),
        (11_100, '3 h 05 min'),
        (186_000, '2 d 03 h'),
    ],
)
def test_durations_are_formatted(seconds, text):
    assert metrics.duration(seconds) == text


def test_writing_scalars_costs_less_than_a_millisecond(tmp_path):
    writer = metrics.MultiWriter(
        [
            metrics.JsonlWriter(tmp_path / 'metrics.jsonl'),
            tensorboard.TensorBoardWriter(tmp_path),
            metrics.Progress(1000, 8, stream=io.StringIO()),
        ]
    )
    row = {'loss': 1.0} | {f'group/number_{i}': 0.1 * i for i in range(11)}
    writer.write_scalars(0, row)
    seconds = []
    for step in range(100):
        began = time.perf_counter()
        writer.write_scalars(step, row)
        seconds.append(time.perf_counter() - began)
    # The median: single calls on a busy machine say nothing.
    assert np.median(seconds) < 1e-3


def test_neither_tensorflow_nor_torch_is_imported_even_where_it_is_installed(tmp_path):
    for package in 'tensorflow', 'torch':
        (tmp_path / 'site' / package).mkdir(parents=True)
        (tmp_path / 'site' / package / '__init__.py').write_text('io = compat = Tensor = None\n')
    program = """
import sys
import numpy as np
from clip_jax import metrics
assert 'tensorboardX' not in sys.modules, 'importing clip_jax.metrics should be quick'
from clip_jax.metrics import tensorboard
writer = tensorboard.create(sys.argv[1], resume_step=-1, config={})
writer.write_scalars(1, {'loss': 1.0})
writer.write_images(1, {'picture': np.zeros([4, 4, 3], np.uint8)})
writer.close()
found = {'tensorflow', 'torch'} & set(sys.modules)
assert not found, found
"""
    path = os.pathsep.join([str(tmp_path / 'site'), str(ROOT), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-c', program, str(tmp_path / 'run')]
    result = subprocess.run(
        command, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert steps_and_values(events(tmp_path / 'run'), 'loss') == [(1, 1.0)]


def test_lines_are_on_the_disk_when_they_are_to_be_safe(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda number: synced.append(os.fstat(number).st_ino))
    writer = metrics.JsonlWriter(tmp_path / 'metrics.jsonl')
    writer.write_scalars(1, {'loss': 1.0})
    writer.flush()
    assert synced == [(tmp_path / 'metrics.jsonl').stat().st_ino]


# Writers that a config names

WANDB = """
calls = []

class Image:
    def __init__(self, pixels):
        self.shape = pixels.shape

class Run:
    def __init__(self, starting_step):
        self.starting_step = starting_step

    def log(self, values, step):
        values = {k: getattr(v, 'shape', v) for k, v in values.items()}
        calls.append(('log', step, values))

    def finish(self):
        calls.append('finish')

starting_step = 0

def init(**options):
    calls.append(('init', options))
    return Run(starting_step)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A module that takes the place of wandb and records its calls."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/wandb.py').write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / 'site')
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    import wandb

    yield wandb
    del sys.modules['wandb']


def opened(workdir, resume_step, **entries):
    """The writers that a config names."""
    config = {'seed': 3}
    return [
        make(workdir, resume_step=resume_step, config=config) for make in build.writers(entries)
    ]


def test_wandb_resumes_a_run_by_its_id_and_repeats_no_step(wandb, tmp_path):
    workdir, entry = tmp_path / 'mine', {'type': 'wandb', 'project': 'p', 'tags': ('a',)}
    [writer] = opened(workdir, -1, w=entry)
    writer.write_scalars(5, {'loss': jnp.float32(0.5)})
    writer.write_images(5, {'two': np.zeros([2, 4, 5, 3], np.uint8)})
    writer.close()
    (_, options), *logged = wandb.calls
    assert options['project'] == 'p' and options['tags'] == ['a'] and options['name'] == 'mine'
    assert options['config'] == {'seed': 3} and options['dir'] == str(workdir)
    assert options['resume'] == 'allow'
    images = {'two/0': (4, 5, 3), 'two/1': (4, 5, 3)}
    assert logged == [('log', 5, {'loss': 0.5}), ('log', 5, images), 'finish']

    wandb.calls.clear()
    wandb.starting_step = 6
    [writer] = opened(workdir, 4, w=entry)
    for step in 5, 6:
        writer.write_scalars(step, {'loss': 0.25})
    (_, again), *logged = wandb.calls
    assert again['id'] == options['id'] and logged == [('log', 6, {'loss': 0.25})]

    wandb.calls.clear()
    opened(workdir, -1, w=entry)  # from the start: another run
    assert wandb.calls[0][1]['id'] != options['id']


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ValueError, match='wandb'):
        opened(tmp_path, -1, w={'type': 'wandb'})


@pytest.mark.parametrize(
    ('entry', 'names'),
    [
        ({'type': 'tensorbord'}, ('tensorbord', 'tensorboard', 'wandb')),
        ({'type': 'wandb', 'projct': 'x'}, ('config.writers.mine', 'projct', 'project')),
        ({'type': 'tensorboard', 'resume_step': 3}, ('config.writers.mine', 'resume_step')),
        ({'project': 'x'}, ('config.writers.mine', 'type')),
        ({'type': 'no_such.writer'}, ('metrics', 'no_such.writer')),
        ({'type': 'os.path'}, ('posixpath', 'create')),
    ],
)
def test_a_wrong_writer_is_refused_before_anything_is_opened(entry, names):
    with pytest.raises(ValueError) as error:
        build.writers({'mine': entry})
    assert all(name in str(error.value) for name in names)


def test_a_writer_of_ones_own_gets_its_options(tmp_path, monkeypatch):
    (tmp_path / 'my_writers').mkdir()
    (tmp_path / 'my_writers/lines.py').write_text("""
def create(workdir, *, resume_step, config, sep=' '):
    return workdir, resume_step, config, sep
""")
    monkeypatch.syspath_prepend(tmp_path)
    entry = {'type': 'my_writers.lines', 'sep': ','}
    assert opened(tmp_path, 7, mine=entry) == [(tmp_path, 7, {'seed': 3}, ',')]
