"""What every file in clip_jax/tokenizers promises."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers as library

from clip_jax import lookup, tokenizers

CORPUS = ['a photo of a cat', 'two dogs on a sofa', 'a dog and a cat play with a red ball'] * 5
LENGTH = 12


def tokenizer_json() -> str:
    """A vocabulary of words, as a file for `huggingface`."""
    words = sorted({word for text in CORPUS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(['<pad>', '</s>', '<unk>', *words])}
    made = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token='<unk>'))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.post_processor = library.processors.TemplateProcessing('$A </s>', None, [('</s>', 1)])
    made.add_special_tokens(['<pad>', '</s>'])
    made.enable_padding(pad_id=0, pad_token='<pad>')
    return made.to_str()


@pytest.fixture(scope='module', params=lookup.names('tokenizers'))
def tokenizer(request, tmp_path_factory):
    options = {}
    if request.param == 'huggingface':
        path = tmp_path_factory.mktemp('huggingface') / 'tokenizer.json'
        path.write_text(tokenizer_json())
        options['path'] = str(path)
    module = lookup.module('tokenizers', request.param)
    return module.create(iter(CORPUS), context_length=LENGTH, **options)


def test_tokens_are_int32_of_the_context_length(tokenizer):
    tokens = tokenizer(CORPUS[:3])
    assert (tokens.shape, tokens.dtype) == ((3, LENGTH), np.int32)
    assert tokenizer.context_length == LENGTH
    assert tokens[0, -1] == tokenizer.pad_id
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.vocab_size


def test_a_string_a_list_a_tuple_and_an_array_of_strings_are_equal(tokenizer):
    expected = tokenizer([CORPUS[0]])
    for texts in (CORPUS[0], (CORPUS[0],), np.array([CORPUS[0]])):
        np.testing.assert_array_equal(tokenizer(texts), expected)


def test_no_texts_give_no_tokens(tokenizer):
    assert tokenizer([]).shape == (0, LENGTH)


def test_tokens_do_not_depend_on_the_batch(tokenizer):
    tokens = tokenizer([*CORPUS, 'cat ' * 50])
    np.testing.assert_array_equal(tokens[0], tokenizer(CORPUS[0])[0])


def test_one_end_token_and_only_padding_after_it(tokenizer):
    for row in tokenizer(CORPUS).tolist():
        end = row.index(tokenizer.eot_id)
        assert end > 1
        assert set(row[end + 1 :]) <= {tokenizer.pad_id}


def test_truncation_keeps_the_end_token_last(tokenizer):
    short, long = tokenizer([CORPUS[0], ' '.join([CORPUS[0]] * 20)])
    end = short.tolist().index(tokenizer.eot_id)
    assert long[-1] == tokenizer.eot_id
    assert tokenizer.eot_id not in long[:-1]
    np.testing.assert_array_equal(long[:end], short[:end])


def test_the_empty_string_has_an_end_token(tokenizer):
    row = tokenizer('')[0]
    assert tokenizer.eot_id in row
    assert tokenizer.decode(row) == ''


@pytest.mark.parametrize('convert', [np.asarray, list], ids=['array', 'list'])
def test_decode_gives_simple_text_back(tokenizer, convert):
    for text in CORPUS[:2]:
        assert tokenizer.decode(convert(tokenizer(text)[0])) == text


def test_decode_needs_no_end_token_and_drops_padding(tokenizer):
    row = tokenizer('a cat')[0].tolist()
    end = row.index(tokenizer.eot_id)
    assert tokenizer.decode(row[:end]) == 'a cat'
    assert tokenizer.decode(row[:end] + 3 * [tokenizer.pad_id]) == 'a cat'
    assert tokenizer.decode([]) == ''


@pytest.mark.parametrize('ids', [[-1], [10**6], [[2, 5]], [0.5]])
def test_decode_refuses_what_is_no_sequence_of_ids(tokenizer, ids):
    with pytest.raises(ValueError, match='tokenizers: '):
        tokenizer.decode(ids)


@pytest.mark.parametrize('texts', [[b'cat'], [None], ['cat', 3]])
def test_what_is_no_text_is_refused(tokenizer, texts):
    with pytest.raises(ValueError, match='not str'):
        tokenizer(texts)


def test_the_card_alone_makes_the_same_tokenizer(tokenizer):
    card = json.loads(json.dumps(tokenizer.card))
    again = tokenizers.from_card(card)
    np.testing.assert_array_equal(again(CORPUS), tokenizer(CORPUS))
    assert again.card == card
    assert card['name'] in lookup.names('tokenizers')


def test_a_card_without_a_field_says_which(tokenizer):
    card = {k: v for k, v in tokenizer.card.items() if k != 'context_length'}
    with pytest.raises(ValueError, match="lacks 'context_length'"):
        tokenizers.from_card(card)


def test_a_card_with_an_unknown_field_says_which(tokenizer):
    with pytest.raises(ValueError, match=r"no 'context_lengths'\. Did you mean 'context_length'"):
        tokenizers.from_card({**tokenizer.card, 'context_lengths': 3})


@pytest.mark.parametrize('card', [{}, {'name': 'bpee'}])
def test_a_card_of_no_tokenizer_says_what_there_is(card):
    with pytest.raises(ValueError, match=r'There are: .*bpe'):
        tokenizers.from_card(card)


def test_pickles(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(CORPUS), tokenizer(CORPUS))
    assert again.card == tokenizer.card


def test_threads_share_one_tokenizer(tokenizer):
    texts = [f'{text} {i}' for i, text in enumerate(CORPUS * 20)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda text: tokenizer(text)[0], texts))
    np.testing.assert_array_equal(tokens, tokenizer(texts))


def test_half_a_surrogate_pair_does_no_harm(tokenizer):
    row = tokenizer('a cat \ud83d')[0]
    np.testing.assert_array_equal(row[:2], tokenizer('a cat')[0][:2])
    assert np.count_nonzero(row == tokenizer.eot_id) == 1


def test_save_writes_something(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert all(file.stat().st_size for file in tmp_path.iterdir())
    assert list(tmp_path.iterdir())
