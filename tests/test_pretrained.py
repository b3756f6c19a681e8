"""A loaded model embeds and classifies the same, whatever form, number and devices."""

import dataclasses
import io
import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.process import COLORS

import clip_jax
from clip_jax import build, lookup, pretrained, prompts, sharding
from clip_jax.data.preprocess import normalize
from clip_jax.embeddings import identity
from clip_jax.models.clip import l2_normalize
from clip_jax.runtime import checksums


@pytest.fixture(scope='module')
def pictures():
    """Noise on a color, in three shapes, as uint8 arrays."""
    rng = np.random.default_rng(0)
    shapes = [(20, 30, 3), (30, 20, 3), (16, 16, 3)]
    colors = list(COLORS.values())
    return [
        np.clip(rng.normal(colors[i % 4], 40, shapes[i % 3]), 0, 255).astype(np.uint8)
        for i in range(21)
    ]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    return buffer.getvalue()


def on_devices(clip, count, batch_size):
    """The same model on a mesh of the first `count` devices."""
    mesh = sharding.make_mesh(jax.devices()[:count])
    variables = jax.device_put(clip.variables, sharding.replicated(mesh))
    return dataclasses.replace(clip, mesh=mesh, variables=variables, batch_size=batch_size)


def test_the_public_names_load(clip):
    assert isinstance(clip, clip_jax.Clip)


