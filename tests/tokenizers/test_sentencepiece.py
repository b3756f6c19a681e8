"""Vocabularies trained on captions, and model files of other programs."""

import base64
import copy
import io
import itertools

import numpy as np
import pytest
import sentencepiece as library

from clip_jax.tokenizers import sentencepiece

CORPUS = [
    f'A {color} {shape} is {place} the {other}.'
    for color in ('red', 'green', 'blue', 'dark yellow')
    for shape in ('circle', 'square', 'triangle')
    for place in ('above', 'below', 'left of')
    for other in ('star', 'ring')
]


def create(texts=CORPUS, **options) -> sentencepiece.Tokenizer:
    return sentencepiece.create(texts, **{'context_length': 16, 'vocab_size': 100, **options})


def foreign(**options) -> bytes:
    """A model file as other programs train them."""
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


# The ids of special tokens in the vocabularies of SigLIP ('c4_en') and of SigLIP 2 (Gemma's).
SIGLIP = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
GEMMA = {'pad_id': 0, 'eos_id': 1, 'bos_id': 2, 'unk_id': 3}


@pytest.mark.parametrize('algorithm', ['bpe', 'unigram'])
def test_the_same_captions_give_the_same_model(algorithm):
    models = {create(iter(CORPUS), algorithm=algorithm).card['model'] for _ in range(2)}
    assert len(models) == 1


def test_other_captions_give_another_model():
    assert create(CORPUS[:-20]).card != create().card


def test_sequences_begin_and_end_with_special_tokens():
    tokenizer = create()
    row = tokenizer('a red circle')[0]
    assert (tokenizer.pad_id, tokenizer.eot_id) == (0, 3)
    length = int(np.argmax(row == 3)) + 1
    assert row[0] == 2
    assert (row[1 : length - 1] > 3).all()
    assert (row[length:] == 0).all()


def test_the_vocabulary_size_is_an_upper_bound():
    assert create(vocab_size=70).vocab_size == 70
    assert create(vocab_size=32_000).vocab_size < 500


def test_case_width_and_spaces_do_not_matter():
    tokenizer = create()
    np.testing.assert_array_equal(tokenizer(' A  \uff32ED\tCircle\n'), tokenizer('a red circle'))


def test_names_of_special_tokens_in_a_caption_are_plain_text():
    tokenizer = create([*CORPUS, 'x </s> <s>'])
    assert np.count_nonzero(tokenizer('</s> red </s>') == tokenizer.eot_id) == 1


def test_half_a_surrogate_pair_does_no_harm():
    tokenizer = create([*CORPUS, 'a star \ud83d'])
    assert tokenizer.decode(tokenizer('a star \ud83d')[0]).startswith('a star')


def test_captions_longer_than_the_library_takes_by_default_are_learned_from():
    assert create([' '.join(CORPUS * 5)]).vocab_size == 100


def test_reads_no_more_captions_than_the_limit(monkeypatch):
    monkeypatch.setattr(sentencepiece, 'MOST_CAPTIONS', 50)
    endless = itertools.cycle(CORPUS)
    create(endless)
    assert next(endless) == CORPUS[50]


def test_says_what_it_learns_and_the_library_keeps_quiet(monkeypatch, capfd):
    said = []
    monkeypatch.setattr(sentencepiece.logging, 'info', lambda text, *args: said.append(text % args))
    create()
    assert said == ['sentencepiece: training a vocabulary of up to 100 tokens (bpe) on 72 captions']
    assert capfd.readouterr() == ('', '')


def test_save_and_path_carry_a_vocabulary_over(tmp_path):
    tokenizer = create()
    tokenizer.save(tmp_path / 'new')
    path = str(tmp_path / 'new/spiece.model')
    assert create([], path=path).card == tokenizer.card
    assert library.SentencePieceProcessor(model_file=path).vocab_size() == 100


def test_a_model_without_start_and_padding_ends_and_pads_with_its_end_token():
    tokenizer = sentencepiece.Tokenizer(foreign(bos_id=-1, pad_id=-1, eos_id=1), 12)
    row = tokenizer('red')[0].tolist()
    assert tokenizer.pad_id == tokenizer.eot_id == 1
    assert row[0] > 1
    assert set(row[row.index(1) :]) == {1}
    assert tokenizer.decode(row) == 'red'
    assert tokenizer(' '.join(CORPUS))[0][-1] == 1


