"""The columns of a table, and the values that each accepts.

`Feature` alone decides which values a column accepts: `accept` for one value, `accept_array` for many,
`json_schema` as a declaration. Text from files goes through `accept_cell` and `accept_cells`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gleaner.table.dates import DAY, day_of, local_moments, read_moment
from gleaner.table.declared import Declared
from gleaner.table.notation import Notation
from gleaner.table.numbers import Array
from gleaner.table.words import (
    digits,
    places_of,
    plain_text,
    plain_word,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature(Declared):
    """One input column, and the values that it accepts.

    Every accepted value becomes one number: itself, the position of a word, 0 or 1 of a bool, or the moment of a date
    (see `dates`). A missing value becomes NaN.
    """

    def accept(self, value: object) -> float:
        """Return the number of a JSON value.

        Raises ValueError for a value that the column does not accept. A boolean or a text is never a number.
        """
        if isinstance(value, str):
            return self._accept_text(value)
        if isinstance(value, bool):
            if self.type != "bool":
                raise ValueError
            return float(value)
        if value is None:
            return self._gap()
        if not isinstance(value, int | float):
            raise ValueError
        if value != value:  # only MLflow's bodies have NaN
            return self._gap()
        if not self.is_number:
            return self._accept_text(digits(value))  # a code, such as 10115
        try:
            number = float(value)
        except OverflowError as e:
            raise ValueError from e
        return self._gap() if number in self.gaps.numbers else self._accept_number(number)

    def accept_array(self, values: NDArray[Any] | Sequence[object]) -> tuple[Array, NDArray[np.bool_]]:
        """Return (numbers, whether `accept` accepts each), both of shape (n,).

        values: (n,) integers, floats or bools, or n objects.
        The number of a value that is not accepted has no meaning.
        """
        if not isinstance(values, np.ndarray) or values.dtype == np.object_:
            return _each(self.accept, values)
        if not self.is_number:
            some, places = np.unique(values, return_inverse=True)
            numbers, accepted = _each(self.accept, some.tolist())
            return numbers[places], accepted[places]
        numbers = values.astype(np.float64, copy=False)
        if values.dtype == np.bool_:
            return numbers, np.zeros(len(numbers), np.bool_)
        if self.gaps.numbers:
            numbers = np.where(np.isin(numbers, list(self.gaps.numbers)), np.nan, numbers)
        accepted = (self.lowest <= numbers) & (numbers <= self.highest)
        if self.type == "int":
            accepted &= numbers == np.floor(numbers)
        return numbers, accepted | np.isnan(numbers) if self.allows_gaps else accepted

    def accept_moments(self, seconds: Array, *, is_aware: bool) -> tuple[Array, NDArray[np.bool_]]:
        """Return (numbers, whether each is accepted) of moments, both of shape (n,).

        seconds: (n,) since 1970-01-01 00:00; in UTC if `is_aware`, else of the clock on the wall.
        """
        moments, accepted = local_moments(seconds, self.timezone, is_aware=is_aware)
        return np.floor(moments / DAY) * DAY if self.type == "date" else moments, accepted

    def accept_cell(self, cell: str) -> float:
        """Return the number of a cell. Raises ValueError for a refused cell."""
        if not self.is_number:
            return self._accept_text(cell)
        cell = plain_text(cell)
        if cell in self.map:
            return self._accept_number(float(self.map[cell]))
        if plain_word(cell, fold=self.fold) in self.gaps.words:
            return self._gap()
        number = self.notation.read(cell)
        return self._gap() if number in self.gaps.numbers else self._accept_number(number)

    def accept_cells(self, cells: Sequence[str]) -> Array | None:
        """Return the numbers of cells; None if `accept_cell` may refuse one."""
        numbers = None if self.map or not self.is_number else self.notation.read_all(cells)
        if numbers is not None:
            numbers, accepted = self.accept_array(numbers)
            return numbers if accepted.all() else None
        if self.is_number and not (self.map or self.allows_gaps):
            return None
        return self._accept_mixed(cells)

    def _accept_mixed(self, cells: Sequence[str]) -> Array | None:
        """Return the numbers of cells that may be words or empty.

        Each text of a column of words or dates is read once.
        """
        known: dict[str, float] = {}
        try:
            if not self.is_number:
                for cell in set(cells):
                    known[cell] = self.accept_cell(cell)
                return np.fromiter(map(known.__getitem__, cells), np.float64, len(cells))
            words = self.map.keys() | (self.gaps.words if self.allows_gaps else frozenset())
            stripped = [plain_text(cell) for cell in cells]
            plain = [plain_word(cell, fold=True) for cell in stripped] if self.fold else stripped
            is_word = np.fromiter(
                (a in words or b in words for a, b in zip(stripped, plain, strict=True)), np.bool_, len(cells)
            )
            for cell in {cell for cell, found in zip(stripped, is_word.tolist(), strict=True) if found}:
                known[cell] = self.accept_cell(cell)
        except ValueError:
            return None
        rest = [cell for cell, found in zip(stripped, is_word.tolist(), strict=True) if not found]
        read = self.notation.read_all(rest)
        if read is None:
            return None
        read, accepted = self.accept_array(read)
        if not accepted.all():
            return None
        numbers = np.empty(len(cells))
        numbers[~is_word] = read
        numbers[is_word] = [known[cell] for cell, found in zip(stripped, is_word.tolist(), strict=True) if found]
        return numbers

    def _accept_text(self, text: str) -> float:
        text = plain_word(text, fold=self.folds)
        if self.type == "category" and text in (places := places_of(self.words, self.folds)):
            return places[text]
        if self.type == "bool":
            for words, number in zip(self.yes_no, (1.0, 0.0), strict=True):
                if text in places_of(words, True):
                    return number
        if text in self.gaps.words:
            return self._gap()
        if self.is_date:
            moment = read_moment(text, self.formats, self.timezone)
            return day_of(moment) if self.type == "date" else moment
        if self.type == "category" and self.unknown == "other":
            return float(len(self.words))
        raise ValueError

    def _accept_number(self, number: float) -> float:
        if not self.lowest <= number <= self.highest or (self.type == "int" and not number.is_integer()):
            raise ValueError
        return number

    def _gap(self) -> float:
        if not self.allows_gaps:
            raise ValueError
        return math.nan


def _each(
    accept: Callable[[object], float], values: Sequence[object] | NDArray[Any]
) -> tuple[Array, NDArray[np.bool_]]:
    """Return (numbers, whether each is accepted) of values, one by one."""
    numbers, accepted = np.full(len(values), np.nan), np.ones(len(values), np.bool_)
    for i, value in enumerate(values):
        try:
            numbers[i] = accept(value)
        except ValueError:
            accepted[i] = False
    return numbers, accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The column to be predicted.

    min: the lowest prediction and the lowest accepted actual value.
    missing_values: entries of files that stand for a missing value, beside an empty cell.
    decimal, thousands, strip, brackets: the notation of numbers in cells; see `Notation`.
    """

    name: str
    sources: tuple[str, ...] = ()
    unit: str = ""
    min: float | None = None
    decimal: str | None = None
    thousands: str | None = None
    strip: str | None = None
    brackets: bool | None = None
    missing_values: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        return _feature_of(self).wanted

    @property
    def notation(self) -> Notation:
        return _feature_of(self).notation

    @property
    def column(self) -> Feature:
        """The target's column of a file for training, which may have gaps."""
        column = replace(_feature_of(self), sources=self.sources)
        return replace(column, missing="allow", missing_values=self.missing_values)

    def accept_cell(self, cell: str) -> float:
        """Return the number of a cell. Raises ValueError for a refused cell."""
        return _feature_of(self).accept_cell(cell)

    def accept_cells(self, cells: Sequence[str]) -> Array | None:
        """Return the numbers of cells; None if `accept_cell` may refuse one."""
        return _feature_of(self).accept_cells(cells)


@lru_cache
def _feature_of(target: Target) -> Feature:
    """Return a feature that accepts the same values as the target."""
    return Feature(
        name=target.name,
        unit=target.unit,
        min=target.min,
        decimal=target.decimal,
        thousands=target.thousands,
        strip=target.strip,
        brackets=target.brackets,
    )
