"""Text encoders of transformers in open_clip's models: outputs, blocks, and the way back.

`pip install -e '.[reference]'` installs these libraries and PyTorch, and `pytest -m reference` runs
these tests; they are skipped if one is not installed.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from support.layouts import equal

from clip_jax import convert
from clip_jax.convert import _hf_text, open_clip
from clip_jax.models import clip

pytestmark = pytest.mark.reference
TOLERANCE = 2e-5
SIZES = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'vocab_size': 60}
SIZES |= {'intermediate_size': 48}
OF_ROBERTA = {**SIZES, 'max_position_embeddings': 20, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5}
OF_NLLB = {'d_model': 32, 'encoder_layers': 2, 'encoder_attention_heads': 4, 'vocab_size': 60}
OF_NLLB |= {'encoder_ffn_dim': 48, 'max_position_embeddings': 20, 'activation_function': 'relu'}
OF_NLLB |= {'decoder_layers': 1, 'decoder_attention_heads': 4, 'decoder_ffn_dim': 8}
OF_NLLB |= {'scale_embedding': True}
LAST = 'cls_last_hidden_state_pooler'
KINDS = {
    'bert': ('bert', {**SIZES, 'max_position_embeddings': 16}, 'cls_pooler', 'mlp'),
    'bert_last': (
        'bert',
        {**SIZES, 'hidden_act': 'gelu_new'},
        'cls_last_hidden_state_pooler',
        None,
    ),
    'roberta': ('roberta', {**OF_ROBERTA, 'pad_token_id': 1}, 'mean_pooler', 'mlp'),
    'roberta_cls': ('roberta', {**OF_ROBERTA, 'num_hidden_layers': 1}, 'cls_pooler', 'linear'),
    'xlm': ('xlm-roberta', {**OF_ROBERTA, 'num_attention_heads': 2}, 'mean_pooler', 'linear'),
    'xlm_cls': ('xlm-roberta', OF_ROBERTA, LAST, 'mlp'),
    'nllb': ('m2m_100', OF_NLLB, 'cls_pooler', 'linear'),
    'nllb_mean': ('m2m_100', {**OF_NLLB, 'encoder_layers': 1}, 'mean_pooler', 'mlp'),
}
VISION = {'image_size': 32, 'patch_size': 16, 'width': 32, 'layers': 1, 'head_width': 16}


@pytest.fixture(params=KINDS)
def theirs(request, tmp_path):
    """A folder of open_clip with random weights, and the model that they are from."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    library = pytest.importorskip('open_clip', reason='open_clip is not installed')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    from safetensors.torch import save_file

    kind, config, pooler, projection = KINDS[request.param]
    transformers.AutoConfig.for_model(kind, **config).save_pretrained(tmp_path)
    text = {'hf_model_name': str(tmp_path), 'hf_model_pretrained': False, 'context_length': 12}
    text |= {'hf_pooler_type': pooler, 'hf_proj_type': projection}
    settings = {'embed_dim': 32, 'vision_cfg': VISION, 'text_cfg': text, 'custom_text': True}
    torch.manual_seed(0)
    model = library.model.CustomTextCLIP(32, VISION, text).eval()
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.normal_(0.1, 0.2)
    content = {'model_cfg': settings, 'preprocess_cfg': {}}
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    save_file(state, tmp_path / open_clip.SAFETENSORS)
    return tmp_path, model, projection


def batches() -> list[np.ndarray]:
    """Tokens with and without padding, and shorter than the context."""
    tokens = np.random.default_rng(0).integers(3, 60, (4, 12)).astype(np.int64)
    padded = tokens.copy()
    for row, length in zip(padded, (2, 5, 11, 12), strict=True):
        row[length:] = -1
    return [tokens, padded, padded[:2, :7]]


def test_embeddings_and_blocks_are_equal(theirs):
    import torch

    folder, reference, _ = theirs
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    for tokens in batches():
        tokens = np.where(tokens < 0, card['model']['text']['pad_id'], tokens)
        is_text = tokens != card['model']['text']['pad_id']
        ours, state = model.apply(
            variables,
            jnp.asarray(tokens, jnp.int32),
            method='encode_text',
            capture_intermediates=True,
            mutable=['intermediates'],
        )
        with torch.no_grad():
            there = reference.text(torch.tensor(tokens))
            hidden = reference.text.transformer(
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(is_text).long(),
                output_hidden_states=True,
            ).hidden_states
        np.testing.assert_allclose(ours, there, atol=TOLERANCE, rtol=TOLERANCE)
        blocks = state['intermediates']['text']['transformer']
        # The last of transformers' states is after the final norm, where there is one.
        last = len(hidden) - 1 - (card['model']['text']['name'] == 'nllb')
        for i in range(last):
            found = blocks[f'block_{i}']['__call__'][0]
            expected = hidden[i + 1].numpy()
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_is_written_is_what_was_read(theirs, tmp_path, monkeypatch):
    folder, reference, _ = theirs
    card, variables = convert.read(folder)
    text = card['model']['text']
    known = {k: v for k, v in text.items() if k in (*_hf_text.KNOWN['roberta-base'], 'numbering')}
    monkeypatch.setattr(_hf_text, 'KNOWN', {str(folder): known})
    convert.write(tmp_path / 'again', 'open_clip', card, variables)
    assert equal(convert.read(tmp_path / 'again')[1], variables)
    import open_clip as library
    from safetensors.torch import load_file

    state = load_file(tmp_path / 'again' / open_clip.SAFETENSORS)
    config = json.loads((tmp_path / 'again' / open_clip.CONFIG).read_text())['model_cfg']
    config.pop('custom_text')
    again = library.model.CustomTextCLIP(**config)
    again.load_state_dict(state, strict=True)
    for name, array in reference.state_dict().items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