def test_a_run_directory_means_its_newest_checkpoint(clip, tiny_run, pictures):
    newest = max((tiny_run / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    expected = clip.encode_image(pictures)
    for path in (str(tiny_run), newest, str(newest), tiny_run / 'checkpoints'):
        loaded = clip_jax.load(path)
        np.testing.assert_array_equal(loaded.encode_image(pictures), expected)
        np.testing.assert_array_equal(loaded.encode_text(['a red']), clip.encode_text(['a red']))
    older = min((tiny_run / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    assert np.abs(clip_jax.load(older).encode_image(pictures) - expected).max() > 1e-4


def test_the_card_is_that_of_the_run(clip, tiny_run):
    assert clip.card == json.loads((tiny_run / 'card.json').read_text())
    assert clip.preprocess.card == clip.card['preprocess']
    assert clip.tokenizer.card == clip.card['tokenizer']


def test_embeddings_are_float32_of_unit_norm(clip, pictures):
    for found in (clip.encode_image(pictures), clip.encode_text(['a red picture'] * 21)):
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        assert found.shape == (21, 16)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_pre_projection_features_are_what_is_projected(clip, pictures):
    features = clip.encode_image(pictures, features='pre_projection')
    assert (features.dtype, features.shape) == (np.float32, (21, 32))
    assert np.abs(np.linalg.norm(features, axis=1) - 1).max() > 0.1  # not normalized
    projected = features @ np.asarray(clip.variables['params']['image_projection']['kernel'])
    expected = clip.encode_image(pictures, features='embedding')
    np.testing.assert_allclose(np.asarray(l2_normalize(projected)), expected, atol=2e-6)
    np.testing.assert_array_equal(clip.encode_image(pictures), expected)
    other = on_devices(clip, 3, 5).encode_image(pictures, features='pre_projection')
    np.testing.assert_allclose(other, features, rtol=1e-5, atol=1e-5)
    assert (clip.feature_shape(), clip.feature_shape('pre_projection')) == ((16,), (32,))
    with pytest.raises(ValueError, match=r"no 'pre_projections'\. Did you mean 'pre_projection'"):
        clip.encode_image(pictures, features='pre_projections')


def test_an_image_may_come_in_any_form(clip, pictures, tmp_path):
    array = pictures[0]
    path = tmp_path / 'picture.png'
    path.write_bytes(png(array))
    expected = clip.encode_image([array])
    forms = [array, Image.fromarray(array), path, str(path), png(array)]
    for form in forms:
        np.testing.assert_array_equal(clip.encode_image(form), expected)
        np.testing.assert_array_equal(clip.encode_image((form,)), expected)
    found = clip.encode_image(forms)
    np.testing.assert_allclose(found, np.repeat(expected, len(forms), 0), atol=1e-6)


class Series:
    """Values as pandas has them: read by label, not by position."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        raise KeyError(label)

    def __array__(self, dtype=None, copy=None):
        found = np.empty(len(self.values), object)
        found[:] = self.values
        return found


def test_images_may_come_in_any_container(clip, pictures, tmp_path):
    paths = []
    for i, picture in enumerate(pictures[:3]):
        paths.append(str(tmp_path / f'{i}.png'))
        Image.fromarray(picture).save(paths[-1])
    expected = clip.encode_image(pictures[:3])
    few = dataclasses.replace(clip, batch_size=2)
    for images in (
        (Image.open(path) for path in paths),
        iter(paths),
        map(jnp.asarray, pictures[:3]),
        Series(paths),
        np.array(paths),
        [bytearray(png(picture)) for picture in pictures[:3]],
        dict(enumerate(paths)).values(),
    ):
        np.testing.assert_allclose(few.encode_image(images), expected, rtol=0, atol=2e-6)
    assert few.encode_image(iter([]), features='pre_projection').shape == (0, 32)
    same = np.stack([picture for picture in pictures if picture.shape == (20, 30, 3)])
    found = clip.encode_image(jnp.asarray(same))
    np.testing.assert_array_equal(found, clip.encode_image(same))
    one = clip.encode_image(jnp.asarray(same[0]))
    np.testing.assert_array_equal(one, clip.encode_image(same[0]))


def test_texts_may_come_in_any_container(clip):
    texts = [f'{i} a red' for i in range(5)]
    expected = clip.encode_text(texts)
    few = dataclasses.replace(clip, batch_size=2)
    for given in (iter(texts), (text for text in texts), Series(texts), np.array(texts)):
        np.testing.assert_allclose(few.encode_text(given), expected, rtol=0, atol=2e-6)
    tokens = jnp.asarray(clip.tokenizer(texts))
    np.testing.assert_array_equal(clip.encode_text(tokens), expected)


def test_labels_may_come_in_any_container(clip, pictures):
    expected = clip.classify(pictures[:2], ['red', 'blue'])
    for labels in (iter(['red', 'blue']), Series(['red', 'blue']), np.array(['red', 'blue'])):
        np.testing.assert_array_equal(clip.classify(pictures[:2], labels), expected)


@pytest.mark.parametrize('given', [{'a.png': 1}, {'a.png'}, type('Frame', (), {'columns': []})()])
def test_what_has_no_order_is_refused(clip, given):
    for encode in (clip.encode_image, clip.encode_text, lambda x: clip.classify([], x)):
        with pytest.raises(ValueError, match=f'found a {type(given).__name__}; expected a list'):
            encode(given)


def test_tokens_are_a_matrix(clip):
    with pytest.raises(ValueError, match=r'shape \(12,\); expected \[N, L\]'):
        clip.encode_text(clip.tokenizer(['a red'])[0])


@pytest.mark.parametrize('wrap', [jax.jit, jax.vmap, jax.grad])
def test_inside_a_transformation_one_line_says_what_to_call(clip, wrap):
    images, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 12))
    for name, given, words in (
        ('encode_image', images, "images, method='encode_image'"),
        ('encode_text', tokens, "tokens, method='encode_text'"),
    ):
        encode = getattr(clip, name)
        with pytest.raises(ValueError) as error:
            wrap(lambda x, encode=encode: encode(x).sum())(given)
        assert f'clip.model.apply(clip.variables, {words}' in str(error.value)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='found a tracer'):
        wrap(lambda x: clip.encode_image([x]).sum())(images)


def test_concrete_inputs_inside_jit_are_told_so_too(clip, pictures):
    for encode in (
        lambda x: x + clip.encode_text(['a red']).sum(),
        lambda x: x + clip.encode_image(pictures[:2]).sum(),
        lambda x: x + clip.classify(pictures[:2], ['red', 'blue']).sum(),
    ):
        with pytest.raises(ValueError, match=r'Call it outside and pass its result in'):
            jax.jit(encode)(1.0)


def test_images_are_prepared_in_threads_ahead_of_the_devices(clip, pictures):
    class Slow(Sequence):
        """Images that take a while to read; says in which order they were asked for."""

        def __init__(self):
            self.asked, self.threads = [], set()

        def __len__(self):
            return 120

        def __getitem__(self, i):
            self.asked.append(i)
            self.threads.add(threading.get_ident())
            time.sleep(0.002)
            return pictures[i % 21]

    images, few = Slow(), dataclasses.replace(clip, batch_size=8)
    found = few.encode_image(images)
    expected = clip.encode_image([pictures[i % 21] for i in range(120)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert sorted(images.asked) == [*range(120)]
    assert len(images.threads) > 1 and threading.get_ident() not in images.threads


def test_batches_of_prepared_images_are_embedded_one_after_the_other(clip, pictures):
    prepared = [np.stack([clip.preprocess(x) for x in pictures[i : i + 4]]) for i in (0, 4, 8)]
    taken = []

    def batches():
        for batch in prepared:
            taken.append(len(batch))
            yield batch

    embedded = clip.encode_batches(batches())
    first = next(embedded)
    assert len(taken) == 2  # the devices compute one batch ahead
    found = np.concatenate([first, *embedded])
    np.testing.assert_allclose(found, clip.encode_image(pictures[:12]), rtol=0, atol=2e-6)


def test_a_fingerprint_is_that_of_the_parameters(clip, tiny_run):
    found = identity.fingerprint(clip.variables)
    assert len(found) == 32 and found == identity.fingerprint(clip_jax.load(tiny_run).variables)
    other = jax.tree.map(np.asarray, clip.variables)
    for change in (
        lambda x: x * np.float32(1 + 1e-6),
        lambda x: x.astype(np.float64),
        lambda x: x.reshape(x.shape[::-1]),
    ):
        kernel = other['params']['text_projection']['kernel']
        changed = {**other['params'], 'text_projection': {'kernel': change(kernel)}}
        assert identity.fingerprint({'params': changed}) != found
    renamed = {**other['params'], 'projection_text': other['params']['text_projection']}
    del renamed['text_projection']
    assert identity.fingerprint({'params': renamed}) != found


def test_an_array_of_images_is_many_images(clip, pictures):
    same = [picture for picture in pictures if picture.shape == (20, 30, 3)]
    assert len(same) > 1
    np.testing.assert_array_equal(clip.encode_image(np.stack(same)), clip.encode_image(same))


@pytest.mark.parametrize('text', ['a red picture', ''])
def test_one_text_is_a_list_of_one(clip, text):
    few = dataclasses.replace(clip, batch_size=4)
    np.testing.assert_array_equal(few.encode_text(text), few.encode_text([text]))


def test_no_inputs_give_no_embeddings(clip):
    for found in (
        clip.encode_image([]),
        clip.encode_image(np.zeros((0, 16, 16, 3), np.uint8)),
        clip.encode_text([]),
    ):
        assert found.shape == (0, 16)
        assert found.dtype == np.float32
    assert clip.encode_image([], features='pre_projection').shape == (0, 32)


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 5), (3, 256), (8, 5)])
def test_embeddings_depend_neither_on_devices_nor_on_batches(clip, pictures, devices, batch_size):
    other = on_devices(clip, devices, batch_size)
    texts = [f'{i} a {name} picture' for i, name in enumerate(COLORS)] * 3
    for n in (1, 21):
        images = pictures[:n]
        np.testing.assert_allclose(
            other.encode_image(images), clip.encode_image(images), rtol=0, atol=2e-6
        )
    np.testing.assert_allclose(other.encode_text(texts), clip.encode_text(texts), rtol=0, atol=2e-6)


def test_embeddings_are_in_the_order_of_the_images(clip, pictures):
    expected, order = clip.encode_image(pictures), np.random.default_rng(0).permutation(21)
    mixed = dataclasses.replace(clip, batch_size=4).encode_image([pictures[i] for i in order])
    np.testing.assert_allclose(mixed, expected[order], rtol=0, atol=2e-6)


@pytest.mark.parametrize(('devices', 'batch_size'), [(3, 7), (8, 64)])
def test_scores_depend_neither_on_devices_nor_on_batches(clip, source, devices, batch_size):
    def scores(model):
        parts = model.encode_image, model.encode_text, source
        options = {'classes': list(COLORS), 'templates': ['a {} picture', 'something {}']}
        zeroshot = lookup.module('evals', 'zeroshot').evaluate(*parts, **options)
        return zeroshot['scores'], lookup.module('evals', 'retrieval').evaluate(*parts)['scores']

    assert scores(on_devices(clip, devices, batch_size)) == scores(clip)


def test_a_model_embeds_the_same_classes_once(clip, pictures, monkeypatch):
    monkeypatch.setattr(pretrained.loaded, 'KNOWN_CLASSES', 2)
    calls = []

    def counting(texts):
        calls.append(list(texts))
        return clip.tokenizer(texts)

    model = dataclasses.replace(clip, tokenizer=counting)
    first = model.classify(pictures[:2], ['red', 'blue'])
    np.testing.assert_array_equal(model.classify(pictures[:2], ['red', 'blue']), first)
    assert len(calls) == 1
    np.testing.assert_allclose(model.classify(pictures[:2], ['blue', 'red']), first[:, ::-1])
    model.classify(pictures[:2], ['red', 'blue'])
    assert len(calls) == 2
    model.classify(pictures[:2], ['green', 'red'])  # drops the pair that was used least recently
    model.classify(pictures[:2], ['red', 'blue'])
    assert len(calls) == 3
    model.classify(pictures[:2], ['blue', 'red'])
    assert len(calls) == 4
    # A copy, as training makes for every evaluation, has other variables.
    dataclasses.replace(model).classify(pictures[:2], ['red', 'blue'])
    assert len(calls) == 5


def test_few_sizes_are_compiled(clip, pictures, caplog):
    other = on_devices(clip, 5, 40)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger='jax'):
        for n in (1, 5, 6, 10, 11, 20, 21):
            other.encode_image(pictures[:n])
            other.encode_text(['a red'] * n)
    compiled = [r for r in caplog.records if 'Finished XLA compilation' in r.getMessage()]
    assert 0 < len(compiled) <= 2 * 4  # 5, 10, 20 and 40 images, and as many texts


def test_probabilities_sum_to_1_and_follow_the_order_of_labels(clip, pictures):
    labels, templates = list(COLORS), ['a {} picture', 'something {}']
    shares = clip.classify(pictures, labels, templates=templates)
    assert shares.shape == (21, 4)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    backwards = clip.classify(pictures, labels[::-1], templates=templates)
    np.testing.assert_allclose(backwards[:, ::-1], shares, atol=1e-4)


def test_probabilities_are_the_softmax_of_scaled_cosines(clip, pictures):
    labels, templates = list(COLORS), ['a {} picture', 'something {}']
    filled = [[t.replace('{}', name) for t in templates] for name in labels]
    classes = np.stack([clip.encode_text(texts).mean(axis=0) for texts in filled])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    scale = np.exp(float(clip.variables['params']['logit_scale']))
    powers = np.exp(scale * clip.encode_image(pictures) @ classes.T)
    expected = powers / powers.sum(axis=1, keepdims=True)
    shares = clip.classify(pictures, labels, templates=templates)
    np.testing.assert_allclose(shares, expected, rtol=1e-3, atol=1e-5)


def test_templates_may_be_functions_and_a_single_text(clip, pictures):
    labels = list(COLORS)
    texts = clip.classify(pictures, labels, templates=['a {} picture', 'something {}'])
    functions = [lambda c: f'a {c} picture', 'something {}']
    np.testing.assert_array_equal(clip.classify(pictures, labels, templates=functions), texts)
    one = clip.classify(pictures, labels, templates=['a {} picture'])
    for template in ('a {} picture', 'a {c} picture', functions[0]):
        np.testing.assert_array_equal(clip.classify(pictures, labels, templates=template), one)


@pytest.fixture(scope='module')
def sigmoid_clip(clip):
    """The same model with a logit bias, as one trained with the sigmoid loss has."""
    params = {**clip.variables['params'], 'logit_bias': np.float32(-3)}
    return dataclasses.replace(clip, variables={**clip.variables, 'params': params})


def test_a_model_with_a_logit_bias_gives_sigmoid_probabilities(clip, sigmoid_clip, pictures):
    labels = list(COLORS)
    scale = np.exp(float(clip.variables['params']['logit_scale']))
    texts = clip.encode_text([f'a photo of a {name}.' for name in labels])
    cosines = clip.encode_image(pictures) @ texts.T
    expected = 1 / (1 + np.exp(3 - scale * cosines))
    found = sigmoid_clip.classify(pictures, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        sigmoid_clip.classify(pictures, labels, activation='sigmoid'), found
    )
    softmax = sigmoid_clip.classify(pictures, labels, activation='softmax')
    np.testing.assert_array_equal(softmax, clip.classify(pictures, labels))
    np.testing.assert_array_equal(softmax, clip.classify(pictures, labels, activation='softmax'))
    # The probability of a label does not depend on the others.
    alone = sigmoid_clip.classify(pictures, labels[:1])
    np.testing.assert_allclose(alone, found[:, :1], rtol=1e-5)


def test_a_sigmoid_needs_a_logit_bias(clip, pictures):
    with pytest.raises(ValueError, match=r"no logit bias.*expected 'softmax' or 'auto'"):
        clip.classify(pictures, ['red'], activation='sigmoid')
    with pytest.raises(ValueError, match=r"activation: there is no 'sigmoyd'.*'sigmoid'"):
        clip.classify(pictures, ['red'], activation='sigmoyd')


def test_templates_are_plain_unless_said_otherwise(clip, pictures):
    labels = list(COLORS)
    plain = clip.classify(pictures, labels, templates=prompts.templates('plain'))
    np.testing.assert_array_equal(clip.classify(pictures, labels), plain)
    np.testing.assert_array_equal(clip.classify(pictures, labels, templates='plain'), plain)


def test_training_colors_are_recognized(clip, source):
    images = [source[i]['image'] for i in range(len(source))]
    labels = [source[i]['label'] for i in range(len(source))]
    shares = clip.classify(images, list(COLORS), templates=['a {} picture'])
    assert np.mean(shares.argmax(axis=1) == labels) > 0.75  # chance is 0.25


def test_the_model_can_be_applied_by_hand(clip, pictures):
    texts = [f'a {name} picture' for name in COLORS]
    tokens = clip.tokenizer(texts)
    images = normalize(
        np.stack([clip.preprocess(picture) for picture in pictures[:4]]),
        clip.preprocess.mean,
        clip.preprocess.std,
    )
    image, text, scale, bias = clip.model.apply(clip.variables, images, tokens)
    np.testing.assert_allclose(image, clip.encode_image(pictures[:4]), atol=1e-5)
    np.testing.assert_allclose(text, clip.encode_text(texts), atol=1e-5)
    assert float(scale) == pytest.approx(np.exp(clip.variables['params']['logit_scale']))
    assert bias is None
    for method, inputs, units in (('encode_image', images, image), ('encode_text', tokens, text)):
        found = clip.model.apply(clip.variables, inputs, method=method)
        assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 1e-3  # before normalization
        np.testing.assert_allclose(l2_normalize(found), units, atol=1e-6)


def test_the_compute_dtype_may_be_bfloat16_and_parameters_stay_float32(clip, tiny_run, pictures):
    coarse = clip_jax.load(tiny_run, dtype='bfloat16')
    assert {x.dtype for x in jax.tree.leaves(coarse.variables)} == {np.dtype('float32')}
    found, expected = coarse.encode_image(pictures), clip.encode_image(pictures)
    assert found.dtype == np.float32
    assert 1e-6 < np.abs(found - expected).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_where_nothing_can_be_loaded_one_line_says_so(tmp_path, tiny_run):
    empty, file = tmp_path / 'empty', tmp_path / 'file.bin'
    empty.mkdir()
    file.write_bytes(b'\x00' * 100)
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    for path in (tmp_path / 'none', empty, file, tmp_path / 'run', tiny_run / 'plots'):
        with pytest.raises(ValueError, match='expected a run directory') as error:
            clip_jax.load(path)
        assert str(error.value).startswith(f'{path}: ')
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('part', ['image', 'text', 'tokenizer'])
def test_a_card_that_names_a_module_that_cannot_be_imported(tiny_run, tmp_path, part):
    newest = max((tiny_run / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    folder = tmp_path / 'run/checkpoints' / newest.name
    shutil.copytree(newest, folder)
    (file,) = (path for path in (folder / 'about').iterdir() if '"card"' in path.read_text())
    about = json.loads(file.read_text())
    fields = about['card'] if part == 'tokenizer' else about['card']['model']
    fields[part]['name'] = f'absent_package.{part}'
    file.write_text(json.dumps(about))
    checksums.write(folder)
    with pytest.raises(ValueError) as error:
        clip_jax.load(tmp_path / 'run')
    for word in (str(folder), f"'absent_package.{part}'", 'No module named', 'PYTHONPATH'):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_tokens_are_embedded_as_their_texts_are(clip):
    texts = ['a red picture', 'something green']
    np.testing.assert_array_equal(clip.encode_text(clip.tokenizer(texts)), clip.encode_text(texts))


def test_without_a_tokenizer_only_tokens_are_embedded(clip):
    bare = dataclasses.replace(clip, tokenizer=None)
    np.testing.assert_array_equal(
        bare.encode_text(clip.tokenizer(['a red'])), clip.encode_text(['a red'])
    )
    with pytest.raises(ValueError, match=r'has no tokenizer.*give tokens, int \[N, L\]'):
        bare.encode_text(['a red'])


def test_images_of_another_size(clip, tiny_run, pictures):
    larger = clip_jax.load(tiny_run, image_size=24)
    assert larger.preprocess.size == larger.card['preprocess']['size'] == 24
    assert larger.card['model']['image']['image_size'] == 24
    table = larger.variables['params']['image']['position_embedding']
    assert table.shape == (10, 32) and larger.encode_image(pictures).shape == (21, 16)
    np.testing.assert_array_equal(larger.encode_text(['a red']), clip.encode_text(['a red']))
    same = clip_jax.load(tiny_run, image_size=16)
    np.testing.assert_array_equal(same.encode_image(pictures), clip.encode_image(pictures))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'vocab_size': 20}, r"tokenizer's vocab_size is \d+ and the model's 20"),
        ({'context_length': 5}, r"tokenizer's context_length is 12 and the model's 5"),
        ({'eot_id': 9}, 'eot_id is 3 and the model pools at eot_id 9'),
    ],
)
def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(clip, change, message):
    card = {**clip.card, 'model': {**clip.card['model']}}
    card['model']['text'] = {**card['model']['text'], **change}
    with pytest.raises(ValueError, match=message):
        pretrained.loaded.from_card(card, {}, build.model(card['model']), clip.mesh)


def test_an_unknown_compute_dtype_is_refused(tiny_run):
    with pytest.raises(ValueError, match=r"no 'float16'\. Did you mean 'bfloat16'"):
        clip_jax.load(tiny_run, dtype='float16')


def test_what_cannot_be_read_is_named(clip, pictures, tmp_path):
    for image, name in ((b'no image', 'no image'), (tmp_path / 'none.png', 'none.png')):
        for images in (image, [pictures[0], image]):
            with pytest.raises(ValueError, match=name):
                clip.encode_image(images)
    with pytest.raises(ValueError, match='text 1 is int 3'):
        clip.encode_text(['a red', 3])


@pytest.mark.parametrize('labels', ['red', [], [1, 2], np.array([0, 1])])
def test_labels_are_a_list_of_names(clip, pictures, labels):
    with pytest.raises(ValueError, match='expected a list of at least one name'):
        clip.classify(pictures, labels)
