"""Vocabularies in tokenizer.json files: CLIP's own, and small ones with other special tokens."""

import copy
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as library
from support.process import environment
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from clip_jax.tokenizers import bpe, huggingface

SOT, EOT = 49406, 49407


@pytest.fixture(scope='module')
def clip_json() -> str:
    """CLIP's vocabulary as Hugging Face's transformers describe it."""
    ids, _ = bpe._vocabulary()
    special = {'<|startoftext|>': SOT, '<|endoftext|>': EOT}
    made = library.Tokenizer(
        models.BPE(
            vocab={**ids, **special},
            merges=bpe._read_merges(),
            continuing_subword_prefix='',
            end_of_word_suffix='</w>',
            unk_token='<|endoftext|>',
        )
    )
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(library.Regex(r'\s+'), ' '),
            normalizers.Lowercase(),
        ]
    )
    words = library.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior='removed', invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    start, end = special.items()
    made.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    made.add_special_tokens([*special])
    return made.to_str()


def captions(count: int) -> list[str]:
    """Random captions as people write them."""
    rng = random.Random(0)
    words = [
        'a photo',
        'of',
        'the',
        "dog's",
        "it's",
        '2',
        '1999',
        'café',
        'über',
        '猫',
        'xylophones',
    ]
    words += ['Cat', 'NASA', 'playing', 'tennis,', 'red.', 'left-hand', '(big)', '&', '!!', '#tag']
    return [' '.join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(count)]


