"""`train(table, settings)`: fits every candidate, judges it on rows that it has not seen, and says what it does."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold, ParameterGrid
from threadpoolctl import threadpool_limits

from gleaner.candidates import FAMILIES, ROWS_WORTH_THREADS, Family, Parameters, Task
from gleaner.errors import BadTraining
from gleaner.events import Chosen, Epoch, Event, Fitted, Loaded, Started, Step, Suspect, Tuned, Validated
from gleaner.schema import Array, Schema
from gleaner.scores import Judge, Scores, r2
from gleaner.settings import Settings, WithinFactor
from gleaner.tables import Table

GRID_FOLDS = 3
SAMPLE_ROWS = 10_000


def judge_of(settings: Settings) -> Judge:
    """The judge that `[scores]` describes."""
    accuracy = settings.scores.accuracy
    return Judge(
        loss_name=settings.scores.loss,
        within_factor=accuracy.within_factor if isinstance(accuracy, WithinFactor) else None,
        within=None if isinstance(accuracy, WithinFactor) else accuracy.within,
        floor=settings.model.min,
    )


def train(table: Table, settings: Settings) -> Iterator[Event]:
    """The events of one training, computed as they are asked for; the last is Chosen.

    A candidate's parameters are tuned once by r2 on 3 unshuffled folds; then it is validated on shuffled folds,
    several times, with those parameters. Both see the same rows, so the scores are a little optimistic.
    The champion has the least out-of-fold mean absolute error, and the challenger the next, unless they are named.
    Raises BadTraining where the table or the settings do not allow it.
    """
    _check(table, settings)
    started = {name: FAMILIES[name] for name in settings.training.candidates}
    fits = settings.training.folds * settings.training.repeats + 1
    steps = sum(fits + GRID_FOLDS * len(ParameterGrid(family.grid)) * bool(family.grid) for family in started.values())
    yield Loaded(table, _constant(table, settings), steps)
    fitted: list[Fitted] = []
    for name in started:
        for event in _train_candidate(name, table, settings):
            if isinstance(event, Fitted):
                fitted.append(event)
            yield event
    champion, challenger = _choose(fitted, settings)
    yield from suspects(table, champion, settings)
    yield Chosen(champion, challenger)


def _train_candidate(name: str, table: Table, settings: Settings) -> Iterator[Event]:
    """One candidate's events, from Started to Fitted."""
    began = time.perf_counter()
    family, judge, schema = FAMILIES[name], judge_of(settings), settings.schema_
    task = _task(schema, settings)
    X, y = table.X, table.y
    yield Started(name)
    threads = None if len(y) >= ROWS_WORTH_THREADS else 1
    with warnings.catch_warnings(), threadpool_limits(threads, user_api="openmp"), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            parameters: Parameters = {}
            for event in _tune(name, family, task, X, y):
                parameters = event.parameters if isinstance(event, Tuned) else parameters
                yield event

            repeats: list[Scores] = []
            out_of_fold = np.empty(0)
            for repeat in range(settings.training.repeats):
                predicted = np.empty(len(y))
                for train_rows, test_rows in _folds(settings, repeat).split(X):
                    estimator = family.make(task, parameters, X[train_rows])
                    estimator.fit(X[train_rows], y[train_rows])
                    predicted[test_rows] = estimator.predict(X[test_rows])
                    yield Step(name, "fold")
                if not np.isfinite(predicted).all():
                    raise ValueError("its predictions are not finite")
                repeats.append(judge.scores(y, predicted))
                out_of_fold = predicted if repeat == 0 else out_of_fold
                yield Validated(name, repeat + 1, Scores.mean(repeats))

            sample = _sample(len(y), settings.training.seed)
            estimator = family.make(task, parameters, X)
            epoch = 0
            for predicted in family.fit(estimator, X, y, X[sample]):
                epoch += 1
                yield Epoch(name, epoch, judge.loss(y[sample], predicted))
            yield Step(name, "model")
            yield Fitted(
                candidate=name,
                estimator=estimator,
                parameters=parameters,
                scores=Scores.mean(repeats),
                out_of_fold=judge.clip(out_of_fold),
                training_loss=judge.loss(y, estimator.predict(X)),
                epochs=epoch,
                seconds=time.perf_counter() - began,
                importances=_importances(estimator, X[sample], y[sample], schema, settings.training.seed),
            )
        except ValueError as e:
            # scikit-learn's word for a table that a family cannot be fitted to, such as a target of nothing but 0.
            raise BadTraining(f"{name} cannot be fitted to this table: {e}; leave it out of training.candidates") from e


def _tune(name: str, family: Family, task: Task, X: Array, y: Array) -> Iterator[Event]:
    """Try the grid: the best mean r2 over 3 unshuffled folds wins, the first of equals."""
    if not family.grid:
        return
    scores: dict[str, list[float]] = {}
    tried: dict[str, Parameters] = {}
    for train_rows, test_rows in KFold(GRID_FOLDS).split(X):
        for parameters, predicted in family.trials(task, X[train_rows], y[train_rows], X[test_rows]):
            tried[repr(parameters)] = parameters
            scores.setdefault(repr(parameters), []).append(r2(y[test_rows], predicted))
            yield Step(name, "grid")
    yield Tuned(name, tried[max(scores, key=lambda trial: float(np.mean(scores[trial])))])


