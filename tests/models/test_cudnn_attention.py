"""cuDNN's attention takes any number of tokens and any mask, on GPUs that need not be here."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.process import environment

from clip_jax.models import attention, cudnn_attention
from clip_jax.planning import gpu

PROGRAM = Path(__file__).parents[1] / 'support' / 'compile_cudnn.py'
MASKS = {
    'none': None,
    'keys': (3, 1, 1, 0),
    'shared': (1, 1, 0, 0),
    'two axes': (0, 0),
    'heads': (3, 2, 0, 0),
}


@pytest.fixture
def by_xla(monkeypatch):
    """Has XLA compute what cuDNN would: the same arguments in the same order."""
    plain = jax.nn.dot_product_attention

    def attention(query, key, value, *, implementation, **options):
        assert implementation == 'cudnn'
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        if (mask := options.get('mask')) is not None:
            assert mask.shape[0] == 3 and mask.shape[2:] == (query.shape[1], key.shape[1])
        return plain(query, key, value, **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', attention)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('kind', MASKS)
@pytest.mark.parametrize('length', [16, 17])
def test_padding_changes_neither_values_nor_gradients(by_xla, length, kind, causal):
    rng = np.random.default_rng(length)
    query, key, value = (
        jnp.asarray(rng.normal(size=(3, length, 2, 8)), jnp.float32) for _ in range(3)
    )
    shape, mask = MASKS[kind], None
    if shape:
        mask = jnp.asarray(rng.random([n or length for n in shape]) < 0.6)
        mask = mask.at[..., 0].set(True)  # each query sees a key

    def loss(inputs, attend):
        return (attend(*inputs, mask, causal=causal) * jnp.arange(length)[:, None, None]).sum()

    plain = functools.partial(attention.attend, implementation='xla')
    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(loss, attend=attend)))((query, key, value))
        for attend in (cudnn_attention.attend, plain)
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    ('dtype', 'size', 'reason'),
    [
        ('bfloat16', 64, None),
        ('float16', 72, None),
        ('float32', 64, 'inputs in float32; expected bfloat16 or float16'),
        ('bfloat16', 60, 'heads of 60; expected a multiple of 8 up to 128'),
        ('bfloat16', 136, 'heads of 136; expected a multiple of 8 up to 128'),
    ],
)
def test_what_it_takes(dtype, size, reason):
    assert cudnn_attention.refusal(jnp.zeros((1, 4, 2, size), dtype)) == reason


@functools.cache
def compiled(*arguments: str) -> dict[str, list[int]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


needs_plugin = pytest.mark.skipif(
    not gpu.installed(),
    reason="needs JAX's CUDA plugin, but no GPU: pip install 'clipax[plan-gpu]'",
)


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('chip', ['h100', 'a100', 'b200'])
def test_any_number_of_tokens_and_any_mask_compile(chip):
    assert set(map(tuple, compiled('attention', chip).values())) == {(1, 1)}


# Calls in two towers, forward and backward, and whether activations are kept on the host; only the
# strongest rematerialization repeats the forward pass.
CALLS = {
    'none': [2, 2, False],
    'dots': [2, 2, False],
    'offload': [2, 2, True],
    'full': [4, 2, False],
}


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('remat', CALLS)
@pytest.mark.parametrize('tokens', [50, 77, 197, 257, 577])
@pytest.mark.parametrize('chip', ['h100', 'a100', 'b200'])
def test_the_train_step_compiles_with_auto_and_with_cudnn(chip, tokens, remat, masked):
    """Scanned, with as many tokens of images and texts; texts with a mask of keys or a causal one.
    One process compiles the cases of a chip and a number of tokens.
    """
    assert compiled('step', chip, str(tokens))[f'{remat} masked={masked}'] == CALLS[remat]
