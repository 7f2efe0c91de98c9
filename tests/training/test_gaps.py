"""Gaps in the exported model, against the fitted estimator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from grown import (
    KINDS,
    Array,
    boosting_edges,
    make_table,
    predict,
    properties,
    questions,
    spline_edges,
    tree_edges,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import TransformedTargetRegressor
from threadpoolctl import threadpool_limits

from gleaner.model.tree import corners, read_tree, walk
from gleaner.training.candidates import FAMILIES, Task
from gleaner.training.export import export

PARAMETERS = {"decision_tree": {"max_depth": 8}, "random_forest": {"max_depth": 6, "n_estimators": 12}}
EXACT = ("decision_tree", "random_forest")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpool_limits(1):
        yield


def with_gaps(X: Array, allowed: list[bool], share: float, seed: int) -> Array:
    """Return rows with gaps in the columns that allow them."""
    random = np.random.default_rng(seed)
    gaps = (random.random(X.shape) < share) & np.array(allowed)
    return np.where(gaps, np.nan, X)


def fit_family(name: str, X: Array, y: Array, allowed: list[bool], *, log: bool = False, counts: bool = False) -> Any:
    task = Task(monotone=(0,) * X.shape[1], log=log, counts=counts, seed=0, gaps=allowed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FAMILIES[name].make(task, PARAMETERS.get(name, {}), X).fit(X, y)


def edges(estimator: Any) -> dict[int, Array]:
    if isinstance(estimator, TransformedTargetRegressor):
        return boosting_edges(estimator.regressor_)
    if hasattr(estimator, "_predictors"):
        return boosting_edges(estimator)
    if hasattr(estimator, "tree_"):
        return tree_edges([estimator.tree_])
    if hasattr(estimator, "estimators_"):
        return tree_edges([member.tree_ for member in estimator.estimators_])
    curves = estimator.named_steps.get("curves")
    return spline_edges(curves) if curves else {}


def asked(whole: Array, estimator: Any, allowed: list[bool]) -> Array:
    """Return rows beside every edge, also with gaps in any column."""
    rows = questions(whole, edges(estimator))
    parts = [rows]
    for column in np.flatnonzero(allowed):
        part = rows.copy()
        part[:, column] = np.nan
        parts.append(part)
    parts += [with_gaps(rows, allowed, 0.5, 1), with_gaps(rows, allowed, 1.0, 1)]
    return np.concatenate(parts)


def check(estimator: Any, rows: Array, allowed: list[bool], *, exactly: bool, floor: float | None = None) -> None:
    got = predict(export(estimator, rows.shape[1], gaps=allowed, floor=floor), rows)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = estimator.predict(rows)
    if floor is not None:
        wanted = np.maximum(wanted, floor)
    assert np.isfinite(got).all()
    if exactly:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@st.composite
def gappy_tables(draw: st.DrawFn) -> tuple[Array, Array, Array, list[bool]]:
    """Draw a table, also with gaps; its target; whether columns allow gaps."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    whole, y = make_table(kinds, draw(st.integers(40, 200)), draw(st.integers(0, 2**32 - 1)))
    allowed = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)).filter(any))
    X = with_gaps(whole, allowed, draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])), draw(st.integers(0, 1000)))
    told = draw(st.booleans())  # whether a gap says something about the target
    return whole, X, y + told * 10 * np.isnan(X).sum(axis=1), allowed


@pytest.mark.parametrize("name", EXACT)
@properties
@given(gappy_tables())
def test_trees_take_a_gap_as_fitted_at_and_beside_every_split(name, drawn):
    whole, X, y, allowed = drawn
    estimator = fit_family(name, X, y, allowed)

    check(estimator, asked(whole, estimator, allowed), allowed, exactly=True)


@properties
@given(gappy_tables(), st.booleans())
def test_boosting_takes_a_gap_as_fitted_at_and_beside_every_split(drawn, log):
    whole, X, y, allowed = drawn
    estimator = fit_family("gradient_boosting", X, y, allowed, log=log)

    check(estimator, asked(whole, estimator, allowed), allowed, exactly=not log)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("name", ["linear", "spline"])
@settings(properties, max_examples=60)
@given(gappy_tables())
def test_linear_and_spline_fill_a_gap_with_the_median_and_mark_it(name, counts, drawn):
    whole, X, y, allowed = drawn
    scale = np.maximum(1.0, np.abs(whole).max(axis=0))  # so that no exponential overflows far outside the table
    whole, X = whole / scale, X / scale
    estimator = fit_family(name, X, y, allowed, counts=counts)

    check(estimator, asked(whole, estimator, allowed), allowed, exactly=False)


@properties
@given(gappy_tables())
def test_a_tree_walked_in_python_takes_a_gap_as_the_engine(drawn):
    whole, X, y, allowed = drawn
    estimator = fit_family("decision_tree", X, y, allowed)
    model = export(estimator, X.shape[1], gaps=allowed)
    root = read_tree(model.SerializeToString())
    assert root is not None

    rows = np.concatenate([asked(whole, estimator, allowed), corners(root, X.shape[1])])

    assert [walk(root)(row) for row in rows.tolist()] == predict(model, rows).tolist()


def test_every_split_of_a_tree_that_knows_gaps_is_compared_with_a_gap():
    whole, y = make_table(["wide", "signed"], 200, 0)
    X = with_gaps(whole, [True, True], 0.3, 0)
    model = export(fit_family("decision_tree", X, -np.isnan(X).sum(axis=1) + y / 100, [True, True]), 2, gaps=[True] * 2)
    root = read_tree(model.SerializeToString())
    assert isinstance(root, tuple)
    assert len(root) == 5

    def flipped(node: Any, place: list[int]) -> Any:
        members = list(node)
        if place:
            members[place[0]] = flipped(members[place[0]], place[1:])
        else:
            members[4] = not members[4]
        return tuple(members)

    wrong = flipped(root, [])
    rows = corners(wrong, 2)
    assert predict(model, np.array(rows)).tolist() != [walk(wrong)(row) for row in rows]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_table_without_gaps_exports_the_graph_that_it_always_did(name):
    X, y = make_table(["wide", "signed", "few"], 200, 0)
    estimator = fit_family(name, X, y, [])

    model = export(estimator, 3)

    assert model == export(estimator, 3, gaps=[False] * 3)
    assert not {"IsNaN", "Where", "Concat"} & {node.op_type for node in model.graph.node}
    assert "nodes_missing_value_tracks_true" not in {a.name for node in model.graph.node for a in node.attribute}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_gap_where_training_saw_none_has_a_prediction(name):
    whole, y = make_table(["wide", "signed", "few"], 200, 0)
    estimator = fit_family(name, whole, y, [True, False, True])

    rows = asked(whole, estimator, [True, False, True])

    check(estimator, rows, [True, False, True], exactly=name in (*EXACT, "gradient_boosting"))


@pytest.mark.parametrize("name", ["linear", "spline"])
def test_the_columns_that_mark_gaps_follow_the_declaration_and_not_the_table(name):
    whole, y = make_table(["wide", "signed", "few"], 200, 0)
    allowed = [True, False, True]

    widths = [
        fit_family(name, X, y, allowed)[0].transform(X).shape[1] for X in (whole, with_gaps(whole, allowed, 0.3, 0))
    ]

    assert [5, 5] == widths


def test_a_step_that_does_something_else_is_refused():
    whole, y = make_table(["wide", "signed"], 100, 0)
    estimator = fit_family("linear", whole, y, [True, True])
    estimator[0].transformers_.reverse()

    with pytest.raises(TypeError, match="cannot export"):
        export(estimator, 2, gaps=[True, True])
