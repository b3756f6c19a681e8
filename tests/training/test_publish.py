"""A run is published on a hub and comes back from there."""

import json

import numpy as np
import pytest
import yaml
from support.hub import hub  # noqa: F401
from support.layouts import equal

import clip_jax
from clip_jax.cli import main
from clip_jax.data import preprocess


def push(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main.main(['push', *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface', 'clip_jax'])
def test_what_was_pushed_loads_and_its_card_has_the_numbers_of_the_run(
    layout,
    hub,  # noqa: F811
    tiny_run,
    capsys,
):
    assert push(tiny_run, 'hf://me/tiny', f'--layout={layout}', '--license=mit') == 0
    one, other = clip_jax.load('hf://me/tiny'), clip_jax.load(tiny_run)
    assert equal(*({'params': x.variables['params']} for x in (one, other)))
    texts = ['a red picture', 'something blue']
    assert (one.encode_text(texts) == other.encode_text(texts)).all()
    repository = hub.repositories['me/tiny']
    files = repository.commits[repository.names['main']]
    assert not any('training/' in name for name in files)
    card = files['README.md'].decode()
    front = yaml.safe_load(card.split('---')[1])
    assert front['license'] == 'mit' and front['library_name'] in card
    report = json.loads((tiny_run / 'evals/zeroshot.json').read_text())
    for name, score in report['scores'].items():
        if score['unit'] == 'fraction':
            assert f'| {name} | {100 * score["value"]:.2f} % |' in card
    assert report['data'] in card and "clip_jax.load('hf://me/tiny')" in card
    assert f'in hf://me/tiny@{repository.names["main"]}' in capsys.readouterr().out


def test_a_dry_run_uploads_nothing(hub, tiny_run, capsys):  # noqa: F811
    assert push(tiny_run, 'hf://me/tiny', '--layout=open_clip', '--dry-run') == 0
    out = capsys.readouterr().out
    assert 'open_clip_model.safetensors' in out and '# tiny' in out and 'nothing was upl' in out
    assert 'License: not stated' in out and not hub.asked


@pytest.mark.parametrize(
    ('run', 'place', 'flags', 'line'),
    [
        ('{run}', 'hf://me/x@main', ['--layout=open_clip'], 'expected a repository alone'),
        ('{run}', 'me/x', ['--layout=open_clip'], 'expected hf://OWNER/NAME'),
        ('{run}', 'hf://me/x', ['--layout=open_clap'], "Did you mean 'open_clip'"),
        ('nowhere', 'hf://me/x', ['--layout=open_clip'], 'nowhere: no run directory; expected'),
        ('{run}', 'hf://me/x', ['--layout=open_clip'], 'the hub answered 401 (log in)'),
    ],
)
def test_wrong_input_is_one_line(run, place, flags, line, hub, tiny_run, capsys):  # noqa: F811
    hub.token = 'hf_right'
    assert push(run.format(run=tiny_run), place, *flags) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert line in said[-1] and 'Traceback' not in '\n'.join(said)


@pytest.mark.reference
@pytest.mark.parametrize('layout', ['open_clip', 'huggingface'])
def test_other_libraries_load_it_from_the_hub(layout, hub, tiny_run):  # noqa: F811
    import torch

    assert push(tiny_run, 'hf://me/tiny', f'--layout={layout}') == 0
    clip = clip_jax.load(tiny_run)
    size = clip.preprocess.size
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    tokens = clip.tokenizer(['a red picture', 'something blue'])
    pixels = preprocess.normalize(images, clip.preprocess.mean, clip.preprocess.std)
    pixels = torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))
    with torch.no_grad():
        if layout == 'open_clip':
            import open_clip

            model, _ = open_clip.create_model_from_pretrained('hf-hub:me/tiny')
            model.eval()  # it drops patches in training
            image = model.encode_image(pixels, normalize=True)
            text = model.encode_text(torch.tensor(tokens), normalize=True)
        else:
            import transformers

            found = transformers.AutoModel.from_pretrained('me/tiny').eval()(
                input_ids=torch.tensor(tokens), pixel_values=pixels
            )
            image, text = found.image_embeds, found.text_embeds
    np.testing.assert_allclose(image, clip.encode_image(images), atol=2e-5)
    np.testing.assert_allclose(text, clip.encode_text(tokens), atol=2e-5)
