"""What is particular to the softmax loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import softmax


@pytest.mark.parametrize('implementation', softmax.IMPLEMENTATIONS)
def test_untrained_loss_is_the_logarithm_of_the_batch_size(implementation):
    embeddings = jnp.ones((32, 4)) / 2
    value, _ = softmax.loss(embeddings, embeddings, jnp.float32(14), implementation=implementation)
    assert value == pytest.approx(np.log(32), rel=1e-6)


@pytest.mark.parametrize('implementation', softmax.IMPLEMENTATIONS)
def test_a_loss_close_to_0_is_exact(implementation):
    """Where positives are equal and negatives orthogonal, log(1 + 15 e^-20) does not cancel."""
    embeddings = jnp.eye(16)
    value, _ = softmax.loss(embeddings, embeddings, jnp.float32(20), implementation=implementation)
    assert value == pytest.approx(np.log1p(15 * np.exp(-20)), rel=1e-6)


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match='bias cancels out'):
        softmax.loss(jnp.eye(4), jnp.eye(4), jnp.float32(1), jnp.float32(-10))
