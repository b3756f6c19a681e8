"""Rules of transformers' tokenizers for BERT, RoBERTa, XLM-R and NLLB beside their files'."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

NLLB = 'NllbTokenizer'
WORDS = 'vocab.txt'  # BERT's vocabulary, a word a line
BERT_TOKENS = {
    f'{name}_token': f'[{name.upper()}]' for name in ('unk', 'sep', 'pad', 'cls', 'mask')
}
_LANGUAGE = 'eng_Latn'
_REBUILT = ('CLIPTokenizer', 'GemmaTokenizer', 'Siglip2Tokenizer')  # no space before the text


def check(content: Mapping[str, Any], given: Mapping[str, Any], name: str, what: str) -> None:
    """Checks settings that a file may contradict.

    Args:
        content: the content of `tokenizer.json`.
        given: the settings.
        name: the tokenizer's class.
        what: the file; error messages start with it.

    Raises:
        ValueError: a setting is not what the file does, or belongs to another class.
    """
    asked = given.get('add_prefix_space')
    found = None if name in _REBUILT else _adds_space(content.get('pre_tokenizer'))
    if asked is not None and asked != bool(found):
        raise ValueError(
            f'{what}: {"puts a" if found else "puts no"} space before the text, but the settings '
            f'have add_prefix_space {asked}; make them agree'
        )
    for key in ('src_lang', 'legacy_behaviour'):
        if name != NLLB and given.get(key):
            raise ValueError(
                f'{what}: the settings have {key} {given[key]!r}, which only {NLLB} has, not '
                f'{name or "this tokenizer"}; remove it'
            )


def bert(path: pathlib.Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what stands for the `tokenizer.json` of a vocabulary of BertTokenizer.

    Args:
        path: the vocabulary; a line of its text is a word, numbered from 0.
        given: the settings.

    Raises:
        ValueError: the file is not text, or lacks a special token.
    """
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except ValueError as error:
        raise ValueError(f'{path}: not text in UTF-8') from error
    words = {word: i for i, word in enumerate(lines[:-1] if not lines[-1] else lines)}
    tokens = {**BERT_TOKENS, **given}
    tokens = {
        x: y if isinstance(y, str) else y['content'] for x, y in tokens.items() if x in BERT_TOKENS
    }
    lacking = [token for token in tokens.values() if token not in words]
    if lacking:
        raise ValueError(f'{path}: lacks {", ".join(lacking)}; expected the vocabulary of a BERT')
    library = tokenizers.Tokenizer(models.WordPiece(words, unk_token=tokens['unk_token']))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=given.get('tokenize_chinese_chars', True),
        strip_accents=given.get('strip_accents'),
        lowercase=given.get('do_lower_case', True),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix='##')
    first, last = tokens['cls_token'], tokens['sep_token']
    library.post_processor = processors.TemplateProcessing(
        single=[first, '$A', last], special_tokens=[(x, words[x]) for x in (first, last)]
    )
    return json.loads(library.to_str())


def _adds_space(rules: Any) -> bool | None:
    """Returns whether a pre-tokenizer puts a space before the text; None if it has no such rule."""
    if not isinstance(rules, dict):
        return None
    if 'prepend_scheme' in rules:
        return rules['prepend_scheme'] != 'never'
    if 'add_prefix_space' in rules:
        return rules['add_prefix_space']
    found = [_adds_space(rule) for rule in rules.get('pretokenizers') or []]
    return next((x for x in found if x is not None), None)


def of_language(library: tokenizers.Tokenizer, given: Mapping[str, Any], what: str) -> str:
    """Makes a tokenizer put the language of texts and the end token where NllbTokenizer does.

    Args:
        library: the tokenizer; it is changed.
        given: the settings.
        what: the file; error messages start with it.

    Returns:
        The tokenizer's new file.

    Raises:
        ValueError: the vocabulary lacks the language or the end token.
    """
    language, end = given.get('src_lang', _LANGUAGE), given.get('eos_token', '</s>')
    end = end if isinstance(end, str) else end['content']
    ids = {token: library.token_to_id(token) for token in (language, end)}
    for token, number in ids.items():
        if number is None:
            raise ValueError(f'{what}: its vocabulary has no token {token!r}, which {NLLB} adds')
    legacy = given.get('legacy_behaviour', False)
    library.post_processor = processors.TemplateProcessing(
        single=['$A', end, language] if legacy else [language, '$A', end],
        special_tokens=[*ids.items()],
    )
    return library.to_str()
