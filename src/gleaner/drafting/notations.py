"""Notations of numbers, tried on the cells of a column."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from gleaner.drafting.profile import Profile
from gleaner.table.notation import Notation

_NOTATIONS = [Notation(decimal, thousands) for decimal, thousands in (
    (".", ""), (".", ","), (",", ""), (",", "."), (",", " "), (".", " "), (".", "'"), (",", "\u00a0"), (",", "\u202f"),
)]  # fmt: skip


def notations(values: Iterable[str]) -> list[Notation]:
    """Return the notations to try, with the currencies and brackets of cells."""
    signs, brackets = find_signs(values), _has_brackets(values)
    return [replace(notation, strip=signs, brackets=brackets) for notation in _NOTATIONS]


def settled_decimal(profile: Profile) -> str:
    """Return the one decimal sign that reads a column, else ""."""
    values = profile.values
    tried = [(notation, read_cells(values, notation)[0]) for notation in notations(values)]
    most = max(rows for _, rows in tried)
    found = {notation.decimal for notation, rows in tried if rows == most}
    return found.pop() if len(found) == 1 and most * 2 > sum(values.values()) else ""


def read_cells(values: Iterable[str], notation: Notation) -> tuple[int, dict[str, float]]:
    """Return (the rows that a notation reads, the number of each cell)."""
    numbers: dict[str, float] = {}
    for cell in values:
        try:
            numbers[cell] = notation.read(cell)
        except ValueError:
            continue
    counts = values if isinstance(values, Counter) else Counter(values)
    return sum(counts[cell] for cell in numbers), numbers


def find_signs(values: Iterable[str]) -> str:
    """Return the signs of currencies and percent in cells."""
    found = {char for cell in itertools.islice(values, 1_000) for char in cell}
    return " ".join(sorted(char for char in found if char == "%" or unicodedata.category(char) == "Sc"))


def _has_brackets(values: Iterable[str]) -> bool:
    """Return whether some cells are in brackets, and some are not."""
    found = {cell.rstrip(" %").endswith(")") and "(" in cell for cell in itertools.islice(values, 100_000)}
    return len(found) == 2


def name_keys(notation: Notation) -> str:
    """Return the keys that declare a notation of numbers."""
    keys = [f'decimal = "{notation.decimal}"']
    return ", ".join(keys + ([f'thousands = "{notation.thousands}"'] if notation.thousands else []))
