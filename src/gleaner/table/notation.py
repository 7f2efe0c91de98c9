"""Numbers as the cells of a column write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gleaner.table.numbers import Array, read_number, read_numbers
from gleaner.table.words import plain_text

# Blanks look alike, and so do apostrophes: each stands for its whole group.
BLANKS = " \u00a0\u202f\u2009"
APOSTROPHES = "'\u2019"
DECIMALS = ".,"
THOUSANDS = DECIMALS + APOSTROPHES + BLANKS


@dataclass(frozen=True, slots=True)
class Notation:
    """The way in which the cells of a column write numbers.

    decimal: the sign before the decimals.
    thousands: the sign between groups of three digits; empty for none.
    strip: signs beside a number that mean nothing, such as those of currencies, with blanks between them.
    brackets: whether a number in brackets is negative.
    """

    decimal: str = "."
    thousands: str = ""
    strip: str = ""
    brackets: bool = False

    @property
    def is_plain(self) -> bool:
        return self.decimal == "." and not self.thousands and not self.strip and not self.brackets

    def read(self, cell: str) -> float:
        """Return the number of a cell without blanks around it. Raises ValueError."""
        if self.is_plain:
            return read_number(cell)
        match = _pattern(self.decimal, self.thousands, self.strip, self.brackets).fullmatch(cell)
        if not match:
            raise ValueError
        before, after, *written = match.groups(default="")
        grouped, whole, is_less = written[0] or written[2], written[1] or written[3], any(written[2:])
        for sign in _alike(self.thousands):
            grouped = grouped.replace(sign, "")
        return float(("-" if is_less else before or after) + (grouped or whole).replace(self.decimal, "."))

    def read_all(self, cells: Sequence[str]) -> Array | None:
        """Return the numbers of many cells; None if `read` may refuse one.

        Blanks around a number are allowed.
        """
        if self.is_plain:
            return read_numbers(cells)
        if not self.thousands and not self.strip and not self.brackets:
            text = "\0".join(cells)
            if "." in text or text.count("\0") != max(0, len(cells) - 1):
                return None
            return read_numbers(text.replace(self.decimal, ".").split("\0") if cells else cells)
        try:
            known = {cell: self.read(plain_text(cell)) for cell in set(cells)}
        except ValueError:
            return None
        return np.fromiter(map(known.__getitem__, cells), np.float64, len(cells))


def _alike(thousands: str) -> str:
    """Return all signs that count as one with a thousands separator."""
    return next((group for group in (BLANKS, APOSTROPHES) if thousands in group), thousands) if thousands else ""


@lru_cache(maxsize=256)
def _pattern(decimal: str, thousands: str, strip: str, brackets: bool) -> re.Pattern[str]:
    """Return the pattern of a number.

    Its groups: a minus or plus before a stripped sign, one behind it, digits in groups, and digits without groups. The
    last two come again for digits in brackets.
    Groups have no power and no zero in front, so that 1.234e5 and 0.123 are never taken for thousands.
    """
    before, after, blanks = "", "", f"[{BLANKS}\t]*"
    if signs := sorted(map(re.escape, plain_text(strip).split()), key=len, reverse=True):
        sign = f"(?:{'|'.join(signs)})"
        before, after = f"(?:{sign}{blanks})?", f"(?:{blanks}{sign})?"
    point = re.escape(decimal)
    grouped = rf"[1-9]\d{{0,2}}(?:[{re.escape(_alike(thousands))}]\d{{3}})+(?:{point}\d*)?" if thousands else "(?!)"
    whole = rf"(?:\d+{point}?\d*|{point}\d+)(?:[eE][+-]?\d+)?"
    digits = rf"(?:({grouped})|({whole}))"
    open_, close = (rf"\({blanks}", rf"{blanks}\)") if brackets else ("(?!)", "")
    signed, within = rf"(?:([+-]?){before}|{before}([+-])){digits}{after}", rf"{open_}{before}{digits}{after}{close}"
    return re.compile(rf"{signed}|{before}{within}{after}", re.ASCII)