def _choose(fitted: list[Fitted], settings: Settings) -> tuple[Fitted, Fitted | None]:
    ranked = sorted(fitted, key=lambda candidate: candidate.scores.mae)
    named = {candidate.candidate: candidate for candidate in fitted}
    training = settings.training
    best = next((c for c in ranked if c.candidate != training.challenger), ranked[0])
    champion = best if training.champion == "best" else named[training.champion]
    rest = [candidate for candidate in ranked if candidate is not champion]
    if training.challenger == "none" or (training.challenger == "second" and not rest):
        return champion, None
    return champion, rest[0] if training.challenger == "second" else named[training.challenger]


def suspects(table: Table, champion: Fitted, settings: Settings) -> Iterator[Suspect]:
    """The rows that a person should look at. They are used all the same: a model that drops what it
    dislikes looks better than it is.

    One kind is far from the champion's out-of-fold prediction, in standard deviations estimated by
    1.4826 times the median absolute deviation, of logarithms where the loss is one. The other is far in
    time from every other row.
    Source of the factor: Rousseeuw and Croux, Alternatives to the median absolute deviation (1993), section 1.
    """
    y, predicted = table.y, champion.out_of_fold
    log = settings.scores.loss == "squared_log_error"
    residual = np.log1p(y) - np.log1p(predicted) if log else y - predicted
    centred = residual - np.median(residual)
    spread = 1.4826 * float(np.median(np.abs(centred)))
    unit = f" {settings.model.unit}" if settings.model.unit else ""
    reasons: dict[int, list[str]] = {}
    for i in map(int, np.flatnonzero(np.abs(centred) > settings.training.suspect_deviation * spread)):
        off = f", {abs(centred[i]) / spread:.1f} standard deviations off" if spread else ""
        reasons[i] = [f"{y[i]:g}{unit}, where {predicted[i]:.0f} would be expected{off}"]
    for i, gap in _stray_days(table.days):
        if gap > settings.training.suspect_gap_days:
            reasons.setdefault(i, []).append(f"dated {gap:.0f} days from every other row")
    for i in sorted(reasons):
        yield Suspect(int(table.lines[i]), "; ".join(reasons[i]))


def _stray_days(days: Array) -> Iterator[tuple[int, float]]:
    """(row, days to the nearest other row in time) for every row with a day of its own."""
    known = np.flatnonzero(~np.isnan(days))
    order = known[np.argsort(days[known], kind="stable")]
    if len(order) < 2:
        return
    gaps = np.diff(days[order])
    nearest = np.minimum(np.r_[np.inf, gaps], np.r_[gaps, np.inf])
    yield from zip(map(int, order), map(float, nearest), strict=True)


def _check(table: Table, settings: Settings) -> None:
    training = settings.training
    least = max(2 * GRID_FOLDS, 2 * training.folds)
    if len(table.y) < least:
        raise BadTraining(f"{table.path}: {len(table.y)} usable rows; {training.folds} folds need at least {least}")
    for role in (training.champion, training.challenger):
        if role not in {"best", "second", "none", *training.candidates}:
            known = ", ".join(training.candidates)
            raise BadTraining(f"{role} is to serve but is no candidate; training.candidates has {known}")
    if training.champion == training.challenger:
        raise BadTraining(f"{training.champion} cannot be both champion and challenger")


def _constant(table: Table, settings: Settings) -> Scores:
    """The out-of-fold scores of the median: what a model must beat to be worth anything."""
    repeats = []
    for repeat in range(settings.training.repeats):
        predicted = np.empty(len(table.y))
        for train_rows, test_rows in _folds(settings, repeat).split(table.X):
            predicted[test_rows] = np.median(table.y[train_rows])
        repeats.append(judge_of(settings).scores(table.y, predicted))
    return Scores.mean(repeats)


def _folds(settings: Settings, repeat: int) -> Any:
    seed = (settings.training.seed + repeat) % 2**32
    return KFold(settings.training.folds, shuffle=True, random_state=seed)


def _task(schema: Schema, settings: Settings) -> Task:
    return Task(
        monotone=schema.monotone,
        log=settings.scores.loss == "squared_log_error",
        counts=settings.model.min is not None and settings.model.min >= 0,
        seed=settings.training.seed,
    )


def _sample(rows: int, seed: int) -> Any:
    """The rows, at most 10,000 of them, on which losses are computed."""
    if rows <= SAMPLE_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, SAMPLE_ROWS, replace=False))


def _importances(estimator: Any, X: Array, y: Array, schema: Schema, seed: int) -> Mapping[str, float]:
    """By how much the mean absolute error grows, in the target's unit, when a column is shuffled."""
    found = permutation_importance(estimator, X, y, scoring="neg_mean_absolute_error", n_repeats=5, random_state=seed)
    return dict(zip(schema.columns, map(float, found.importances_mean), strict=True))
