"""What is particular to the sigmoid loss."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import sigmoid


def test_initial_values_are_the_papers():
    assert math.exp(sigmoid.INIT['init_logit_scale']) == pytest.approx(10)
    assert sigmoid.INIT['init_logit_bias'] == -10


@pytest.mark.parametrize('implementation', sigmoid.IMPLEMENTATIONS)
def test_every_combination_is_a_question_of_its_own(implementation):
    embeddings = jnp.eye(3)
    value, _ = sigmoid.loss(
        embeddings, embeddings, jnp.float32(4), jnp.float32(-1), implementation=implementation
    )
    positive, negative = np.log1p(np.exp(-3)), np.log1p(np.exp(-1))  # logits 3, and -1 twice
    assert value == pytest.approx(positive + 2 * negative, rel=1e-6)
