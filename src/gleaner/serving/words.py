"""The metric of words that no category lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter

from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.words import OTHER


class OtherWords:
    """The counts of words that categories take as `other`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model_version", "feature"]
        self._counter = Counter("model_other_words", "Words counted as other.", labels, registry=registry)

    def of(self, slot: str, schema: Schema) -> SlotWords | None:
        """Return the counts of the version in a slot.

        None stands for a version without such a category.
        """
        places = {name: at for at, name in enumerate(schema.columns)}
        columns = []
        for feature in schema.features:
            if feature.type == "category" and feature.unknown == "other":
                counter = self._counter.labels(slot, feature.name)
                if feature.is_coded:
                    columns.append((places[feature.name], float(len(feature.words)), counter))
                else:
                    columns.append((places[f"{feature.name}={OTHER}"], 1.0, counter))
        return SlotWords(columns) if columns else None


class SlotWords:
    """The counts of one slot.

    columns: (the column, its number for another word, the counter) of each category.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Sequence[tuple[int, float, Counter]]) -> None:
        self._columns = columns

    def count(self, rows: tuple[Sequence[float]] | Array) -> None:
        """Count the words of predicted rows.

        rows: shape (n, k), or one row in a tuple.
        """
        for at, other, counter in self._columns:
            words = rows[:, at] if isinstance(rows, np.ndarray) else rows[0][at]
            if found := np.count_nonzero(words == other):
                counter.inc(float(found))
