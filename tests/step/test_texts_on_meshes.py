"""Text encoders that mask padding train alike on one device and on eight."""

import numpy as np
import pytest
from support.small_training import CARD, SMALL, batch, setup

BERT = {'name': 'bert', 'vocab_size': 80, 'context_length': 8, 'pad_id': 0, 'dropout': 0.2, **SMALL}
NLLB = {**BERT, 'name': 'nllb', 'pool': 'mean'}
TEXTS = {
    'bert': {**BERT, 'pool': 'cls_dense', 'numbering': 'all', 'depth': 2},
    'roberta': BERT,
    'nllb': NLLB,
    'tips': {**NLLB, 'numbering': 'all'},
}


@pytest.mark.slow
@pytest.mark.parametrize('how', [{'fsdp': 8}, {'fsdp': 2, 'tensor': 2, 'scan': True}])
@pytest.mark.parametrize('name', TEXTS)
def test_training_is_the_same_on_eight_devices(name, how):
    card = {**CARD, 'text': TEXTS[name], 'text_proj': 'mlp'}
    losses = []
    for devices, options in ((1, {}), (8, {**how, 'remat': 'full'})):
        state, step, put = setup(devices, card=card, **options)
        found = []
        for i in range(3):
            state, metrics = step(state, put(batch(i)))
            found.append(float(metrics['loss']))
        losses.append(found)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0] != losses[0][2]
