"""Search finds what comparing the query with every row finds."""

import io
import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

import clip_jax
from clip_jax import pretrained
from clip_jax.cli import main
from clip_jax.data import embedding_store
from clip_jax.data.sources import open_source
from clip_jax.embeddings import identity, search
from clip_jax.runtime import atomic


@pytest.fixture(scope='module')
def folder(tiny_run, tiny_tars, tmp_path_factory):
    out = tmp_path_factory.mktemp('search') / 'x'
    small = '--shard-size=10', '--batch-size=4', '--save-dtype=float16'
    with pytest.raises(SystemExit):
        main.main(['embed', f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}', *small])
    return out


@pytest.fixture(scope='module')
def pictures(tiny_tars):
    source = open_source(tiny_tars)
    return [source[i]['image'] for i in range(64)]


def test_the_nearest_are_those_of_all(folder, clip, pictures, tiny_tars):
    source = open_source(tiny_tars)
    cosines = clip.encode_image(pictures) @ clip.encode_text('a red picture')[0]
    hits = clip_jax.search(folder, 'a red picture', 7)
    assert len(hits) == 7
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1][:7], atol=1e-3)
    for hit in hits:
        assert cosines[hit.record] == pytest.approx(hit.score, abs=1e-3)
        assert hit.where == source.where(hit.record)
        example = source[hit.record]
        assert (hit.texts, hit.label) == (example['texts'], example['label'])


def test_an_image_in_any_form_finds_itself(folder, pictures, tmp_path):
    path = tmp_path / 'picture.jpg'
    path.write_bytes(pictures[33])
    picture = Image.open(io.BytesIO(pictures[33]))
    for query in (path, picture, np.asarray(picture), pictures[33]):
        best = clip_jax.search(folder, query, 1)[0]
        assert best.record == 33 and best.score == pytest.approx(1, abs=1e-3)


def test_of_several_queries_each_has_its_own_list(folder, pictures):
    queries = ['a red picture', pictures[5], 'something blue', pictures[20]]
    found = clip_jax.search(folder, queries, 5)
    assert [len(hits) for hits in found] == [5] * 4
    for query, hits in zip(queries, found, strict=True):
        alone = clip_jax.search(folder, query, 5)
        # Records with equal scores may change places: batches of other sizes round differently.
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
    assert [found[1][0].record, found[3][0].record] == [5, 20]
    assert clip_jax.search(folder, ()) == []


def test_more_than_there_are_gives_all(folder):
    hits = clip_jax.search(folder, 'a red picture', 100)
    assert sorted(hit.record for hit in hits) == [*range(64)]


def write(folder, shards: list[np.ndarray], **changes) -> None:
    """A folder of made-up rows."""
    folder.mkdir(exist_ok=True)
    start = 0
    for shard, rows in enumerate(shards):
        span = range(start, start + len(rows))
        records = [{'record': i, 'where': f'at {i}', 'image_hash': i} for i in span]
        start = span.stop
        none = np.zeros((0, rows.shape[1]), rows.dtype)
        embedding_store.write_shard(
            epath.Path(folder), shard, images=rows, texts=none, records=records, bad=[], span=span
        )
    values = {
        'complete': True,
        'model': '/no/model',
        'fingerprint': 'f',
        'scale': 1.0,
        'features': 'embedding',
        'dim': 0,
        'save_dtype': str(shards[0].dtype),
        'shape': [shards[0].shape[1]],
        'text_shape': [shards[0].shape[1]],
        'label_names': [],
        'bad': {},
        'compute_dtype': 'float32',
        'captions': 'embedding',
        'source_records': len(shards) * max(map(len, shards)),
        'shard_size': max(map(len, shards)),
        'batch_size': 1,
        'image_options': {},
        'card': {},
        'data': 'folder:none',
        'data_options': {},
        'images': sum(map(len, shards)),
        'texts': 0,
        'shards': [[len(rows), 0] for rows in shards],
    }
    atomic.write_json(epath.Path(folder) / embedding_store.DESCRIPTION, values | changes)


