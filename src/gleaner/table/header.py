"""The header of a CSV file, found below titles and blank lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from gleaner.errors import BadTable, wanted
from gleaner.table.lines import Lines
from gleaner.table.numbers import is_number
from gleaner.table.tables import plain_name

MOST_ABOVE = 50  # lines above the header
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}\b.*")
_TOTALS = re.compile(
    r"((grand|sub)[ -]?)?totals?|totale?|sum|summe|gesamt(summe)?|insgesamt|somme|suma|razem|ogółem|totaal|итого|всего",
    re.IGNORECASE,
)
_CSV_ERRORS = {
    "unexpected end of data": "a quote opens a cell and is never closed",
    "expected after": 'a quote closes a cell within its text; write "" for a quote inside a cell in quotes',
    "field larger than field limit": f"a cell is longer than {csv.field_size_limit():,} characters",
    "new-line character": "a carriage return stands within a line; wanted one kind of line ends in the whole file",
}


class Found(NamedTuple):
    """The header of a file.

    line: its physical line, from 1.
    first: its text, up to the first line end.
    rows: the rows below it.
    """

    header: list[str]
    line: int
    first: str
    delimiter: str
    rows: Iterator[list[str]]


def find_header(lines: Lines, columns: Sequence[Sequence[str]]) -> Found:
    """Return the first row that names the most columns.

    columns: the names of each column wanted, of which one is enough; empty for the first row that is not blank.
    Raises BadTable, csv.Error.
    """
    best, most, declared = None, -1, None
    for _ in range(MOST_ABOVE if columns else 1):
        place, line = _next_filled(lines)
        if not line:
            break
        if place == (lines.start, 0) and (match := _SEPARATOR.fullmatch(line)):
            declared = match[1]
            place, line = _next_filled(lines)
        below = lines.at, lines.number
        named = _count_named(_first_row(lines, line, declared), columns)
        lines.go(*below)
        if named > most:
            best, most = (place, line), named
        if named == len(columns):
            break
    if not best or not best[1]:
        raise BadTable(lines.name, "is empty; wanted a header and rows below it")
    (at, number), line = best
    lines.go(at, number)
    next(lines)
    delimiter = declared or find_delimiter(line)
    rows = csv.reader(chain([line], lines), delimiter=delimiter, strict=True)
    header = next(rows)
    if columns and not most and are_values(header):
        names = ", ".join(repr(names[0]) for names in columns[:5]) + ", ..." * (len(columns) > 5)
        reason = f"holds values, not names; {wanted(f'a header above the rows, with {names}', 'none')}"
        raise BadTable(lines.name, reason, line=number + 1)
    return Found(header, number + 1, line, delimiter, rows)


def find_delimiter(line: str) -> str:
    """Return the delimiter that gives a line the most cells."""
    return max(_DELIMITERS, key=lambda sign: len(next(csv.reader([line], delimiter=sign), [])))


def are_values(row: Sequence[str]) -> bool:
    """Return whether a row holds a number or a date."""
    return any(is_number(cell.strip()) or _DATE.fullmatch(cell.strip()) for cell in row)


def explain_row(cells: Sequence[str], header: Sequence[str]) -> str:
    """Return why a refused row is no row of values; else ""."""
    if repeats_header(cells, header):
        return "repeats the header; delete this line"
    return explain_totals(cells)


def explain_totals(cells: Sequence[str]) -> str:
    """Return why a row of totals is refused; else ""."""
    label = next((cell.strip() for cell in cells if cell.strip()), "")
    return f"is a row of totals, {label!r}; delete this line" if _TOTALS.fullmatch(label.rstrip(" :")) else ""


def repeats_header(cells: Sequence[str], header: Sequence[str]) -> bool:
    """Return whether a row is the header once more."""
    return len(cells) == len(header) and [plain_name(cell) for cell in cells] == [plain_name(cell) for cell in header]


def explain_csv(error: csv.Error) -> str:
    """Return what is wrong with a line that is not CSV."""
    return next(
        (said for sign, said in _CSV_ERRORS.items() if sign in str(error)), "a line cannot be parted into cells"
    )


def _next_filled(lines: Lines) -> tuple[tuple[int, int], str]:
    """Return (place, text) of the next line with text."""
    place = lines.at, lines.number
    while (line := next(lines, "")) and not line.strip():
        place = lines.at, lines.number
    return place, line


def _first_row(lines: Lines, line: str, delimiter: str | None) -> list[str]:
    try:
        reader = csv.reader(chain([line], lines), delimiter=delimiter or find_delimiter(line), strict=True)
        return next(reader, [])
    except csv.Error:
        return []


def _count_named(row: Sequence[str], columns: Sequence[Sequence[str]]) -> int:
    found = {plain_name(cell) for cell in row}
    return sum(any(plain_name(name) in found for name in names) for names in columns)
