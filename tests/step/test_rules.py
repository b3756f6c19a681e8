"""Rules by parameter path: what is frozen, held back or trained at another rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.small_training import CARD, CARDS, RESNET, TEXT, VIT, batch, make_optimizer, setup

from clip_jax import build, lookup
from clip_jax.models import clip
from clip_jax.step import rules

DEEP = {**CARD, 'image': {**VIT, 'depth': 3}, 'text': {**TEXT, 'depth': 2}}
INIT = lookup.module('losses', 'softmax').INIT


@functools.cache
def names(kind: str = 'vit') -> tuple[str, ...]:
    card = {'vit': DEEP, 'resnet': {**CARD, 'image': {**RESNET, 'depths': (1, 2, 1, 1)}}}[kind]
    return tuple(rules.paths(clip.shapes(build.model({**INIT, **card}))['params']))


def resolve(kind='vit', **changes):
    params = {'weight_decay': 0.1, 'schedule': lambda options: lambda step: options['value']}
    tree = {}
    for name in names(kind):
        *above, last = name.split('/')
        functools.reduce(lambda at, key: at.setdefault(key, {}), above, tree)[last] = np.zeros(2)
    return rules.resolve(tree, **{**params, **changes})


def trained(settings):
    return {name for name, x in settings.items() if x.trained}


@pytest.mark.parametrize(
    ('freeze', 'frozen'),
    [
        (('lock_image',), r'image(_projection)?/.*'),
        (('lit',), r'image(_projection)?/.*'),
        (('lock_text',), r'text(_projection)?/.*'),
        (('lock_image', 'lock_text'), r'(image|text)(_projection)?/.*'),
        (('projections_only',), r'(image|text)/.*'),
        (
            ('lock_image:1',),
            r'image/(patch_embedding|pre_norm|class_emb.*|position_emb.*|transformer/block_[01])/?.*',
        ),
        (('lock_text:2',), r'text/(token_embedding|position_embedding)/?.*'),
    ],
)
def test_short_names_freeze_what_they_say(freeze, frozen):
    import re

    held = {name for name in names() if re.fullmatch(frozen, name)}
    assert held and trained(resolve(freeze=freeze)) == {*names()} - held


def test_the_last_blocks_of_a_resnet():
    held = {*names('resnet')} - trained(resolve('resnet', freeze=('lock_image:2',)))
    assert {name.split('/')[1] for name in held} == {'stem', 'stage_1', 'stage_2'}


def test_later_rules_win_and_each_sets_only_what_it_says():
    settings = resolve(
        rules=[
            {'path': 'text/.*', 'lr_mult': 0.1, 'weight_decay': 0.0},
            {'path': '.*/kernel', 'weight_decay': 0.5},
            {'path': 'text/post_norm/.*', 'frozen': True},
            {'path': 'text/post_norm/bias', 'frozen': False, 'unfreeze_at': 3},
            {'path': 'logit_scale', 'schedule': {'value': 7.0}},
        ]
    )
    kernel = settings['text/transformer/block_0/mlp/in/kernel']
    assert kernel[:3] == (True, 0.1, 0.5)
    assert settings['text/token_embedding/embedding'][:3] == (True, 0.1, 0.0)
    assert not settings['text/post_norm/scale'].trained
    assert settings['text/post_norm/bias'] == (True, 0.1, 0.0, None, 3)
    assert settings['image/post_norm/bias'][:3] == (True, 1.0, 0.0)
    assert settings['logit_scale'].schedule(0) == 7.0


def test_layer_decay_falls_from_the_last_block_to_the_embeddings():
    settings = resolve(
        layer_decay={'image': 0.5, 'text': 1.0},
        rules=[{'path': 'image/pre_norm/.*', 'lr_mult': 4.0}],
    )
    factor = {name: x.lr_mult for name, x in settings.items()}
    assert factor['image/post_norm/scale'] == factor['image_projection/kernel'] == 1
    blocks = [factor[f'image/transformer/block_{i}/mlp/in/kernel'] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert factor['image/patch_embedding/kernel'] == factor['image/class_embedding'] == 0.0625
    assert factor['image/pre_norm/scale'] == 0.25
    assert {v for k, v in factor.items() if k.startswith('text')} == {1}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rules': [{'path': 'imag/.*', 'frozen': True}]}, "'imag/.*' matches no parameter; paths"),
        ({'rules': [{'path': 'image', 'lr_mult': 1}]}, "'image' matches no parameter"),
        ({'rules': [{'path': '(', 'frozen': True}]}, r"rules\[0\]: '\(' is no regular expression"),
        ({'rules': [{'frozen': True}]}, r'rules\[0\]: path must be given'),
        ({'rules': [{'path': '.*'}]}, r'says nothing; expected one of frozen, lr_mult'),
        ({'rules': [{'path': '.*', 'lr': 2}]}, r"rules\[0\]: there is no 'lr'.*lr_mult"),
        ({'rules': [{'path': '.*', 'lr_mult': -1}]}, 'lr_mult is -1; expected a number'),
        ({'rules': [{'path': '.*', 'lr_mult': '2'}]}, "lr_mult is '2'; expected a number"),
        ({'rules': [{'path': '.*', 'schedule': 'cosine'}]}, "schedule is 'cosine'; expected"),
        (
            {'rules': [{'path': 'text/.*', 'frozen': True, 'lr_mult': 0.1}]},
            'is frozen, so that lr_mult would have no effect',
        ),
        ({'rules': [{'path': '.*', 'frozen': True}]}, 'every parameter is frozen'),
        ({'freeze': ['lock_images']}, "freeze: there is no 'lock_images'. Did you mean 'lock_im"),
        ({'freeze': ['lock_image:4']}, "'lock_image:4'; expected lock_image:N, with 1 to 3 blocks"),
        ({'freeze': ['lock_text:x']}, 'with 1 to 2 blocks'),
        ({'freeze': ['projections_only:1']}, 'takes no number'),
        ({'layer_decay': {'image': 0}}, 'layer_decay.image is 0; expected more than 0'),
        ({'layer_decay': {'images': 0.5}}, "layer_decay: there is no 'images'"),
    ],
)
def test_wrong_rules_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(**changes)


def test_split_and_merge_are_inverse():
    tree = {'image': {'a': 1, 'b': {'c': 2}}, 'text': {'d': 3}, 'logit_scale': 4}
    held = {'image/b/c', 'text/d'}
    settings = {n: rules.Setting(n not in held, 1.0, 0.0, None, 0) for n in rules.paths(tree)}
    trained, frozen = rules.split(tree, settings)
    assert trained == {'image': {'a': 1}, 'logit_scale': 4}
    assert frozen == {'image': {'b': {'c': 2}}, 'text': {'d': 3}}
    assert rules.merge(trained, frozen) == tree
    assert rules.update(tree, {'image': {'b': {'c': 9}}})['image'] == {'a': 1, 'b': {'c': 9}}


def run(steps=20, devices=1, **options):
    state, step, put = setup(devices, card=DEEP, **options)
    first, losses = jax.device_get(state), []
    for i in range(steps):
        state, numbers = step(state, put(batch(i)))
        losses.append(float(numbers['loss']))
    return first, state, losses


def test_frozen_parameters_stay_and_have_no_state():
    before, after, _ = run(optimizer={'freeze': ['lock_image:1']})
    optimizer = make_optimizer(build.model({**INIT, **DEEP}), freeze=['lock_image:1'])
    held = {name for name, x in optimizer.settings.items() if not x.trained}
    old, new = rules.paths(before.params), rules.paths(after.params)
    for name in old:
        same = np.array_equal(old[name], new[name])
        assert same == (name in held), name
    moments = [name for name in rules.paths(after.opt_state) if '/mu/' in name]
    assert len(moments) == len(old) - len(held)


@pytest.mark.slow
def test_20_steps_with_rules_are_those_of_optax():
    """Frozen, layer-wise rates, held-back parameters and another decay, by optax.partition."""
    options = {
        'freeze': ['lock_text'],
        'layer_decay': {'image': 0.5},
        'grad_clip_norm': 0.0,
        'rules': [
            {'path': 'image/post_norm/.*', 'unfreeze_at': 12},
            {'path': 'image_projection/.*', 'weight_decay': 0.0, 'schedule': {'name': 'linear'}},
        ],
    }
    model = build.model({**INIT, **DEEP})
    ours = make_optimizer(model, **options)
    params = clip.init(model, jax.random.key(0))['params']
    cosine = make_optimizer(model).schedule
    linear = make_optimizer(model, schedule={'name': 'linear'}).schedule

    def label(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        one = ours.settings[name]
        return f'{one.lr_mult} {one.weight_decay} {one.schedule is not None} {one.unfreeze_at}'

    def direct(one):
        schedule = linear if one.schedule else cosine

        def rate(step):
            return one.lr_mult * schedule(step) * (step >= one.unfreeze_at)

        return optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=one.weight_decay)

    trained, _ = ours.split(params)
    labels = jax.tree.map_with_path(label, trained)
    methods = dict(zip(jax.tree.leaves(labels), map(direct, _of(ours, trained)), strict=True))
    theirs = optax.partition(methods, labels)
    state, other, expected = ours.init(params), theirs.init(trained), trained
    for step in range(20):
        rng = np.random.default_rng(step)
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), trained)  # noqa: B023
        grads = ours.active(grads, jnp.int32(step))
        change, state = ours.update(grads, state, trained, step=jnp.int32(step))
        trained = optax.apply_updates(trained, change)
        change, other = theirs.update(grads, other, expected)
        expected = optax.apply_updates(expected, change)
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(check, trained, expected)


def _of(optimizer, trained):
    return [optimizer.settings[name] for name in rules.paths(trained)]


def test_a_parameter_is_held_back_until_its_step():
    rule = [{'path': 'text/.*', 'unfreeze_at': 3}]
    before, after, _ = run(3, optimizer={'rules': rule})
    jax.tree.map(np.testing.assert_array_equal, before.params['text'], after.params['text'])
    _, later, _ = run(4, optimizer={'rules': rule})
    assert not np.array_equal(
        later.params['text']['post_norm']['bias'], after.params['text']['post_norm']['bias']
    )


def test_a_locked_tower_embeds_as_in_an_evaluation():
    """Neither dropout nor batch normalization's statistics are those of training."""
    card = {**CARDS['resnet'], 'image': {**RESNET}}
    state, step, put = setup(1, card=card, optimizer={'freeze': ['lock_image']})
    after, _ = step(state, put(batch(0, size=32)))
    jax.tree.map(np.testing.assert_array_equal, state.buffers, after.buffers)


