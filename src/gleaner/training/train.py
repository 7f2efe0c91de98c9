"""Training: every candidate is fitted, and scored on unseen rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import permutation_importance
from sklearn.model_selection import ParameterGrid
from threadpoolctl import threadpool_limits

from gleaner.errors import BadTraining
from gleaner.model.manifest import Gaps
from gleaner.model.scores import Scorer, Scores, r2, scorer_of
from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, ROWS_WORTH_THREADS, Parameters, Task
from gleaner.training.events import Chosen, Epoch, Event, Fitted, Started, Step, TableRead, Tuned, Validated
from gleaner.training.folds import GRID_FOLDS, Rows, check_groups, forward_folds, grid_folds, shuffled_folds
from gleaner.training.suspects import suspects

SAMPLE_ROWS = 10_000


def train(table: Table, settings: Settings) -> Iterator[Event]:
    """Train on a table; yield the events, the last Chosen.

    A candidate's parameters are tuned once by r2 on 3 unshuffled folds. Then the candidate is validated with those
    parameters on shuffled folds, several times. Both see the same rows, so the scores are a little optimistic.
    Rows of one group stay in one fold. If the rows have days, each candidate is also scored forward in time; that
    score decides nothing.
    The champion has the least out-of-fold mean absolute error and the challenger the next, unless the settings name
    others.
    Raises BadTraining if the table or the settings do not allow a training.
    """
    _check(table, settings)
    families = [FAMILIES[name] for name in settings.training.candidates]
    fits = settings.training.folds * settings.training.repeats + len(forward_folds(table.days)) + 1
    grids = [dict(family.grid(_task(table.schema, settings))) for family in families]
    steps = sum(fits + GRID_FOLDS * len(ParameterGrid(grid)) * bool(grid) for grid in grids)
    yield TableRead(table, _constant(table, settings), steps, _constant_forward(table, settings))
    fitted: list[Fitted] = []
    for name in settings.training.candidates:
        for event in _Candidate(name, table, settings).train():
            if isinstance(event, Fitted):
                fitted.append(event)
            yield event
    champion, challenger = _choose(fitted, settings)
    yield from suspects(table, champion, settings)
    yield Chosen(champion, challenger)


class _Candidate:
    """One candidate, and the table that it is trained on."""

    def __init__(self, name: str, table: Table, settings: Settings) -> None:
        self.name, self.family, self.settings = name, FAMILIES[name], settings
        self.X, self.y = table.X, table.y
        self.scorer, self.task = scorer_of(settings), _task(table.schema, settings)
        self.table, self.schema = table, table.schema

    def train(self) -> Iterator[Event]:
        """Yield the candidate's events, from Started to Fitted."""
        began = time.perf_counter()
        yield Started(self.name)
        threads = None if len(self.y) >= ROWS_WORTH_THREADS else 1
        with warnings.catch_warnings(), threadpool_limits(threads, user_api="openmp"), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                parameters = yield from self._tune()
                scores, out_of_fold = yield from self._validate(parameters)
                forward = yield from self._validate_forward(parameters)
                yield from self._fit(parameters, scores, out_of_fold, forward, began)
            except ValueError as e:
                # scikit-learn's error for a table that a family cannot fit, such as a target that is always 0.
                reason = f"{self.name} cannot be fitted to this table: {e}; leave it out of training.candidates"
                raise BadTraining(reason) from e

    def _tune(self) -> Generator[Event, None, Parameters]:
        """Try the grid; return the parameters of the best mean r2.

        The folds are not shuffled. The first of equals wins.
        """
        if not self.family.grid(self.task):
            return {}
        X, y = self.X, self.y
        scores: dict[str, list[float]] = {}
        tried: dict[str, Parameters] = {}
        for train_rows, test_rows in grid_folds(self.table):
            for parameters, predicted in self.family.trials(self.task, X[train_rows], y[train_rows], X[test_rows]):
                tried[repr(parameters)] = parameters
                scores.setdefault(repr(parameters), []).append(r2(y[test_rows], predicted))
                yield Step(self.name, "grid")
        best = tried[max(scores, key=lambda trial: float(np.mean(scores[trial])))]
        yield Tuned(self.name, best)
        return best

    def _validate(self, parameters: Parameters) -> Generator[Event, None, tuple[Scores, Array]]:
        """Cross-validate; return the mean scores and the first repeat's predictions, shape (n,)."""
        y = self.y
        repeats: list[Scores] = []
        out_of_fold = np.empty(0)
        for repeat in range(self.settings.training.repeats):
            predicted = np.empty(len(y))
            for train_rows, test_rows in shuffled_folds(self.table, self.settings, repeat):
                predicted[test_rows] = self._predict(parameters, train_rows, test_rows)
                yield Step(self.name, "fold")
            if not np.isfinite(predicted).all():
                raise ValueError("its predictions are not finite")
            repeats.append(self.scorer.scores(y, predicted))
            out_of_fold = predicted if repeat == 0 else out_of_fold
            yield Validated(self.name, repeat + 1, Scores.mean(repeats))
        return Scores.mean(repeats), self.scorer.clip(out_of_fold)

    def _validate_forward(self, parameters: Parameters) -> Generator[Event, None, Scores | None]:
        """Return the scores of later rows, predicted from earlier ones."""
        predicted = np.full(len(self.y), np.nan)
        for train_rows, test_rows in forward_folds(self.table.days):
            predicted[test_rows] = self._predict(parameters, train_rows, test_rows)
            yield Step(self.name, "forward")
        return _forward_scores(self.table, predicted, self.scorer)

    def _predict(self, parameters: Parameters, train_rows: Rows, test_rows: Rows) -> Array:
        """Predict some rows by an estimator fitted to others."""
        estimator = self.family.make(self.task, parameters, self.X[train_rows])
        estimator.fit(self.X[train_rows], self.y[train_rows])
        predicted: Array = estimator.predict(self.X[test_rows])
        return predicted

    def _fit(
        self, parameters: Parameters, scores: Scores, out_of_fold: Array, forward: Scores | None, began: float
    ) -> Iterator[Event]:
        """Fit on all rows. began: the start of the candidate, by `time.perf_counter`."""
        X, y, seed = self.X, self.y, self.settings.training.seed
        sample = _sample(len(y), seed)
        estimator = self.family.make(self.task, parameters, X)
        epoch = 0
        for predicted in self.family.fit(estimator, X, y, X[sample]):
            epoch += 1
            yield Epoch(self.name, epoch, self.scorer.loss(y[sample], predicted))
        yield Step(self.name, "model")
        yield Fitted(
            candidate=self.name,
            estimator=estimator,
            parameters=parameters,
            scores=scores,
            out_of_fold=out_of_fold,
            forward=forward,
            training_loss=self.scorer.loss(y, estimator.predict(X)),
            epochs=epoch,
            seconds=time.perf_counter() - began,
            importances=_importances(estimator, X[sample], y[sample], self.schema, seed),
            gaps=_gaps(self.table, out_of_fold, self.scorer),
        )


