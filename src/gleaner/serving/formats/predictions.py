"""The predictions for one table, as writers of responses read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gleaner.table.numbers import Array
from gleaner.table.rows import Rows


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for the accepted rows, and the contents of a response.

    numbers: the predictions, shape (m,).
    detail: whether the response shows the version and an id for each row.
    partial: whether the response shows the reason for each refused row.
    """

    rows: Rows
    numbers: Array
    version: int
    id: str
    detail: bool
    partial: bool

    @property
    def ids(self) -> list[str]:
        return [f"{self.id}-{i}" for i in range(self.rows.count)]

    def spread(self) -> Array:
        """Return the predictions, shape (n,), with NaN for a refused row."""
        if not self.rows.faults:
            return self.numbers
        spread = np.full(self.rows.count, np.nan)
        spread[self.rows.accepted] = self.numbers
        return spread

    def reasons(self) -> list[str | None]:
        """Return a reason for each refused row, None for the others."""
        reasons: list[str | None] = [None] * self.rows.count
        for i, faults in self.rows.faults.items():
            reasons[i] = "; ".join(map(str, faults))
        return reasons
