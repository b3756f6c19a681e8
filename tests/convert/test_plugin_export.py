"""Export of models whose tokenizer or encoder is a plug-in of another package."""

import json
import sys

import pytest
from support.small_models import made

from clip_jax import convert

TOKENIZER = """
import pathlib


class Tokenizer:
    vocab_size, eot_id, pad_id = 60, 3, 0

    def __init__(self, context_length):
        self.context_length = context_length

    @property
    def card(self):
        return {'name': __name__, 'context_length': self.context_length}

    @classmethod
    def from_card(cls, card):
        return cls(card['context_length'])

    def save(self, folder):
        (pathlib.Path(folder) / 'letters.txt').write_text('a b c')
"""
HF_CONFIG = """
    def hf_config(self, folder):
        (pathlib.Path(folder) / 'tokenizer.json').write_text('{}')
        return {'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<pad>'}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a tokenizer module and returns its card."""

    def plugin(name: str, text: str) -> dict:
        package = tmp_path / f'exported_{name}'
        package.mkdir()
        (package / '__init__.py').write_text('')
        (package / 'letters.py').write_text(text)
        return {'name': f'exported_{name}.letters', 'context_length': 9}

    monkeypatch.syspath_prepend(str(tmp_path))
    yield plugin
    for name in [name for name in sys.modules if name.startswith('exported_')]:
        del sys.modules[name]


@pytest.mark.parametrize('layout', ['huggingface', 'open_clip'])
def test_a_tokenizer_with_hf_config_is_exported(tmp_path, plugin, layout):
    card = plugin('full', TOKENIZER + HF_CONFIG)
    folder = tmp_path / 'x'
    convert.write(folder, layout, *made('clip', tokenizer=card))
    assert {'letters.txt', 'tokenizer.json'} <= {path.name for path in folder.iterdir()}
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    expected = {'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<pad>'}
    assert config == {'model_max_length': 9, **expected}
    assert convert.read(folder)[0]['tokenizer'] == card


def test_a_tokenizer_without_hf_config_is_exported_for_clip_jax_only(tmp_path, plugin, caplog):
    card = plugin('bare', TOKENIZER)
    folder = tmp_path / 'x'
    convert.write(folder, 'huggingface', *made('clip', tokenizer=card))
    assert not {'tokenizer.json', 'tokenizer_config.json'} & {
        path.name for path in folder.iterdir()
    }
    assert convert.read(folder)[0]['tokenizer'] == card
    (record,) = caplog.records
    assert 'exported_bare.letters' in record.getMessage() and 'hf_config' in record.getMessage()


def test_an_encoder_of_another_package_is_refused_and_nothing_left(tmp_path):
    card, variables = made('clip')
    card['model'] = {**card['model'], 'image': {'name': 'my_package.my_encoder'}}
    with pytest.raises(ValueError, match=r'open_clip .*my_package\.my_encoder'):
        convert.write(tmp_path / 'x', 'open_clip', card, variables)
    assert not any(tmp_path.iterdir())


def test_a_folder_does_not_choose_which_code_runs(tmp_path, plugin):
    ran = tmp_path / 'ran'
    card = plugin('trap', f'open({str(ran)!r}, "w")\n{TOKENIZER}')
    folder = tmp_path / 'x'
    convert.write(folder, 'open_clip', *made('clip'))
    (folder / 'tokenizer_card.json').write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r'import it before: import exported_trap\.letters'):
        convert.read(folder)
    assert not ran.exists()
    __import__(card['name'])
    assert convert.read(folder)[0]['tokenizer'] == card
