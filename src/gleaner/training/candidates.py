"""The model families that training tries: their parts, grids and epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, PoissonRegressor, Ridge
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from gleaner.table.numbers import Array

TREES_PER_BATCH = 20
ROWS_WORTH_THREADS = 5_000  # with fewer rows, threads cost more time than they save
KNOTS = 5

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """The facts that a family needs beside the rows.

    monotone: 1, -1 or 0 for each of the k columns.
    log: whether the loss compares logarithms.
    counts: whether the target is never negative.
    """

    monotone: Sequence[int]
    log: bool
    counts: bool
    seed: int


class Family(ABC):
    """A model family.

    grid: the values to try for each parameter; empty if none is tuned.
    """

    grid: Mapping[str, Sequence[Any]] = {}

    @abstractmethod
    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        """Make an estimator that is to be fitted on X."""

    def trials(self, task: Task, X: Array, y: Array, test: Array) -> Iterator[tuple[Parameters, Array]]:
        """Fit every point of the grid on X and y.

        Yields the parameters of the point, and its predictions for the rows of `test`.
        """
        for parameters in ParameterGrid(dict(self.grid)) if self.grid else ():
            yield parameters, self.make(task, parameters, X).fit(X, y).predict(test)

    def fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        """Fit; after each epoch yield the predictions for `sample`."""
        yield estimator.fit(X, y).predict(sample)


class Linear(Family):
    """Least squares on standardised columns."""

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        return Pipeline([("scale", StandardScaler()), ("regress", LinearRegression())])


class Tree(Family):
    """One regression tree."""

    grid = {"max_depth": (3, 5, 10)}

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        return DecisionTreeRegressor(random_state=task.seed, **parameters)


class Forest(Family):
    """The mean of many trees. An epoch is a batch of them."""

    grid = {"max_depth": (5, 10, 20), "n_estimators": (50, 100, 200)}

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        return RandomForestRegressor(random_state=task.seed, n_jobs=_threads(X), **parameters)

    def trials(self, task: Task, X: Array, y: Array, test: Array) -> Iterator[tuple[Parameters, Array]]:
        # The first 50 trees of a forest of 200 are the forest of 50, so a third of the fits is enough.
        sizes = self.grid["n_estimators"]
        for depth in self.grid["max_depth"]:
            parameters = {"max_depth": depth, "n_estimators": max(sizes)}
            forest = self.make(task, parameters, X).fit(X, y)
            for size, predicted in _means(forest.estimators_, test):
                if size in sizes:
                    yield {"max_depth": depth, "n_estimators": size}, predicted

    def fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        trees, total = estimator.n_estimators, np.zeros(len(sample))
        estimator.set_params(warm_start=True)
        for start in range(0, trees, TREES_PER_BATCH):
            # A warm start draws the same trees as a single fit of all.
            size = min(start + TREES_PER_BATCH, trees)
            estimator.set_params(n_estimators=size, n_jobs=_threads(X)).fit(X, y)
            for tree in estimator.estimators_[start:]:
                total += tree.predict(sample)
            yield total / size
        # Many threads build trees; a single one predicts, so that the order of a sum does not change.
        estimator.set_params(warm_start=False, n_jobs=1)


def _means(trees: Sequence[Any], X: Array) -> Iterator[tuple[int, Array]]:
    """Yield n and the mean prediction of the first n trees."""
    total = np.zeros(len(X))
    for n, tree in enumerate(trees, start=1):
        total += tree.predict(X)
        yield n, total / n


def _threads(X: Array) -> int:
    """Return scikit-learn's `n_jobs` for a table of this size."""
    return -1 if len(X) >= ROWS_WORTH_THREADS else 1


class Boosting(Family):
    """Histogram gradient boosting. An epoch is a boosting round.

    Fits the logarithm of the target if the loss compares logarithms.
    With declared directions it fits the squared error. For the absolute error scikit-learn moves each leaf to a
    median after the tree is grown, past the bounds that keep the tree monotone: on 450 real routes, more minutes
    then cost up to 6 bags. The squared error costs 2 % of mean absolute error.
    """

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        boosting = HistGradientBoostingRegressor(
            loss="squared_error" if any(task.monotone) else "absolute_error",
            monotonic_cst=list(task.monotone),
            random_state=task.seed,
            **parameters,
        )
        if not task.log:
            return boosting
        return TransformedTargetRegressor(boosting, func=np.log1p, inverse_func=np.expm1, check_inverse=False)

    def fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        estimator.fit(X, y)
        if isinstance(estimator, TransformedTargetRegressor):
            yield from (np.expm1(stage) for stage in estimator.regressor_.staged_predict(sample))
        else:
            yield from estimator.staged_predict(sample)


class Spline(Family):
    """A Poisson regression on smooth curves, one per column.

    The curves are flat beyond their knots. A ridge regression on the same curves if the target can be negative.
    """

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        curves = []
        for j in range(X.shape[1]):
            knots = np.unique(np.quantile(X[:, j], np.linspace(0, 1, KNOTS)))
            curve = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="constant", include_bias=False)
            curves.append((f"column_{j}", curve if len(knots) > 2 else "passthrough", [j]))
        if task.counts:
            regression: Any = PoissonRegressor(alpha=0.1, solver="newton-cholesky", max_iter=300)
        else:
            regression = Ridge(alpha=1.0)
        return Pipeline([("curves", ColumnTransformer(curves)), ("regress", regression)])


FAMILIES: Mapping[str, Family] = {
    "linear": Linear(),
    "decision_tree": Tree(),
    "random_forest": Forest(),
    "gradient_boosting": Boosting(),
    "spline": Spline(),
}
