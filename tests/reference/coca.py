"""Small CoCa models of open_clip's own classes, with logits and captions of its own decoder."""

import json
import pathlib
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
START, END = 18, 19
TEXT = {'context_length': 9, 'vocab_size': 20, 'width': 8, 'heads': 2, 'layers': 2}
POOLER = {'attentional_pool': True, 'attn_pooler_queries': 4, 'attn_pooler_heads': 2}
# The sizes of coca_ViT-B-32 (pooler of another width) and of coca_base (LayerScale is ours).
CONFIGS: dict[str, dict[str, Any]] = {
    'coca_wide': {
        'embed_dim': 8,
        'vision_cfg': {'image_size': 16, 'patch_size': 8, 'layers': 2, 'width': 12, **POOLER},
        'text_cfg': {**TEXT, 'embed_cls': True},
        'multimodal_cfg': {**TEXT, 'attn_pooler_heads': 2},
    },
    'coca_equal': {
        'embed_dim': 8,
        'quick_gelu': True,
        'vision_cfg': {'image_size': 12, 'patch_size': 4, 'layers': 1, 'width': 8, **POOLER},
        'text_cfg': {**TEXT, 'layers': 1, 'embed_cls': True, 'pad_id': 0},
        'multimodal_cfg': {**TEXT, 'layers': 3, 'heads': 4, 'ls_init_value': 0.1},
    },
}
MODELS = tuple(CONFIGS)
SEEDS = {'coca_wide': 6, 'coca_equal': 10}  # with captions of several lengths
LENGTH, MIN_LENGTH = 8, 3  # of generated captions


def config_of(name: str) -> dict[str, Any]:
    """The `model_cfg` of a small model, as open_clip's classes take it."""
    config = json.loads(json.dumps(CONFIGS[name]))
    for tower in ('vision_cfg', 'text_cfg'):
        config[tower] |= {'output_tokens': True}
    config['vision_cfg'] |= {'head_width': 4}
    return config


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Six images [6, H, W, 3] and six texts with padding, one with the padding token inside."""
    rng, size = np.random.default_rng(0), CONFIGS[name]['vision_cfg']['image_size']
    tokens = rng.integers(1, START, (6, TEXT['context_length']))
    tokens[:, 0] = START
    for i, row in enumerate(tokens):
        row[3 + i % 6] = END
        row[4 + i % 6 :] = 0
    tokens[5, 2] = 0
    images = rng.normal(size=(6, size, size, 3)).astype(np.float32)
    return images, tokens.astype(np.int32)


def made(name: str) -> Any:
    """open_clip's model with random weights."""
    import torch
    import transformers
    from open_clip import coca_model
    from open_clip.coca_model import CoCa

    # Newer releases of transformers have no beam search for it; the rest is there.
    coca_model._has_transformers = True
    coca_model.GENERATION_TYPES['top_k'] = transformers.TopKLogitsWarper
    torch.manual_seed(SEEDS[name])
    model = CoCa(**config_of(name)).eval()
    with torch.no_grad():
        for key, x in model.named_parameters():
            if key == 'text_decoder.text_projection':
                x.copy_(torch.randn_like(x))  # open_clip leaves it as it was in memory
            else:
                x.add_(0.3 * torch.randn_like(x))
    return model.half().float()  # the files are of half the size


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a small model with random weights, its teacher-forced logits and its greedy captions
    into a folder.
    """
    import torch
    from safetensors.torch import save_file

    model = made(name)
    images, tokens = inputs(name)
    pictures = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        found = model(pictures, torch.tensor(tokens).long(), output_labels=False)
        captions = model.generate(
            pictures,
            seq_len=LENGTH,
            min_seq_len=MIN_LENGTH,
            generation_type='top_k',
            top_k=1,
            sot_token_id=START,
            eos_token_id=END,
            fixed_output_length=True,
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: x.half() for key, x in model.state_dict().items()}
    save_file(weights, folder / 'open_clip_model.safetensors')
    preprocess = {'mean': [0.0] * 3, 'std': [1.0] * 3}
    about = {'model_cfg': {**config_of(name), 'custom_text': True}, 'preprocess_cfg': preprocess}
    (folder / 'open_clip_config.json').write_text(json.dumps(about, indent=1) + '\n')
    np.savez_compressed(
        folder / 'expected.npz',
        image=found['image_features'].numpy(),
        text=found['text_features'].numpy(),
        logits=found['logits'].numpy(),
        captions=captions.numpy().astype(np.int32),
    )


if __name__ == '__main__':
    for name in MODELS:
        write(FIXTURES / name, name)
