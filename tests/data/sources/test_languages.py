"""multilingual: captions by language, in the published layouts."""

import json

import pytest
from support.annotations import (
    COUNT,
    LANGUAGES,
    caption,
    crossmodal,
    error_of,
    picture,
    pictures,
    xtd10,
)

from clip_jax.data.sources import open_source, text_fields


def test_text_files_by_language_with_images_in_two_folders(tmp_path):
    source = open_source(xtd10(tmp_path), root=str(tmp_path))
    assert text_fields(source) == ('de', 'jp', 'es')
    for k in range(COUNT):
        fields = {x: [form.format(caption(k))] for x, form in LANGUAGES.items()}
        texts = [text for own in fields.values() for text in own]
        assert source[k] == {'image': picture(k), 'texts': texts, 'fields': fields}


def test_the_file_of_names_may_be_anywhere(tmp_path):
    spec = xtd10(tmp_path).replace('{XTD10,MIC,STAIR}/*', '{MIC,STAIR}/*')
    (tmp_path / 'XTD10/test_image_names.txt').rename(tmp_path / 'names.txt')
    with pytest.raises(ValueError, match=r'no names of images\. Give the text file'):
        open_source(spec, root=str(tmp_path))
    source = open_source(spec, root=str(tmp_path), names=str(tmp_path / 'names.txt'))
    assert text_fields(source) == ('de', 'jp') and len(source) == COUNT


def test_only_line_feeds_end_a_line(tmp_path):
    pictures(tmp_path, ['a.jpg', 'b.jpg'])
    (tmp_path / 'filenames.txt').write_bytes(b'\xef\xbb\xbfa.jpg\r\nb.jpg\r\n')
    (tmp_path / 'deu_Latn.txt').write_bytes('eins\u2028zwei\nb \x85 c\n'.encode())
    source = open_source(f'multilingual:{tmp_path}/*.txt')
    assert text_fields(source) == ('deu_Latn',)
    assert [source[i]['texts'] for i in range(2)] == [['eins\u2028zwei'], ['b \x85 c']]


@pytest.mark.parametrize('captions', [0, 1, 2])
def test_crossmodal_has_an_object_for_each_language(tmp_path, captions):
    source = open_source(crossmodal(tmp_path), captions=captions)
    assert text_fields(source) == ('en', 'de', 'quz')
    for k in range(COUNT):
        fields = {
            language: [f'{caption(k)} {n} {language}' for n in range(count)][: captions or None]
            for language, count in (('en', 2), ('de', 3), ('quz', 1))
            if (language, k) != ('quz', 4)
        }
        assert source[k]['image'] == picture(k) and source[k]['fields'] == fields


def test_other_layouts(tmp_path):
    spec = xtd10(tmp_path)
    (tmp_path / 'MIC/test_1kcaptions_de.txt').write_text('one\ntwo\n')
    assert '2 lines, but there are 10 names of images' in error_of(spec, root=str(tmp_path))
    (tmp_path / 'XTD10/test_1kcaptions_de.txt').write_text('\n'.join('0123456789'))
    (tmp_path / 'MIC/test_1kcaptions_de.txt').write_text('\n'.join('0123456789'))
    assert "another file has the captions of 'de' too" in error_of(spec, root=str(tmp_path))
    names_alone = f'multilingual:{tmp_path}/XTD10/test_image_names.txt'
    assert 'matches no file of captions' in error_of(names_alone)
    file = tmp_path / 'rows.jsonl'
    for row in {'image': 'x'}, {'image/key': 'x'}, {'image/key': 'x', 'en': {'caption': [1]}}:
        file.write_text(json.dumps(row))
        assert "rows.jsonl: line 1: expected 'image/key' and" in error_of(f'multilingual:{file}')
    assert 'names is for text files' in error_of(f'multilingual:{file}', names='x.txt')
    assert 'captions is -1; expected a number' in error_of(spec, captions=-1)
