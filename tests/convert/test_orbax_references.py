"""OpenVision's Orbax checkpoints embed as open_clip does with the files that OpenVision publishes.

`pip install -e '.[reference]'` installs open_clip, and `pytest -m reference` runs this test.
"""

import copy

import numpy as np
import pytest
from safetensors.numpy import load
from support import orbax_trees

import clip_jax
from clip_jax.convert import open_clip

pytestmark = pytest.mark.reference


def test_openvision_embeds_as_open_clip_does(tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    library = pytest.importorskip('open_clip', reason='open_clip is not installed')
    files = orbax_trees.openvision_files()
    (tmp_path / open_clip.CONFIG).write_bytes(files[open_clip.CONFIG])
    orbax_trees.save(tmp_path / 'x' / '7', orbax_trees.state(orbax_trees.openvision()))
    ours = clip_jax.load(tmp_path / 'x')

    model = library.CLIP(**copy.deepcopy(orbax_trees.CONFIG['model_cfg'])).eval()
    weights = load(files[open_clip.SAFETENSORS])
    model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in weights.items()})
    images = np.random.default_rng(2).integers(0, 255, (2, 48, 48, 3), np.uint8)
    tokens = np.arange(18, dtype=np.int32).reshape(2, 9)
    mean, std = (np.asarray(orbax_trees.CONFIG['preprocess_cfg'][x]) for x in ('mean', 'std'))
    pixels = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(pixels), normalize=True).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long(), normalize=True).numpy()
    np.testing.assert_allclose(ours.encode_image(images), image, atol=2e-5)
    np.testing.assert_allclose(ours.encode_text(tokens), text, atol=2e-5)
