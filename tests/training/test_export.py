"""The exported model against the fitted estimator, on one thread of onnxruntime."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import onnx
import pytest
from grown import (
    KINDS,
    Array,
    agrees,
    boosting_edges,
    fit,
    make_table,
    predict,
    properties,
    questions,
    spline_edges,
    tables,
    tree_edges,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, PoissonRegressor, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, SplineTransformer, StandardScaler
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from gleaner.training.export import export


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread, since boosting's threads spin while they wait."""
    with threadpool_limits(1):
        yield


# Linear


@properties
@given(tables)
def test_a_scaled_linear_model_predicts_as_fitted(table):
    X, y = table
    estimator = fit(Pipeline([("scale", StandardScaler()), ("fit", LinearRegression())]), X, y)

    agrees(estimator, questions(X, {column: X[:10, column] for column in range(X.shape[1])}))


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_a_scaler_may_leave_out_either_step(with_mean, with_std):
    X, y = make_table(["wide", "constant", "binary"], 200, 0)

    agrees(
        fit(Pipeline([("s", StandardScaler(with_mean=with_mean, with_std=with_std)), ("l", LinearRegression())]), X, y),
        X,
    )


def test_a_scaled_linear_model_is_one_multiplication():
    X, y = make_table(["wide", "constant"], 50, 0)
    estimator = fit(Pipeline([("scale", StandardScaler()), ("fit", LinearRegression())]), X, y)

    assert [node.op_type for node in export(estimator, 2).graph.node] == ["Gemm"]


# Trees


@properties
@given(tables, st.integers(1, 12), st.sampled_from(["squared_error", "absolute_error", "poisson"]))
def test_a_tree_predicts_exactly_as_fitted(table, max_depth, criterion):
    X, y = table
    y = y + 0.1
    tree = DecisionTreeRegressor(max_depth=max_depth, criterion=criterion, random_state=0).fit(X, y)

    agrees(tree, questions(X, tree_edges([tree.tree_])), exactly=True)


