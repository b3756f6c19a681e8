"""Retrieval by language is retrieval on the captions of each language alone."""

import numpy as np
import pytest
from support.reports import flat
from support.vectors import unit

from clip_jax.evals import multilingual, retrieval


class Fields:
    """Image i is the number i; captions by language."""

    label_names = []

    def __init__(self, captions, fields):
        self.captions, self.text_fields = captions, fields

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, i):
        own = self.captions[i]
        texts = [text for language in own.values() for text in language]
        several = {'fields': own} if len(self.text_fields) > 1 else {}
        return {'image': i, 'texts': texts, **several}

    def where(self, i):
        return f'record {i}'

    def __str__(self):
        return 'fields'


IMAGES = unit(np.random.default_rng(0).normal(size=(40, 12)))
NOISE = {'en': 0.2, 'de': 0.4, 'quz': 0.9}


def encode_text(texts):
    """Near the image that a text names, with the noise of its language."""
    rows = []
    for text in texts:
        language, image, _ = text.split()
        noise = np.random.default_rng([*text.encode()]).normal(size=12)
        rows.append(unit(IMAGES[int(image)] + NOISE[language] * noise))
    return np.stack(rows)


def captions(languages=tuple(NOISE)):
    """One to three captions in each language; every fifth image has none in Quechua."""
    return [
        {
            language: [f'{language} {i} {n}' for n in range(1 + (i + k) % 3)]
            for k, language in enumerate(languages)
            if language != 'quz' or i % 5
        }
        for i in range(40)
    ]


def evaluate(data, **options):
    seen = []

    def encode_image(indices):
        seen.extend(indices)
        return IMAGES[indices]

    report = multilingual.evaluate(encode_image, encode_text, data, **options)
    assert seen == list(range(40))  # once for all languages
    return report


class OneLanguage(Fields):
    """The images that have captions in one language."""

    def __init__(self, captions, language):
        self.kept = [i for i, own in enumerate(captions) if own.get(language)]
        super().__init__([{language: captions[i][language]} for i in self.kept], (language,))

    def __getitem__(self, i):
        return {**super().__getitem__(i), 'image': self.kept[i]}


def test_each_language_has_the_recall_of_retrieval_on_it_alone():
    data = Fields(captions(), tuple(NOISE))
    report = evaluate(data)
    alone = {}
    for language in NOISE:
        subset = OneLanguage(captions(), language)
        single = flat(retrieval.evaluate(lambda i: IMAGES[i], encode_text, subset))
        for way in 'image_to_text', 'text_to_image':
            for k in (1, 5, 10):
                alone[language, f'{way}/recall@{k}'] = single[f'{way}/recall@{k}']
    assert len(set(alone.values())) > 8
    names = [name for language, name in alone if language == 'en']
    assert [*report['scores']] == names
    for name in names:
        mean = np.mean([alone[language, name] for language in NOISE])
        assert report['scores'][name]['value'] == pytest.approx(mean)
        way, _, recall = name.partition('/')
        table = report['groups'][f'{recall}, {way.replace("_", " ")}']
        sizes = {'en': 40, 'de': 40, 'quz': 32}
        assert [row[:3] for row in table] == [
            [x, sizes[x], pytest.approx(alone[x, name])] for x in NOISE
        ]
    texts = sum(len(own) for one in captions() for own in one.values())
    assert report['counts'] == {
        'images': 40,
        'texts': texts,
        'languages': 3,
        'without_caption': 8,
    }


@pytest.mark.parametrize('languages', ['de,en', ['de', 'en'], ('de', 'en')])
def test_some_languages_can_be_chosen(languages):
    report = evaluate(Fields(captions(), tuple(NOISE)), languages=languages)
    all_of_them = evaluate(Fields(captions(), tuple(NOISE)))
    title = 'recall@1, text to image'
    rows = {row[0]: row for row in all_of_them['groups'][title]}
    assert report['groups'][title] == [rows['de'], rows['en']]
    assert report['counts']['languages'] == 2


def test_a_data_set_of_one_language_has_one_row():
    report = evaluate(Fields(captions(('en',)), ('en',)))
    expected = flat(
        retrieval.evaluate(lambda i: IMAGES[i], encode_text, Fields(captions(('en',)), ('en',)))
    )
    assert {name: expected[name] for name in report['scores']} == {
        name: score['value'] for name, score in report['scores'].items()
    }
    assert [len(rows) for rows in report['groups'].values()] == [1] * 6


def test_wrong_data_and_languages():
    with pytest.raises(ValueError, match='fields has no text fields; expected one per language'):
        evaluate(Fields(captions(), ()))
    with pytest.raises(ValueError, match=r"languages: there is no 'dee'\. Did you mean 'de'\?"):
        evaluate(Fields(captions(), tuple(NOISE)), languages='dee')
    without = [{**own, 'quz': []} for own in captions()]
    with pytest.raises(ValueError, match='fields: quz: no image has a caption'):
        evaluate(Fields(without, tuple(NOISE)))
