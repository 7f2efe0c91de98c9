"""The columns of the one table: every format becomes the same float64 matrix here, with every fault named."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import Fault, nearest

Array = NDArray[np.float64]

# Trees and forests compare float32 inputs, so a number must stay finite when it is rounded to one.
LARGEST = float(np.finfo(np.float32).max)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# How spreadsheets show numbers: in groups of three digits or not, with a point or a comma before the decimals.
_SHOWN = re.compile(r"([+-]?)([1-9]\d{0,2}([ ,.'\u2019\u00a0\u202f])\d{3}(?:\3\d{3})*|\d*)(?:([.,])(\d+))?", re.ASCII)
_LONGEST_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One input column. `min` and `max` bound what is accepted; `values` are the words of a category."""

    __pydantic_config__ = {
        "extra": "forbid",
        "allow_inf_nan": False,
    }  # pydantic's name for it; `settings` reads these from TOML

    name: str
    type: Literal["float", "int", "category"] = "float"
    unit: str = ""
    min: float | None = None
    max: float | None = None
    monotone: Literal["up", "down"] | None = None
    sources: tuple[str, ...] = ()
    map: Mapping[str, float] = field(default_factory=dict)
    values: tuple[str, ...] = ()
    description: str = ""

    @property
    def lowest(self) -> float:
        return -LARGEST if self.min is None else max(self.min, -LARGEST)

    @property
    def highest(self) -> float:
        return LARGEST if self.max is None else min(self.max, LARGEST)

    @property
    def columns(self) -> tuple[str, ...]:
        """The matrix columns that it fills: its own, or one 0/1 column per value of a category."""
        return tuple(f"{self.name}={value}" for value in self.values) if self.type == "category" else (self.name,)

    @property
    def wanted(self) -> str:
        """What would be right, in words."""
        if self.type == "category":
            return "one of " + ", ".join(map(repr, self.values))
        kind = "a whole number" if self.type == "int" else "a number"
        unit = f" of {self.unit}" if self.unit else ""
        return f"{kind}{unit}{_bounds(self.min, self.max)}"

    def accept(self, value: object) -> float:
        """The number that stands for a JSON value; for a category, the position in `values`.

        Raises ValueError if the column does not accept it: a boolean or a text is no number.
        """
        if self.type == "category":
            if not isinstance(value, str):
                raise ValueError
            return float(self.values.index(value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        try:
            number = float(value)
        except OverflowError as e:
            raise ValueError from e
        if not self.lowest <= number <= self.highest or (self.type == "int" and not number.is_integer()):
            raise ValueError
        return number

    def accept_cell(self, cell: str) -> float:
        """The number that stands for a cell's text. Raises ValueError if the column does not accept it."""
        cell = cell.strip()
        if self.type == "category":
            return self.accept(cell)
        return self.accept(self.map[cell] if cell in self.map else read_number(cell))

    def accept_cells(self, cells: Sequence[str]) -> Array | None:
        """The numbers of many cells at once, each as `accept_cell` gives it; None unless it is plain that it would."""
        if self.type == "category":
            # Backwards, so that a word that stands twice is its first.
            places = {word: float(i) for i, word in reversed(list(enumerate(self.values)))}
            try:
                return np.array([places[cell.strip()] for cell in cells], dtype=np.float64)
            except KeyError:
                return None
        if self.map:
            digits = {word: repr(number) for word, number in self.map.items()}
            cells = [digits.get(cell, cell) for cell in map(str.strip, cells)]
        numbers = _read_numbers(cells, self.lowest, self.highest)
        if numbers is None or (self.type == "int" and not (numbers == np.floor(numbers)).all()):
            return None
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The column to be predicted. Below `min` neither a prediction nor an actual falls."""

    name: str
    sources: tuple[str, ...] = ()
    unit: str = ""
    min: float | None = None

    def accept_cell(self, cell: str) -> float:
        """The number in a cell's text. Raises ValueError if it is none, or below the minimum."""
        number = read_number(cell.strip())
        if not self._lowest <= number <= LARGEST:
            raise ValueError
        return number

    def accept_cells(self, cells: Sequence[str]) -> Array | None:
        """The numbers of many cells at once, each as `accept_cell` gives it; None unless it is plain that it would."""
        return _read_numbers(cells, self._lowest, LARGEST)

    @property
    def _lowest(self) -> float:
        return -LARGEST if self.min is None else self.min

    @property
    def wanted(self) -> str:
        return f"a number{f' of {self.unit}' if self.unit else ''}{_bounds(self.min, None)}"


@dataclass(frozen=True, slots=True)
class Schema:
    """The features in their order, the target, and where a file keeps the day of each row (if it does)."""

    features: tuple[Feature, ...]
    target: Target
    date_sources: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the matrix columns, k of them."""
        return tuple(column for feature in self.features for column in feature.columns)

    @property
    def monotone(self) -> tuple[int, ...]:
        """1 (up), -1 (down) or 0 for each matrix column."""
        signs = {"up": 1, "down": -1, None: 0}
        return tuple(signs[feature.monotone] for feature in self.features for _ in feature.columns)

    def matrix(self, rows: Sequence[Sequence[float]] | Array) -> Array:
        """The matrix (n, k) of n rows of accepted numbers, one per feature; a category becomes 0/1 columns."""
        accepted = np.asarray(rows, dtype=np.float64).reshape(len(rows), len(self.features))
        if not any(feature.type == "category" for feature in self.features):
            return accepted
        blocks = []
        for j, feature in enumerate(self.features):
            column = accepted[:, j : j + 1]
            blocks.append(column == np.arange(len(feature.values)) if feature.type == "category" else column)
        return np.ascontiguousarray(np.hstack(blocks), dtype=np.float64)

    def accept(self, row: Mapping[str, object]) -> list[float]:
        """The numbers of one JSON object, one per feature. Raises KeyError or ValueError if something is wrong."""
        if len(row) != len(self.features):
            raise ValueError
        return [feature.accept(row[feature.name]) for feature in self.features]

    def faults(self, row: Mapping[str, object], number: int, most: int, near: int = 5) -> tuple[list[Fault], int]:
        """(what is wrong with one JSON object, at most so much of it; how much more is).

        near: for so many unknown names the nearest feature is looked for, which can take milliseconds.
        """
        names = frozenset(self.names)
        unknown = [name for name in row if name not in names]
        wrong = [feature for feature in self.features if not _accepts(feature, row.get(feature.name))]
        faults = [
            Fault("row", number, name[:100], f"no such column{nearest(name, self.names) if i < near else ''}")
            for i, name in enumerate(unknown[:most])
        ]
        for feature in wrong[: most - len(faults)]:
            is_there = feature.name in row
            got = f"wanted {feature.wanted}, got {show(row[feature.name])}" if is_there else ""
            faults.append(Fault("row", number, feature.name, got or f"is missing; wanted {feature.wanted}"))
        return faults, len(unknown) + len(wrong) - len(faults)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)


def read_number(text: str) -> float:
    """A decimal number as people write it in ASCII; no `1_000`, `1,000`, `inf`, `nan` or empty text."""
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def _read_numbers(cells: Sequence[str], lowest: float, highest: float) -> Array | None:
    """What `read_number` reads in many cells, without the spaces around; None if it may refuse one, or one is out of
    range. Python reads more than `read_number` does, but nothing more that is made of these characters alone."""
    text = "".join(cells)
    if not text.isascii() or text.encode("ascii").translate(None, b"0123456789+-.eE "):
        return None
    try:
        numbers = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None
    return numbers if ((lowest <= numbers) & (numbers <= highest)).all() else None


def _accepts(feature: Feature, value: object) -> bool:
    try:
        feature.accept(value)
    except ValueError:
        return False
    return True


def show(value: object) -> str:
    """A value for a message: short, in one line, and as the sender spelled it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float) and math.isinf(value):
        return "a number too large for any column"
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:50] + "..." + text[-1]


