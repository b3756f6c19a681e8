"""Folders of embeddings with given rows, of small pictures that exist."""

import dataclasses
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from clip_jax.data import embedding_index, embedding_store
from clip_jax.runtime import atomic

SHARD = 128


def store(folder: Path, rows: np.ndarray, *, model: str = 'model') -> str:
    """Writes `rows`, float32 [N, D], as the embeddings of N pictures; returns the SPEC.

    The pictures have the colors of the first coordinates, so that near rows look alike.
    """
    data, out = folder / 'data', folder / 'embedded'
    data.mkdir(parents=True)
    digits = len(str(len(rows) - 1))
    for i, row in enumerate(rows):
        color = tuple(np.clip(128 + 300 * row[:3], 0, 255).astype(int).tolist())
        Image.new('RGB', (8, 6 + i % 3), color).save(data / f'{i:0{digits}}.png')
    names = sorted(path.name for path in data.iterdir())
    shards = [range(k, min(k + SHARD, len(rows))) for k in range(0, len(rows), SHARD)]
    for number, span in enumerate(shards):
        records = [
            {
                'record': i,
                'where': str(data / names[i]),
                'image_hash': embedding_index.hash_of((data / names[i]).read_bytes()),
            }
            for i in span
        ]
        embedding_store.write_shard(
            epath.Path(out),
            number,
            images=rows[span.start : span.stop],
            texts=np.zeros((0, rows.shape[1]), np.float32),
            records=records,
            bad=[],
            span=span,
        )
    description = _description(data, rows, shards, model)
    atomic.write_json(epath.Path(out) / embedding_store.DESCRIPTION, description.to_json())
    return f'embeddings:{out}'


def _description(
    data: Path, rows: np.ndarray, shards: list[range], model: str
) -> embedding_store.Description:
    given = {
        'complete': True,
        'model': f'/no/{model}',
        'fingerprint': model,
        'data': f'folder:{data}',
        'source_records': len(rows),
        'features': 'embedding',
        'dim': 0,
        'save_dtype': 'float32',
        'compute_dtype': 'float32',
        'captions': 'none',
        'shard_size': SHARD,
        'batch_size': 8,
        'scale': 10.0,
        'images': len(rows),
        'texts': 0,
        'shape': [rows.shape[1]],
        'text_shape': [],
        'shards': [[len(span), 0] for span in shards],
    }
    empty = {'data_options': {}, 'label_names': [], 'image_options': {}, 'card': {}, 'bad': {}}
    assert {*given, *empty} == {x.name for x in dataclasses.fields(embedding_store.Description)}
    return embedding_store.Description(**given, **empty)
