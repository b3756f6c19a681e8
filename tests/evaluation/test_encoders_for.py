"""Evaluations use the right model or its embeddings, and reports say how they were computed."""

import dataclasses
import functools

import pytest

from clip_jax.data.embedding_store import Description, Embeddings
from clip_jax.embeddings import identity, source_model
from clip_jax.evaluation import encoders


@pytest.fixture
def stored(clip, tiny_run):
    """A folder of embeddings of the tiny run, without its files."""
    source = object.__new__(Embeddings)
    source._address, source.skipped = 'somewhere', {}
    source.description = Description(
        complete=True,
        model=str(tiny_run),
        fingerprint=identity.fingerprint(clip.variables),
        data='folder:p',
        data_options={},
        source_records=1,
        images=1,
        texts=1,
        shape=[16],
        shards=[[1, 1]],
        label_names=[],
        features='embedding',
        scale=1.0,
        dim=0,
        save_dtype='float32',
        compute_dtype='bfloat16',
        captions='embedding',
        text_shape=[16],
        shard_size=1,
        batch_size=1,
        image_options={},
        card=clip.card,
    )
    return source


def with_another_mean(clip):
    preprocess = {**clip.card['preprocess'], 'mean': [0.1, 0.2, 0.3]}
    return dataclasses.replace(clip, card={**clip.card, 'preprocess': preprocess})


def test_equal_weights_with_another_card_are_another_model(clip, stored):
    identity.check_source_model(clip, stored)
    with pytest.raises(ValueError, match=r'weights are those of here, and .* in: preprocess\.'):
        identity.check_source_model(with_another_mean(clip), stored, 'here')
    other = object.__new__(Embeddings)
    other.__dict__.update(vars(stored))
    other.description = dataclasses.replace(stored.description, card=with_another_mean(clip).card)
    with pytest.raises(ValueError, match='are embeddings of different models'):
        encoders.encoders_for(None, [stored, other])
    assert source_model.source_model(stored).card == clip.card
    with pytest.raises(ValueError, match='holds another model now'):
        source_model.source_model(other)


def test_reports_say_in_what_rows_were_computed(clip, stored):
    assert encoders.provenance(clip, []) == {'compute_dtype': 'float32', 'device': 'cpu'}
    assert encoders.provenance(None, [stored]) == {'compute_dtype': 'bfloat16', 'device': 'cpu'}
    assert encoders.provenance(clip, [stored]) == {
        'compute_dtype': 'float32',
        'compute_dtype_of_embeddings': 'bfloat16',
        'device': 'cpu',
    }
    assert source_model.source_model(stored, 'bfloat16').model.dtype == 'bfloat16'
    # Without a model, that of the folder embeds texts that have no rows.
    _, encode_text = encoders.encoders_for(
        None, [stored], load=functools.partial(source_model.source_model, dtype='float32')
    )
    assert encoders.model_used(None, encode_text) is None
    encode_text('a text of its own')
    found = encoders.model_used(None, encode_text)
    assert encoders.provenance(found, [stored])['compute_dtype'] == 'float32'
    assert (
        encoders.model_used(clip, encode_text)
        is encoders.model_used(clip, clip.encode_text)
        is clip
    )
