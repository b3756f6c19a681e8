"""Objects are made from a config, or an error says why not."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.process import COLORS

from clip_jax import build, lookup, sharding
from clip_jax.models import clip

IMAGE = {'name': 'vit', 'variant': 'B/16', 'image_size': 32}
TEXT = {'name': 'transformer', 'variant': 'B'}
SMALL = {'variant': '', 'width': 8, 'depth': 1, 'heads': 2, 'mlp_dim': 16}
OPTIMIZER = {
    'name': 'adamw',
    'learning_rate': 0.1,
    'warmup_steps': 10,
    'schedule': {'name': 'cosine'},
    'b1': 0.9,
    'b2': 0.98,
    'eps': 1e-6,
    'freeze': (),
    'rules': (),
    'layer_decay': {},
    'weight_decay': 0.2,
    'grad_clip_norm': 1.0,
}


class Words:
    """What `architecture` reads of a tokenizer."""

    vocab_size, context_length, eot_id = 50, 12, 3


def architecture(image=(), text=(), **others):
    """The architecture of a config in which `image` and `text` hold other values or new keys."""
    config = {'image': {**IMAGE, **dict(image)}, 'text': {**TEXT, **dict(text)}, 'embed_dim': 4}
    return build.architecture({**config, **others}, Words())


def small(**options):
    card = architecture({**SMALL, 'patch_size': 16}, SMALL)
    return build.model(card, **options)


def test_a_variant_sets_sizes_and_its_number_the_patches():
    image = architecture()['image']
    sizes = {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072}
    assert {name: image[name] for name in sizes} == sizes
    assert (image['name'], image['patch_size'], image['image_size']) == ('vit', 16, 32)
    assert 'variant' not in image


def test_what_is_set_beside_a_variant_overrides_it():
    image = architecture({'width': 96, 'heads': 3, 'patch_size': 8, 'depth': None})['image']
    assert (image['width'], image['heads'], image['patch_size']) == (96, 3, 8)
    assert (image['depth'], image['mlp_dim']) == (12, 3072)


def test_without_a_variant_sizes_are_given_one_by_one():
    image = architecture({**SMALL, 'patch_size': 4})['image']
    assert (image['width'], image['depth'], image['patch_size']) == (8, 1, 4)


def test_the_architecture_says_all_that_an_encoder_knows():
    # A default that changes later must not change a model that is already trained.
    card = architecture()
    assert {'pool', 'activation', 'pre_norm', 'norm_eps', 'patch_dropout'} <= set(card['image'])
    assert {'activation', 'norm_eps'} <= set(card['text'])
    assert not {'dtype', 'param_dtype', 'parent'} & (set(card['image']) | set(card['text']))
    assert card['embed_dim'] == 4


def test_the_tokenizer_sets_the_sizes_that_it_knows():
    text = architecture()['text']
    assert (text['vocab_size'], text['context_length'], text['eot_id']) == (50, 12, 3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image': {'name': 'vitt'}}, r"models/image: there is no 'vitt'\. Did you mean 'vit'\?"),
        ({'text': {'name': 'transfromer'}}, r"models/text: .* Did you mean 'transformer'\?"),
        (
            {'image': {'variant': 'b/32'}},
            r"vit: variant: there is no 'b'.*There are: B, B\+, G, H, L, M, S",
        ),
        ({'text': {'variant': 'RN50x5'}}, r"transformer: variant: .*Did you mean 'RN50x\d+'\?"),
        ({'image': {'variant': 'B/x'}}, r"variant 'B/x': expected SIZE/PATCH_SIZE"),
        ({'text': {'variant': 'B/16'}}, r"transformer: field: there is no 'patch_size'"),
        ({'image': {'widht': 8}}, r"models/image/vit: field: .*'widht'\. Did you mean 'width'\?"),
        ({'text': {'positions': 1}}, r"models/text/transformer: field: there is no 'positions'"),
        (
            {'image': {'variant': 'B'}},
            r'vit: patch_size must be given, or a variant .*: Ti, S, M, B',
        ),
        ({'text': {'variant': ''}}, r'transformer: width, depth, heads, mlp_dim must be given'),
        ({'text': {'variant': None}}, r'transformer: width, depth, heads, mlp_dim must be given'),
    ],
)
def test_a_wrong_architecture_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        architecture(**changes)
    assert '\n' not in str(error.value)


def test_a_model_is_the_same_after_its_card_was_stored():
    card = architecture({**SMALL, 'patch_size': 16}, SMALL)
    assert build.model(json.loads(json.dumps(card))) == build.model(card)


@pytest.mark.parametrize(
    ('backend', 'dtype', 'expected'),
    [
        ('cpu', 'auto', 'float32'),
        ('tpu', 'auto', 'bfloat16'),
        ('gpu', 'auto', 'bfloat16'),
        ('tpu', 'float32', 'float32'),
        ('cpu', 'bfloat16', 'bfloat16'),
    ],
)
def test_computation_is_bfloat16_on_accelerators_and_parameters_float32(
    monkeypatch, backend, dtype, expected
):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    model = small(dtype=dtype)
    for module in (model, model.image, model.text):
        assert module.dtype == jnp.dtype(expected)
        assert module.param_dtype == jnp.float32
    monkeypatch.undo()
    variables = clip.shapes(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    tokens = jnp.zeros((2, 12), jnp.int32)
    embeddings = jax.eval_shape(lambda v: model.apply(v, tokens, method='encode_text'), variables)
    assert (embeddings.shape, embeddings.dtype) == ((2, 4), jnp.dtype(expected))


def test_an_unknown_dtype_gets_the_nearest():
    with pytest.raises(ValueError, match=r"dtype: there is no 'bf16'.*bfloat16"):
        small(dtype='bf16')


@pytest.mark.parametrize('name', lookup.names('losses'))
def test_a_loss_is_ready_for_embeddings_and_scale(name):
    for implementation in (None, *lookup.module('losses', name).IMPLEMENTATIONS):
        config = {'name': name, 'implementation': implementation, 'block_size': 2}
        loss = build.loss(config, sharding.make_mesh(jax.devices()))
        value, _ = jax.eval_shape(loss, jnp.eye(8), jnp.eye(8), jnp.float32(10))
        assert value.shape == ()


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'name': 'sofmax', 'implementation': 'dense'}, r"Did you mean 'softmax'\?"),
        ({'name': 'softmax', 'implementation': 'dens'}, r"implementation: .*Did you mean 'dense'"),
        (
            {'name': 'softmax', 'implementation': 'ring', 'block_size': 0},
            r'block_size is 0; expected',
        ),
    ],
)
def test_an_unknown_loss_gets_the_nearest(config, message):
    with pytest.raises(ValueError, match=f'loss.*{message}'):
        build.loss({'block_size': 512, **config}, sharding.make_mesh())


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_our_losses_take_captions_and_hard_negatives(name):
    config = {'name': name, 'dims': (64, 512)}
    build.loss(config, sharding.make_mesh(), captions=2, hard_negatives=3)
    with pytest.raises(ValueError, match=r'dims is \(512, 64\); expected increasing'):
        build.loss({**config, 'dims': (512, 64)}, sharding.make_mesh())


def test_a_loss_of_ones_own_that_takes_one_caption_gets_no_others(tmp_path, monkeypatch):
    (tmp_path / 'losses_here').mkdir()
    (tmp_path / 'losses_here/one_caption.py').write_text(
        'def loss(image, text, scale, bias=None):\n    return (image * text).sum(), {}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    loss = functools.partial(build.loss, {'name': 'losses_here.one_caption'}, sharding.make_mesh())
    loss()
    for given in ({'captions': 2}, {'hard_negatives': 1}):
        with pytest.raises(ValueError, match=r'one_caption: .* it has no parameter negatives'):
            loss(**given)


def update(config, grads, params, steps=1):
    """The update of the last of several steps with the same gradient."""
    optimizer = build.optimizer(config, params, total_steps=100)
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(grads, state, params, step=jnp.int32(step))
    return updates


def test_the_learning_rate_warms_up_and_falls_to_0():
    schedule = build.optimizer(OPTIMIZER, {'kernel': jnp.ones(2)}, total_steps=100).schedule
    assert [float(schedule(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx(
        [0, 0.05, 0.1, 0.05, 0], abs=1e-6
    )


def test_options_reach_the_optimizer():
    params = {'kernel': jnp.array([2.0, 0.0]), 'bias': jnp.array([2.0, 0.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    # Without a gradient there is only weight decay, at step 2 with a tenth of the learning rate.
    updates = update(OPTIMIZER, zero, params, steps=2)
    np.testing.assert_allclose(updates['kernel'], [-0.01 * 0.2 * 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(updates['bias'], 0)
    undecayed = update({**OPTIMIZER, 'weight_decay': 0.0}, zero, params, steps=2)
    assert optax.global_norm(undecayed) == 0
    # With a large eps AdamW's step is in proportion to the gradient, so that clipping shows.
    plain = {**OPTIMIZER, 'weight_decay': 0.0, 'eps': 1e6}
    grads = {'kernel': jnp.array([30.0, 40.0]), 'bias': jnp.zeros(2)}
    clipped = optax.global_norm(update(plain, grads, params, steps=2))
    free = optax.global_norm(update({**plain, 'grad_clip_norm': 0.0}, grads, params, steps=2))
    assert free / clipped == pytest.approx(50, rel=1e-2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'warmup_steps': 100}, 'warmup_steps is 100; expected at least 0 and less than.* 100'),
        ({'warmup_steps': -1}, 'warmup_steps is -1'),
        ({'update_clips': 0.1}, r"adamw: option: .*Did you mean 'update_clip'\?"),
        (
            {'rules': [{'path': 'kernel', 'unfreeze_at': 100}]},
            'unfreeze_at is 100; expected less than total_steps 100',
        ),
        ({'name': 'adam'}, r"optimizers: .*'adam'.*Did you mean 'adamw'"),
        ({'name': 'sgd', 'eps': None}, r"sgd: option: there is no 'b1'"),
        ({'schedule': {'name': 'cosin'}}, r"schedule: name.*Did you mean 'cosine'"),
        ({'schedule': {'name': 'cosine', 'end': 0}}, r"schedule cosine: option.*'end'"),
    ],
)
def test_a_wrong_optimizer_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        build.optimizer({**OPTIMIZER, **changes}, {'kernel': jnp.ones(2)}, total_steps=100)


def test_preprocessing_has_the_size_of_the_model():
    rule = build.preprocess({'resize': 'squash', 'mean': [0.5] * 3, 'std': [0.1] * 3}, 48)
    assert rule(np.zeros((10, 20, 3), np.uint8)).shape == (48, 48, 3)
    assert rule.card['resize'] == 'squash'
    assert rule.card['mean'] == [0.5] * 3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'resize': 'squach'}, r"preprocess: resize: .*Did you mean 'squash'\?"),
        ({'resiz': 'squash'}, r"preprocess: field: .*Did you mean 'resize'\?"),
    ],
)
def test_wrong_preprocessing_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        build.preprocess({'mean': [0.5] * 3, 'std': [0.1] * 3, **changes}, 48)


def test_a_source_gets_the_options_of_its_kind_that_are_set(tiny_tars):
    options = {
        'tars': {'text_exts': ('nothing',), 'label_ext': None},
        'tfds': {'no such option': 1},
    }
    record = build.source(tiny_tars, options)[0]
    assert set(record) == {'image', 'label'}
    assert set(build.source(tiny_tars, {})[0]) == {'image', 'texts', 'label'}


@pytest.mark.parametrize(
    ('spec', 'options', 'message'),
    [
        ('tar:x.tar', {}, r"data/sources: there is no 'tar'\. Did you mean 'tars'\?"),
        ('x.tar', {}, r"'x\.tar' is not of the form KIND:ADDRESS.*Kinds: .*tars"),
        ('tars:x.tar', {'tars': {'text_ext': 'txt'}}, r"tars: .*Did you mean 'text_exts'\?"),
        ('tars:/no/x-*.tar', {}, r"no file matches '/no/x-\*\.tar'"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(spec, options, message):
    with pytest.raises(ValueError, match=message):
        build.source(spec, options)


def test_pictures_are_loaded_for_figures(tiny_tars):
    images = build.image_loader({'tars': {'text_exts': ['txt']}})(tiny_tars, [3, 0])
    source = build.source(tiny_tars, {})
    for image, i in zip(images, (3, 0), strict=True):
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        color = list(COLORS.values())[source[i]['label']]
        np.testing.assert_allclose(image.mean(axis=(0, 1)), color, atol=15)


class Captions:
    """A source that says how much of it was read."""

    def __init__(self, n, each):
        self.n, self.each, self.reads = n, each, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads.append(i)
        return {
            'image': b'',
            'texts': [f'a picture of thing {i} and {k}' for k in range(self.each)],
        }


def test_a_vocabulary_is_learned_from_the_training_captions():
    config = {'name': 'sentencepiece', 'context_length': 9, 'vocab_size': 40, 'path': None}
    tokenizer = build.tokenizer(config, Captions(100, 2))
    assert (tokenizer.context_length, tokenizer.vocab_size) == (9, 40)
    assert tokenizer.decode(tokenizer(['a thing'])[0]) == 'a thing'


def test_a_vocabulary_that_is_fixed_reads_no_captions():
    source = Captions(100, 2)
    tokenizer = build.tokenizer({'name': 'bpe', 'context_length': 20}, source)
    assert (tokenizer.vocab_size, tokenizer.context_length, source.reads) == (49408, 20, [])


def test_of_much_data_only_a_part_spread_over_it_is_read(monkeypatch):
    monkeypatch.setattr(build, 'TOKENIZER_CAPTIONS', 50)
    source = Captions(1000, 1)
    config = {'name': 'sentencepiece', 'context_length': 9, 'vocab_size': 40}
    build.tokenizer(config, source)
    assert len(source.reads) == len(set(source.reads)) == 50
    assert max(source.reads) > 900


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'name': 'sentencpiece'}, r"tokenizers: .*Did you mean 'sentencepiece'\?"),
        ({'name': 'bpe'}, r'tokenizer bpe: context_length must be given'),
        (
            {'name': 'bpe', 'context_length': 9, 'vocab_size': 5},
            r"option: there is no 'vocab_size'",
        ),
        (
            {'name': 'sentencepiece', 'context_length': 9, 'vocabsize': 5},
            r"tokenizer sentencepiece: option: .*Did you mean 'vocab_size'\?",
        ),
    ],
)
def test_a_wrong_tokenizer_says_what_is_wrong(config, message):
    with pytest.raises(ValueError, match=message):
        build.tokenizer(config, Captions(10, 1))
