"""Retrieval by language (Crossmodal-3600, arXiv 2205.12522; XTD10, arXiv 2012.05107)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.data import sources
from clip_jax.data.sources import Source
from clip_jax.evals import _embed, _ranks, _similarity, score


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Source,
    *,
    languages: str | Sequence[str] = (),
) -> dict[str, Any]:
    """Ranks captions and images of each language, as `retrieval` does; images are embedded once.

    In a language, the images are those that have a caption in it.

    Args:
        encode_image: images -> unit-length embeddings, float32 [N, D].
        encode_text: texts -> unit-length embeddings, float32 [N, D].
        data: a data set whose text fields are languages.
        languages: the languages to score, such as en,de; by default all.

    Returns:
        The report. Scores: means over languages of recall at 1, 5 and 10, in both directions.
        `groups` has each language.

    Raises:
        ValueError: the data set has no text fields, or has not one of the languages.
    """
    chosen = _languages(languages, data)
    image, records = _embed.records(encode_image, data)
    image = _similarity.on_grid(image)
    texts = [sources.with_fields(data, record).get('fields', {}) for record in records]
    found: dict[str, dict[str, Any]] = {}
    images: dict[str, int] = {}
    captions = 0
    for language in chosen:
        own = [record.get(language, []) for record in texts]
        images[language] = sum(map(bool, own))
        captions += sum(map(len, own))
        found[language] = _of_language(encode_text, image, own, f'{data}: {language}')
    names = list(found[chosen[0]])
    return {
        'scores': {
            name: score(np.mean([scores[name]['value'] for scores in found.values()]))
            for name in names
        },
        'counts': {
            'images': len(data),
            'texts': captions,
            'languages': len(chosen),
            'without_caption': len(data) * len(chosen) - sum(images.values()),
        },
        'groups': {
            _title(name): [
                [language, images[language], x['value'], *x.get('interval', ())]
                for language, scores in found.items()
                for x in [scores[name]]
            ]
            for name in names
        },
    }


def _languages(given: str | Sequence[str], data: Source) -> list[str]:
    """The languages to score; ValueError if the data set has none, or lacks one."""
    known = sources.text_fields(data)
    if not known:
        raise ValueError(
            f'evals/multilingual: {data} has no text fields; expected one per language, as '
            'multilingual:FILES has, or a table with several columns as text_key'
        )
    names = given.split(',') if isinstance(given, str) else given
    names = [name.strip() for name in names if name.strip()]
    for name in names:
        lookup.check(name, known, what='evals/multilingual: languages')
    return list(dict.fromkeys(names or known))


def _of_language(
    encode_text: Callable, image: np.ndarray, own: Sequence[Sequence[str]], what: str
) -> dict[str, Any]:
    """The scores of recall among the images that have captions of one language."""
    chosen = [i for i, texts in enumerate(own) if texts]
    if not chosen:
        raise ValueError(f'evals/multilingual: {what}: no image has a caption')
    captions = [text for texts in own for text in texts]
    owner = np.repeat(np.arange(len(chosen)), [len(own[i]) for i in chosen])
    text = _similarity.on_grid(_embed.texts(encode_text, captions))
    to_text, to_image = _ranks.of(image[chosen], text, owner)
    queries = {
        'image_to_text': (to_text, np.arange(len(chosen))),
        'text_to_image': (to_image, owner),
    }
    return {
        f'{way}/recall@{k}': _ranks.recall(ranks <= k, images)
        for way, (ranks, images) in queries.items()
        for k in _ranks.AT
    }


def _title(name: str) -> str:
    """'recall@1, image to text' of 'image_to_text/recall@1'."""
    way, _, what = name.partition('/')
    return f'{what}, {way.replace("_", " ")}'
