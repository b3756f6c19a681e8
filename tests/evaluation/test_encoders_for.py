"""Evaluations use the right model or its embeddings, and reports say how they were computed."""

import dataclasses
import functools

import numpy as np
import pytest

from clip_jax import evals
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


def with_bias(clip):
    """The model as if it was trained with a sigmoid."""
    params = {**clip.variables['params'], 'logit_bias': np.float32(-7.5)}
    return dataclasses.replace(clip, variables={'params': params})


def test_texts_come_with_the_logits_of_the_model(clip):
    def logits(model):
        return evals.logits_of(encoders.encoders_for(model, [])[1])

    scale = float(np.exp(np.asarray(clip.variables['params']['logit_scale'])))
    assert logits(clip) == evals.Logits(pytest.approx(scale, rel=1e-6), None)
    assert logits(with_bias(clip)) == evals.Logits(pytest.approx(scale, rel=1e-6), -7.5)
    params = {k: v for k, v in clip.variables['params'].items() if k != 'logit_scale'}
    assert logits(dataclasses.replace(clip, variables={'params': params})) is None
    assert evals.logits_of(clip.encode_text) is None
    # They are those of `Clip.classify`.
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), ['red', 'green']
    z = logits(clip).scale * clip.encode_image(images) @ clip.encode_text(labels).T
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clip.classify(images, labels, templates='{}'), p, atol=1e-5)


def test_stored_embeddings_have_the_logits_of_their_model(clip, stored):
    def texts(**options):
        return encoders.encoders_for(None, [stored], **options)[1]

    assert evals.logits_of(texts()) == evals.Logits(1.0)  # the scale of the folder
    described = stored.description
    stored.description = dataclasses.replace(described, scale=0.0)  # of an image encoder alone
    assert evals.logits_of(texts()) is None
    stored.description = described
    assert evals.logits_of(encoders.encoders_for(clip, [stored])[1]).scale > 5
    # The folder does not have a bias: it is known once the model is loaded.
    card = {**clip.card, 'model': {**clip.card['model'], 'init_logit_bias': -10.0}}
    stored.description = dataclasses.replace(stored.description, card=card)
    encode_text = texts(load=lambda source: with_bias(clip))
    assert evals.logits_of(encode_text) is None
    encode_text('a text of its own')
    assert evals.logits_of(encode_text).bias == -7.5
