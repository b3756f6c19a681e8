"""No network is used unless a name or an address was given."""

import socket

import pytest

from clip_jax.cli import config_file, main
from clip_jax.training import loop


@pytest.fixture
def tried(monkeypatch) -> list:
    """What was tried to be reached; every connection and every lookup of a name fails."""
    tried: list = []

    def refused(*args, **options):
        tried.append(args)
        raise OSError('no network in this test')

    class Socket(socket.socket):
        connect = connect_ex = refused

    for name in ('getaddrinfo', 'create_connection', 'gethostbyname'):
        monkeypatch.setattr(socket, name, refused)
    monkeypatch.setattr(socket, 'socket', Socket)
    return tried


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main.main([str(x) for x in arguments])
    return end.value.code


def test_train_eval_and_embed(tiny_config, tiny_run, tiny_tars, tmp_path, tried):
    config = config_file.read(str(tiny_config)).unlock()
    config.total_steps, config.optimizer.warmup_steps = 2, 0
    config.init_from = str(tiny_run)
    loop.train(config.lock(), tmp_path / 'run')
    assert run('eval', 'retrieval', f'--model={tiny_run}', f'--data={tiny_tars}') == 0
    out = tmp_path / 'embedded'
    assert run('embed', f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}') == 0
    assert run('convert', tiny_run, tmp_path / 'converted', '--layout=open_clip') == 0
    assert not tried


def test_a_name_is_tried_and_one_line_says_that_it_failed(tried, capsys, tmp_path):
    assert run('convert', 'ViT-B-32/openai', tmp_path / 'x', '--layout=huggingface') == 1
    assert tried
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'hf://timm/vit_base_patch32_clip_224.openai: not all of it is cached' in line
