"""Suspects: rows that a person should look at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array
from gleaner.table.tables import Table
from gleaner.training.events import Fitted, Suspect


def suspects(table: Table, champion: Fitted, settings: Settings) -> Iterator[Suspect]:
    """Yield the rows that a person should look at.

    The worst row comes first. Training uses these rows, because a model that drops the rows it predicts badly looks
    better than it is.
    One kind of row is far from the champion's out-of-fold prediction. The distance counts in standard deviations,
    as `_spread` estimates them; of logarithms, if the loss compares logarithms. The other kind is far in time from
    every other row.
    """
    y, predicted = table.y, champion.out_of_fold
    log = settings.scores.loss == "squared_log_error"
    residual = np.log1p(y) - np.log1p(predicted) if log else y - predicted
    distance = np.abs(residual - np.median(residual))
    spread = _spread(distance)
    unit = f" {settings.model.unit}" if settings.model.unit else ""
    reasons: dict[int, list[str]] = {}
    far = np.flatnonzero(distance > settings.training.suspect_deviation * spread)
    for i in map(int, far[np.argsort(-distance[far], kind="stable")]):
        actual, expected = f"{y[i]:g}", f"{predicted[i]:.0f}"
        if actual != expected:
            off = f", {distance[i] / spread:.1f} standard deviations off"
            reasons[i] = [f"{actual}{unit}, where {expected} would be expected{off}"]
    for i, gap in sorted(_stray_days(table.days), key=lambda stray: -stray[1]):
        if gap > settings.training.suspect_gap_days:
            reasons.setdefault(i, []).append(f"dated {gap:.0f} days from every other row")
    for i, texts in reasons.items():
        yield Suspect(int(table.lines[i]), "; ".join(texts))


def _spread(distance: Array) -> float:
    """Return a robust estimate of the standard deviation.

    A few far rows do not move it. It is 1.4826 times the median absolute deviation, and at least half of what the nine
    tenths nearest rows give: where most rows are equal, the median alone is 0. If nine tenths are equal, it is the
    standard deviation itself.
    distance: (n,) absolute deviations from the median.
    Source of the factor: Rousseeuw and Croux, Alternatives to the median absolute deviation (1993), section 1; 1.6449
    is the ninth decile of the absolute standard normal distribution.
    """
    median, decile = (float(quantile) for quantile in np.quantile(distance, [0.5, 0.9]))
    return max(1.4826 * median, 0.5 * decile / 1.6449) or float(np.sqrt(np.mean(distance**2)))


def _stray_days(days: Array) -> Iterator[tuple[int, float]]:
    """Yield each dated row and the days to the nearest other."""
    known = np.flatnonzero(~np.isnan(days))
    order = known[np.argsort(days[known], kind="stable")]
    if len(order) < 2:
        return
    gaps = np.diff(days[order])
    nearest = np.minimum(np.r_[np.inf, gaps], np.r_[gaps, np.inf])
    yield from zip(map(int, order), map(float, nearest), strict=True)
