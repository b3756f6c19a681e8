"""order: every epoch is a permutation of its own, every batch follows from its number alone."""

import numpy as np
import pytest

from clip_jax.data.shuffle import GlobalShuffle, Part, shuffled


@pytest.mark.parametrize('length', [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_has_every_number_once(length):
    whole = shuffled(np.arange(length), length, (0, 0, 0))
    assert sorted(whole.tolist()) == list(range(length))
    some = np.arange(length)[::3]
    np.testing.assert_array_equal(shuffled(some, length, (0, 0, 0)), whole[::3])


def test_permutations_of_other_keys_have_nothing_in_common():
    length = 5000
    base = shuffled(np.arange(length), length, (1, 2, 3))
    for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3), (1, -1, 3)):
        other = shuffled(np.arange(length), length, key)
        assert (other == base).sum() < 12  # one is expected; more than 11 once in 10^9 keys
        assert abs(np.corrcoef(other, base)[0, 1]) < 0.07
    assert abs(np.corrcoef(base, np.arange(length))[0, 1]) < 0.07


def test_every_order_of_a_few_is_as_likely():
    """Chi-squared of the 24 orders of four numbers; 23 degrees of freedom, p = 0.001."""
    orders = [tuple(shuffled(np.arange(4), 4, (0, 0, epoch)).tolist()) for epoch in range(4800)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_a_place_far_away_in_a_long_permutation_is_found():
    length = 10**10 + 7
    places = np.array([0, 1, length - 1])
    found = shuffled(places, length, (0, 0, 0))
    assert len(set(found.tolist())) == 3 and (found < length).all() and (found >= 0).all()


def test_an_epoch_ends_with_a_batch():
    order = GlobalShuffle([Part(0, 30, 1.0)], 8, 0)
    epochs, records = zip(*(order.batch(i) for i in range(6)), strict=True)
    assert np.concatenate(epochs).tolist() == [0] * 24 + [1] * 24
    assert all(len(set(np.concatenate(records[i : i + 3]).tolist())) == 24 for i in (0, 3))


@pytest.mark.parametrize('weights', [(1, 1), (3, 1), (0.01, 1, 0.5), (1, 2, 3)])
def test_parts_get_their_share_of_every_stretch(weights):
    ends = [40 * (k + 1) for k in range(len(weights))]
    parts = [Part(end - 40, end, w) for end, w in zip(ends, weights, strict=True)]
    order = GlobalShuffle(parts, 16, 0)
    part = np.concatenate([order.batch(i)[1] for i in range(100)]) // 40
    for k, weight in enumerate(weights):
        expected = np.arange(1, 101) * 16 * weight / sum(weights)
        got = np.cumsum((part.reshape(100, 16) == k).sum(axis=1))
        assert abs(got - expected).max() <= len(weights)


def test_hosts_get_some_of_each_part():
    order = GlobalShuffle([Part(0, 1000, 1), Part(1000, 2000, 1)], 64, 0)
    first_half = order.batch(5)[1][:32] >= 1000
    assert 4 < first_half.sum() < 28


def test_each_part_has_its_own_epochs():
    order = GlobalShuffle([Part(0, 10, 1), Part(10, 40, 1)], 4, 0)
    epochs, records = (np.concatenate(x) for x in zip(*map(order.batch, range(20)), strict=True))
    small, large = records < 10, records >= 10
    assert epochs[small].max() == 3 and epochs[large].max() == 1
    for epoch in range(4):
        assert len(set(records[small & (epochs == epoch)].tolist())) == 10


def test_a_batch_too_small_for_its_parts_is_refused():
    with pytest.raises(ValueError, match='batch_size 4 is too small to mix 3 sources'):
        GlobalShuffle([Part(0, 9, 1)] * 3, 4, 0)
