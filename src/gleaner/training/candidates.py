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
from gleaner.table.schema import Category
from gleaner.table.words import MOST_COLUMNS
from gleaner.training.gaps import filling_steps
from gleaner.training.words import WordMeans, WordPlaces, encoding_steps, others_of

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
    gaps: whether each column allows gaps, which are NaN; empty if none does.
    categories: those among the columns.
    """

    monotone: Sequence[int]
    log: bool
    counts: bool
    seed: int
    gaps: Sequence[bool] = ()
    categories: Sequence[Category] = ()

    @property
    def coded(self) -> frozenset[int]:
        """The columns that hold positions of words."""
        return frozenset(category.first for category in self.categories if category.is_coded)


class Family(ABC):
    """A model family."""

    def grid(self, task: Task) -> Mapping[str, Sequence[Any]]:
        """Return the values to try for each parameter, if any."""
        return {}

    def make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        """Make an estimator that is to be fitted on X.

        It is a Pipeline behind a step that replaces words by their mean target, if a category has many words.
        """
        model, steps = self._make(task, parameters, X), encoding_steps(task.categories, task.seed)
        return Pipeline([*steps, ("model", model)]) if steps else model

    def trials(self, task: Task, X: Array, y: Array, test: Array) -> Iterator[tuple[Parameters, Array]]:
        """Fit every point of the grid on X and y.

        Yields the parameters of the point, and its predictions for the rows of `test`.
        """
        for _, step in encoding_steps(task.categories, task.seed):
            X, test = step.fit_transform(X, y), step.transform(test)
        yield from self._trials(task, X, y, test)

    def fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        """Fit; after each epoch yield the predictions for `sample`."""
        match estimator:
            case Pipeline(steps=[(_, WordMeans() as means), (_, estimator)]):
                X, sample = means.fit_transform(X, y), means.transform(sample)
        yield from self._fit(estimator, X, y, sample)

    @abstractmethod
    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        """Make an estimator of numbers."""

    def _trials(self, task: Task, X: Array, y: Array, test: Array) -> Iterator[tuple[Parameters, Array]]:
        grid = dict(self.grid(task))
        for parameters in ParameterGrid(grid) if grid else ():
            yield parameters, self._make(task, parameters, X).fit(X, y).predict(test)

    def _fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        yield estimator.fit(X, y).predict(sample)


class Linear(Family):
    """Least squares on standardised columns."""

    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        steps = [("scale", StandardScaler()), ("regress", LinearRegression())]
        return Pipeline([*filling_steps(task.gaps), *steps])


class Tree(Family):
    """One regression tree."""

    def grid(self, task: Task) -> Mapping[str, Sequence[Any]]:
        return {"max_depth": (3, 5, 10)}

    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        return DecisionTreeRegressor(random_state=task.seed, **parameters)


class Forest(Family):
    """The mean of many trees. An epoch is a batch of them."""

    def grid(self, task: Task) -> Mapping[str, Sequence[Any]]:
        return {"max_depth": (5, 10, 20), "n_estimators": (50, 100, 200)}

    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        return RandomForestRegressor(random_state=task.seed, n_jobs=_threads(X), **parameters)

    def _trials(self, task: Task, X: Array, y: Array, test: Array) -> Iterator[tuple[Parameters, Array]]:
        # The first 50 trees of a forest of 200 are the forest of 50, so a third of the fits is enough.
        grid = self.grid(task)
        sizes = grid["n_estimators"]
        for depth in grid["max_depth"]:
            parameters = {"max_depth": depth, "n_estimators": max(sizes)}
            forest = self._make(task, parameters, X).fit(X, y)
            for size, predicted in _means(forest.estimators_, test):
                if size in sizes:
                    yield {"max_depth": depth, "n_estimators": size}, predicted

    def _fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
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


class GapBoosting(HistGradientBoostingRegressor):  # type: ignore[misc]
    """Histogram gradient boosting that can be fitted on columns without values.

    scikit-learn cannot bin such a column, and it bins a sample of the rows. So a column with too few values for a leaf,
    or for any sample, is fitted as if it were constant: no split uses it.
    """

    def fit(self, X: Array, y: Array, sample_weight: Array | None = None) -> Any:
        least = max(self.min_samples_leaf, len(X) // 10_000)
        is_rare = np.count_nonzero(~np.isnan(X), axis=0) < least
        return super().fit(np.where(is_rare, 0.0, X), y, sample_weight)


class Boosting(Family):
    """Histogram gradient boosting. An epoch is a boosting round.

    Fits the logarithm of the target if the loss compares logarithms.
    With declared directions it fits the squared error. For the absolute error scikit-learn moves each leaf to a
    median after the tree is grown, past the bounds that keep the tree monotone: on 450 real routes, more minutes
    then cost up to 6 bags. The squared error costs 2 % of mean absolute error.
    The words of categories are sets that a split parts, or 0/1 columns: the better of the two is kept.
    """

    def grid(self, task: Task) -> Mapping[str, Sequence[Any]]:
        return {"words": ("sets", "columns")} if _sets(task) else {}

    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        kind = GapBoosting if any(task.gaps) else HistGradientBoostingRegressor
        sets = _sets(task) if parameters.get("words") == "sets" else ()
        others = others_of(sets, X.shape[1])
        boosting: Any = kind(
            loss="squared_error" if any(task.monotone) else "absolute_error",
            monotonic_cst=[*(0 for _ in sets), *(task.monotone[column] for column in others)],
            categorical_features=list(range(len(sets))) or None,
            random_state=task.seed,
            **{name: value for name, value in parameters.items() if name != "words"},
        )
        if sets:
            boosting = Pipeline([("places", WordPlaces(sets)), ("boost", boosting)])
        if not task.log:
            return boosting
        return TransformedTargetRegressor(boosting, func=np.log1p, inverse_func=np.expm1, check_inverse=False)

    def _fit(self, estimator: Any, X: Array, y: Array, sample: Array) -> Iterator[Array]:
        estimator.fit(X, y)
        is_log = isinstance(estimator, TransformedTargetRegressor)
        boosting = estimator.regressor_ if is_log else estimator
        if isinstance(boosting, Pipeline):
            sample, boosting = boosting[0].transform(sample), boosting[1]
        for stage in boosting.staged_predict(sample):
            yield np.expm1(stage) if is_log else stage


def _sets(task: Task) -> tuple[Category, ...]:
    """Return the categories that boosting can part as sets of words."""
    return tuple(each for each in task.categories if not each.is_coded and each.words <= MOST_COLUMNS)


class Spline(Family):
    """A Poisson regression on smooth curves, one per column.

    The curves are flat beyond their knots, which lie among the values that are there. A ridge regression on the same
    curves if the target can be negative. The knots of a category of many words lie among its words' mean targets.
    """

    def _make(self, task: Task, parameters: Parameters, X: Array) -> Any:
        curves = []
        for j in range(X.shape[1]):
            if j in task.coded:
                means = SplineTransformer(KNOTS, knots="quantile", extrapolation="constant", include_bias=False)
                curves.append((f"column_{j}", means, [j]))
                continue
            seen = X[~np.isnan(X[:, j]), j]
            knots = np.unique(np.quantile(seen, np.linspace(0, 1, KNOTS))) if len(seen) else seen
            curve = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="constant", include_bias=False)
            curves.append((f"column_{j}", curve if len(knots) > 2 else "passthrough", [j]))
        curves += [(f"gap_{i}", "passthrough", [X.shape[1] + i]) for i in range(sum(task.gaps))]
        if task.counts:
            regression: Any = PoissonRegressor(alpha=0.1, solver="newton-cholesky", max_iter=300)
        else:
            regression = Ridge(alpha=1.0)
        steps = [("curves", ColumnTransformer(curves)), ("regress", regression)]
        return Pipeline([*filling_steps(task.gaps), *steps])


FAMILIES: Mapping[str, Family] = {
    "linear": Linear(),
    "decision_tree": Tree(),
    "random_forest": Forest(),
    "gradient_boosting": Boosting(),
    "spline": Spline(),
}
