"""The step of a pipeline that fills gaps and marks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer

from gleaner.table.numbers import Array


class Filling(NamedTuple):
    """The numbers of a fitted step for k columns.

    medians: (k,) the number that fills a gap of each column.
    marked: (g,) the columns that get a further column each, 1 for a gap and else 0.
    """

    medians: Array
    marked: NDArray[np.int64]


def filling_steps(gaps: Sequence[bool]) -> list[tuple[str, Any]]:
    """Return the step that fills gaps; none if no column allows them.

    gaps: whether each of the k columns allows gaps. Each that does gets a column "was missing" behind the others, also
    if the training data has no gap there. A column without any value is filled with 0.
    """
    marked = [column for column, allowed in enumerate(gaps) if allowed]
    if not marked:
        return []
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    mark = MissingIndicator(features="all")
    return [("fill", ColumnTransformer([("values", fill, list(range(len(gaps)))), ("gaps", mark, marked)]))]


def read_filling(step: object) -> Filling | None:
    """Return what a fitted step does; None for any other estimator."""
    match step:
        case ColumnTransformer(
            transformer_weights=None,
            transformers_=[
                (_, SimpleImputer(add_indicator=False, statistics_=medians), [*columns]),
                (_, MissingIndicator(features="all"), [*marked]),
            ],
        ) if columns == list(range(step.n_features_in_)) == list(range(len(medians))):
            return Filling(medians, np.array(marked, dtype=np.int64))
    return None
