"""Fitted estimators, and tables to fit them on, for tests of exports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sklearn.preprocessing import SplineTransformer

from gleaner.training.export import export

Array = np.ndarray

# Derandomised, so that a rounding at the edge of a threshold fails for everybody or for none.
properties = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def predict(model: onnx.ModelProto, X: Array) -> Array:
    """Return the model's predictions, shape (n,), from onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    prediction = session.run(["prediction"], {"rows": X})[0]
    assert prediction.shape == (len(X), 1)
    assert prediction.dtype == np.float64
    return prediction[:, 0]


def fit(estimator: Any, X: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few distinct values: equal quantiles, and solvers that stop early
        return estimator.fit(X, y)


def agrees(estimator: Any, X: Array, *, exactly: bool = False, floor: float | None = None) -> None:
    """Check that the export predicts as its estimator.

    exactly: to the bit; else to 1e-9, relative.
    """
    predictions = predict(export(estimator, X.shape[1], floor=floor), X)
    expected = estimator.predict(X)
    if floor is not None:
        expected = np.maximum(expected, floor)
    if exactly:
        np.testing.assert_array_equal(predictions, expected)
    else:
        np.testing.assert_allclose(predictions, expected, rtol=1e-9, atol=0)


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "wide": lambda rng, n: rng.gamma(1.5, 2e5, n),
    "signed": lambda rng, n: rng.normal(-3.0, 10.0, n),
    "whole": lambda rng, n: rng.integers(0, 2500, n),
    "few": lambda rng, n: rng.choice([1.0, 2.0, 5.0], n, p=[0.7, 0.2, 0.1]),
    "binary": lambda rng, n: rng.integers(0, 2, n),
    "rare": lambda rng, n: rng.random(n) < 0.03,
    "constant": lambda _, n: np.full(n, 7.25),
}


def make_table(kinds: Iterable[str], n: int, seed: int) -> tuple[Array, Array]:
    """Return X, a column of each kind, and a positive target."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([KINDS[kind](rng, n).astype(np.float64) for kind in kinds])
    spread = (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9)
    return X, rng.poisson(np.exp(2.5 + 0.3 * np.tanh(spread).sum(axis=1))).astype(np.float64)


tables = st.builds(
    make_table, st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), st.integers(40, 250), st.integers(0)
)


def beside(values: Array) -> Array:
    """Return each value and its neighbours in float64 and in float32.

    Also the numbers around half way between the float32 neighbours, where a float64 number changes the one that it is
    rounded to.
    """
    values = values[np.isfinite(values)]
    single = values.astype(np.float32)
    singles = [single, *(np.nextafter(single, np.float32(way)) for way in (-np.inf, np.inf))]
    middle, below, above = (each.astype(np.float64) for each in singles)
    singly = [values, (below + middle) / 2, (middle + above) / 2]
    doubles = [np.nextafter(each, way) for each in singly for way in (-np.inf, np.inf)]
    return np.concatenate([*singly, *doubles, below, middle, above])


def questions(X: Array, edges: dict[int, Array]) -> Array:
    """Return the table's rows, rows far outside, and rows beside edges."""
    rng = np.random.default_rng(0)
    low, high = X.min(axis=0), X.max(axis=0)
    around = rng.uniform(low - 1 - (high - low), high + 1 + (high - low), (200, X.shape[1]))
    parts = [X, around]
    for column, values in edges.items():
        values = beside(np.unique(values))
        part = X[rng.integers(0, len(X), len(values))]
        part[:, column] = values
        parts.append(part)
    return np.concatenate(parts)


def tree_edges(trees: Iterable[Any]) -> dict[int, Array]:
    pairs = [(tree.feature, tree.threshold) for tree in trees]
    feature, threshold = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return {column: threshold[feature == column] for column in np.unique(feature[feature >= 0])}


def boosting_edges(boosting: Any) -> dict[int, Array]:
    nodes = np.concatenate([predictor.nodes for (predictor,) in boosting._predictors])
    nodes = nodes[nodes["is_leaf"] == 0]
    return {
        column: nodes["num_threshold"][nodes["feature_idx"] == column] for column in np.unique(nodes["feature_idx"])
    }


def spline_edges(split: Any) -> dict[int, Array]:
    splines = [(each, where) for _, each, where in split.transformers_ if isinstance(each, SplineTransformer)]
    return {column: each.bsplines_[0].t for each, [column] in splines}
