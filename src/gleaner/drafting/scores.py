"""The `[scores]` of a draft."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from gleaner.settings.sections import Alerts
from gleaner.table.numbers import Array
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, Task

_MOST_ROWS, _FOLDS = 5_000, 3


def draft_scores(table: Table, *, log: bool) -> list[str]:
    """Return the lines of `[scores]`.

    The bound lies where LowValidationAccuracy separates a good model from the median: their accuracies, out of fold,
    are as far above and below the alert's threshold as can be.
    log: whether the loss compares logarithms.
    """
    loss = "squared_log_error" if log else "standardised_squared_error"
    lines = [f'loss = "{loss}"']
    rows = np.random.default_rng(0).permutation(len(table.y))[:_MOST_ROWS]
    X, y = table.X[rows], table.y[rows]
    if len(y) < 2 * _FOLDS or not np.ptp(y):
        return [*lines, "accuracy = { within_factor = 2.0 }" if log else "accuracy = { within = 1.0 }"]
    predicted, median = _out_of_fold(table, X, y, log=log)
    model, constant = _distances(y, predicted, log=log), _distances(y, median, log=log)
    threshold = Alerts().validation_accuracy
    bound, good, base = _bound(model, constant, threshold, least=1.0 if log else 0.0)
    lines.append(f"accuracy = {{ {'within_factor' if log else 'within'} = {bound:.10g} }}")
    about = f"# Out of fold, a first model reaches {good:.2f} and the median {base:.2f}"
    if base >= threshold or good < threshold:
        lines.append(f"{about}: LowValidationAccuracy, below {threshold:g}, cannot tell them apart.")
    else:
        lines.append(f"{about}; LowValidationAccuracy fires below {threshold:g}.")
    return lines


def _out_of_fold(table: Table, X: Array, y: Array, *, log: bool) -> tuple[Array, Array]:
    """Return (a first model's predictions, the median's), both (n,)."""
    schema = table.schema
    task = Task(monotone=schema.monotone, log=log, counts=bool(y.min() >= 0), seed=0, categories=schema.categories)
    family = FAMILIES["gradient_boosting"]
    parameters = {name: values[0] for name, values in family.grid(task).items()}
    predicted, median = np.empty(len(y)), np.empty(len(y))
    # On a busy machine the threads of OpenMP wait for one another, and such a fit takes minutes.
    with threadpool_limits(1, user_api="openmp"):
        for fold in range(_FOLDS):
            test = np.arange(len(y)) % _FOLDS == fold
            predicted[test] = family.make(task, parameters, X[~test]).fit(X[~test], y[~test]).predict(X[test])
            median[test] = np.median(y[~test])
    return predicted, median


def _distances(y: Array, predicted: Array, *, log: bool) -> Array:
    """Return the least bound under which each prediction is accurate."""
    if not log:
        return np.abs(y - predicted)
    ratio = (1 + y) / (1 + np.maximum(predicted, 0))
    distances: Array = np.maximum(ratio, 1 / ratio)
    return distances


def _bound(model: Array, constant: Array, threshold: float, least: float) -> tuple[float, float, float]:
    """Return (the bound, the model's accuracy under it, the constant's).

    least: the bound of a perfect prediction.
    """
    tried = np.unique(np.quantile(np.concatenate([model, constant]), np.linspace(0.02, 0.98, 97)))
    tried = np.array([least + float(f"{bound - least:.3g}") for bound in tried if bound > least] or [least + 1.0])
    good = np.array([(model <= bound).mean() for bound in tried])
    base = np.array([(constant <= bound).mean() for bound in tried])
    best = int(np.argmax(np.minimum(good - threshold, threshold - base)))
    return float(tried[best]), float(good[best]), float(base[best])
