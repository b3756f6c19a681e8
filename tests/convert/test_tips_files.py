"""What belongs to TIPS v2 alone: tokenizer, configs and names of two programs, temperature."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from reference import hf_towers
from safetensors.numpy import load_file, save_file
from support.layouts import edit, equal
from support.small_models import byte_pieces, made

import clip_jax
from clip_jax import convert
from clip_jax.convert import _sentencepiece, huggingface
from clip_jax.models import clip

WEIGHTS = 'model.safetensors'
TEXTS = ['A red  circle', '', 'blue square on a red circle', 'é ü', 'two<s> stars']


@pytest.fixture
def folder(tmp_path):
    """A copy of the small model; its vocabulary is smaller than any of SentencePiece."""
    return shutil.copytree(hf_towers.folder_of('Tipsv2Model:gated'), tmp_path / 'x')


@pytest.fixture
def with_texts(folder):
    """The same with a tokenizer, and as many embeddings of tokens as that has."""
    (folder / 'tokenizer.model').write_bytes(byte_pieces())
    weights = load_file(folder / WEIGHTS)
    name = 'text_encoder.token_embedding.weight'
    weights[name] = np.random.default_rng(0).normal(size=(320, 16)).astype(np.float32)
    save_file(weights, folder / WEIGHTS)
    edit(folder / 'config.json', lambda x: x['text_config'].update(vocab_size=320))
    return folder


def test_tokens_are_lowercase_pieces_without_start_and_end(with_texts):
    tokenizer = clip_jax.load(with_texts).tokenizer
    library = sentencepiece.SentencePieceProcessor(model_proto=byte_pieces())
    tokens = tokenizer(TEXTS)
    assert tokens.shape == (5, 5) and tokens.dtype == np.int32
    for row, text in zip(tokens[:4], TEXTS, strict=False):
        ids = library.encode(text.lower())[:5]
        assert row.tolist() == ids + [0] * (5 - len(ids))
    start = [library.piece_to_id(x) for x in ('▁two', '<s>')]
    assert tokens[4, :2].tolist() == start
    assert tokenizer.decode(tokens[0]) == 'a red circle' and tokenizer.eot_id is None


def test_texts_are_embedded_and_an_empty_one_is_finite(with_texts):
    model = clip_jax.load(with_texts)
    found = model.encode_text(TEXTS)
    assert found.shape == (5, 16) and np.isfinite(found).all()
    assert not found[1].any()  # there is nothing to average
    np.testing.assert_allclose(np.linalg.norm(found[[0, 2, 3, 4]], axis=1), 1, rtol=1e-5)


def test_the_tokenizer_is_written_and_read_back(with_texts, tmp_path):
    card, variables = convert.read(with_texts)
    convert.write(tmp_path / 'y', 'huggingface', card, variables)
    model = clip_jax.load(tmp_path / 'y')
    assert model.tokenizer.card == clip_jax.load(with_texts).tokenizer.card
    about = json.loads((tmp_path / 'y/tokenizer_config.json').read_text())
    assert about['pad_token'] == '<pad>' and 'eos_token' not in about
    # As transformers would read it, without our own card.
    (tmp_path / 'y/tokenizer_card.json').unlink()
    (tmp_path / 'y/tokenizer_config.json').write_text('{"tokenizer_class": "Tipsv2Tokenizer"}')
    again = clip_jax.load(tmp_path / 'y').tokenizer
    np.testing.assert_array_equal(again(TEXTS), clip_jax.load(with_texts).tokenizer(TEXTS))


@pytest.mark.reference
def test_transformers_reads_what_is_written_and_finds_the_same_similarities(with_texts, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    import torch

    model = clip_jax.load(with_texts)
    card = {**model.card, 'tokenizer': model.tokenizer.card}
    convert.write(tmp_path / 'y', 'huggingface', card, model.variables)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / 'y').eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / 'y')
    assert type(theirs).__name__ == 'Tipsv2Model' and type(processor).__name__ == 'Tipsv2Processor'
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    texts = [text for text in TEXTS if text]
    inputs = processor(
        text=texts, images=[*images], padding='max_length', max_length=5, return_tensors='pt'
    )
    np.testing.assert_array_equal(model.tokenizer(texts), inputs['input_ids'])
    with torch.no_grad():
        there = theirs(**inputs).logits_per_image.numpy()
    scale = np.exp(model.variables['params']['logit_scale'])
    here = scale * model.encode_image(images) @ model.encode_text(texts).T
    np.testing.assert_allclose(here, there, atol=2e-5 * np.abs(there).max())


def test_a_file_that_is_no_sentencepiece_model_is_one_line(with_texts):
    (with_texts / 'tokenizer.model').write_bytes(b'x' * 100)
    with pytest.raises(ValueError, match=r'tokenizer\.model: not a SentencePiece model'):
        convert.read(with_texts)


def test_the_pieces_of_a_model_file_are_those_of_the_library(tmp_path):
    (tmp_path / 'x.model').write_bytes(byte_pieces('nmt_nfkc', 'red'))
    model = _sentencepiece.read(tmp_path / 'x.model')
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'x.model'))
    assert model.pieces == [library.id_to_piece(i) for i in range(library.vocab_size())]
    assert [model.pieces[i] for i in model.added] == ['<pad>', '</s>', '<s>', 'red']
    assert len(model.charsmap) > 1000
    with pytest.raises(ValueError, match='a field of type 3'):
        [*_sentencepiece.fields(b'\x0b')]


def test_names_of_both_programs_are_the_same_model(tmp_path):
    image = shutil.copytree(hf_towers.folder_of('Tipsv2Model:gated'), tmp_path / 'x')
    config, variables = convert.read(image)
    plain = {**config['model'], 'image': {**config['model']['image'], 'mlp': 'gelu'}}
    like = clip.shapes(clip.from_card(plain))['params']['image']['transformer']
    for i in range(2):
        mlp = variables['params']['image']['transformer'][f'block_{i}']['mlp']
        mlp.pop('gate')
        assert {*like[f'block_{i}']['mlp']} == {*mlp}
    convert.write(tmp_path / 'y', 'huggingface', {**config, 'model': plain}, variables)
    weights = load_file(tmp_path / 'y' / WEIGHTS)
    names = {n: n.replace('.c_fc.', '.fc1.').replace('.c_proj.', '.fc2.') for n in weights}
    changed = {names[n] if n.startswith('vision') else n: x for n, x in weights.items()}
    assert sum('.fc1.' in n for n in changed) == 4
    save_file(changed, tmp_path / 'y' / WEIGHTS)
    assert equal(convert.read(tmp_path / 'y')[1], variables)


def test_the_temperature_is_that_of_the_file_or_else_of_the_config(folder):
    weights = load_file(folder / WEIGHTS)
    assert weights['temperature'] == np.float32(0.023)
    assert np.exp(-convert.read(folder)[1]['params']['logit_scale']) == pytest.approx(0.023)
    del weights['temperature']
    save_file(weights, folder / WEIGHTS)
    assert np.exp(-convert.read(folder)[1]['params']['logit_scale']) == pytest.approx(0.02)
    for value in (0.0, -0.1):
        save_file({**weights, 'temperature': np.array(value, np.float32)}, folder / WEIGHTS)
        with pytest.raises(ValueError, match='NaN or infinite in float32: 1 of 1 in temperature'):
            convert.read(folder)


OWN = {
    'model_type': 'tipsv2',
    'architectures': ['TIPSv2Model'],
    'patch_size': 14,
    'img_size': 448,
    'init_values': 1.0,
    'num_register_tokens': 1,
    'vocab_size': 32000,
    'max_len': 64,
    'vision_fn': 'vit_so400m',
    'embed_dim': 1152,
    'text_hidden_size': 1152,
    'text_mlp_dim': 4304,
    'text_num_heads': 16,
    'text_num_layers': 27,
    'ffn_layer': 'mlp',
    'temperature': 0.00478,
}


def test_the_config_of_its_own_program_is_read():
    card = huggingface.architecture(OWN, (), what='here')
    image, text = card['image'], card['text']
    sizes = ('width', 'depth', 'heads', 'mlp_dim')
    assert [image[key] for key in sizes] == [text[key] for key in sizes] == [1152, 27, 16, 4304]
    assert (image['image_size'], image['registers'], image['layer_scale']) == (448, 1, 1.0)
    assert (text['vocab_size'], text['context_length'], text['numbering']) == (32000, 64, 'all')
    assert np.exp(-card['init_logit_scale']) == pytest.approx(0.00478)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'vision_fn': 'vit_huge'}, "here: vision_fn: there is no 'vit_huge'"),
        ({'embed_dim': 768}, 'embed_dim is 768, but the vision_fn vit_so400m has 1152 features'),
        ({'ffn_layer': 'moe'}, "here: ffn_layer: there is no 'moe'"),
        ({'temperature': 0}, 'here: the temperature is 0; expected more than 0'),
    ],
)
def test_an_own_config_that_is_wrong_is_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        huggingface.architecture({**OWN, **change}, (), what='here')


@pytest.mark.parametrize(
    ('part', 'change', 'message'),
    [
        ('text_config', {'hidden_act': 'gelu'}, "text_config.hidden_act is 'gelu'; only 'relu' is"),
        ('text_config', {'scale_sqrt_depth': False}, 'scale_sqrt_depth is False; only True'),
        ('vision_config', {'hidden_act': 'silu'}, "hidden_act is 'silu'; only 'gelu'"),
        ('vision_config', {'layerscale_value': 0}, 'layerscale_value is 0; expected another'),
        ('vision_config', {'image_size': 32}, 'vision_config.image_size is 32; set it to 20'),
        ('text_config', {'num_hidden_layers': 1}, 'unknown: text_encoder.transformer.resblocks.1'),
    ],
)
def test_settings_that_are_not_the_models_are_one_line(folder, part, change, message):
    edit(folder / 'config.json', lambda x: x[part].update(change))
    with pytest.raises(ValueError, match=message):
        convert.read(folder)


def test_weights_without_their_config_say_what_is_missing(folder):
    (folder / 'config.json').unlink()
    with pytest.raises(ValueError, match=r'names of transformers, which need its config\.json'):
        convert.read(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_proj': 'linear'}, "it has no image_proj 'linear'"),
        ({'text': {'activation': 'gelu'}}, "text_config.hidden_act is 'gelu'"),
        ({'image': {'layer_scale': 0.0}}, r'layerscale_value is 0\.0; expected another number'),
    ],
)
def test_a_model_that_the_layout_cannot_hold_is_one_line(folder, tmp_path, change, message):
    card, _ = convert.read(folder)
    model = card['model']
    model = {
        **model,
        **{k: {**model[k], **x} if k != 'image_proj' else x for k, x in change.items()},
    }
    variables = clip.shapes(clip.from_card(model))
    with pytest.raises(ValueError, match=message):
        convert.write(tmp_path / 'y', 'huggingface', {**card, 'model': model}, variables)


def test_an_image_encoder_alone_is_written_with_any_rule_for_images(folder, tmp_path):
    card, variables = convert.read(folder)
    model = {**card['model'], 'text': None}
    model['image'] = {**model['image'], 'registers': 1}
    image = variables['params']['image']
    image['register_embedding'] = image['register_embedding'][:1]
    rule = {**card['preprocess'], 'resize': 'shortest', 'resize_to': 9}
    del rule['resampling']  # CLIP's processor, which crops, has Pillow's
    card = {'model': model, 'preprocess': rule, 'tokenizer': None}
    convert.write(tmp_path / 'y', 'huggingface', card, {'params': {'image': image}})
    about = json.loads((tmp_path / 'y/config.json').read_text())
    assert about['architectures'] == ['Tipsv2VisionModel']
    again, back = convert.read(tmp_path / 'y')
    assert again['preprocess'] == rule and equal(back['params'], {'image': image})


@pytest.mark.parametrize(
    ('tower', 'change', 'name'),
    [
        ('text', {'numbering': 'text'}, 'rope_vit as the image encoder'),
        ('image', {'rope': 'rows_first', 'rope_grid': 2}, 'rope_vit as the image encoder'),
    ],
)
def test_towers_that_no_kind_has_together_are_one_line(tower, change, name, tmp_path):
    card, variables = made('tipsv2')
    card['model'][tower] |= change
    with pytest.raises(ValueError, match=f'cannot hold this model: it has no {name}'):
        convert.write(tmp_path / 'y', 'huggingface', card, variables)


def test_dense_heads_are_refused_by_name(folder):
    edit(folder / 'config.json', lambda x: x.update(model_type='tipsv2_dpt'))
    with pytest.raises(ValueError, match='heads for depth and segmentation are not supported'):
        convert.read(folder)
