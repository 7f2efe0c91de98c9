"""The formulas of scores against scikit-learn's and against numbers made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, mean_squared_log_error, r2_score

from gleaner.model.scores import Scorer, Scores, mae, r2

properties = profile(max_examples=60, deadline=None, derandomize=True, database=None)

LOG = Scorer("squared_log_error", within_factor=2.0, floor=0.0)
STANDARD = Scorer("standardised_squared_error", within=10.0)


def pairs(lowest: float) -> st.SearchStrategy[tuple[Any, Any]]:
    """Draw targets, which are not nearly constant, and predictions."""
    number = st.floats(lowest, 1e6, allow_subnormal=False).map(lambda x: round(x, 6))
    both = st.lists(st.tuples(number, number), min_size=2, max_size=30).map(lambda pairs: np.array(pairs).T)
    return both.filter(lambda yp: np.ptp(yp[0]) > 1e-3).map(lambda yp: (yp[0], yp[1]))


@properties
@given(pairs(-1e6))
def test_r2_and_mae_are_scikit_learns(both):
    y, p = both

    assert pytest.approx(r2_score(y, p), rel=1e-9) == r2(y, p)
    assert pytest.approx(mean_absolute_error(y, p), rel=1e-9) == mae(y, p)


@properties
@given(pairs(0.0))
def test_the_log_loss_is_scikit_learns_mean_squared_log_error(both):
    y, p = both

    assert pytest.approx(mean_squared_log_error(y, p), rel=1e-9, abs=1e-18) == LOG.loss(y, p)


@properties
@given(pairs(-1e6))
def test_the_standardised_loss_is_one_minus_r2(both):
    y, p = both

    assert pytest.approx(1 - r2_score(y, p), rel=1e-6, abs=1e-9) == STANDARD.loss(y, p)


def test_the_standardised_loss_of_the_mean_is_one():
    y = np.array([-3.0, 0.0, 9.0])

    assert pytest.approx(1.0) == STANDARD.loss(y, np.full(3, 2.0))


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, 1e-9, 1e9 / 3])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_r2_of_a_constant_target_is_one_for_a_perfect_prediction_and_else_zero(constant, n):
    y = np.full(n, constant)

    assert 1.0 == r2(y, y.copy())
    assert 0.0 == r2(y, y + 1)


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1])
def test_the_standardised_loss_of_a_constant_target_is_the_plain_squared_error(constant):
    y = np.full(3, constant)

    assert pytest.approx(mean_squared_error(y, y + 3)) == STANDARD.loss(y, y + 3)
    assert 0.0 == STANDARD.loss(y, y.copy())


@pytest.mark.parametrize("y", [0.0, 4.0, 100.0])
@pytest.mark.parametrize(("off", "share"), [(1.999, 1.0), (2.001, 0.0)])
def test_a_factor_bounds_predictions_above_and_below_alike(y, off, share):
    more, less = (1 + y) * off - 1, (1 + y) / off - 1
    scorer = Scorer("squared_log_error", within_factor=2.0, floor=-0.9)

    assert share == scorer.accuracy(np.array([y]), np.array([more]))
    assert share == scorer.accuracy(np.array([y]), np.array([less]))


@pytest.mark.parametrize("factor", [2, 3, 49, 98, 103])
def test_a_factor_includes_its_ends(factor):
    scorer = Scorer("squared_log_error", within_factor=float(factor), floor=0.0)
    low, high = np.array([0.0]), np.array([factor - 1.0])

    assert 1.0 == scorer.accuracy(low, high)
    assert 1.0 == scorer.accuracy(high, low)


def test_a_distance_includes_its_ends():
    y = np.zeros(5)
    p = np.array([10.0, -10.0, 10.001, -10.001, 0.0])

    assert pytest.approx(3 / 5) == STANDARD.accuracy(y, p)


def test_a_prediction_below_the_floor_is_scored_as_the_floor():
    y, p, clipped = np.array([0.0, 3.0]), np.array([-50.0, 3.0]), np.array([0.0, 3.0])

    assert LOG.scores(y, clipped) == LOG.scores(y, p)
    assert Scores(loss=0.0, accuracy=1.0, r2=1.0, mae=0.0) == LOG.scores(y, p)


def test_a_floor_of_another_height_is_kept():
    scorer = Scorer("squared_log_error", within_factor=2.0, floor=3.0)

    assert pytest.approx((math.log(4) - math.log(8)) ** 2) == scorer.loss(np.array([7.0]), np.array([0.0]))


def test_without_a_floor_nothing_is_clipped():
    assert -50.0 == STANDARD.clip(np.array([-50.0]))[0]


def test_scores_are_named_with_a_prefix():
    scores = Scores(loss=0.1, accuracy=0.2, r2=0.3, mae=0.4)

    assert {"test_loss": 0.1, "test_accuracy": 0.2, "test_r2": 0.3, "test_mae": 0.4} == scores.named("test_")


def test_the_mean_of_several_is_taken_score_by_score():
    several = [Scores(loss=1, accuracy=0, r2=-1, mae=10), Scores(loss=2, accuracy=1, r2=1, mae=30)]

    assert Scores(loss=1.5, accuracy=0.5, r2=0.0, mae=20.0) == Scores.mean(several)
