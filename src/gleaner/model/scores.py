"""Scores of a fitted model, each with its formula."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Literal

import numpy as np

from gleaner.settings.modelling import WithinFactor
from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer of predictions, as `[scores]` describes it.

    loss_name: the loss.
    within_factor, within: how near a prediction counts as accurate; exactly one of them is given.
    floor: the target's minimum, at which predictions are clipped; None for no minimum.
    """

    loss_name: Literal["squared_log_error", "standardised_squared_error"]
    within_factor: float | None = None
    within: float | None = None
    floor: float | None = None

    def loss(self, y: Array, p: Array) -> float:
        """Return the mean squared log error, or the standardised mean squared error.

        y, p: targets and predictions, shape (n,).
        The first is mean((ln(1+y) - ln(1+p))^2), scikit-learn's `mean_squared_log_error`. The second is
        mean((y-p)^2) / var(y), which is 1 - r2: always predicting the mean gives 1. If y is constant, the second is
        the plain mean squared error.
        """
        p = self.clip(p)
        if self.loss_name == "squared_log_error":
            return float(np.mean((np.log1p(y) - np.log1p(p)) ** 2))
        return float(np.mean((y - p) ** 2)) / (float(np.var(y)) if np.ptp(y) else 1.0)

    def accuracy(self, y: Array, p: Array) -> float:
        """Return the share of predictions near enough, from 0 to 1.

        Within a factor f: max((1+y)/(1+p), (1+p)/(1+y)) <= f; within a distance d: abs(y - p) <= d.
        """
        p = self.clip(p)
        if self.within is not None:
            return float(np.mean(np.abs(y - p) <= self.within))
        assert self.within_factor is not None
        # The second ratio is not 1 / the first: 1 / (1 / 49) is more than 49.
        return float(np.mean(np.maximum((1 + y) / (1 + p), (1 + p) / (1 + y)) <= self.within_factor))

    def clip(self, p: Array) -> Array:
        """Raise predictions below the floor to the floor."""
        return p if self.floor is None else np.maximum(p, self.floor)

    def scores(self, y: Array, p: Array) -> Scores:
        """Return every score of n predictions."""
        p = self.clip(p)
        return Scores(loss=self.loss(y, p), accuracy=self.accuracy(y, p), r2=r2(y, p), mae=mae(y, p))


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one model on one set of rows.

    loss: smaller is better.
    accuracy: a share, from 0 to 1.
    r2: 1 at best.
    mae: in the target's unit.
    """

    loss: float
    accuracy: float
    r2: float
    mae: float

    def named(self, prefix: str = "") -> dict[str, float]:
        """Return the scores by name, each name behind the prefix."""
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def mean(several: list[Scores]) -> Scores:
        """Return the mean of each score over several cross-validations."""
        return Scores(*(float(np.mean(values)) for values in zip(*map(astuple, several), strict=True)))


def r2(y: Array, p: Array) -> float:
    """Return the explained share of the variance, 1 - sum((y-p)^2) / sum((y-mean(y))^2).

    If y is constant: 1.0 for a perfect prediction, else 0.0, as scikit-learn's `r2_score`.
    """
    residual = float(np.sum((y - p) ** 2))
    if not np.ptp(y):  # the mean of a constant is rounded, so the sum below need not be 0
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / float(np.sum((y - np.mean(y)) ** 2))


def mae(y: Array, p: Array) -> float:
    """Return the mean absolute error, mean(abs(y - p)), in the target's unit."""
    return float(np.mean(np.abs(y - p)))


def scorer_of(settings: Settings) -> Scorer:
    """Return the scorer that `[scores]` and `model.min` describe."""
    accuracy = settings.scores.accuracy
    return Scorer(
        loss_name=settings.scores.loss,
        within_factor=accuracy.within_factor if isinstance(accuracy, WithinFactor) else None,
        within=None if isinstance(accuracy, WithinFactor) else accuracy.within,
        floor=settings.model.min,
    )
