"""Values as messages show them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import is_number

# Numbers as spreadsheets show them: with or without groups of three digits, and with a decimal point or comma.
_SHOWN = re.compile(r"([+-]?)([1-9]\d{0,2}([ ,.'\u2019\u00a0\u202f])\d{3}(?:\3\d{3})*|\d*)(?:([.,])(\d+))?", re.ASCII)
_LONGEST_SHOWN = 40


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
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:50] + "..." + text[-1]


def show_cell(column: Feature | Target, cell: object) -> str:
    """Return a refused cell for a message.

    A number in a notation that is not read comes with the reason.
    column: the column that refuses the cell.
    """
    if not isinstance(cell, str):
        return show(cell)
    if not cell.strip():
        return "an empty cell"
    return show(cell) + ("" if isinstance(column, Feature) and not column.is_number else explain_cell(cell))


def explain_cell(cell: str) -> str:
    """Return why a text like a number is not read; else "".

    Such a text is ambiguous: 1,234 is a thousand or about one, 12% is 12 or 0.12.
    >>> explain_cell("2,18")
    '; a decimal comma is not read: 2.18'
    """
    if len(cell) > _LONGEST_SHOWN or not re.search("[0-9]", cell):
        return ""
    signs = {char for char in cell if char == "%" or unicodedata.category(char) == "Sc"}
    plain = "".join(char for char in cell if char not in signs).strip()
    found = ["a currency sign"] * bool(signs - {"%"}) + ["a percent sign"] * ("%" in signs)
    if not is_number(plain):
        match = _SHOWN.fullmatch(plain)
        if not match:
            return ""
        sign, whole, gap, point, decimals = match.groups(default="")
        if gap == point:  # also if both are empty
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
