"""A checkpoint of adapters is small, and what is exported of it are the merged weights.

`pip install -e '.[reference]'` installs open_clip, transformers and PyTorch, and `pytest -m
reference` runs the tests that compare with them.
"""

import jax
import numpy as np
import pytest
from support.runs import command, train

import clip_jax
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip
from clip_jax.pretrained import loaded
from clip_jax.tokenizers import bpe

WIDE = {'width': 256, 'depth': 1, 'heads': 4, 'mlp_dim': 1024, 'activation': 'quick_gelu'}
MODEL = {
    'image': {'name': 'vit', 'image_size': 32, 'patch_size': 16, **WIDE},
    'text': {
        'name': 'transformer',
        'vocab_size': 49_408,
        'context_length': 16,
        'eot_id': 49_407,
        **WIDE,
    },
    'embed_dim': 64,
}


@pytest.fixture(scope='module')
def runs(tiny_config, tmp_path_factory):
    """A model, and a run of two steps with adapters of it."""
    folder = tmp_path_factory.mktemp('wide')
    model, rng = clip.from_card(MODEL), np.random.default_rng(0)
    card = {
        'model': clip.to_card(model),
        'preprocess': Preprocess(32).card,
        'tokenizer': bpe.Tokenizer(16).card,
    }
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), clip.shapes(model)
    )
    loaded.write(folder / 'base', card, variables)
    config = tiny_config.with_name('adapted.py')
    config.write_text("""
import tiny

def get_config():
    c = tiny.get_config().unlock()
    c.model.image.update(image_size=None, patch_size=None, patch_dropout=None)
    for tower in (c.model.image, c.model.text):
        tower.update(width=None, depth=None, heads=None, mlp_dim=None)
    c.model.embed_dim = None
    return c.lock()
""")
    changes = 'lora.image.rank=4', 'lora.text.rank=4', 'total_steps=2', 'optimizer.warmup_steps=0'
    changes += 'optimizer.learning_rate=0.05', f'init_from={folder / "base"}'
    done = train(config, folder / 'run', *changes)
    assert done.returncode == 0, done.stderr
    return folder / 'base', folder / 'run'


def size(folder) -> int:
    return sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())


def embedded(path) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Images and tokens, and their embeddings by a model."""
    model, rng = clip_jax.load(path), np.random.default_rng(1)
    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    tokens = np.asarray(model.tokenizer(['a red picture', 'two cats', 'a dog ' * 20]))
    return images, tokens, jax.jit(model.model.apply)(model.variables, images, tokens)[:2]


@pytest.mark.slow
def test_a_checkpoint_of_adapters_is_small(runs):
    base, run = runs
    whole, adapters = size(base / 'checkpoints/0'), size(run / 'checkpoints/2')
    # With the optimizer's state, against the weights alone.
    assert adapters < 0.05 * whole, (adapters, whole)


def assert_exported(runs, theirs) -> None:
    """The embeddings of a reference library are those of the merged model, not of the base."""
    base, run = (embedded(path)[2] for path in runs)
    for here, there, without in zip(run, theirs, base, strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=2e-5)
        assert np.abs(here - without).max() > 1e-3


@pytest.mark.reference
def test_open_clip_loads_the_merged_model(runs, tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    done = command('convert', runs[1], tmp_path / 'x', '--layout=open_clip')
    assert done.returncode == 0, done.stderr
    images, tokens, _ = embedded(runs[1])
    model = open_clip.create_model(f'local-dir:{tmp_path / "x"}').eval()
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2)), normalize=True)
        text = model.encode_text(torch.tensor(tokens).long(), normalize=True)
    assert_exported(runs, (image, text))


@pytest.mark.reference
def test_transformers_loads_the_merged_model(runs, tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    done = command('convert', runs[1], tmp_path / 'x', '--layout=huggingface')
    assert done.returncode == 0, done.stderr
    images, tokens, _ = embedded(runs[1])
    model = transformers.AutoModel.from_pretrained(tmp_path / 'x').eval()
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
        )
    assert_exported(runs, (found.image_embeds, found.text_embeds))
