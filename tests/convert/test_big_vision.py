"""big_vision's published SigLIP and SigLIP 2: sizes by content, and their tokenizers."""

import base64
import io
import logging

import numpy as np
import pytest
import sentencepiece
from support.layouts import written
from support.small_models import pieces

import clip_jax
from clip_jax import convert
from clip_jax.convert import _big_vision_tokenizer, _tokenizer_files, big_vision
from clip_jax.models import presets
from clip_jax.runtime.foreign_arrays import Array
from clip_jax.tokenizers import from_card

# The files on gs://big_vision/siglip and siglip2, and what open_clip calls the same architecture.
FILES = {
    'webli_en_b16_224_63724782': 'ViT-B-16-SigLIP',
    'webli_en_b16_256_60500360': 'ViT-B-16-SigLIP-256',
    'webli_en_b16_384_68578854': 'ViT-B-16-SigLIP-384',
    'webli_en_b16_512_68580893': 'ViT-B-16-SigLIP-512',
    'webli_en_l16_256_60552751': 'ViT-L-16-SigLIP-256',
    'webli_en_l16_384_63634585': 'ViT-L-16-SigLIP-384',
    'webli_en_so400m_224_57633886': 'ViT-SO400M-14-SigLIP',
    'webli_en_so400m_384_58765454': 'ViT-SO400M-14-SigLIP-384',
    'webli_i18n_b16_256_66117334': 'ViT-B-16-SigLIP-i18n-256',
    'siglip2_b32_256': 'ViT-B-32-SigLIP2-256',
    'siglip2_b16_224': 'ViT-B-16-SigLIP2',
    'siglip2_b16_256': 'ViT-B-16-SigLIP2-256',
    'siglip2_b16_384': 'ViT-B-16-SigLIP2-384',
    'siglip2_b16_512': 'ViT-B-16-SigLIP2-512',
    'siglip2_l16_256': 'ViT-L-16-SigLIP2-256',
    'siglip2_l16_384': 'ViT-L-16-SigLIP2-384',
    'siglip2_l16_512': 'ViT-L-16-SigLIP2-512',
    'siglip2_so400m14_224': 'ViT-SO400M-14-SigLIP2',
    'siglip2_so400m14_384': 'ViT-SO400M-14-SigLIP2-378',
    'siglip2_so400m16_256': 'ViT-SO400M-16-SigLIP2-256',
    'siglip2_so400m16_384': 'ViT-SO400M-16-SigLIP2-384',
    'siglip2_so400m16_512': 'ViT-SO400M-16-SigLIP2-512',
    'siglip2_g-opt16_256': 'ViT-gopt-16-SigLIP2-256',
    'siglip2_g-opt16_384': 'ViT-gopt-16-SigLIP2-384',
}


def shapes(model):
    """The shapes that decide, with the blocks stacked, as they are published."""
    image, text = model['image'], model['text']
    patch, grid = image['patch_size'], image['image_size'] // image['patch_size']
    found = {
        'img/embedding/kernel': (patch, patch, 3, image['width']),
        'img/pos_embedding': (1, grid**2, image['width']),
        'img/MAPHead_0/probe': (1, 1, image['width']),
        'txt/pos_embedding': (1, text['context_length'], text['width']),
        'txt/Embed_0/embedding': (text['vocab_size'], text['width']),
        'txt/head/kernel': (text['width'], model['embed_dim']),
    }
    for tower, blocks in (('image', 'img/Transformer'), ('text', 'txt/Encoder_0')):
        width, depth, heads, mlp_dim = (
            model[tower][name] for name in ('width', 'depth', 'heads', 'mlp_dim')
        )
        query = f'{blocks}/encoderblock/MultiHeadDotProductAttention_0/query/kernel'
        found[query] = (depth, width, heads, width // heads)
        found[f'{blocks}/encoderblock/MlpBlock_0/Dense_0/kernel'] = (depth, width, mlp_dim)
    return found


@pytest.mark.parametrize('file', FILES)
def test_the_sizes_of_published_files_are_found_by_content(file):
    expected = presets.architecture(FILES[file])
    if '14_384' in file:
        expected['image']['image_size'] = 384  # of which 378 are seen
    arrays = {k: Array(s, np.dtype(np.float32), lambda: None) for k, s in shapes(expected).items()}
    found = big_vision.architecture(big_vision.unstacked(arrays, file))
    for tower in ('image', 'text'):
        assert expected.pop(tower).items() <= found.pop(tower).items()
    expected.pop('init_logit_scale', None)
    assert expected.items() <= found.items()


def extended(count):
    """A SentencePiece model with T5's extra tokens at its end, and how many pieces it has."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['a red circle on a blue square'] * 50),
        model_writer=model,
        vocab_size=28,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    content = model.getvalue()
    size = sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size()
    for i in range(count):
        piece = f'<extra_id_{i}>'.encode()
        inner = b'\n' + bytes([len(piece)]) + piece + b'\x18\x04'  # a user-defined piece
        content += b'\n' + bytes([len(inner)]) + inner
    library = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert library.vocab_size() == size + count
    return content, size


def test_extra_tokens_of_t5_are_left_out():
    content, size = extended(3)
    before = sentencepiece.SentencePieceProcessor(model_proto=content)
    without = _big_vision_tokenizer.without_extra(content, size)
    after = sentencepiece.SentencePieceProcessor(model_proto=without)
    assert after.vocab_size() == size
    assert after.encode('a red square') == before.encode('a red square')
    for other in (size - 1, size + 3):
        assert _big_vision_tokenizer.without_extra(content, other) == content


@pytest.mark.parametrize(('vocab_size', 'pad'), [(32_000, 1), (250_000, 1), (256_000, 0)])
def test_texts_are_padded_as_in_training(vocab_size, pad, tmp_path):
    (tmp_path / 'sentencepiece.model').write_bytes(pieces())
    text = {'vocab_size': vocab_size, 'context_length': 60}
    tokenizer = from_card(_tokenizer_files.big_vision(tmp_path, text))
    assert tokenizer('a red circle')[0, -1] == pad


def test_without_a_tokenizer_a_warning_says_what_to_copy(tmp_path, caplog):
    path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    with caplog.at_level(logging.WARNING, 'absl'):
        card, _ = convert.read(path)
    assert card['tokenizer'] is None
    what = 'the SentencePiece model of its training as spiece.model'
    assert f'copy {what} into {path.parent} and load again' in caplog.text
    card['model']['text']['vocab_size'] = 256_000
    assert big_vision.missing(card) == 'gs://big_vision/gemma_tokenizer.model as spiece.model'
    (path.parent / 'spiece.model').write_bytes(pieces())
    caplog.clear()
    clip = clip_jax.load(path)
    assert not caplog.text and clip.tokenizer
    assert base64.b64decode(clip.card['tokenizer']['model']) == pieces()
