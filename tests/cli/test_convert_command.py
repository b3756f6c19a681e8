"""`clip-jax convert`: what is written and printed, and bad input."""

import functools
import json
import re

import numpy as np

import clip_jax


def test_a_run_is_exported(run, tiny_run, tmp_path):
    folder = tmp_path / 'exported'
    code, printed, _ = run('convert', tiny_run, folder, '--layout=huggingface')
    assert code == 0
    parameters = json.loads((tiny_run / 'summary.json').read_text())['parameters']
    assert f'{parameters:,} parameters; read back' in printed
    assert re.search(r'text/token_embedding/embedding +text_model\.embeddings\.token_emb', printed)
    assert "different: preprocess.rgb 'after' becomes 'white'" in printed
    assert f'in {folder}: config.json, model.safetensors, preprocessor_config.json' in printed
    # The exported checkpoint computes what the run does.
    texts = ['a red picture', 'something green']
    rows = [clip_jax.load(path).encode_text(texts) for path in (tiny_run, folder)]
    np.testing.assert_array_equal(*rows)


def test_what_cannot_be_converted(line, tiny_run, tmp_path):
    convert = functools.partial(line, 'convert')
    layout = '--layout=open_clip'
    assert 'no such file or folder' in convert(tmp_path / 'none', tmp_path / 'x', layout)
    assert 'exists; name a new folder' in convert(tiny_run, tmp_path, layout)
    assert "Did you mean 'open_clip'" in convert(tiny_run, tmp_path / 'x', '--layout=openclip')
    assert "there is no 'openai'" in convert(tiny_run, tmp_path / 'x', '--layout=openai')
    assert 'cannot hold this model' in convert(tiny_run, tmp_path / 'x', '--layout=big_vision')
    assert "there is no flag '--dtype=x'" in convert(tiny_run, tmp_path, layout, '--dtype=x')
    (tmp_path / 'x.pt').write_bytes(b'')
    assert 'found a file' in convert(tmp_path / 'x.pt', tmp_path / 'x', layout)
