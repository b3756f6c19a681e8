"""A program that compiles layers for CUDA GPUs that are not there, with JAX's CUDA plugin.

It prints a JSON object: for each case how many forward and backward calls of cuDNN the compiled
program has, and of a step whether it keeps arrays in the host's memory; of layer normalization, the
kernels that write a float32 array of the size of its input.
`python compile_cudnn.py attention CHIP | step CHIP TOKENS | norm CHIP`.
"""

import functools
import itertools
import json
import sys

from clip_jax.planning import gpu

gpu.prepare()  # before JAX starts

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from clip_jax import build, lookup, sharding  # noqa: E402
from clip_jax.data import preprocess  # noqa: E402
from clip_jax.models import clip, layers  # noqa: E402
from clip_jax.models.attention import attend  # noqa: E402
from clip_jax.planning import program  # noqa: E402
from clip_jax.step import state, train_step  # noqa: E402
from clip_jax.training import config_schema  # noqa: E402

LENGTHS = 50, 77, 197, 257, 577
SIDES = {50: 7, 77: 7, 197: 14, 257: 16, 577: 24}  # patches; no image has 77 tokens
BATCH = 8


def calls(compiled) -> list[int]:
    """The forward and backward calls of cuDNN in a program."""
    lines = compiled.as_text().splitlines()
    targets = [line for line in lines if 'custom_call_target="__cudnn$fmha' in line]
    backward = sum('Backward' in line for line in targets)
    return [len(targets) - backward, backward]


def attention(mesh: Mesh) -> dict[str, list[int]]:
    found, place = {}, NamedSharding(mesh, PartitionSpec())
    for length, causal, masked in itertools.product(LENGTHS, (False, True), (False, True)):
        x = jax.ShapeDtypeStruct((BATCH, length, 12, 64), jnp.bfloat16, sharding=place)
        mask = jax.ShapeDtypeStruct((BATCH, 1, 1, length), bool, sharding=place)

        def loss(query, key, value, mask, causal=causal, masked=masked):
            out = attend(
                query, key, value, mask if masked else None, causal=causal, implementation='auto'
            )
            return out.astype(jnp.float32).sum()

        with jax.set_mesh(mesh):
            lowered = jax.jit(jax.grad(loss)).lower(x, x, x, mask)
        found[f'{length} causal={causal} masked={masked}'] = calls(lowered.compile())
    return found


def norm(mesh: Mesh) -> dict[str, list[str]]:
    """The gradient of layer normalization, of Flax's and of ours, before a residual addition."""
    place = NamedSharding(mesh, PartitionSpec())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    x, vector = shape((128, 197, 768), jnp.bfloat16), shape((768,), jnp.float32)
    found = {}
    for name, kind in (('plain', nn.LayerNorm), ('ours', layers.Norm)):
        layer = kind(use_fast_variance=False, dtype=jnp.bfloat16)

        def gradients(params, x, gradient, layer=layer):
            _, back = jax.vjp(lambda params, x: layer.apply({'params': params}, x), params, x)
            to_params, to_x = back(gradient)
            return to_params, to_x + gradient

        with jax.set_mesh(mesh):
            lowered = jax.jit(gradients).lower({'scale': vector, 'bias': vector}, x, x)
        runs = program.read(lowered.compile().as_text()).scheduled()
        found[name] = [
            run.instruction.name
            for run in runs
            if run.instruction.opcode == 'fusion'
            and any(one.dtype == 'f32' and one.shape == x.shape for one in run.instruction.results)
        ]
    return found


def step(mesh: Mesh, tokens: str) -> dict[str, list[int]]:
    """The train step, whose program is the same with `auto` and with `cudnn`."""
    found = {}
    for remat, masked in itertools.product(layers.REMAT, (False, True)):
        auto, cudnn = (_lowered(mesh, int(tokens), remat, masked, x) for x in ('auto', 'cudnn'))
        assert auto.as_text() == cudnn.as_text()
        compiled = auto.compile()
        on_host = compiled.memory_analysis().host_temp_size_in_bytes > 0
        found[f'{remat} masked={masked}'] = [*calls(compiled), on_host]
    return found


def _lowered(mesh: Mesh, tokens: int, remat: str, masked: bool, attention: str):
    """The scanned train step of a small model with as many tokens of images and texts."""
    small = {'width': 128, 'depth': 2, 'heads': 2, 'mlp_dim': 256}
    text = {'pool': 'cls', 'causal': False} if masked else {}
    length = tokens - masked  # without the class token
    card = {
        'image': {'name': 'vit', 'image_size': 2 * SIDES[tokens], 'patch_size': 2, **small},
        'text': {'name': 'transformer', 'vocab_size': 80, 'context_length': length, 'eot_id': 3}
        | small
        | text,
        'embed_dim': 16,
    }
    card = {**lookup.module('losses', 'softmax').INIT, **card}
    model = build.model(card, 'bfloat16', remat=remat, scan=True, attention=attention)
    options, params = config_schema.defaults().optimizer, clip.shapes(model)['params']
    optimizer = build.optimizer(options, params, 10_000)
    loss = build.loss({'name': 'softmax', 'implementation': 'gather', 'block_size': 8}, mesh)
    statistics = {'mean': preprocess.CLIP_MEAN, 'std': preprocess.CLIP_STD, 'microbatches': 1}
    function = train_step.bind_step(model, loss, optimizer, **statistics)
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.over_batch(mesh))
    batch = {
        'image': rows((BATCH, *[2 * SIDES[tokens]] * 2, 3), jnp.uint8),
        'tokens': rows((BATCH, length), jnp.int32),
    }
    shapes = state.abstract_state(model, optimizer, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(shapes, batch)


def main(what: str, chip: str, *options: str) -> None:
    mesh = sharding.make_mesh(gpu.devices(chip, '1'))
    print(json.dumps({'attention': attention, 'norm': norm, 'step': step}[what](mesh, *options)))


if __name__ == '__main__':
    main(*sys.argv[1:])
