"""CSV as it is written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Literal

# A cell that a spreadsheet would run as a formula, unless it is a number, in a text with NUL before every cell.
# Source: https://owasp.org/www-community/attacks/CSV_Injection, with the full-width signs that some programs
# read like the plain ones.
_FORMULA = re.compile(
    "\0(?=\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])"
    "(?!\\s*[+-]?[0-9.,]*[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?\\s*(?:\0|\\Z))"
)


def padded(rows: Sequence[Sequence[str]], width: int) -> Sequence[Sequence[str]]:
    """Return rows of `width` cells.

    A row may end early, or have empty cells beyond the header.
    """
    return [row if len(row) == width else [*row[:width], *[""] * (width - len(row))] for row in rows]


def disarm(rows: Sequence[Sequence[str]], width: int) -> Sequence[Sequence[str]]:
    """Return rows with a `'` before each text that is a formula.

    rows: rows of `width` cells.
    Raises ValueError if a cell has a NUL character.
    """
    text = "\0" + "\0".join(map("\0".join, rows))
    if text.count("\0") != width * len(rows):
        raise ValueError
    safe, found = _FORMULA.subn("\0'", text)
    if not found:
        return rows
    cells = safe[1:].split("\0")
    return [cells[i : i + width] for i in range(0, len(cells), width)]


def titles_text(rows: Sequence[Sequence[str]], delimiter: str, end: str) -> str:
    """Return the rows above a header as CSV.

    Raises ValueError if a cell has a NUL character.
    """
    return "".join(csv_text(disarm([row], len(row)) if row else [row], delimiter, end) for row in rows)


def csv_text(rows: Sequence[Sequence[str]], delimiter: str, end: str) -> str:
    """Return rows as CSV, with quotes where they are needed."""
    text = io.StringIO(newline="")
    # Python before 3.13 does not quote a carriage return inside a cell, and does not read the cell back then.
    is_bare = end == "\n" and "\r" in "".join(map("".join, rows))
    quoting: Literal[0, 1] = csv.QUOTE_ALL if is_bare else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()
