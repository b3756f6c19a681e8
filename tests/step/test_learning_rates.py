"""Learning rate schedules against NumPy, and wrong options."""

import numpy as np
import pytest

from clip_jax.step import schedules

STEPS, WARMUP, PEAK = 110, 10, 2.0
CASES = {
    'cosine': ({}, lambda t: (1 + np.cos(np.pi * t)) / 2),
    'cosine to a tenth': (
        {'name': 'cosine', 'final': 0.1},
        lambda t: 0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2,
    ),
    'linear': ({}, lambda t: 1 - t),
    'constant': ({}, np.ones_like),
    'rsqrt': ({'timescale': 50}, lambda t: np.sqrt(50 / (50 + 100 * t))),
    'rsqrt with cooldown': (
        {'name': 'rsqrt', 'timescale': 50, 'cooldown_steps': 20},
        lambda t: np.sqrt(50 / (50 + 100 * t)) * np.clip((1 - t) * 5, 0, 1),
    ),
    'wsd': ({'decay_steps': 25}, lambda t: np.clip((1 - t) * 4, 0, 1)),
    'wsd, a trunk': ({'name': 'wsd', 'decay_steps': 0}, np.ones_like),
    'wsd by default': ({'name': 'wsd'}, lambda t: np.clip((1 - t) * 100 / 11, 0, 1)),
    'wsd, root': (
        {'name': 'wsd', 'decay_steps': 50, 'shape': 'sqrt', 'final': 0.2},
        lambda t: 0.2 + 0.8 * (1 - np.sqrt(np.clip(2 * t - 1, 0, 1))),
    ),
    'wsd, cosine': (
        {'name': 'wsd', 'decay_steps': 50, 'shape': 'cosine'},
        lambda t: (1 + np.cos(np.pi * np.clip(2 * t - 1, 0, 1))) / 2,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_a_schedule_is_that_of_numpy(case):
    options, decay = CASES[case]
    rate = schedules.make(
        {'name': case, **options}, peak=PEAK, warmup_steps=WARMUP, total_steps=STEPS
    )
    steps = np.arange(STEPS + 1)
    expected = np.where(
        steps < WARMUP, steps / WARMUP, decay(np.maximum(steps - WARMUP, 0) / (STEPS - WARMUP))
    )
    np.testing.assert_allclose(rate(steps), PEAK * expected, rtol=1e-5, atol=1e-6)


def test_a_schedule_without_a_warmup_begins_at_the_peak():
    rate = schedules.make({'name': 'linear'}, peak=1.0, warmup_steps=0, total_steps=10)
    assert float(rate(0)) == 1


@pytest.mark.parametrize(
    ('options', 'warmup', 'message'),
    [
        ({'name': 'cosine'}, -1, 'warmup_steps is -1; expected at least 0'),
        ({'name': 'cosine'}, 100, 'warmup_steps is 100; expected at least 0 and less than .* 100'),
        ({'name': 'cosin'}, 0, r"name: there is no 'cosin'\. Did you mean 'cosine'"),
        ({}, 0, "name: there is no 'None'"),
        ({'name': 'linear', 'end': 0.1}, 0, r"schedule linear: option: there is no 'end'"),
        ({'name': 'linear', 'final': 2}, 0, 'final is 2; expected 0 to 1'),
        ({'name': 'wsd', 'decay_steps': 91}, 10, 'decay_steps is 91; expected 0 to 90'),
        ({'name': 'wsd', 'shape': 'cube'}, 0, "shape: there is no 'cube'"),
        ({'name': 'rsqrt', 'timescale': 0}, 0, 'timescale is 0; expected more than 0'),
        ({'name': 'rsqrt', 'cooldown_steps': -1}, 0, 'cooldown_steps is -1; expected 0 to 100'),
    ],
)
def test_wrong_options_are_named(options, warmup, message):
    with pytest.raises(ValueError, match=message):
        schedules.make(options, peak=1.0, warmup_steps=warmup, total_steps=100)