def test_rules_are_the_same_on_any_mesh_and_with_gradcache():
    options = {
        'optimizer': {'freeze': ['lock_image:1'], 'layer_decay': {'text': 0.8}},
        'decay': 0.9,
        'learning_rate': 1e-4,
    }
    _, one, losses = run(5, **options)
    how = {'fsdp': 2, 'tensor': 2, 'microbatches': 2, 'shard_optimizer': True}
    _, other, others = run(5, devices=8, **options, **how)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    for x, y in ((one.params, other.params), (one.ema, other.ema)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), x, y)


def test_the_average_of_the_weights_is_that_of_numpy():
    decay, state = 0.5, None
    start, step, put = setup(1, decay=decay, optimizer={'freeze': ['lock_text']})
    state, mean = start, jax.tree.map(np.float64, jax.device_get(start.params['image']))
    for i in range(20):
        state, _ = step(state, put(batch(i)))
        weight = min(decay, (1 + i) / (10 + i))
        mean = jax.tree.map(
            lambda m, x: weight * m + (1 - weight) * np.asarray(x, np.float64),  # noqa: B023
            mean,
            state.params['image'],
        )
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(check, state.ema['image'], mean)
    assert {*state.ema} == {'image', 'image_projection', 'logit_scale', 'text_projection'} - {
        'text_projection'
    }


def test_the_table_says_what_is_trained():
    settings = resolve(freeze=('lock_text',), rules=[{'path': 'image/.*', 'lr_mult': 0.5}])
    tree = {name: np.zeros((3, 2)) for name in names()}
    text = rules.table(tree, settings, lambda step: 0.001, 10)
    held = sum(name.startswith('text') for name in names())
    assert f'trained: {6 * (len(names()) - held)} of {6 * len(names())} parameters' in text.replace(
        ',', ''
    )
    assert [line.split()[0] for line in text.splitlines() if 'frozen' in line] == [
        'text',
        'text_projection',
    ]
    assert '0.0005' in text
