"""CLIP's tokens, token by token."""

import importlib.util
import json
import pathlib
import random
import string
from importlib import metadata

import numpy as np
import pytest
from tokenizers import models

from clip_jax.tokenizers import bpe

GOLDEN = pathlib.Path(__file__).parents[2] / '../shared/golden/tokenizer'
SOT, EOT = 49406, 49407
OPEN_CLIP = ('<start_of_text>', '<end_of_text>')

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason='reference outputs are not on this machine'
)


@pytest.fixture(scope='module')
def tokenizer() -> bpe.Tokenizer:
    return bpe.Tokenizer()


def ids_of(row: np.ndarray) -> list[int]:
    """The ids of a row without its padding, which begins after the last end token."""
    return row[: np.flatnonzero(row == EOT)[-1] + 1].tolist()


@needs_golden
@pytest.mark.parametrize(('file', 'length'), [('tokens', 77), ('tokens_ctx16', 16)])
def test_equals_the_published_tokenizer(file, length):
    texts = json.loads((GOLDEN / 'texts.json').read_text())
    np.testing.assert_array_equal(
        bpe.Tokenizer(length)(texts), np.load(GOLDEN / f'{file}.npy'), strict=True
    )


@needs_golden
def test_equals_the_published_tokenizer_of_open_clip():
    texts = json.loads((GOLDEN / 'texts.json').read_text())
    tokens = bpe.Tokenizer(special=OPEN_CLIP)(texts)
    np.testing.assert_array_equal(tokens, np.load(GOLDEN / 'tokens_openclip.npy'), strict=True)
    different = json.loads((GOLDEN / 'encoded_openclip_where_different.json').read_text())
    assert len(different) == 7
    for i, ids in different.items():
        assert ids_of(tokens[int(i)]) == [SOT, *ids, EOT]


@needs_golden
@pytest.mark.parametrize('clean', ['lower', 'whitespace', 'canonicalize'])
def test_tokens_are_those_of_the_text_that_was_cleaned(published, kept_case, clean):
    # Apart from its cleaning, open_clip's code is OpenAI's, which therefore stands for it here.
    texts = json.loads((GOLDEN / 'texts.json').read_text())
    cleaned = json.loads((GOLDEN / f'clean_{clean}.json').read_text())
    tokens = bpe.Tokenizer(1000, clean=clean)(texts)
    for row, text in zip(tokens, cleaned, strict=True):
        assert ids_of(row) == [SOT, *published.encode(text), EOT], repr(text)


@needs_golden
def test_decodes_as_the_published_tokenizer(tokenizer):
    ids = json.loads((GOLDEN / 'encoded_openai.json').read_text())
    expected = json.loads((GOLDEN / 'decoded_openai.json').read_text())
    plain = [i for i, row in enumerate(ids) if not {SOT, EOT} & set(row)]
    assert len(plain) > 290
    assert [tokenizer.decode(ids[i]) for i in plain] == [expected[i].strip() for i in plain]


