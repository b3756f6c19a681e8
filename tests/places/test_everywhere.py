"""Where a checkpoint is named, it may be an address; the revision that was read is written down."""

import json

import pytest
from ml_collections import ConfigDict
from support.hub import hub  # noqa: F401

from clip_jax.cli import config_file, main
from clip_jax.training import loop, publish

ADDRESS = 'hf://me/tiny'


@pytest.fixture
def pinned(hub, tiny_run, tmp_path):  # noqa: F811
    """The address, with its commit, of `tiny_run` on the hub."""
    folder = tmp_path / 'pushed'
    publish.write(tiny_run, folder, 'clip_jax', name='me/tiny')
    files = [x for x in folder.rglob('*') if x.is_file()]
    sha = hub.add('me/tiny', {str(x.relative_to(folder)): x.read_bytes() for x in files})
    return f'{ADDRESS}@{sha}'


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main.main([str(x) for x in arguments])
    return end.value.code


def test_eval_a_suite_and_embed(pinned, tiny_run, tiny_tars, tmp_path):
    out = tmp_path / 'report.json'
    of_one = f'--model={ADDRESS}', f'--data={tiny_tars}'
    assert run('eval', 'retrieval', *of_one, f'--out={out}') == 0
    report = json.loads(out.read_text())
    assert report['model'] == pinned
    embedded = tmp_path / 'embedded'
    assert run('embed', *of_one, f'--out={embedded}') == 0
    assert json.loads((embedded / 'embeddings.json').read_text())['model'] == pinned
    (tmp_path / 'suite.py').write_text(f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{'tasks': {{'captions': {{'type': 'retrieval', 'data': {tiny_tars!r}}}}}}})
""")
    suite = tmp_path / 'suite'
    models = f'--model={ADDRESS}', f'--model={tiny_run}'
    assert run('eval', 'suite', f'--suite={tmp_path}/suite.py', *models, f'--out={suite}') == 0
    (report,) = (json.loads(x.read_text()) for x in suite.glob('hf*/captions.json'))
    assert report['model'] == pinned
    # Its class names are embedded by the model at the address that the embeddings name.
    zeroshot = [f'--data=embeddings:{embedded}', '--classes=red,green,blue,yellow']
    assert run('eval', 'zeroshot', *zeroshot) == 0


def test_a_run_says_from_what_it_began_and_what_taught_it(pinned, tiny_config, tmp_path):
    config = config_file.read(str(tiny_config)).unlock()
    config.total_steps, config.optimizer.warmup_steps = 2, 0
    config.init_from = ADDRESS
    config.distillation.teachers.tiny = ConfigDict({'path': ADDRESS, 'loss': 'mobileclip'})
    workdir = tmp_path / 'run'
    loop.train(config.lock(), workdir)
    assert json.loads((workdir / 'addresses.json').read_text()) == {ADDRESS: pinned}
    publish.write(workdir, tmp_path / 'x', 'clip_jax', name='me/x')
    assert f'* `{ADDRESS}`: `{pinned}`' in (tmp_path / 'x' / 'README.md').read_text()
