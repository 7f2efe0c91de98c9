"""Columns beside the features: the day and group of each row."""

from __future__ import annotations

import datetime as dt
import math
import re
from array import array
from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from gleaner.table.dates import DAY, EPOCH_DAY, read_format
from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, Header, plain_name

_MOST_DAYS = 100_000  # distinct entries that are remembered
_DAY = re.compile(r"\s*(\d{4})-(\d{1,2})-(\d{1,2})(?!\d)", re.ASCII)


class Aside:
    """The day and the group of each accepted row of a file.

    undated: the number of rows whose cell has an entry that is no date.
    """

    def __init__(self, header: Header, schema: Schema) -> None:
        """Find the columns.

        Raises BadTable if the file has no column for `schema.group`.
        """
        self._formats = schema.date_formats
        self._day = header.find_day(schema.date_sources)
        sources = next((feature.sources for feature in schema.features if feature.name == schema.group), ())
        self._group = header.find(schema.group, sources) if schema.group else None
        self._days, self._groups = array("d"), array("q")
        self._read: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self.undated = 0

    def add(self, chunk: Chunk) -> None:
        """Read the next rows."""
        day, group = self._day, self._group
        if day is None and group is None:
            return
        for cells in compress(chunk.cells, chunk.accepted):
            if day is not None:
                self._days.append(self._read_day(_cell(cells, day)))
            if group is not None:
                plain = plain_name(_cell(cells, group))
                self._groups.append(self._numbers.setdefault(plain, len(self._numbers)))

    def days(self, columns: Sequence[Feature | Target], rows: Array) -> Array:
        """Return the day number of each row, shape (n,); NaN for none.

        Without a column of its own the day is that of the first feature with dates.
        columns: the columns of `rows`, an (n, k) array of accepted numbers.
        """
        if self._day is not None:
            return np.frombuffer(self._days, dtype=np.float64)
        for j, column in enumerate(columns):
            if isinstance(column, Feature) and column.is_date:
                days: Array = np.floor(rows[:, j] / DAY) + EPOCH_DAY
                return days
        return np.full(len(rows), np.nan)

    def groups(self) -> NDArray[np.int64] | None:
        """Return the number of each row's group, shape (n,); None without groups.

        Rows without an entry are one group.
        """
        return None if self._group is None else np.frombuffer(self._groups, dtype=np.int64)

    def _read_day(self, cell: str) -> float:
        day = self._read.get(cell)
        if day is None:
            day = read_day(cell, self._formats)
            if len(self._read) < _MOST_DAYS:
                self._read[cell] = day
        self.undated += day != day and bool(cell.strip())
        return day


def _cell(cells: Sequence[str], at: int) -> str:
    """Return a cell, empty if the row ends before it."""
    return cells[at] if at < len(cells) else ""


def read_day(cell: str, formats: Sequence[str] = ()) -> float:
    """Return the day number of a cell, NaN for no date.

    formats: of `datetime.strptime`; they come before ISO 8601, which needs no format.
    """
    for form in formats:
        try:
            return math.floor(read_format(cell.strip(), form, "") / DAY) + EPOCH_DAY
        except ValueError:
            continue
    match = _DAY.match(cell)
    try:
        return float(dt.date(*map(int, match.groups())).toordinal()) if match else math.nan
    except ValueError:
        return math.nan
