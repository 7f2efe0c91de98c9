"""The export of a fitted estimator to ONNX, in double precision.

The export writes each operator itself, because skl2onnx's float64 trees do not load in onnxruntime. The reference
is the estimator's `predict`; the tests compare the two, also one step to either side of every threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, PoissonRegressor, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from gleaner.model.manifest import INPUT
from gleaner.training.gaps import read_filling
from gleaner.training.onnx_graph import Graph
from gleaner.training.onnx_trees import MEAN, add_trees, boosted, both_ways, grown, lookup, turned
from gleaner.training.words import WordMeans, WordPlaces, others_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SUPPORTED = (
    "Pipeline(StandardScaler, LinearRegression); "
    "DecisionTreeRegressor; RandomForestRegressor; "
    "HistGradientBoostingRegressor of squared_error or absolute_error, its categories behind a step WordPlaces; "
    "TransformedTargetRegressor of such an estimator, with func=np.log1p and inverse_func=np.expm1; "
    "Pipeline(ColumnTransformer, PoissonRegressor | Ridge | LinearRegression), each column through one transformer, "
    "a SplineTransformer of constant or linear extrapolation or 'passthrough'; "
    "such a Pipeline behind the step of gleaner.training.gaps; "
    "each of these behind a step WordMeans"
)


def export(
    estimator: object, columns: int, *, floor: float | None = None, gaps: Sequence[bool] = ()
) -> onnx.ModelProto:
    """Return an ONNX model that predicts as the estimator's `predict`.

    The model takes `rows`, float64 (n, columns), finite or NaN for a gap, and returns `prediction`, float64 (n, 1).
    It uses opset 18 and ai.onnx.ml 5.
    columns: the number of columns.
    floor: the least prediction; None for no floor.
    gaps: whether each column may have gaps; empty if none may. A gap elsewhere has no meaning.
    Trees, forests and plain boosting are exact to the bit on one thread of onnxruntime. The others are exact to
    rounding, far below 1e-9 relative. The same estimator gives the same bytes.
    Raises TypeError for an estimator that is not in SUPPORTED, ValueError for one fitted on other columns.
    """
    if (fitted := getattr(estimator, "n_features_in_", columns)) != columns:
        raise ValueError(f"the estimator was fitted on {fitted} columns; the table has {columns}")
    graph, rows = Graph(), INPUT
    match estimator:
        case Pipeline(steps=[(_, WordMeans() as means), (_, estimator)]):
            rows = _with_means(graph, means, columns)
    gappy = np.flatnonzero(gaps)
    match estimator:
        case Pipeline(steps=[(_, fill), _, _]) if len(gappy):
            rows, estimator = _filled(graph, rows, estimator, fill), Pipeline(estimator.steps[1:])
    match estimator:
        case Pipeline(steps=[(_, StandardScaler() as scaler), (_, LinearRegression() as linear)]):
            prediction = _scaled_linear(graph, rows, scaler, linear)
        case Pipeline(steps=[(_, ColumnTransformer() as split), (_, (LinearRegression() | Ridge()) as linear)]):
            prediction = _splines(graph, rows, split, linear)
        case Pipeline(steps=[(_, ColumnTransformer() as split), (_, PoissonRegressor() as linear)]):
            prediction = graph.add("Exp", "expected", _splines(graph, rows, split, linear))
        case DecisionTreeRegressor():
            tree = grown(estimator.tree_, gappy)
            if floor is not None:
                tree, floor = tree._replace(value=np.maximum(tree.value, floor)), None
            prediction = add_trees(graph, rows, [tree])
        case RandomForestRegressor():
            trees = [grown(member.tree_, gappy) for member in estimator.estimators_]
            if floor is not None and floor <= 0 <= min(tree.value.min() for tree in trees):
                floor = None  # the mean of values that are not negative is not negative
            reached = [member.tree_.n_node_samples for member in estimator.estimators_]
            trees = [turned(tree, its_rows, columns) for tree, its_rows in zip(trees, reached, strict=True)]
            prediction = add_trees(graph, both_ways(graph, rows, columns), trees, aggregate=MEAN)
        case TransformedTargetRegressor(func=np.log1p, inverse_func=np.expm1, regressor_=boosting):
            prediction = _expm1(graph, _boosting(graph, rows, boosting, columns, gappy))
        case _:
            prediction = _boosting(graph, rows, estimator, columns, gappy)
    if floor is not None:
        graph.add("Max", "floored", prediction, graph.constant("floor", float(floor)))
    return graph.as_model(columns)


def _unsupported(estimator: object) -> TypeError:
    return TypeError(f"cannot export {' '.join(repr(estimator).split())}; supported are: {SUPPORTED}")


def _boosting(graph: Graph, rows: str, estimator: object, columns: int, gappy: Ints) -> str:
    """Write the sum of a boosting's trees."""
    words: list[int] = []
    match estimator:
        case Pipeline(steps=[(_, WordPlaces(categories=categories) as places), (_, estimator)]):
            rows, words = _with_places(graph, rows, places, columns), [category.words for category in categories]
            others = others_of(categories, columns)
            gappy = len(words) + np.flatnonzero(np.isin(others, gappy))
    if not isinstance(estimator, HistGradientBoostingRegressor):
        raise _unsupported(estimator)
    try:
        return add_trees(graph, rows, boosted(estimator, gappy, words))
    except ValueError as e:
        raise _unsupported(estimator) from e