def words_json(processor: str = '$A </s>', **changes) -> str:
    """A vocabulary of words; `processor` says which special tokens the file adds."""
    names = ['<pad>', '</s>', '<s>', '<unk>', 'a', 'red', 'blue', 'circle', 'Red']
    ids = {name: i for i, name in enumerate(names)}
    made = library.Tokenizer(models.WordLevel(ids, unk_token='<unk>'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(names[:3])
    if processor:
        special = [(name, ids[name]) for name in names[:3] if name in processor]
        made.post_processor = processors.TemplateProcessing(processor, None, special)
    return json.dumps({**json.loads(made.to_str()), **changes})


@pytest.mark.parametrize('length', [77, 16])
def test_a_file_of_clip_gives_the_tokens_of_our_bpe(clip_json, length):
    texts = [*captions(500), '', ' A\tphoto  of\na cat ']
    ours = bpe.Tokenizer(length)(texts)
    tokens = huggingface.Tokenizer(clip_json, length, pad_id=0, eot_id=EOT)(texts)
    np.testing.assert_array_equal(tokens, ours, strict=True)


def test_clip_can_be_padded_with_its_end_token(clip_json):
    zeros, ends = (huggingface.Tokenizer(clip_json, 16, pad, EOT)('a cat') for pad in (0, EOT))
    np.testing.assert_array_equal(ends, [[SOT, 320, 2368] + 13 * [EOT]])
    np.testing.assert_array_equal(zeros, [[SOT, 320, 2368, EOT] + 12 * [0]])


@pytest.mark.parametrize('text', ['a photo of a cat', "it's 1 9 9 9 , café 猫 !"])
def test_a_file_of_clip_decodes_words_apart(clip_json, text):
    tokenizer = huggingface.Tokenizer(clip_json, 32, EOT, EOT)
    assert tokenizer.decode(tokenizer(text)[0]) == bpe.Tokenizer().decode(bpe.Tokenizer()(text)[0])


def test_a_repair_comes_before_the_rules_of_the_file(clip_json):
    text = 'schÃ¶n caf&amp;eacute;'
    tokens = huggingface.Tokenizer(clip_json, 16, 0, EOT, repair=True)(text)
    np.testing.assert_array_equal(tokens, bpe.Tokenizer(16)(text))
    assert (huggingface.Tokenizer(clip_json, 16, 0, EOT)(text) != tokens).any()


def test_cleaning_comes_before_the_rules_of_the_file():
    plain = huggingface.Tokenizer(words_json(), 6, 0, 1)('Red circle!')[0]
    lower = huggingface.Tokenizer(words_json(), 6, 0, 1, clean='lower')('Red circle!')[0]
    canonical = huggingface.Tokenizer(words_json(), 6, 0, 1, clean='canonicalize')('Red_circle!')[0]
    assert plain.tolist() == [8, 3, 1, 0, 0, 0]
    assert lower.tolist() == [5, 3, 1, 0, 0, 0]
    assert canonical.tolist() == [5, 7, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ('processor', 'start_ids', 'eot_id', 'pad_id', 'short', 'long'),
    [
        # The file adds what the model wants, as those of CLIP and of SigLIP do.
        ('<s> $A </s>', None, 1, 0, [2, 5, 7, 1, 0], [2, 4, 5, 6, 1]),
        ('$A </s>', None, 1, 1, [5, 7, 1, 1, 1], [4, 5, 6, 7, 1]),
        # Gemma's may add a start token only; SigLIP 2 wants an end token only.
        ('<s> $A', [], 1, 0, [5, 7, 1, 0, 0], [4, 5, 6, 7, 1]),
        ('<s> $A', [2], 1, 0, [2, 5, 7, 1, 0], [2, 4, 5, 6, 1]),
        ('', [], 1, 0, [5, 7, 1, 0, 0], [4, 5, 6, 7, 1]),
        # CLIPA's tokens end where the padding begins, whatever the file adds.
        ('<s> $A </s>', [2], 0, 0, [2, 5, 7, 0, 0], [2, 4, 5, 6, 0]),
        # Those of TIPS have none.
        ('$A </s>', [], None, 0, [5, 7, 0, 0, 0], [4, 5, 6, 7, 4]),
        ('', [2], None, 0, [2, 5, 7, 0, 0], [2, 4, 5, 6, 7]),
    ],
)
def test_special_tokens_are_those_of_the_file_or_those_given(
    processor, start_ids, eot_id, pad_id, short, long
):
    tokenizer = huggingface.Tokenizer(words_json(processor), 5, pad_id, eot_id, start_ids=start_ids)
    tokens = tokenizer(['red circle', 'a red blue circle a red'])
    assert tokens.tolist() == [short, long]
    assert tokenizer.decode(tokens[0]) == 'red circle'
    assert tokenizer.eot_id == eot_id
    again = huggingface.Tokenizer.from_card(tokenizer.card)
    np.testing.assert_array_equal(again('red circle'), tokens[:1])


def test_what_a_file_says_of_length_and_padding_does_not_count():
    truncation = {'direction': 'Left', 'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0}
    padding = {
        'strategy': {'Fixed': 9},
        'direction': 'Left',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<pad>',
    }
    changed = words_json(truncation=truncation, padding=padding)
    texts = ['red circle', 'a red blue circle a red']
    for start_ids in (None, []):
        expected = huggingface.Tokenizer(words_json(), 5, 1, 1, start_ids=start_ids)(texts)
        tokens = huggingface.Tokenizer(changed, 5, 1, 1, start_ids=start_ids)(texts)
        np.testing.assert_array_equal(tokens, expected)


def test_names_of_special_tokens_in_a_text_become_those_tokens():
    row = huggingface.Tokenizer(words_json(), 6, 0, 1)('red </s> red')[0]
    assert row.tolist() == [5, 1, 5, 1, 0, 0]


def test_ids_may_have_gaps():
    file = json.loads(words_json())
    file['model']['vocab']['green'] = 500
    tokenizer = huggingface.Tokenizer(json.dumps(file), 6, 0, 1)
    assert tokenizer.vocab_size == 501
    assert tokenizer.decode(tokenizer('a green circle')[0]) == 'a green circle'


def test_the_card_says_every_choice():
    choices = {'pad_id': 1, 'eot_id': 1, 'start_ids': [2], 'clean': 'lower', 'repair': True}
    choices |= {'pad_side': 'left', 'truncate_side': 'left'}
    made = huggingface.Tokenizer(words_json(), 7, **choices)
    for tokenizer in (made, huggingface.Tokenizer.from_card(made.card), copy.copy(made)):
        expected = {'name': 'huggingface', 'context_length': 7, 'tokenizer_json': words_json()}
        assert tokenizer.card == {**expected, **choices}
        assert tokenizer('RED')[0].tolist() == [1, 1, 1, 1, 2, 5, 1]


def test_a_card_without_choices_means_the_file():
    card = {'name': 'huggingface', 'context_length': 5, 'pad_id': 0, 'eot_id': 1}
    tokenizer = huggingface.Tokenizer.from_card({**card, 'tokenizer_json': words_json()})
    assert tokenizer('Red circle')[0].tolist() == [8, 7, 1, 0, 0]


def test_save_and_path_carry_a_file_over_in_every_byte(tmp_path):
    text = words_json().replace('"circle"', '"cercle été"')
    huggingface.Tokenizer(text, 7, 0, 1).save(tmp_path / 'new')
    path = tmp_path / 'new/tokenizer.json'
    assert path.read_bytes() == text.encode()
    assert huggingface.create([], context_length=7, path=str(path)).card['tokenizer_json'] == text


@pytest.mark.parametrize(
    ('padding', 'pad_id'),
    [(None, 1), ({'pad_id': 0, 'pad_token': '<pad>'}, 0)],
)
def test_create_takes_end_and_padding_from_the_file(tmp_path, padding, pad_id):
    made = library.Tokenizer.from_str(words_json('<s> $A </s>'))
    if padding:
        made.enable_padding(**padding)
    made.save(str(tmp_path / 'x.json'))
    tokenizer = huggingface.create(iter(()), context_length=7, path=str(tmp_path / 'x.json'))
    assert (tokenizer.eot_id, tokenizer.pad_id) == (1, pad_id)


@pytest.mark.parametrize('processor', ['', '<s> $A'])
def test_create_refuses_a_file_that_adds_no_end_token(tmp_path, processor):
    (tmp_path / 'x.json').write_text(words_json(processor))
    with pytest.raises(ValueError, match=r'adds no end token.* post_processor'):
        huggingface.create([], context_length=7, path=str(tmp_path / 'x.json'))


def test_create_says_that_there_is_no_file():
    with pytest.raises(ValueError, match=r"no file '/no/such/tokenizer\.json'"):
        huggingface.create([], context_length=7, path='/no/such/tokenizer.json')


@pytest.mark.parametrize('text', ['', 'no json', '{}', '{"version": "1.0", "model": 3}'])
def test_a_file_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=rf'these {len(text)} characters are no tokenizer.json'):
        huggingface.Tokenizer(text, 7, 0, 1)


@pytest.mark.parametrize(
    ('processor', 'changes', 'message'),
    [
        ('$A </s>', {'eot_id': 2}, r'adds the token 1 at the end of a text, not eot_id, 2; give'),
        ('<s> $A', {}, r'adds the token None at the end .* give start_ids'),
        ('<s> $A', {'eot_id': 2}, r'adds the token None at the end .* not eot_id, 2'),
        ('$A </s>', {'eot_id': 99}, r'eot_id: there is no token 99; ids are below 9'),
        ('$A </s>', {'pad_id': -1}, r'pad_id: there is no token -1'),
        (
            '',
            {'start_ids': [], 'eot_id': None, 'pad_id': None},
            r'no padding token, .* give pad_id',
        ),
        ('$A </s>', {'start_ids': [9]}, r'start_ids: there is no token 9'),
        ('<s> $A </s>', {'context_length': 2}, r'context_length is 2; .* at least 3'),
        ('$A </s>', {'context_length': 3, 'start_ids': [2, 2]}, r'length is 3; .* at least 4'),
        ('$A </s>', {'clean': 'upper'}, r"clean: there is no 'upper'"),
    ],
)
def test_what_the_file_does_not_have_is_refused(processor, changes, message):
    options = {'context_length': 7, 'pad_id': 0, 'eot_id': 1, **changes}
    with pytest.raises(ValueError, match=message):
        huggingface.Tokenizer(words_json(processor), **options)


def test_a_fork_after_use_is_quiet_and_nothing_is_set_for_the_process(tmp_path):
    (tmp_path / 'tokenizer.json').write_text(words_json())
    program = f"""
import os
from clip_jax.tokenizers import huggingface
tokenizer = huggingface.create([], context_length=7, path={str(tmp_path / 'tokenizer.json')!r})
tokenizer(['a red circle'] * 100)
child = os.fork()
if not child:
    os._exit(tokenizer('red')[0].tolist() != [5, 1, 1, 1, 1, 1, 1])
print(os.waitpid(child, 0)[1], 'TOKENIZERS_PARALLELISM' in os.environ)
"""
    changed = {k: v for k, v in environment().items() if k != 'TOKENIZERS_PARALLELISM'}
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env=changed, timeout=200
    )
    assert (done.stdout, done.stderr) == ('0 False\n', '')
