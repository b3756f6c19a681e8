"""The examples in the losses' docstrings run."""

import doctest

import pytest

from clip_jax import lookup


@pytest.mark.parametrize('name', lookup.names('losses'))
def test_example(name):
    results = doctest.testmod(lookup.module('losses', name))
    assert results.attempted >= 4 and not results.failed