def _with_means(graph: Graph, means: WordMeans, columns: int) -> str:
    """Write the rows with mean targets in place of words' positions."""
    joined, order = INPUT, list(range(columns))
    for i, (column, values) in enumerate(zip(means.columns, means.means, strict=True)):
        found = add_trees(graph, INPUT, [lookup(column, values)], name=f"means_{i}")
        joined = graph.add("Concat", f"with_means_{i}", joined, found, axis=1)
        order[column] = columns + i
    return graph.add("Gather", "means", joined, graph.constant("means_columns", order), axis=1)


def _with_places(graph: Graph, rows: str, places: WordPlaces, columns: int) -> str:
    """Write the positions of words, and the other columns behind them."""
    ones = graph.add("Gather", "word_columns", rows, graph.constant("words", places.ones), axis=1)
    found = graph.add("Gemm", "places", ones, graph.constant("word_weights", places.weights))  # whole numbers: exact
    if not (others := others_of(places.categories, columns)):
        return found
    rest = graph.add("Gather", "other_columns", rows, graph.constant("others", others), axis=1)
    return graph.add("Concat", "places_and_others", found, rest, axis=1)


def _filled(graph: Graph, rows: str, estimator: object, fill: object) -> str:
    """Write the rows with filled gaps, and the columns that mark them."""
    filling = read_filling(fill)
    if filling is None:
        raise _unsupported(estimator)
    gap = graph.add("IsNaN", "gap", rows)
    filled = graph.add("Where", "filled", gap, graph.constant("medians", filling.medians), rows)
    ones = graph.add("Cast", "gaps_as_ones", gap, to=TensorProto.DOUBLE)
    marks = graph.add("Gather", "gaps", ones, graph.constant("gap_columns", filling.marked), axis=1)
    return graph.add("Concat", "filled_and_gaps", filled, marks, axis=1)


def _scaled_linear(graph: Graph, rows: str, scaler: Any, linear: Any) -> str:
    """Write a scaler and a linear regression as one Gemm.

    (x - mean) / scale . w + b becomes x . (w / scale) + (b - mean . w / scale), whose two large terms nearly cancel at
    the cost of a rounding of about 1e-16 * mean / scale. Measured: 6e-12 for a column whose mean is a million standard
    deviations from 0, 2e-9 for a hundred million.
    """
    weights = linear.coef_.reshape(scaler.n_features_in_)
    if scaler.with_std:
        weights = weights / scaler.scale_
    means = scaler.mean_ if scaler.with_mean else np.zeros_like(weights)
    intercept = math.fsum([np.asarray(linear.intercept_).item(), *(-means * weights)])
    folded = graph.constant("weights", weights[:, None]), graph.constant("intercept", [intercept])
    return graph.add("Gemm", "linear", rows, *folded)


def _expm1(graph: Graph, z: str) -> str:
    """Write exp(z) - 1, for which ONNX has no operator.

    The form tanh(z / 2) * (exp(z) + 1) does not cancel near 0.
    """
    tanh = graph.add("Tanh", "tanh", graph.add("Mul", "half", z, graph.constant("one_half", 0.5)))
    more = graph.add("Add", "exp_plus_one", graph.add("Exp", "exp", z), graph.constant("one", 1.0))
    return graph.add("Mul", "expm1", tanh, more)