@properties
@given(tables, st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_forest_predicts_exactly_as_fitted(table, trees, seed):
    X, y = table
    forest = RandomForestRegressor(trees, max_depth=8, random_state=seed).fit(X, np.sqrt(y))

    agrees(forest, questions(X, tree_edges([member.tree_ for member in forest.estimators_])), exactly=True)


def test_a_large_forest_is_exact_on_many_rows_at_once_and_on_each_alone():
    X, y = make_table(["wide", "whole", "few"], 5000, 1)
    forest = RandomForestRegressor(200, max_depth=7, max_samples=500, random_state=0).fit(X, np.log1p(y))
    model = export(forest, 3)

    predictions = predict(model, X)

    np.testing.assert_array_equal(predictions, forest.predict(X))
    for i in range(20):
        assert predict(model, X[i : i + 1]) == predictions[i]


def test_the_mean_of_276_rows_that_sum_to_6091_survives_to_the_last_digit():
    X = np.repeat([[30.0, 50.0, 200_000.0], [90.0, 300.0, 500_000.0]], [276, 74], axis=0)
    y = np.concatenate([np.repeat([22.0, 23.0], [257, 19]), np.repeat([60.0, 61.0], 37)])
    assert y[:276].sum() == 6091
    tree = DecisionTreeRegressor(max_depth=3).fit(X, y)

    prediction = predict(export(tree, 3, floor=0.0), np.array([[30.0, 50.0, 200_000.0]]))

    assert prediction.tolist() == [22.068840579710145] == [6091 / 276]


def test_a_tree_that_never_split_predicts_its_one_value():
    X, y = make_table(["wide", "few"], 60, 0)
    tree = DecisionTreeRegressor(min_samples_leaf=60).fit(X, y)
    assert tree.tree_.node_count == 1

    agrees(tree, questions(X, {0: np.zeros(1)}), exactly=True)


@pytest.mark.parametrize("grown", [0, 1, 2, 7, 8])
def test_trees_that_never_split_may_stand_anywhere_in_a_forest(grown):
    X, y = make_table(["wide", "few"], 60, 0)
    forest = RandomForestRegressor(8, random_state=0, bootstrap=False).fit(X, y)
    root = DecisionTreeRegressor(min_samples_leaf=60).fit(X, y + 0.3)
    for order in (forest.estimators_[:grown] + [root] * (8 - grown), [root] * (8 - grown) + forest.estimators_[:grown]):
        forest.estimators_ = order
        agrees(forest, X, exactly=True)


@pytest.mark.parametrize(
    "estimator", [DecisionTreeRegressor(), RandomForestRegressor(9), HistGradientBoostingRegressor()]
)
def test_an_infinite_threshold_is_kept(estimator):
    X, y = make_table(["wide", "signed"], 200, 3)
    gaps = X.copy()
    gaps[y > np.median(y), 0] = np.nan  # so the best split of column 0 is: anything, or nothing
    estimator.fit(gaps, y)
    if isinstance(estimator, HistGradientBoostingRegressor):
        assert any(np.isinf(edges).any() for edges in boosting_edges(estimator).values())

    agrees(estimator, questions(X, {0: X[:9, 0]}), exactly=True)


def test_a_forest_of_hundreds_of_thousands_of_nodes_is_written_in_seconds():
    X, y = make_table(["wide", "signed", "wide"], 8000, 0)
    forest = RandomForestRegressor(10, max_depth=12, random_state=0).fit(X, y)
    forest.estimators_ *= 20
    assert sum(member.tree_.node_count for member in forest.estimators_) > 200_000

    started = time.perf_counter()
    export(forest, 3)

    assert time.perf_counter() - started < 5


# Boosting


def boosting(seed: int = 0, **options: Any) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(**{"max_iter": 20, "min_samples_leaf": 5, "random_state": seed} | options)


def on_log(regressor: HistGradientBoostingRegressor) -> TransformedTargetRegressor:
    return TransformedTargetRegressor(regressor=regressor, func=np.log1p, inverse_func=np.expm1, check_inverse=False)


boosting_options = st.fixed_dictionaries(
    {
        "loss": st.sampled_from(["squared_error", "absolute_error"]),
        "early_stopping": st.booleans(),
        "learning_rate": st.sampled_from([0.05, 0.3, 1.0]),
        "max_bins": st.sampled_from([4, 255]),
    }
)


@properties
@given(tables, boosting_options, st.sampled_from([-1, 0, 1]))
def test_boosting_predicts_exactly_as_fitted(table, options, direction):
    X, y = table
    estimator = boosting(monotonic_cst=[direction] + [0] * (X.shape[1] - 1), **options).fit(X, y)

    agrees(estimator, questions(X, boosting_edges(estimator)), exactly=True)


@properties
@given(tables, boosting_options, st.sampled_from([-1, 0, 1]))
def test_boosting_of_the_logarithm_predicts_as_fitted(table, options, direction):
    X, y = table
    estimator = on_log(boosting(monotonic_cst=[direction] * X.shape[1], **options)).fit(X, y)

    agrees(estimator, questions(X, boosting_edges(estimator.regressor_)))


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error"])
def test_boosting_whose_trees_never_split_predicts_the_baseline(loss):
    X, y = make_table(["wide"], 40, 0)
    for estimator in (boosting(loss=loss, min_samples_leaf=40), on_log(boosting(loss=loss, min_samples_leaf=40))):
        agrees(estimator.fit(X, y), X)


def test_the_inverse_of_the_logarithm_is_precise_from_the_smallest_prediction_to_the_largest():
    X = np.arange(250.0)[:, None]
    estimator = on_log(boosting(max_iter=1, min_samples_leaf=1, max_leaf_nodes=None)).fit(X, X[:, 0])
    wanted = np.concatenate([10.0 ** np.arange(-18, 300, 3), -(10.0 ** np.arange(-18.0, 0, 3)), [0.0, -1 + 1e-12]])
    # No fit has predictions of all these sizes, so they are written into a fitted one.
    estimator.regressor_._baseline_prediction[:] = 0.0
    nodes = estimator.regressor_._predictors[0][0].nodes
    leaf = nodes["is_leaf"] == 1
    nodes["value"][leaf] = np.log1p(np.resize(wanted, leaf.sum()))
    assert len(set(estimator.predict(X))) == len(wanted)

    agrees(estimator, X)


# Splines


@st.composite
def spline_models(draw: st.DrawFn) -> tuple[Any, Array]:
    """Draw a table and an additive model that is fitted on it."""
    X, y = draw(tables)
    transformers: list[tuple[str, Any, list[int]]] = []
    for column in draw(st.permutations(range(X.shape[1]))):
        low, high = X[:, column].min(), X[:, column].max()
        own = np.array([low - 1, low, (low + high) / 2 + 0.25, high + 1])[:, None]
        knots = draw(st.sampled_from(["quantile", "uniform", "own"]))
        transformer = SplineTransformer(
            n_knots=draw(st.integers(2, 7)),
            degree=draw(st.integers(1, 3)),
            knots=own if knots == "own" else knots,
            extrapolation=draw(st.sampled_from(["constant", "linear"])),
            include_bias=draw(st.booleans()),
        )
        use = draw(st.integers(0, 3))
        transformers.append((f"column {column}", transformer if use else "passthrough", [column]))
    link = draw(st.sampled_from([PoissonRegressor(alpha=1e-3, max_iter=300), Ridge(alpha=0.1), LinearRegression()]))
    if isinstance(link, PoissonRegressor):
        X = X / np.maximum(1.0, np.abs(X).max(axis=0))  # so that no exponential overflows far outside the table
        for _, transformer, _ in transformers:
            if transformer != "passthrough" and not isinstance(transformer.knots, str):
                transformer.knots = np.array([[-0.3], [0.1], [0.7]])
    return fit(Pipeline([("columns", ColumnTransformer(transformers)), ("fit", link)]), X, y), X


@settings(properties, max_examples=250)
@given(spline_models())
def test_an_additive_spline_model_predicts_as_fitted(fitted):
    estimator, X = fitted

    agrees(estimator, questions(X, spline_edges(estimator[0])))


@pytest.mark.parametrize("extrapolation", ["constant", "linear"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_degree_and_knot_choice_holds_on_every_kind_of_column(kind, extrapolation):
    X, y = make_table([kind], 120, 5)
    for degree, knots, bias in itertools.product((1, 2, 3), ("quantile", "uniform"), (True, False)):
        spline = SplineTransformer(5, degree, knots=knots, extrapolation=extrapolation, include_bias=bias)
        estimator = fit(Pipeline([("c", ColumnTransformer([("x", spline, [0])])), ("fit", Ridge(0.1))]), X, y)
        agrees(estimator, questions(X, spline_edges(estimator[0])))


def test_splines_of_degree_0_are_exported():
    X, y = make_table(["signed"], 120, 0)
    spline = SplineTransformer(6, 0, extrapolation="linear")
    estimator = fit(Pipeline([("c", ColumnTransformer([("x", spline, [0])])), ("fit", Ridge())]), X, y)

    agrees(estimator, questions(X, spline_edges(estimator[0])))


def test_a_spline_model_holds_far_outside_its_knots():
    X, y = make_table(["signed", "whole"], 200, 0)
    columns = ColumnTransformer(
        [("a", SplineTransformer(extrapolation="linear"), [1]), ("b", SplineTransformer(), [0])]
    )
    estimator = fit(Pipeline([("c", columns), ("fit", Ridge())]), X, y)
    far = np.array([1.0, 1e3, 1e6, 1e12, 1e30])

    agrees(estimator, np.column_stack([far, far]))
    agrees(estimator, np.column_stack([-far, -far]))


def test_every_column_may_pass_through():
    X, y = make_table(["signed", "binary"], 80, 0)
    columns = ColumnTransformer([("b", "passthrough", [1]), ("a", "passthrough", [0])])

    agrees(fit(Pipeline([("c", columns), ("fit", Ridge())]), X, y), X)


# All of them


def candidates() -> dict[str, Any]:
    columns = [("c", SplineTransformer(degree=2), [2]), ("a", SplineTransformer(), [0]), ("b", "passthrough", [1])]
    return {
        "linear": Pipeline([("scale", StandardScaler()), ("fit", LinearRegression())]),
        "decision_tree": DecisionTreeRegressor(max_depth=4, random_state=0),
        "random_forest": RandomForestRegressor(20, max_depth=4, random_state=0),
        "gradient_boosting": on_log(boosting()),
        "plain_boosting": boosting(),
        "spline": Pipeline([("columns", ColumnTransformer(columns)), ("fit", PoissonRegressor())]),
    }


@pytest.fixture(params=sorted(candidates()))
def candidate(request) -> Any:
    X, y = make_table(["signed", "few", "signed"], 300, 2)
    return fit(candidates()[request.param], X, y)


def test_many_rows_at_once_are_predicted_as_fitted(candidate):
    X, _ = make_table(["signed", "few", "signed"], 5000, 9)

    agrees(candidate, X)


def test_no_prediction_falls_below_the_floor(candidate):
    X, _ = make_table(["signed", "few", "signed"], 500, 9)
    floor = float(np.median(candidate.predict(X)))

    agrees(candidate, X, floor=floor)
    assert predict(export(candidate, 3, floor=floor), X).min() == floor


def test_the_same_estimator_gives_the_same_bytes(candidate):
    assert export(candidate, 3, floor=0.0).SerializeToString() == export(candidate, 3, floor=0.0).SerializeToString()


def test_a_model_is_one_float64_tensor_in_and_one_out(candidate):
    model = export(candidate, 3)

    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18, "ai.onnx.ml": 5}
    assert model.ir_version == 9
    for value, name, width in ((model.graph.input, "rows", 3), (model.graph.output, "prediction", 1)):
        [value] = value
        rows, columns = value.type.tensor_type.shape.dim
        assert (value.name, rows.dim_param, columns.dim_value) == (name, "n", width)
        assert value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


def test_only_a_short_list_of_operators_is_written():
    X, y = make_table(["signed", "few", "signed"], 300, 2)
    models = [export(fit(estimator, X, y), 3, floor=0.0) for estimator in candidates().values()]

    written = {(node.domain, node.op_type) for model in models for node in model.graph.node}

    arithmetic = {"Add", "Exp", "Gemm", "Max", "Mul", "ReduceSum", "Sub", "Tanh"}
    choice = {"Cast", "Gather", "GreaterOrEqual", "Unsqueeze"}
    assert written == {("ai.onnx.ml", "TreeEnsemble"), *(("", operator) for operator in arithmetic | choice)}


def spline_of(*transformers: tuple[str, Any, list[int]], **options: Any) -> Pipeline:
    return Pipeline([("c", ColumnTransformer(list(transformers), **options)), ("fit", Ridge())])


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        GradientBoostingRegressor(n_estimators=2),
        Pipeline([("scale", MinMaxScaler()), ("fit", LinearRegression())]),
        boosting(loss="poisson"),
        boosting(categorical_features=[1]),
        TransformedTargetRegressor(regressor=boosting(), func=np.sqrt, inverse_func=np.square, check_inverse=False),
        spline_of(("a", SplineTransformer(), [0])),
        spline_of(("a", SplineTransformer(), [0]), ("b", "passthrough", [0, 1])),
        spline_of(("a", SplineTransformer(), [0]), ("b", "passthrough", [0]), ("c", "passthrough", [1])),
        spline_of(("a", SplineTransformer(extrapolation="continue"), [0]), ("b", "passthrough", [1])),
        spline_of(("a", StandardScaler(), [0]), ("b", "passthrough", [1])),
        spline_of(("a", SplineTransformer(), [0]), ("b", "passthrough", [1]), transformer_weights={"a": 2.0}),
        "not an estimator",
    ],
)
def test_an_estimator_that_cannot_be_exported_is_refused_by_name(estimator):
    X, y = make_table(["signed", "binary"], 60, 0)
    if not isinstance(estimator, str):
        fit(estimator, X, y)

    with pytest.raises(TypeError, match=r"cannot export .*supported are: .*RandomForestRegressor"):
        export(estimator, 2)


def test_a_different_number_of_columns_is_refused(candidate):
    with pytest.raises(ValueError, match="fitted on 3 columns; the table has 4"):
        export(candidate, 4)


@pytest.mark.parametrize("estimator", [DecisionTreeRegressor(), candidates()["linear"]])
def test_more_than_one_target_is_refused(estimator):
    X, y = make_table(["signed", "binary"], 60, 0)

    with pytest.raises(ValueError, match="reshape"):
        export(estimator.fit(X, np.column_stack([y, y])), 2)
