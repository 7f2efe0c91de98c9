"""Histograms of the training data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.model.histogram import Histogram, histogram
from gleaner.table.numbers import LARGEST

properties = profile(max_examples=100, deadline=None, derandomize=True, database=None)
NUMBERS = st.lists(st.floats(-LARGEST, LARGEST) | st.integers(-3, 3).map(float), min_size=1, max_size=60)


@properties
@given(NUMBERS, st.integers(1, 20))
def test_every_value_is_counted_once_between_the_least_and_the_greatest(values, bins):
    found = histogram(np.array(values), bins=bins)

    assert len(values) == sum(found.counts)
    assert (min(values), max(values)) == (found.edges[0], found.edges[-1])
    assert len(found.counts) + 1 == len(found.edges)
    assert len(found.counts) <= bins


@properties
@given(NUMBERS)
def test_each_bin_counts_what_lies_between_its_edges(values):
    found = histogram(np.array(values))

    last = len(found.counts) - 1
    for i, count in enumerate(found.counts):
        low, high = found.edges[i], found.edges[i + 1]
        assert sum(low <= v < high or (i == last and v == high) for v in values) == count


def test_bins_hold_about_equal_counts_however_heavy_the_tail():
    found = histogram(np.exp(np.linspace(0, 20, 1000)))

    assert 10 == len(found.counts)
    assert max(found.counts) - min(found.counts) <= 1


def test_a_single_distinct_value_makes_one_bin_without_width():
    assert Histogram((7.0, 7.0), (3,)) == histogram(np.full(3, 7.0))


def test_equal_quantiles_are_merged():
    found = histogram(np.array([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0]))

    assert sorted(set(found.edges)) == list(found.edges)
    assert 100 == sum(found.counts)


def test_no_values_make_no_histogram():
    with pytest.raises(ValueError, match="no values"):
        histogram(np.array([]))