class _Pieces(NamedTuple):
    """A piecewise polynomial of x.

    Piece i, in powers of x - anchors[i], starts at anchors[i].
    """

    anchors: Floats  # (pieces,); all but the first are knots: piece 0 starts at -inf
    coefficients: Floats  # (pieces, powers), the constant first


def _spline(transformer: Any, weights: Floats) -> _Pieces:
    """Return the polynomial of a one-column SplineTransformer and its weights.

    It is Taylor's series of the transformer's B-splines at each knot, so repeated knots keep their meaning. Outside
    the knots only the first or last `reach` B-splines continue, as a constant or a line, as in `transform`.
    """
    basis, degree = transformer.bsplines_[0], transformer.degree
    knots = basis.t[degree : len(basis.t) - degree]
    if not transformer.include_bias:
        weights = np.append(weights, 0.0)  # the last B-spline was dropped
    is_line = transformer.extrapolation == "linear"
    reach = degree + 1 if is_line and degree <= 1 else degree
    powers = 2 if is_line and degree else 1
    taylor = np.stack([basis(knots, nu=power) / math.factorial(power) for power in range(degree + 1)], axis=1)
    coefficients = np.zeros((len(knots) + 1, degree + 1))
    coefficients[0, :powers] = taylor[0, :powers, :reach] @ weights[:reach]
    coefficients[1:-1] = taylor[:-1] @ weights
    coefficients[-1, :powers] = taylor[-1, :powers, -reach:] @ weights[-reach:]
    return _Pieces(np.append(knots[0], knots), coefficients)


def _pieces_by_column(split: Any, weights: Floats) -> list[_Pieces]:
    """Return the polynomial of each column, in the order of the columns."""
    pieces: dict[int, _Pieces] = {}
    for name, transformer, where in split.transformers_:
        mine = weights[split.output_indices_[name]]
        match transformer, where:
            case SplineTransformer(extrapolation="constant" | "linear"), [int(column)] if column not in pieces:
                pieces[column] = _spline(transformer, mine)
            # scikit-learn fits this transformer for "passthrough".
            case FunctionTransformer(func=None), [int(column)] if column not in pieces:
                pieces[column] = _Pieces(np.zeros(1), np.array([[0.0, *mine]]))
            case _:
                raise _unsupported(split)
    if len(pieces) != split.n_features_in_ or split.transformer_weights:
        raise _unsupported(split)
    return [pieces[column] for column in range(split.n_features_in_)]


def _splines(graph: Graph, rows: str, split: Any, linear: Any) -> str:
    """Write the sum of every column's polynomial.

    Counts the knots that x has reached, gathers that piece, and evaluates the piece by Horner's rule.
    """
    pieces = _pieces_by_column(split, linear.coef_.reshape(linear.n_features_in_))
    columns, width = len(pieces), max(2, *(len(anchors) for anchors, _ in pieces))
    anchors = np.full((columns, width), np.inf)  # no x reaches a knot at infinity
    coefficients = np.zeros((max(each.shape[1] for _, each in pieces), columns, width))
    for column, (mine, each) in enumerate(pieces):
        anchors[column, : len(mine)] = mine
        coefficients[: each.shape[1], column, : len(mine)] = each.T
    coefficients[0, 0] += np.asarray(linear.intercept_).item()  # the first column carries the intercept

    knot_axis = graph.constant("knot_axis", [2])
    apart = graph.add("Unsqueeze", "rows_apart", rows, knot_axis)
    reached = graph.add("GreaterOrEqual", "knots_reached", apart, graph.constant("knots", anchors[:, 1:]))
    ones = graph.add("Cast", "knots_as_ones", reached, to=TensorProto.INT64)
    piece = graph.add("ReduceSum", "piece", ones, knot_axis, keepdims=0)
    place = graph.add("Add", "place", piece, graph.constant("first_places", np.arange(columns) * width))
    anchor = graph.add("Gather", "anchor", graph.constant("anchors", anchors.ravel()), place)
    step = graph.add("Sub", "step", rows, anchor)
    total = ""
    for power in reversed(range(len(coefficients))):
        table = graph.constant(f"coefficients_{power}", coefficients[power].ravel())
        term = graph.add("Gather", f"coefficient_{power}", table, place)
        if total:
            term = graph.add("Add", f"horner_{power}", graph.add("Mul", f"product_{power}", total, step), term)
        total = term
    # ReduceSum's order depends on where in memory a row begins, and so on the rows before it.
    return graph.add("Gemm", "total", total, graph.constant("ones", np.ones((columns, 1))))
