"""The schema: the columns of a table together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gleaner.errors import Fault, nearest, wanted
from gleaner.table.dates import part_columns, part_row
from gleaner.table.declared import Json
from gleaner.table.feature import Feature, Target
from gleaner.table.messages import show
from gleaner.table.numbers import Array

# Only the first unknown names of a body get a suggestion: among sixty features with long names one takes 6 ms.
SUGGESTIONS = 5


class Category(NamedTuple):
    """A category in the matrix.

    first: its first column.
    words: the number of its words, with those for other and missing ones.
    is_coded: whether its only column holds the position of the word; else each word has a 0/1 column.
    """

    first: int
    words: int
    is_coded: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a table.

    features: the features in the order of the matrix.
    target: the column to be predicted.
    date_sources: the headers under which a file may have the day of each row, if no feature has it.
    date_formats: the formats of these days, beside ISO dates.
    group: the column whose equal entries stay in one fold, a header or a feature's name; empty for none.
    """

    features: tuple[Feature, ...]
    target: Target
    date_sources: tuple[str, ...] = ()
    date_formats: tuple[str, ...] = ()
    group: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the k matrix columns."""
        return tuple(column for feature in self.features for column in feature.columns)

    @property
    def monotone(self) -> tuple[int, ...]:
        """1 (up), -1 (down) or 0 for each matrix column."""
        signs = {"up": 1, "down": -1, None: 0}
        return tuple(signs[feature.monotone] for feature in self.features for _ in feature.columns)

    @property
    def gaps(self) -> tuple[bool, ...]:
        """Whether each matrix column may be NaN.

        Those of a category never are: a missing value is one of its words.
        """
        return tuple(f.allows_gaps and f.type != "category" for f in self.features for _ in f.columns)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories in the order of their columns."""
        firsts = itertools.accumulate((len(feature.columns) for feature in self.features), initial=0)
        pairs = zip(self.features, firsts, strict=False)
        return tuple(Category(first, f.places, f.is_coded) for f, first in pairs if f.type == "category")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    def matrix(self, rows: Sequence[Sequence[float]] | Array) -> Array:
        """Return the matrix, shape (n, k), of n rows of accepted numbers.

        rows: one number per feature; a category becomes 0/1 columns or one of positions, and a date one per part.
        """
        accepted = np.asarray(rows, dtype=np.float64).reshape(len(rows), len(self.features))
        if all(feature.is_number or feature.type == "bool" for feature in self.features):
            return accepted
        blocks = [_block(feature, accepted[:, j]) for j, feature in enumerate(self.features)]
        return np.ascontiguousarray(np.hstack(blocks), dtype=np.float64)

    def expand(self, numbers: Sequence[float]) -> list[float]:
        """Return the columns of one row of accepted numbers, as `matrix` does."""
        columns: list[float] = []
        for feature, number in zip(self.features, numbers, strict=True):
            if feature.type == "category":
                place = int(number) if number == number else feature.places - 1
                if feature.is_coded:
                    columns.append(float(place))
                else:
                    ones = [0.0] * feature.places
                    ones[place] = 1.0
                    columns += ones
            elif feature.is_date:
                columns += part_row(number, feature.parts)
            else:
                columns.append(number)
        return columns

    def accept(self, row: Mapping[str, object]) -> list[float]:
        """Return the numbers of one JSON object, one per feature.

        Raises KeyError or ValueError for an object with any fault.
        """
        if len(row) == len(self.features):
            return [feature.accept(row[feature.name]) for feature in self.features]
        if not row.keys() <= set(self.names):
            raise ValueError
        return [feature.accept(row.get(feature.name)) for feature in self.features]

    def unknown(self, names: Iterable[str], most: int, near: int = SUGGESTIONS) -> tuple[list[tuple[str, str]], int]:
        """Return ((name, reason) of unknown names, the number beyond `most`).

        near: the number of names for which the nearest feature is looked up.
        """
        known = frozenset(self.names)
        found = [name for name in names if name not in known]
        named = [
            (name[:100], f"no such column{nearest(name, self.names) if i < near else ''}")
            for i, name in enumerate(found[:most])
        ]
        return named, len(found) - len(named)

    def faults(
        self, row: Mapping[str, object], number: int, most: int, near: int = SUGGESTIONS
    ) -> tuple[list[Fault], int]:
        """Return (the faults of one JSON object, the number beyond `most`).

        number: the position of the row, for the faults.
        near: the number of unknown names for which the nearest feature is looked up.
        """
        unknown, unnamed = self.unknown(row, most, near)
        wrong = [feature for feature in self.features if not _accepts(feature, row.get(feature.name))]
        faults = [Fault("row", number, name, reason) for name, reason in unknown]
        for feature in wrong[: most - len(faults)]:
            is_there = feature.name in row
            reason = wanted(feature.wanted, show(row[feature.name])) if is_there else feature.absent
            faults.append(Fault("row", number, feature.name, reason))
        return faults, unnamed + len(unknown) + len(wrong) - len(faults)


def _block(feature: Feature, numbers: Array) -> Array:
    """Return the matrix columns of one feature's numbers, shape (n, c)."""
    if feature.type == "category":
        # A missing value is the last word.
        places: Array = np.where(np.isnan(numbers), feature.places - 1, numbers)[:, None]
        return places if feature.is_coded else (places == np.arange(feature.places)).astype(np.float64)
    return part_columns(numbers, feature.parts) if feature.is_date else numbers[:, None]


def _accepts(feature: Feature, value: object) -> bool:
    try:
        feature.accept(value)
    except ValueError:
        return False
    return True


def example_row(schema: Schema) -> Json:
    """Return a row of short values that the schema accepts."""
    return {feature.name: _example(feature) for feature in schema.features}


def _example(feature: Feature) -> Any:
    if feature.type == "category":
        return feature.words[0] if feature.words else "a word"
    if feature.type == "bool":
        return True
    if feature.is_date:
        return "2024-01-31" if feature.type == "date" else "2024-01-31T13:30:00"
    low, high = feature.min, feature.max
    if low is not None and high is not None:
        middle = low + (high - low) / 4
        value: float = int(middle) if low <= int(middle) else middle
    else:
        value = int(low) + 1 if low is not None else int(high) - 1 if high is not None else 1
    return value if feature.type == "int" else float(value)
