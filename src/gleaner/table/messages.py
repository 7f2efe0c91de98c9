"""Values as messages show them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping

from gleaner.table.feature import Feature, Target
from gleaner.table.notation import DECIMALS, Notation
from gleaner.table.words import plain_text

_LONGEST_SHOWN = 40
_PLAIN = Notation()


def show(value: object) -> str:
    """Return a value for a message, short and in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, float) and math.isinf(value):
        return "a number too large for any column"
    text = repr(value)
    return text if len(text) <= 60 else text[:50] + "..." + text[-1]


def show_cell(column: Feature | Target, cell: object) -> str:
    """Return a refused cell for a message.

    A number in a notation that is not read comes with the settings that would read it.
    column: the column that refuses the cell.
    """
    if not isinstance(cell, str):
        return show(cell)
    if not cell.strip():
        return "an empty cell"
    is_words = isinstance(column, Feature) and not column.is_number
    return show(cell) + ("" if is_words else explain_cell(cell, column.notation))


def explain_cell(cell: str, notation: Notation = _PLAIN) -> str:
    """Return which settings would read a text like a number; else "".

    notation: the notation that does not read it.
    >>> explain_cell("2,18")
    '; it is 2.18 with decimal = ","'
    >>> explain_cell("1,234")
    '; it is 1234 with thousands = ",", or 1.234 with decimal = ","'
    """
    cell = plain_text(cell)
    if len(cell) > _LONGEST_SHOWN or not re.search("[0-9]", cell) or _reads(notation, cell) is not None:
        return ""
    found = [(_keys(other, notation), _reads(other, cell)) for other in _others(cell, notation)]
    fewest = min((len(keys) for keys, number in found if number is not None), default=0)
    numbers: dict[float, str] = {}
    for keys, number in found:
        if number is not None and len(keys) == fewest:
            numbers.setdefault(number, f"{number:.15g} with {' and '.join(keys)}")
    if not numbers:
        return ""
    sign = notation.thousands
    grouped = f"; thousands = {_quoted(sign)} parts groups of three digits" if sign and sign in cell else ""
    return f"{grouped}; it is {', or '.join(numbers.values())}"


def _others(cell: str, notation: Notation) -> Iterator[Notation]:
    """Yield the notations that may read a cell."""
    known = notation.strip.split()
    signs = {char for char in cell if char == "%" or unicodedata.category(char) == "Sc"}
    strip = " ".join([*known, *sorted(signs.difference(known))]) if signs.difference(known) else notation.strip
    brackets = notation.brackets or "(" in cell
    for decimal in dict.fromkeys((notation.decimal, *DECIMALS)):
        for thousands in dict.fromkeys((notation.thousands, "", ",", ".", " ", "'")):
            if thousands != decimal:
                yield Notation(decimal, thousands, strip, brackets)


def _reads(notation: Notation, cell: str) -> float | None:
    try:
        return notation.read(cell)
    except ValueError:
        return None


def _keys(notation: Notation, plain: Notation) -> list[str]:
    """Return the keys of a notation that differ from another's."""
    keys = ("decimal", "thousands", "strip", "brackets")
    return [
        f"{key} = {_quoted(getattr(notation, key))}" for key in keys if getattr(notation, key) != getattr(plain, key)
    ]


def _quoted(sign: str | bool) -> str:
    return f'"{sign}"' if isinstance(sign, str) else str(sign).lower()