def show_cell(column: Feature | Target, cell: object) -> str:
    """A refused cell of a table for a message; of a number that is written as it is not read here, how it would be."""
    if not isinstance(cell, str):
        return show(cell)
    if not cell.strip():
        return "an empty cell"
    return show(cell) + ("" if isinstance(column, Feature) and column.type == "category" else explain_cell(cell))


def explain_cell(cell: str) -> str:
    """What in a text keeps it from being read as the number that it is to people, and that number; empty for none.

    It stays unread because nobody could tell: 1,234 is a thousand or about one, 12% is 12 or 0.12.
    >>> explain_cell("2,18")
    '; a decimal comma is not read: 2.18'
    """
    if len(cell) > _LONGEST_SHOWN or not re.search("[0-9]", cell):
        return ""
    signs = {char for char in cell if char == "%" or unicodedata.category(char) == "Sc"}
    plain = "".join(char for char in cell if char not in signs).strip()
    found = ["a currency sign"] * bool(signs - {"%"}) + ["a percent sign"] * ("%" in signs)
    if not _NUMBER.fullmatch(plain):
        match = _SHOWN.fullmatch(plain)
        if not match:
            return ""
        sign, whole, gap, point, decimals = match.groups(default="")
        if gap == point:  # both none, too
            return ""
        if gap == "," and whole.count(gap) == 1 and not point:
            found.append("a comma")
            plain = f"{plain.replace(',', '')} or {plain.replace(',', '.')}"
        else:
            found += ["a thousands separator"] * bool(gap) + ["a decimal comma"] * (point == ",")
            plain = sign + whole.replace(gap, "") + f".{decimals}" * bool(point)
    if not found:
        return ""
    return f"; {' or '.join(found)} is not read" + ("" if "%" in signs else f": {plain}")


def _bounds(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f", {low:,.15g} or more"
    return f" from {low:,.15g} to {high:,.15g}" if low is not None else f", {high:,.15g} or less"
