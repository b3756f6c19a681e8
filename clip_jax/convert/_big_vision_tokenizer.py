"""The tokenizers of big_vision's SigLIP and SigLIP 2, which are not beside its weights."""

import sentencepiece

from clip_jax.convert import _sentencepiece

_TEXTS = 'gs://t5-data/vocabs'
# By the size of the vocabulary, where big_vision gets the SentencePiece model (pp/ops_text.py and
# pp/proj/paligemma/ops.py), and the padding that the weights were trained with (SigLIP_demo and
# SigLIP2_demo); None is the model's own.
_KNOWN = {
    32_000: (f'{_TEXTS}/cc_en.32000/sentencepiece.model', 1),
    250_000: (f'{_TEXTS}/mc4.250000.100extra/sentencepiece.model', 1),
    256_000: ('gs://big_vision/gemma_tokenizer.model', None),
}
_EXTRA = '<extra_id_'  # tokens of T5 after the vocabulary, which the weights do not have


def padding(vocab_size: int) -> dict[str, int]:
    """Returns the card's `pad_id` for a size of the vocabulary, if weights need another one."""
    _, pad_id = _KNOWN.get(vocab_size, ('', None))
    return {} if pad_id is None else {'pad_id': pad_id}


def missing(vocab_size: int) -> str:
    """Says which file weights with a vocabulary of this size lack, for a message."""
    source, _ = _KNOWN.get(vocab_size, ('the SentencePiece model of its training', None))
    return f'{source} as spiece.model'


def without_extra(model: bytes, vocab_size: int) -> bytes:
    """Returns a SentencePiece model without T5's extra tokens at its end.

    Args:
        model: the content of the file.
        vocab_size: of the weights.

    Returns:
        The content for `vocab_size` pieces; as it is if others than extra tokens come after them.
    """
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    rest = range(vocab_size, library.vocab_size())
    if not rest or not all(_EXTRA in library.id_to_piece(i) for i in rest):
        return model
    fields, pieces = bytearray(), 0
    for number, field, _ in _sentencepiece.fields(model):
        pieces += number == 1
        if number != 1 or pieces <= vocab_size:
            fields += field
    return bytes(fields)
