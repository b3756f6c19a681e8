"""A config's train step in PyTorch, to compare with: the same sizes, loss and optimizer."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ACTIVATIONS = {
    'gelu': functional.gelu,
    'gelu_tanh': lambda x: functional.gelu(x, approximate='tanh'),
    'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),
}
TAKEN = {'image': ('cls',), 'text': ('eot', 'last')}  # kinds of pooling


def runner(config: Any, model: Any) -> tuple[str, Callable[[], float]]:
    """Makes the step: open_clip's model for a preset, else one of plain modules.

    Args:
        config: the config of a run.
        model: its models.clip.CLIP.

    Returns:
        What it is, and a function that takes a step with random input and returns the loss.

    Raises:
        ValueError: open_clip is missing, or the model has a part that this module does not.
    """
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if config.model.preset:
        name, forward = 'PyTorch, open_clip', published(config.model.preset)
    else:
        refuse(model)
        name, forward = 'PyTorch, the same sizes', Clip(model)
    return name, step(config, model, forward.to(device).train(), device)


def step(config: Any, model: Any, forward: Any, device: str) -> Callable[[], float]:
    """A function that takes one step with random input: compiled and in bfloat16 on a GPU."""
    options, sigmoid = config.optimizer, config.loss.name == 'sigmoid'
    decayed = [p for p in forward.parameters() if p.ndim > 1]
    others = [p for p in forward.parameters() if p.ndim < 2]
    groups = [
        {'params': decayed, 'weight_decay': options.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
    if options.name != 'adamw':
        raise ValueError(f'optimizer {options.name}: the PyTorch step has only adamw')
    adamw = {'betas': (options.b1 or 0.9, options.b2 or 0.98), 'eps': options.eps or 1e-6}
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True, **adamw)
    size, length = model.image.image_size, model.text.context_length
    images = torch.rand(config.batch_size, 3, size, size, device=device)
    tokens = torch.randint(1, 100, (config.batch_size, length), device=device)
    tokens[:, -1] = model.text.eot_id or 0
    positives = torch.arange(config.batch_size, device=device)
    signs = 2 * torch.eye(config.batch_size, device=device) - 1
    compiled = torch.compile(forward) if device == 'cuda' else forward

    def loss(image: Any, text: Any, scale: Any) -> Any:
        logits = scale * image @ text.T
        if sigmoid:
            return -functional.logsigmoid(signs * logits).sum() / len(logits)
        entropy = functional.cross_entropy
        return (entropy(logits, positives) + entropy(logits.T, positives)) / 2

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            value = loss(*compiled(images, tokens)[:3])
        value.backward()
        nn.utils.clip_grad_norm_(forward.parameters(), options.grad_clip_norm or math.inf)
        optimizer.step()
        return value.item()

    return run


def published(preset: str) -> Any:
    """open_clip's model of that name, with random weights."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError("--torch: install open_clip: pip install 'clipax[reference]'") from error
    return open_clip.create_model(preset)


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, sizes: Any, causal: bool):
        super().__init__()
        width, self.heads, self.causal = sizes.width, sizes.heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width, sizes.norm_eps) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.ModuleList([nn.Linear(width, sizes.mlp_dim), nn.Linear(sizes.mlp_dim, width)])
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
        attention = functional.scaled_dot_product_attention(
            *qkv.permute(2, 0, 3, 1, 4), is_causal=self.causal
        )
        x = x + self.out(attention.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp[1](self.activation(self.mlp[0](self.norms[1](x))))


def blocks(sizes: Any, causal: bool) -> nn.Sequential:
    """The blocks of a tower."""
    return nn.Sequential(*(Block(sizes, causal) for _ in range(sizes.depth)))


class Image(nn.Module):
    """A ViT with a class token."""

    def __init__(self, sizes: Any):
        super().__init__()
        self.dropped, width, size = sizes.patch_dropout, sizes.width, sizes.patch_size
        self.patch = nn.Conv2d(3, width, size, size, bias=sizes.patch_bias)
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        table = torch.randn((sizes.image_size // size) ** 2 + 1, width) * width**-0.5
        self.positions = nn.Parameter(table, requires_grad=sizes.positions == 'learned')
        self.pre_norm = nn.LayerNorm(width) if sizes.pre_norm else nn.Identity()
        self.blocks, self.norm = blocks(sizes, False), nn.LayerNorm(width)

    def forward(self, images: Any) -> Any:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self.positions
        if self.dropped:
            count = x.shape[1] - 1
            kept = max(1, round(count * (1 - self.dropped)))
            chosen = torch.rand(len(x), count, device=x.device).topk(kept).indices
            patches = x[:, 1:].gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], patches], 1)
        return self.norm(self.blocks(self.pre_norm(x))[:, 0])


class Text(nn.Module):
    """A text transformer."""

    def __init__(self, sizes: Any):
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(sizes.context_length, sizes.width) * 0.01)
        self.blocks, self.norm = blocks(sizes, sizes.causal), nn.LayerNorm(sizes.width)

    def forward(self, tokens: Any) -> Any:
        x = self.blocks(self.embedding(tokens) + self.positions)
        end = -torch.ones(len(tokens), dtype=torch.long, device=x.device)
        if self.sizes.pool == 'eot':
            end = (tokens == self.sizes.eot_id).int().argmax(1)
        return self.norm(x[torch.arange(len(x), device=x.device), end])


class Clip(nn.Module):
    """A model of plain modules with the sizes of ours."""

    def __init__(self, model: Any):
        super().__init__()
        self.image, self.text = Image(model.image), Text(model.text)
        self.projections = nn.ModuleList(
            nn.Linear(sizes.width, model.embed_dim, bias=False)
            for sizes in (model.image, model.text)
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Any, tokens: Any) -> tuple:
        towers = self.image(images), self.text(tokens)
        embeddings = (f(x) for f, x in zip(self.projections, towers, strict=True))
        normalized = (functional.normalize(x, dim=-1) for x in embeddings)
        return *normalized, self.logit_scale.exp()


def refuse(model: Any) -> None:
    """Raises ValueError for a model that Clip cannot have the sizes of."""
    for tower, pools in TAKEN.items():
        sizes = getattr(model, tower)
        pool = getattr(sizes, 'pool', type(sizes).__name__)
        if pool not in pools:
            raise ValueError(f'--torch: {tower}: expected pool {" or ".join(pools)}, found {pool}')
        if sizes.dropout or sizes.layer_scale:
            raise ValueError(f'--torch: {tower}: dropout and layer_scale are not compared')