def _choose(fitted: list[Fitted], settings: Settings) -> tuple[Fitted, Fitted | None]:
    """Return the champion, and the challenger if there is to be one."""
    ranked = sorted(fitted, key=lambda candidate: candidate.scores.mae)
    named = {candidate.candidate: candidate for candidate in fitted}
    training = settings.training
    best = next((c for c in ranked if c.candidate != training.challenger), ranked[0])
    champion = best if training.champion == "best" else named[training.champion]
    rest = [candidate for candidate in ranked if candidate is not champion]
    if training.challenger == "none" or (training.challenger == "second" and not rest):
        return champion, None
    return champion, rest[0] if training.challenger == "second" else named[training.challenger]


def _check(table: Table, settings: Settings) -> None:
    training = settings.training
    least = max(2 * GRID_FOLDS, 2 * training.folds)
    if len(table.y) < least:
        raise BadTraining(f"{table.path} has {len(table.y)} usable rows; {training.folds} folds need at least {least}")
    check_groups(table, settings)
    for name, numbers in zip(table.schema.columns, table.X.T, strict=True):
        if np.isnan(numbers).all():
            raise BadTraining(f"{table.path} has no value of {name!r} in any usable row; delete its [[features]]")
    for role in (training.champion, training.challenger):
        if role not in {"best", "second", "none", *training.candidates}:
            known = ", ".join(training.candidates)
            raise BadTraining(f"{role} cannot serve, since it is no candidate; training.candidates has {known}")
    if training.champion == training.challenger:
        raise BadTraining(f"{training.champion} cannot be both champion and challenger")


def _constant(table: Table, settings: Settings) -> Scores:
    """Return the out-of-fold scores of always predicting the median."""
    repeats = []
    for repeat in range(settings.training.repeats):
        predicted = np.empty(len(table.y))
        for train_rows, test_rows in shuffled_folds(table, settings, repeat):
            predicted[test_rows] = np.median(table.y[train_rows])
        repeats.append(scorer_of(settings).scores(table.y, predicted))
    return Scores.mean(repeats)


def _constant_forward(table: Table, settings: Settings) -> Scores | None:
    """Return the scores of predicting the median of earlier rows."""
    predicted = np.full(len(table.y), np.nan)
    for train_rows, test_rows in forward_folds(table.days):
        predicted[test_rows] = np.median(table.y[train_rows])
    return _forward_scores(table, predicted, scorer_of(settings))


def _forward_scores(table: Table, predicted: Array, scorer: Scorer) -> Scores | None:
    """Return the scores of the tested rows.

    None if no row is tested.
    predicted: (n,) predictions of later rows from earlier ones.
    """
    folds = forward_folds(table.days)
    if not folds:
        return None
    tested = np.concatenate([test_rows for _, test_rows in folds])
    return scorer.scores(table.y[tested], predicted[tested])


def _task(schema: Schema, settings: Settings) -> Task:
    return Task(
        monotone=schema.monotone,
        log=settings.scores.loss == "squared_log_error",
        counts=settings.model.min is not None and settings.model.min >= 0,
        seed=settings.training.seed,
        gaps=schema.gaps,
        categories=schema.categories,
    )


def _gaps(table: Table, predicted: Array, scorer: Scorer) -> Gaps | None:
    """Return the scores with and without gaps; None if none may be.

    predicted: out of fold, shape (n,).
    """
    if not any(feature.allows_gaps for feature in table.schema.features):
        return None
    has_gap = table.gaps.any(axis=1)
    scores = [
        scorer.scores(table.y[rows], predicted[rows]).named() if np.count_nonzero(rows) > 1 else {}
        for rows in (has_gap, ~has_gap)
    ]
    return Gaps(table.missing, *scores)


def _sample(rows: int, seed: int) -> Any:
    """Return at most 10,000 row indices, for losses and importances."""
    if rows <= SAMPLE_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, SAMPLE_ROWS, replace=False))


def _importances(estimator: Any, X: Array, y: Array, schema: Schema, seed: int) -> Mapping[str, float]:
    """Return the mean absolute error's growth when a column is shuffled."""
    found = permutation_importance(estimator, X, y, scoring="neg_mean_absolute_error", n_repeats=5, random_state=seed)
    return dict(zip(schema.columns, map(float, found.importances_mean), strict=True))
