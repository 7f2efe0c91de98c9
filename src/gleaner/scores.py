"""Numbers about a fitted model, each with its formula; all of them honest for a regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from gleaner.schema import Array


@dataclass(frozen=True, slots=True)
class Judge:
    """How predictions are judged: which loss, and what counts as accurate.

    within_factor or within: exactly one is given. floor: the target's minimum, at which predictions are clipped.
    """

    loss_name: Literal["squared_log_error", "standardised_squared_error"]
    within_factor: float | None = None
    within: float | None = None
    floor: float | None = None

    def loss(self, y: Array, p: Array) -> float:
        """Mean squared log error, mean((ln(1+y) - ln(1+p))^2); or mean squared error over the variance of y.

        y, p: targets and predictions, shape (n,). The first is scikit-learn's `mean_squared_log_error`.
        The second is 1 - r2: a constant scores 1, or, where y itself is constant, the plain mean squared error.
        """
        p = self.clip(p)
        if self.loss_name == "squared_log_error":
            return float(np.mean((np.log1p(y) - np.log1p(p)) ** 2))
        return float(np.mean((y - p) ** 2)) / (float(np.var(y)) if np.ptp(y) else 1.0)

    def accuracy(self, y: Array, p: Array) -> float:
        """The share of predictions near enough, from 0 to 1.

        Within a factor f: max((1+y)/(1+p), (1+p)/(1+y)) <= f; within a distance d: abs(y - p) <= d.
        """
        p = self.clip(p)
        if self.within is not None:
            return float(np.mean(np.abs(y - p) <= self.within))
        assert self.within_factor is not None
        # Not 1 / ratio for the second: 1 / (1 / 49) is more than 49.
        return float(np.mean(np.maximum((1 + y) / (1 + p), (1 + p) / (1 + y)) <= self.within_factor))

    def clip(self, p: Array) -> Array:
        return p if self.floor is None else np.maximum(p, self.floor)

    def scores(self, y: Array, p: Array) -> Scores:
        """Every score of n predictions at once."""
        p = self.clip(p)
        return Scores(loss=self.loss(y, p), accuracy=self.accuracy(y, p), r2=r2(y, p), mae=mae(y, p))


@dataclass(frozen=True, slots=True)
class Scores:
    """loss: smaller is better; accuracy: share from 0 to 1; r2: 1 at best; mae: in the target's unit."""

    loss: float
    accuracy: float
    r2: float
    mae: float

    def named(self, prefix: str = "") -> dict[str, float]:
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def mean(several: list[Scores]) -> Scores:
        """The mean of each score over several cross-validations."""
        columns: Mapping[str, list[float]] = {name: [s.named()[name] for s in several] for name in several[0].named()}
        return Scores(**{name: float(np.mean(values)) for name, values in columns.items()})


def r2(y: Array, p: Array) -> float:
    """The share of the variance that is explained: 1 - sum((y-p)^2) / sum((y-mean(y))^2).

    Where y is constant: 1.0 for a perfect prediction, else 0.0, as scikit-learn's `r2_score` does.
    """
    residual = float(np.sum((y - p) ** 2))
    if not np.ptp(y):  # the mean of a constant is rounded, so the sum below need not be 0
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / float(np.sum((y - np.mean(y)) ** 2))


def mae(y: Array, p: Array) -> float:
    """Mean absolute error, mean(abs(y - p)), in the target's unit."""
    return float(np.mean(np.abs(y - p)))
