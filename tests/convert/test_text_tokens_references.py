"""Tokens of BERT, RoBERTa, XLM-R and NLLB equal those of open_clip's HFTokenizer.

`pip install -e '.[reference]'` installs these libraries, and `pytest -m reference` runs these
tests; they are skipped if one is not installed.
"""

import json
import random

import numpy as np
import pytest
import tokenizers
from support.layouts import edit
from support.small_models import byte_pieces

from clip_jax import tokenizers as ours
from clip_jax.convert import _tokenizer_files

pytestmark = pytest.mark.reference
WORDS = 'a photo of the red Cat, naïve café über dogs! 中文字符 日本語 привет мир 한국어'
WORDS += " \U0001f389 \U0001f469\u200d\U0001f469\u200d\U0001f467 it's x&amp;y"
SPECIAL = {'bert': ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']}
OTHERS = ['<s>', '<pad>', '</s>', '<unk>']


def texts() -> list[str]:
    """Varied texts: scripts, emoji, control characters, spaces, special tokens, long ones."""
    rng, parts = random.Random(0), [*WORDS.split(), '\u0000', '\u200d', '\t', '  ', '\n']
    parts += ['</s>', '[SEP]', '<mask>', '\ufb01', 'é', 'e\u0301', '\u00a0', '\uff11\uff12', '...']
    parts += ['\U0001f600\ufe0f']

    def text() -> str:
        return rng.choice(['', ' ']).join(rng.choices(parts, k=rng.randint(1, 30)))

    many = [text() for _ in range(220)]
    return ['', ' ', 'word ' * 200, *many]


def made(kind: str, folder) -> None:
    """Writes tokenizer files of a small vocabulary as transformers does."""
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    corpus = [WORDS.lower(), WORDS, *WORDS.split()] * 3
    if kind == 'bert':
        trained = tokenizers.BertWordPieceTokenizer()
        trained.train_from_iterator(corpus, vocab_size=120, special_tokens=SPECIAL['bert'])
        made = transformers.BertTokenizer(vocab=trained.get_vocab())
    elif kind == 'roberta':
        trained = tokenizers.ByteLevelBPETokenizer()
        trained.train_from_iterator(corpus, vocab_size=320, special_tokens=[*OTHERS, '<mask>'])
        model = json.loads(trained.to_str())['model']
        merges = [tuple(x) for x in model['merges']]
        made = transformers.RobertaTokenizer(vocab=model['vocab'], merges=merges)
    elif kind == 'xlm':
        trained = tokenizers.SentencePieceUnigramTokenizer()
        trained.train_from_iterator(
            corpus, vocab_size=90, special_tokens=[*OTHERS, '<mask>'], unk_token='<unk>'
        )
        vocab = [tuple(x) for x in json.loads(trained.to_str())['model']['vocab']]
        made = transformers.XLMRobertaTokenizer(vocab=vocab)
    else:
        trained = tokenizers.SentencePieceBPETokenizer()
        trained.train_from_iterator(corpus, vocab_size=120, special_tokens=OTHERS)
        model = json.loads(trained.to_str())['model']
        merges = [tuple(x) for x in model['merges']]
        made = transformers.NllbTokenizer(vocab=model['vocab'], merges=merges)
    made.save_pretrained(folder)


@pytest.mark.parametrize('kind', ['bert', 'roberta', 'xlm', 'nllb'])
@pytest.mark.parametrize('length', [9, 77])
def test_tokens_are_equal(kind, length, tmp_path):
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    made(kind, tmp_path)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=length)
    text = {'context_length': length, 'pool': 'cls', 'vocab_size': 400}
    card = _tokenizer_files.open_clip(tmp_path, text, {'hf_tokenizer_name': 'x'}, what='here')
    found = ours.from_card(card)(texts())
    np.testing.assert_array_equal(found, theirs(texts()).numpy())


@pytest.mark.parametrize('lower', [True, False])
@pytest.mark.parametrize('rule', ['nmt_nfkc', 'identity'])
def test_tokens_of_tips_are_those_of_transformers(rule, lower, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    (tmp_path / 'tokenizer.model').write_bytes(byte_pieces(rule, 'red,▁two'))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': lower}))
    theirs = transformers.Tipsv2Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / 'saved')
    assert (tmp_path / 'saved/tokenizer.json').is_file()
    many = [*texts(), 'A Red red circle, two <s> two</s>RED<pad>  <unk> \u03a3\u0391\u03a3 \u0130']
    made = theirs(many, padding='max_length', max_length=24, truncation=True)['input_ids']
    text = {'context_length': 24, 'pool': 'mean', 'vocab_size': 320, 'name': 'nllb'}
    for folder in (tmp_path, tmp_path / 'saved'):
        found = ours.from_card(_tokenizer_files.huggingface(folder, text))(many)
        np.testing.assert_array_equal(found, made)
    assert len({tuple(x) for x in made}) > 200


@pytest.mark.parametrize('legacy', [False, True])
def test_the_language_of_nllb_is_chosen(legacy, tmp_path):
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    made('nllb', tmp_path)
    edit(
        tmp_path / 'tokenizer_config.json',
        lambda c: c.update(legacy_behaviour=legacy, src_lang='fra_Latn'),
    )
    edit(tmp_path / 'tokenizer.json', lambda c: c.update(post_processor=None))
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), 12)
    text = {'context_length': 12, 'pool': 'cls', 'vocab_size': 400}
    card = _tokenizer_files.open_clip(tmp_path, text, {'hf_tokenizer_name': 'x'}, what='here')
    found = ours.from_card(card)(texts())
    np.testing.assert_array_equal(found, theirs(texts()).numpy())