@pytest.mark.parametrize('block', [1, 7, 100])
@pytest.mark.parametrize('k', [1, 3, 10, 59, 60])
def test_blocks_and_shards_give_what_one_comparison_gives(monkeypatch, tmp_path, block, k):
    monkeypatch.setattr(search, 'BLOCK', block)
    rng = np.random.default_rng(k)
    rows = rng.normal(size=(60, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write(tmp_path, np.split(rows, [5, 5, 40]))
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, places = search._nearest(open_source(f'embeddings:{tmp_path}'), queries, k)
    cosines = queries.astype(np.float64) @ rows.T
    np.testing.assert_array_equal(places, np.argsort(-cosines, axis=1)[:, :k])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)


def test_equals_come_in_the_order_of_the_data(tmp_path):
    rows = np.zeros((30, 8), np.float32)
    rows[:, 0] = 1
    rows[12] = [0, 1, 0, 0, 0, 0, 0, 0]
    write(tmp_path, np.split(rows, [10, 20]))
    scores, places = search._nearest(
        open_source(f'embeddings:{tmp_path}'), np.eye(8, dtype=np.float32)[:2], 4
    )
    np.testing.assert_array_equal(places, [[0, 1, 2, 3], [12, 0, 1, 2]])
    np.testing.assert_array_equal(scores, [[1, 1, 1, 1], [1, 0, 0, 0]])


def test_the_model_is_loaded_once(folder, tiny_run, monkeypatch):
    clip_jax.search(folder, 'a red picture')
    monkeypatch.setattr(pretrained, 'load', None)
    clip_jax.search(folder, 'something blue')


def test_a_model_can_be_given(folder, clip, tiny_run):
    expected = clip_jax.search(folder, 'a red picture')
    for model in (clip, tiny_run, str(tiny_run)):
        assert clip_jax.search(folder, 'a red picture', model=model) == expected


def test_a_folder_written_anew_is_read_anew(tmp_path, clip):
    eye = np.eye(16, dtype=np.float32)
    fingerprint = identity.fingerprint(clip.variables)
    made_by = {'fingerprint': fingerprint, 'card': clip.card}
    write(tmp_path, [eye[:3]], **made_by)
    assert len(clip_jax.search(tmp_path, 'a red picture', model=clip)) == 3
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    write(tmp_path, [eye[:5]], **made_by)
    assert len(clip_jax.search(tmp_path, 'a red picture', model=clip)) == 5


def test_what_cannot_be_searched(folder, clip, tiny_run, tmp_path):
    with pytest.raises(ValueError, match='k is 0; expected at least 1'):
        clip_jax.search(folder, 'a red picture', 0)
    with pytest.raises(ValueError, match=r'not a folder of embeddings \(there is no such folder\)'):
        clip_jax.search(tmp_path / 'none', 'a red picture')
    write(tmp_path / 'pre_projection', [np.eye(8, dtype=np.float32)], features='pre_projection')
    with pytest.raises(ValueError, match='holds pre_projection features'):
        clip_jax.search(tmp_path / 'pre_projection', 'a red picture')
    write(tmp_path / 'other', [np.eye(8, dtype=np.float32)])
    with pytest.raises(ValueError, match='are embeddings of another model: of /no/model'):
        clip_jax.search(tmp_path / 'other', 'a red picture', model=clip)
    with pytest.raises(ValueError, match='its model cannot be loaded from /no/model'):
        clip_jax.search(tmp_path / 'other', 'a red picture')
    (tmp_path / 'photo.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r"is the name of a file; .* pathlib.Path\('.*jpg'\)"):
        clip_jax.search(folder, f'{tmp_path}/photo.jpg')
    with pytest.raises(ValueError, match='not a readable image'):
        clip_jax.search(folder, tmp_path / 'photo.jpg')
    description = json.loads((folder / 'embeddings.json').read_text())
    assert description['complete']