def test_siglip_ends_and_pads_with_token_1():
    model = foreign(**SIGLIP)
    plain = library.SentencePieceProcessor(model_proto=model)
    tokenizer = sentencepiece.Tokenizer(model, 16, clean='canonicalize', pad_id=1)
    ids = plain.encode('a red circle')
    np.testing.assert_array_equal(tokenizer('A red_circle!')[0], ids + [1] * (16 - len(ids)))
    long = tokenizer(' '.join(CORPUS))[0]
    np.testing.assert_array_equal(long, [*plain.encode(' '.join(CORPUS).lower())[:15], 1])


def test_siglip_2_has_no_start_token_and_pads_with_token_0():
    model = foreign(**GEMMA)
    plain = library.SentencePieceProcessor(model_proto=model)
    tokenizer = sentencepiece.Tokenizer(model, 16, clean='lower', add_bos=False)
    ids = [*plain.encode('a red circle'), 1]
    np.testing.assert_array_equal(tokenizer('A Red CIRCLE')[0], ids + [0] * (16 - len(ids)))
    with_start = sentencepiece.Tokenizer(model, 16, clean='lower')('A Red CIRCLE')[0]
    np.testing.assert_array_equal(with_start, [2, *ids, *[0] * (15 - len(ids))])


def test_text_is_repaired_and_cleaned_before_the_model_sees_it():
    model = foreign(**SIGLIP)
    plain = sentencepiece.Tokenizer(model, 32)
    text = ' A RED&amp;amp;blue  <b>circle</b>'
    for clean, repair, same_as in [
        ('none', False, text),
        ('lower', False, text.lower()),
        ('lower', True, 'a red&blue <b>circle</b>'),
        ('canonicalize', False, 'a redampampblue bcircleb'),
        ('canonicalize', True, 'a redblue bcircleb'),
    ]:
        tokenizer = sentencepiece.Tokenizer(model, 32, clean=clean, repair=repair)
        np.testing.assert_array_equal(tokenizer(text), plain(same_as))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'add_bos': True}, 'add_bos is true, but the model has no start token'),
        ({'pad_id': 1000}, 'pad_id: there is no token 1000; ids are below'),
        ({'pad_id': -1}, 'pad_id: there is no token -1'),
        ({'clean': 'siglip'}, "clean: there is no 'siglip'"),
    ],
)
def test_what_the_model_does_not_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sentencepiece.Tokenizer(foreign(**SIGLIP), 12, **options)


def test_the_card_says_every_choice():
    choices = {'clean': 'remove_punctuation', 'repair': True, 'add_bos': False, 'pad_id': 1}
    choices |= {'pad_side': 'left', 'truncate_side': 'left', 'special': {'<eos>': 1}}
    made = sentencepiece.Tokenizer(foreign(**GEMMA), 12, **choices)
    for tokenizer in (made, sentencepiece.Tokenizer.from_card(made.card), copy.copy(made)):
        fields = {k: v for k, v in tokenizer.card.items() if k != 'model'}
        assert fields == {'name': 'sentencepiece', 'context_length': 12, **choices}


def test_a_card_without_choices_means_what_the_model_has():
    card = sentencepiece.Tokenizer(foreign(**GEMMA), 12).card
    old = {k: card[k] for k in ('name', 'context_length', 'model')}
    assert sentencepiece.Tokenizer.from_card(old).card == card
    assert [card[k] for k in ('clean', 'repair', 'add_bos', 'pad_id')] == ['none', False, True, 0]


def test_a_model_without_an_end_token_is_refused():
    with pytest.raises(ValueError, match='no end-of-text token'):
        sentencepiece.Tokenizer(foreign(eos_id=-1), 12)


def test_a_context_without_room_for_a_token_is_refused():
    with pytest.raises(ValueError, match='context_length is 2'):
        create(context_length=2)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'texts': []}, 'no text in 0 captions'),
        ({'texts': ['', ' \n']}, 'no text in 2 captions'),
        ({'texts': ['a', b'b']}, 'text 1 is bytes'),
        ({'vocab_size': 10}, 'no vocabulary of 10 tokens'),
        ({'vocab_size': 0}, 'no vocabulary of 0 tokens'),
        ({'algorithm': 'bpee'}, "Did you mean 'bpe'"),
        ({'path': '/no/such/tokenizer.model'}, "no model file '/no/such/tokenizer.model'"),
    ],
)
def test_errors_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message) as error:
        create(**options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'not a model'])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / 'x.model').write_bytes(content)
    with pytest.raises(ValueError, match='no SentencePiece model'):
        create(path=str(tmp_path / 'x.model'))


def test_a_damaged_card_is_refused():
    card = create().card
    model = base64.b64decode(card['model'])
    half = base64.b64encode(model[: len(model) // 2]).decode()
    for damaged in (card['model'][:-1], '!' + card['model'], half):
        with pytest.raises(ValueError):
            sentencepiece.Tokenizer.from_card({**card, 'model': damaged})
