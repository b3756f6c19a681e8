"""Makes tests/convert/fixtures/text_*.npz with open_clip and transformers.

    PYTHONPATH=tests python tests/reference/make_text_fixtures.py

Each file has the config, the weights (float16), tokens and the embeddings of a small random model.
`theirs` makes the models of tests/convert/test_text_references.py too.
"""

import json
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'vocab_size': 60}
SIZES |= {'intermediate_size': 24}
ROBERTA = {**SIZES, 'max_position_embeddings': 20, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5}
NLLB = {'d_model': 16, 'encoder_layers': 2, 'encoder_attention_heads': 4, 'vocab_size': 60}
NLLB |= {'encoder_ffn_dim': 24, 'max_position_embeddings': 20, 'activation_function': 'relu'}
NLLB |= {'decoder_layers': 1, 'decoder_attention_heads': 4, 'decoder_ffn_dim': 8}
NLLB |= {'scale_embedding': True}
LAST = 'cls_last_hidden_state_pooler'
# Model type of transformers, its config, hf_pooler_type, hf_proj_type.
KINDS = {
    'bert': ('bert', {**SIZES, 'max_position_embeddings': 16}, 'cls_pooler', 'mlp'),
    'bert_last': ('bert', {**SIZES, 'hidden_act': 'gelu_new'}, LAST, None),
    'roberta': ('roberta', {**ROBERTA, 'pad_token_id': 1}, 'mean_pooler', 'mlp'),
    'roberta_cls': ('roberta', {**ROBERTA, 'num_hidden_layers': 1}, 'cls_pooler', 'linear'),
    'xlm': ('xlm-roberta', {**ROBERTA, 'num_attention_heads': 2}, 'mean_pooler', 'linear'),
    'xlm_cls': ('xlm-roberta', ROBERTA, LAST, 'mlp'),
    'nllb': ('m2m_100', NLLB, 'cls_pooler', 'linear'),
    'nllb_mean': ('m2m_100', {**NLLB, 'encoder_layers': 1}, 'mean_pooler', 'mlp'),
}
FIXTURES = ('bert', 'roberta', 'xlm_cls', 'nllb')
VISION = {'image_size': 16, 'patch_size': 8, 'width': 8, 'layers': 1, 'head_width': 4}
PADS = {'bert': 0, 'roberta': 1, 'xlm-roberta': 1, 'm2m_100': 1}


def theirs(kind: str, folder: pathlib.Path) -> tuple[dict[str, Any], Any]:
    """Makes a random model of a kind: the `model_cfg`, and the model; `folder` gets config.json."""
    import open_clip
    import torch
    import transformers

    model_type, config, pooler, projection = KINDS[kind]
    transformers.AutoConfig.for_model(model_type, **config).save_pretrained(folder)
    text = {'hf_model_name': str(folder), 'hf_model_pretrained': False, 'context_length': 12}
    text |= {'hf_pooler_type': pooler, 'hf_proj_type': projection}
    settings = {'embed_dim': 16, 'vision_cfg': VISION, 'text_cfg': text, 'custom_text': True}
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(16, VISION, text).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((0.1 + 0.2 * torch.randn(parameter.shape)).half().float())
    return settings, model


def batches(pad_id: int) -> list[np.ndarray]:
    """Tokens without and with padding, and shorter than the context."""
    tokens = np.random.default_rng(0).integers(3, 60, (4, 12))
    padded = tokens.copy()
    for row, length in zip(padded, (2, 5, 11, 12), strict=True):
        row[length:] = pad_id
    return [tokens, padded, padded[:2, :7]]


def fixture(kind: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the content of a fixture."""
    import torch

    settings, model = theirs(kind, folder)
    settings['text_cfg']['hf_model_name'] = 'other'
    config = json.loads((folder / 'config.json').read_text())
    tokens = batches(PADS[KINDS[kind][0]])[1]
    with torch.no_grad():
        embedding = model.encode_text(torch.tensor(tokens)).numpy()
    weights = {f'weights/{k}': x.numpy().astype(np.float16) for k, x in model.state_dict().items()}
    settings, config = (np.array(json.dumps(x)) for x in (settings, config))
    return {
        **weights,
        'model_cfg': settings,
        'config': config,
        'tokens': tokens.astype(np.int32),
        'embedding': embedding,
    }


if __name__ == '__main__':
    import tempfile

    for name in FIXTURES:
        with tempfile.TemporaryDirectory() as scratch:
            made = fixture(name, pathlib.Path(scratch))
        np.savez_compressed(FOLDER / f'text_{name}.npz', allow_pickle=False, **made)
