"""Hidden states and attention of small models of transformers, of random weights.

    PYTHONPATH=tests python tests/reference/hidden_states.py

writes those of FIXTURES to tests/convert/fixtures/hidden_*.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
FIXTURES = ('clip', 'siglip')
SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}
SIZES |= {'intermediate_size': 24}
VISION = {**SIZES, 'image_size': 16, 'patch_size': 8}
TEXT = {**SIZES, 'vocab_size': 40, 'max_position_embeddings': 6}
# The type of the model and what it changes of both configs.
MODELS = {
    'clip': ('clip', {}),
    'siglip': ('siglip', {'num_attention_heads': 4}),
    'metaclip_2': ('metaclip_2', {'num_hidden_layers': 3, 'eos_token_id': 2}),
    'siglip2': ('siglip', {'hidden_act': 'gelu', 'num_hidden_layers': 1}),
}


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a random model of transformers, inputs, and what it computes of them."""
    import torch
    import transformers

    kind, changes = MODELS[name]
    vision, text = {**VISION, **changes}, {**TEXT, **changes}
    text |= {'eos_token_id': text.get('eos_token_id', 39), 'projection_size': 16}
    more = {} if kind == 'siglip' else {'projection_dim': 12}
    config = transformers.AutoConfig.for_model(kind, vision_config=vision, text_config=text, **more)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation='eager').eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x))
    images, tokens = inputs(text['eos_token_id'])
    asked = {'output_hidden_states': True, 'output_attentions': True}
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        of_image = model.vision_model(pixel_values=pixels, **asked)
        of_text = model.text_model(input_ids=torch.tensor(tokens).long(), **asked)
        last = of_image.last_hidden_state
        if kind != 'siglip':  # there it is before the last norm, which it applies to the pooled one
            last = model.vision_model.post_layernorm(last)[:, 1:]
    found = {'images': images, 'tokens': tokens, 'patches': last}
    found |= {'image': of_image.pooler_output, 'last': of_text.last_hidden_state}
    for tower, output in (('image', of_image), ('text', of_text)):
        found |= {f'{tower}_attention_{i}': x for i, x in enumerate(output.attentions)}
        found |= {f'{tower}_block_{i}': x for i, x in enumerate(output.hidden_states[1:])}
    model.save_pretrained(folder)
    np.savez_compressed(folder / 'expected.npz', **{k: np.asarray(x) for k, x in found.items()})


def inputs(end: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images [2, 16, 16, 3], and texts of 6 tokens with one end token."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    tokens = rng.integers(3, 38, (2, 6))
    tokens[:, 4:] = end
    return images, tokens.astype(np.int32)


if __name__ == '__main__':
    for name in FIXTURES:
        write(FOLDER / f'hidden_{name}', name)
