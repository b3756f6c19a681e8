"""Text cleaning rules of published models, applied before tokenization, by name."""

import html
import string
from collections.abc import Callable

import ftfy

from clip_jax import lookup

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_LOWER_ASCII = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def repaired(text: str) -> str:
    """Fixes mojibake, unescapes HTML and collapses whitespace, as CLIP does."""
    # ftfy takes 90% of the time and leaves text of printable ASCII without '&' as it is.
    if '&' in text or not (text.isascii() and text.isprintable()):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _single_spaces(text)


def _single_spaces(text: str) -> str:
    return ' '.join(text.split())


def _lower_ascii(text: str) -> str:
    return text.translate(_LOWER_ASCII)


def _canonicalize(text: str) -> str:
    return _remove_punctuation(text.replace('_', ' '))


def _remove_punctuation(text: str) -> str:
    return _keep_case(text.lower())


def _keep_case(text: str) -> str:
    return _single_spaces(text.translate(_NO_PUNCTUATION))


RULES: dict[str, Callable[[str], str]] = {
    'none': str,  # unchanged
    'whitespace': _single_spaces,  # open_clip's, for vocabularies other than CLIP's
    'lower': str.lower,  # CLIP's; Hugging Face's SigLIP 2
    'lower_ascii': _lower_ascii,  # big_vision's SigLIP and SigLIP 2: tf.strings.lower
    'canonicalize': _canonicalize,  # open_clip's SigLIP, big_vision's prompts: '_' is a space
    'remove_punctuation': _remove_punctuation,  # Hugging Face's SigLIP: '_' is deleted
    'remove_punctuation_keep_case': _keep_case,  # the same without its do_lower_case
}


def check(rule: str) -> str:
    """Returns the name of a rule; ValueError if it is unknown."""
    return lookup.check(rule, RULES, what='tokenizers: clean')


def cleaned(text: str, rule: str, repair: bool) -> str:
    """Applies a rule of `RULES` to a text, after CLIP's `repaired` if `repair`."""
    return RULES[rule](repaired(text) if repair else text)


def utf8(text: str) -> bytes:
    """Encodes text as UTF-8; lone surrogates, as truncated emoji leave them, become '?'."""
    return text.encode('utf-8', 'replace')
