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

    Training uses these rows: a model that drops rows it predicts badly looks better than it is.
    One kind of row is far from the champion's out-of-fold prediction. The distance counts in standard deviations,
    estimated by 1.4826 times the median absolute deviation; of logarithms, if the loss compares logarithms. The other
    kind is far in time from every other row.
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
    """Yield each dated row and the days to the nearest other."""
    known = np.flatnonzero(~np.isnan(days))
    order = known[np.argsort(days[known], kind="stable")]
    if len(order) < 2:
        return
    gaps = np.diff(days[order])
    nearest = np.minimum(np.r_[np.inf, gaps], np.r_[gaps, np.inf])
    yield from zip(map(int, order), map(float, nearest), strict=True)