@pytest.fixture(scope='module')
def published():
    """OpenAI's own tokenizer, from the package that brings its vocabulary; needs no PyTorch."""
    path = metadata.distribution('openai-clip').locate_file('clip/simple_tokenizer.py')
    spec = importlib.util.spec_from_file_location('published_tokenizer', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.SimpleTokenizer()
    tokenizer.module = module
    return tokenizer


@pytest.fixture
def kept_case(published, monkeypatch):
    """Makes the published code take texts as they are: it has no option for that."""

    class Text(str):
        def lower(self):
            return self

    monkeypatch.setattr(published.module, 'basic_clean', str)
    monkeypatch.setattr(published.module, 'whitespace_clean', Text)


def odd_texts(count: int) -> list[str]:
    """Random texts of letters, signs and whatever else captions of the web contain."""
    rng = random.Random(0)
    pieces = [*string.printable, '<|startoftext|>', '<|ENDOFTEXT|>', '&amp;', "'s", "'\u017f"]
    pieces += [
        'schÃ¶n',
        '“',
        '\u0301',
        '\u200b',
        '\u2028',
        '\x1c',
        '\xa0',
        "'LL",
        *'éﬀ猫😀²Ⅷ½İßª…_',
    ]
    return [''.join(rng.choices(pieces, k=rng.randint(0, 40))) for _ in range(count)]


def test_equals_the_published_code_on_any_text(published):
    texts = odd_texts(600)
    tokens = bpe.Tokenizer(context_length=128)(texts)
    assert max(map(len, map(ids_of, tokens))) > 50
    for text, row in zip(texts, tokens, strict=True):
        assert ids_of(row) == [SOT, *published.encode(text)[:126], EOT], repr(text)


def test_decodes_as_the_published_code_any_ids(tokenizer, published):
    rng = random.Random(0)
    for _ in range(300):
        ids = rng.choices(range(SOT), k=5)
        assert tokenizer.decode([SOT, *ids, EOT]) == published.decode(ids).strip()


@pytest.mark.parametrize(
    ('package', 'file', 'said'),
    [
        ('no-such-package', 'clip/bpe_simple_vocab_16e6.txt.gz', 'missing'),
        ('openai-clip', 'clip/no_such_file', 'missing'),
        ('openai-clip', 'clip/simple_tokenizer.py', 'not the published file'),
    ],
)
def test_says_what_to_do_where_the_vocabulary_is_wrong(monkeypatch, package, file, said):
    monkeypatch.setattr(bpe, '_PACKAGE', package)
    monkeypatch.setattr(bpe, '_FILE', file)
    with pytest.raises(ValueError, match=rf'{said}; pip install --force-reinstall .*{package}'):
        bpe._read_merges()


@pytest.mark.parametrize(
    ('text', 'ids'),
    [
        ('a photo of a cat', [320, 1125, 539, 320, 2368]),
        ('  A\tPhoto  of a\nCAT ', [320, 1125, 539, 320, 2368]),
        ('a photo of a cat.', [320, 1125, 539, 320, 2368, 269]),
        ('', []),
        ('\ufeffbom', [19469]),
    ],
)
def test_known_ids(tokenizer, text, ids):
    assert ids_of(tokenizer(text)[0]) == [SOT, *ids, EOT]


@pytest.mark.parametrize(
    ('text', 'same_as'),
    [
        ('schÃ¶n', 'schön'),
        ('caf&amp;eacute;', 'café'),
        ('<b> caf&amp;eacute;', '<b> café'),
        ('\uff28\uff21\uff2c\uff26', 'half'),
        ('“quotes”', '"quotes"'),
    ],
)
def test_repairs_text_before_encoding(tokenizer, text, same_as):
    np.testing.assert_array_equal(tokenizer(text), tokenizer(same_as))


@pytest.mark.parametrize(
    ('text', 'ids'),
    [
        ('<|startoftext|>', [SOT]),
        ('a <|ENDOFTEXT|> b', [320, EOT, 321]),
        ('a<|startoftext|><|endoftext|>b', [320, SOT, EOT, 321]),
        ('<start_of_text>', [283, 1572, 318, 539, 318, 4160, 285]),
        ('<End_Of_Text> x', [283, 806, 318, 539, 318, 4160, 285, 343]),
    ],
)
def test_special_strings_are_those_of_the_published_code(tokenizer, text, ids):
    assert ids_of(tokenizer(text)[0]) == [SOT, *ids, EOT]


@pytest.mark.parametrize(
    ('text', 'ids'),
    [
        ('<start_of_text>', [SOT]),
        ('a <END_of_text> b', [320, EOT, 321]),
        ('<|endoftext|>', [27, 347, 40786, 4160, 91, 285]),
    ],
)
def test_special_strings_can_be_those_of_open_clip(text, ids):
    assert ids_of(bpe.Tokenizer(special=OPEN_CLIP)(text)[0]) == [SOT, *ids, EOT]


def test_signs_in_special_strings_are_no_pattern():
    plain, dotted = bpe.Tokenizer(), bpe.Tokenizer(special=('s.t', 'e+t'))
    np.testing.assert_array_equal(dotted('set eet'), plain('set eet'))
    assert ids_of(dotted('s.t e+t')[0]) == [SOT, SOT, EOT, EOT]


@pytest.mark.parametrize('special', [('a', 'a'), ('a', ''), ('a',), ('a', 'a', 'b'), 'abc'])
def test_special_strings_that_are_not_two_are_refused(special):
    with pytest.raises(ValueError, match=r'special is .* two different strings'):
        bpe.Tokenizer(special=special)


def test_an_unknown_rule_of_cleaning_is_refused():
    with pytest.raises(ValueError, match=r"no 'lowercase'\. Did you mean 'lower'"):
        bpe.Tokenizer(clean='lowercase')


def test_without_lower_casing_case_matters():
    tokenizer = bpe.Tokenizer(clean='whitespace')
    np.testing.assert_array_equal(tokenizer(' a  cat'), bpe.Tokenizer()('A CAT'))
    assert (tokenizer('A CAT') != tokenizer('a cat')).any()
    # A special string in capitals is found as a word, and yet is no special token.
    assert ids_of(tokenizer('<|ENDOFTEXT|>')[0]).count(EOT) == 1


@pytest.mark.parametrize('sign', ['!', '_', '-'])
def test_a_special_string_inside_a_run_of_signs_is_plain_text(tokenizer, sign):
    np.testing.assert_array_equal(
        tokenizer(f'{sign}<|endoftext|>'), tokenizer(f'{sign}<| endoftext |>')
    )


def test_decode_keeps_exclamation_marks_although_padding_has_their_id(tokenizer):
    assert tokenizer.decode([SOT, 0, 320, EOT, 0, 0]) == '!a'


def test_a_context_without_room_for_a_token_is_refused():
    with pytest.raises(ValueError, match='context_length is 2'):
        bpe.Tokenizer(2)


def test_save_writes_the_files_that_hugging_face_reads_and_the_card_is_all(tmp_path):
    tokenizer = bpe.Tokenizer(64, special=OPEN_CLIP, clean='canonicalize')
    tokenizer.save(tmp_path / 'new')
    files = [str(tmp_path / 'new' / name) for name in ('vocab.json', 'merges.txt')]
    library = models.BPE.from_file(*files, end_of_word_suffix='</w>')
    # The library's words are of the signs that stand for bytes, as the file's are.
    for word in ('photograph', 'zzyzx', '7'):
        ids = [token.id for token in library.tokenize(word)]
        assert ids == tokenizer(word)[0][1 : len(ids) + 1].tolist()
    assert library.token_to_id('<|startoftext|>') == tokenizer.sot_id
    assert library.token_to_id('<|endoftext|>') == tokenizer.eot_id
    assert tokenizer.card == {
        'name': 'bpe',
        'context_length': 64,
        'special': ['<start_of_text>', '<end_of_text>'],
        'clean': 'canonicalize',
    }
    same = bpe.Tokenizer.from_card(json.loads(json.dumps(tokenizer.card)))
    assert (same('A <end_of_text>!') == tokenizer('A <end_of_text>!')).all()


def test_a_card_that_says_no_more_than_the_length_means_the_published_tokenizer():
    assert bpe.Tokenizer.from_card({'name': 'bpe', 'context_length': 77}).card == {
        'name': 'bpe',
        'context_length': 77,
        'special': ['<|startoftext|>', '<|endoftext|>'],
        'clean': 'lower',
    }
