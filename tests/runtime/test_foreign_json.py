"""JSON of others: what fits its schema is returned, anything else is an error in one line."""

import json

import pytest

from clip_jax.runtime import foreign_json
from clip_jax.runtime.foreign_json import ANY

SCHEMA = {
    'size': (int, {'height': int, 'width': int}),
    'mean': ([float], None),
    'name': str,
    'flag': bool,
    'map': {ANY: str},
}


@pytest.mark.parametrize(
    'content',
    [
        {},
        {'size': 3, 'mean': [1, 0.5], 'name': 'é', 'flag': True, 'map': {'a': 'b'}, 'other': [{}]},
        {'size': {'height': 3, 'width': 4, 'depth': 'any'}, 'mean': None},
    ],
)
def test_content_that_fits_is_returned(tmp_path, content):
    file = tmp_path / 'x.json'
    file.write_text(json.dumps(content), encoding='utf-8')
    assert foreign_json.read(file, SCHEMA) == content


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'not valid JSON'),
        ('{"a": 1', 'not valid JSON'),
        ('[1]', 'expected an object'),
        ('{"size": true}', 'size is True; expected an integer or an object'),
        ('{"size": {"height": 2.5}}', 'size is an object of 1; expected'),
        ('{"size": 1e400}', 'size is inf'),
        ('{"size": ' + '9' * 30 + '}', 'size is 9999'),
        ('{"size": ' + '9' * 5000 + '}', 'not valid JSON'),
        ('{"mean": 5}', 'mean is 5; expected a list of values, each a number or null'),
        ('{"mean": [NaN]}', 'mean is a list of 1'),
        ('{"mean": [true]}', 'mean is a list of 1'),
        ('{"name": null}', 'name is None; expected a text'),
        ('{"map": {"a": 1}}', 'map: a is 1; expected a text'),
        ('{"a":' * 101 + '1' + '}' * 101, 'nested too deeply'),
        ('[' * 100_000, 'nested too deeply'),
    ],
)
def test_anything_else_is_an_error_in_one_line(tmp_path, text, message):
    file = tmp_path / 'x.json'
    file.write_text(text)
    with pytest.raises(ValueError, match=r'x\.json') as error:
        foreign_json.read(file, SCHEMA)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_text_that_is_not_utf8_and_files_that_are_too_large(tmp_path, monkeypatch):
    file = tmp_path / 'x.json'
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match='not valid JSON'):
        foreign_json.read(file)
    monkeypatch.setattr(foreign_json, 'MOST_BYTES', 10)
    file.write_bytes(b'{"a": "abc"}')
    with pytest.raises(ValueError, match='has 12 bytes; at most 10 of JSON'):
        foreign_json.read(file)
