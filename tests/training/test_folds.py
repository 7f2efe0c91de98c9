"""Folds by groups, and steps forward in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from gleaner.errors import BadTraining
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema
from gleaner.table.tables import Table
from gleaner.training.events import Fitted, Step, TableRead
from gleaner.training.folds import forward_folds, grid_folds, shuffled_folds
from gleaner.training.train import train

SETTINGS = """
[model]
name = "m"
target = "y"
[[features]]
name = "x"
[training]
candidates = ["{candidates}"]
group = "ward"
[scores]
loss = "standardised_squared_error"
accuracy = {{ within = 1.0 }}
"""


def made(rows: int = 240, wards: int = 12, seed: int = 0) -> Table:
    """Return rows whose x names their ward and whose target drifts."""
    random = np.random.default_rng(seed)
    ward = random.integers(0, wards, rows)
    days = np.sort(random.integers(0, 200, rows)).astype(float)
    y = random.normal(0, 5, wards)[ward] + 0.02 * days + random.normal(0, 0.5, rows)
    return Table(
        path=Path("made.csv"),
        schema=Schema((Feature(name="x"),), Target(name="y")),
        X=ward[:, None] + random.uniform(0, 0.1, (rows, 1)),
        y=y,
        lines=np.arange(rows) + 2,
        days=days,
        taken={},
        faults=(),
        refused=0,
        tally={},
        sha256="",
        encoding="utf-8",
        groups=ward,
    )


@pytest.fixture
def settings(tmp_path):
    def load(*candidates: str) -> Settings:
        path = tmp_path / "gleaner.toml"
        path.write_text(SETTINGS.format(candidates='", "'.join(candidates)))
        return load_settings(path)

    return load


def fitted(table: Table, settings: Settings) -> Fitted:
    return next(event for event in train(table, settings) if isinstance(event, Fitted))


@pytest.mark.parametrize("repeat", [0, 1])
def test_a_group_stays_in_one_fold(settings, repeat):
    table = made()
    for folds in (grid_folds(table), shuffled_folds(table, settings("linear"), repeat)):
        tested = []
        for train_rows, test_rows in folds:
            assert not set(table.groups[train_rows]) & set(table.groups[test_rows])
            tested += test_rows.tolist()
        assert list(range(len(table.y))) == sorted(tested)


def test_repeats_part_the_groups_differently(settings):
    table = made()
    first, second = (
        [frozenset(table.groups[test].tolist()) for _, test in shuffled_folds(table, settings("linear"), repeat)]
        for repeat in (0, 1)
    )
    assert set(first) != set(second)


def test_a_tree_that_knows_the_wards_is_no_good_for_a_new_one(settings):
    table, tree = made(), settings("decision_tree")
    assert fitted(replace(table, groups=None), tree).scores.r2 > 0.8
    assert fitted(table, tree).scores.r2 < 0.3


def test_too_few_groups_are_refused(settings):
    with pytest.raises(BadTraining) as caught:
        list(train(made(wards=4), settings("linear")))
    assert "made.csv has 4 groups in 'ward'; 5 folds need at least 5: set training.group" in str(caught.value)
    list(train(made(wards=5), settings("linear")))


def test_the_forward_score_is_that_of_later_rows(settings):
    table = made()
    predicted, tested = np.full(240, np.nan), []
    for train_rows, test_rows in forward_folds(table.days):
        line = LinearRegression().fit(table.X[train_rows], table.y[train_rows])
        predicted[test_rows] = line.predict(table.X[test_rows])
        tested += test_rows.tolist()
    candidate = fitted(table, settings("linear"))
    assert candidate.forward.mae == pytest.approx(np.mean(np.abs(table.y[tested] - predicted[tested])), rel=1e-6)


def test_a_drifting_target_is_worse_forward_in_time(settings):
    days = np.sort(made().days)
    drifting = replace(made(), y=0.2 * days + np.random.default_rng(1).normal(0, 1, 240), groups=None)
    candidate = fitted(drifting, settings("decision_tree"))
    assert candidate.forward.mae > 1.15 * candidate.scores.mae
    steady = replace(drifting, y=np.random.default_rng(1).permutation(drifting.y))
    candidate = fitted(steady, settings("decision_tree"))
    assert candidate.forward.mae < 1.15 * candidate.scores.mae


def test_no_score_forward_in_time_for_rows_of_one_day(settings):
    table = replace(made(), days=np.where(np.arange(240) < 230, 5.0, 7.0))
    events = list(train(table, settings("linear")))
    assert not [event for event in events if isinstance(event, Step) and event.what == "forward"]
    assert all(event.forward is None for event in events if isinstance(event, Fitted | TableRead))


def test_every_announced_step_is_made(settings):
    events = list(train(made(), settings("linear", "decision_tree")))
    steps = [event for event in events if isinstance(event, Step)]
    assert 6 == sum(step.what == "forward" for step in steps)
    assert events[0].steps == len(steps)


days = st.lists(st.one_of(st.integers(0, 12).map(float), st.just(float("nan"))), max_size=80)


@given(days)
def test_each_step_trains_on_the_past_alone(days):
    days = np.array(days, dtype=float)
    steps = forward_folds(days)
    assert len(steps) in (0, 2, 3)
    for past, later in steps:
        assert min(len(past), len(later)) > 0
        assert days[past].max() < days[later].min()
    tested = np.concatenate([later for _, later in steps]) if steps else np.arange(0)
    assert len(set(tested.tolist())) == len(tested)
    if steps:
        assert np.isfinite(days).sum() == len(steps[0][0]) + len(tested)


@given(st.integers(8, 60))
def test_distinct_days_give_three_steps_of_about_equal_size(count):
    sizes = [len(later) for _, later in forward_folds(np.random.default_rng(count).permutation(count).astype(float))]
    assert 3 == len(sizes)
    assert max(sizes) - min(sizes) <= 1
