"""Tables, chunks of tables, and headers, from any kind of file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadTable, Fault, nearest
from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema

# The kinds of a fault, as summaries count them.
EMPTY, WRONG = "empty", "not accepted"

# The number of faults for each (column, kind).
Tally: TypeAlias = Mapping[tuple[str, str], int]

# The most faults of a row in one cell of a scored table.
_MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Table:
    """The accepted rows of a file, and its faults.

    schema: the columns, with the words that a category learned from the file.
    X: (n, k) matrix.
    y: (n,) target.
    lines: (n,) the physical line on which each row starts, from 1.
    days: (n,) the day number of each row, NaN if the file has no day for it.
    taken: the file's header of each column that was read.
    faults: at most 100 faults of the refused rows.
    refused: the number of refused rows.
    tally: the number of faults by column and kind.
    header_line: the physical line of the header, from 1.
    unlabelled: the number of rows that are left out because their target is missing.
    undated: the number of rows with an entry for their day that is no date.
    groups: (n,) the number of each row's group, for `training.group`; None without groups.
    """

    path: Path
    schema: Schema
    X: Array
    y: Array
    lines: NDArray[np.int64]
    days: Array
    taken: Mapping[str, str]
    faults: tuple[Fault, ...]
    refused: int
    tally: Tally
    sha256: str
    encoding: str
    header_line: int = 1
    unlabelled: int = 0
    undated: int = 0
    groups: NDArray[np.int64] | None = None

    @property
    def refusals(self) -> str:
        """The faults by column and kind, in words."""
        return tally_text(self.tally)

    @property
    def gaps(self) -> NDArray[np.bool_]:
        """Whether each row lacks each feature, shape (n, number of features)."""
        widths = [len(feature.columns) for feature in self.schema.features]
        last = self.X[:, np.cumsum(widths) - 1]
        # A missing value is the last word of a category that allows gaps.
        words = [f.places - 1 if f.is_coded else 1 if f.type == "category" else np.nan for f in self.schema.features]
        allowed = np.array([feature.allows_gaps for feature in self.schema.features])
        found: NDArray[np.bool_] = (np.isnan(last) | (last == words)) & allowed
        return found

    @property
    def group_count(self) -> int:
        """The number of groups; 0 for a table without."""
        return 0 if self.groups is None else len(np.unique(self.groups))

    @property
    def missing(self) -> dict[str, float]:
        """The share of rows that lack a feature, if any does."""
        shares = zip(self.schema.names, self.gaps.mean(axis=0).tolist(), strict=True)
        return {name: share for name, share in shares if share}


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that a column refused.

    index: its position in the table, from 0.
    line: the physical line on which the row starts, from 1.
    faults: its faults, as many as were asked for.
    kinds: (column, kind) of every fault, `EMPTY` or `WRONG`.
    """

    index: int
    line: int
    faults: tuple[Fault, ...]
    kinds: tuple[tuple[str, str], ...]

    @property
    def unnamed(self) -> int:
        """The number of faults that were not asked for."""
        return len(self.kinds) - len(self.faults)

    def problem(self) -> str:
        """Return its first faults in one line."""
        named = [str(fault) for fault in self.faults[:_MOST_PROBLEMS]]
        unnamed = len(self.kinds) - len(named)
        return "; ".join([*named, f"and {unnamed:,} more"] if unnamed else named)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a table: n rows, of which m are accepted.

    X: (m, k) matrix.
    index: (m,) the position of each accepted row in the table, from 0.
    lines: (m,) the physical line on which each accepted row starts, from 1.
    cells: n rows of cells as in the file, with the cells of unused columns and of refused rows.
    refused: the refused rows.
    """

    X: Array
    index: NDArray[np.int64]
    lines: NDArray[np.int64]
    cells: Sequence[Sequence[str]]
    refused: tuple[RefusedRow, ...]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(n,) True for each accepted row."""
        accepted = np.ones(len(self.cells), np.bool_)
        if self.refused:
            first = min([self.refused[0].index, *map(int, self.index[:1])])
            accepted[[row.index - first for row in self.refused]] = False
        return accepted

    def problems(self) -> list[str]:
        """Return the faults of each row, shape (n,).

        The text of an accepted row is empty.
        """
        problems = [""] * len(self.cells)
        for at, row in zip(np.flatnonzero(~self.accepted), self.refused, strict=True):
            problems[at] = row.problem()
        return problems


class Header:
    """The names of a table's columns.

    name: the table's name in errors.
    cells: the names as the table has them.
    line: the physical line of the names, None for a table without lines.
    """

    def __init__(self, name: Path | str, cells: Sequence[str], *, line: int | None = None) -> None:
        self.name, self.cells, self.line = name, cells, line
        self._plain = [plain_name(cell) for cell in cells]

    def find(self, name: str, sources: Sequence[str]) -> int:
        """Return the position of a column.

        sources: the names to look for, in this order, before `name` itself.
        Raises BadTable if the table has none of the names, or has the name twice.
        """
        for source in (*sources, name):
            plain = plain_name(source)
            at = [i for i, cell in enumerate(self._plain) if cell == plain]
            if len(at) > 1:
                places = " and ".join(str(i + 1) for i in at)
                reason = f"header {self.cells[at[0]]!r} stands twice, as columns {places}; rename one"
                raise BadTable(self.name, reason, line=self.line)
            if at:
                return at[0]
        wanted = " or ".join(repr(source) for source in (*sources, name))
        near = nearest((*sources, name)[0], [cell.strip()[:60] for cell in self.cells[:1000]])
        raise BadTable(self.name, f"no column for {name!r}: wanted {wanted}{near}", line=self.line)

    def find_all(self, columns: Sequence[Feature | Target]) -> list[int]:
        """Return the position of each column.

        Raises BadTable, also if two columns have one position: a feature that is the target predicts perfectly.
        """
        found = [self.find(column.name, column.sources) for column in columns]
        for j, at in enumerate(found):
            if at in found[:j]:
                names = f"{columns[found.index(at)].name!r} and {columns[j].name!r}"
                reason = f"header {self.cells[at]!r} would be read as both {names}; give each a header of its own"
                raise BadTable(self.name, reason, line=self.line)
        return found

    def find_day(self, sources: Sequence[str]) -> int | None:
        """Return the position of the column of days, or None."""
        present = [source for source in sources if plain_name(source) in self._plain]
        return self.find(present[0], ()) if present else None


def tally_text(tally: Tally, *, most: int = 10) -> str:
    """Return the numbers of faults in words, the largest first.

    An example: `area 6,450 empty, year 300 not accepted`.
    most: the most numbers; the columns of the others are counted.
    """
    ordered = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{column} {count:,} {kind}" for (column, kind), count in ordered[:most]]
    rest = {column for (column, _), _ in ordered[most:]}
    return ", ".join([*parts, f"and faults in {len(rest):,} more columns"] if rest else parts)


def unreadable(name: Path | str, error: OSError) -> BadTable:
    """Return the error for a file that the system cannot read."""
    is_folder = isinstance(error, IsADirectoryError)
    return BadTable(name, "is a folder; name a file" if is_folder else f"cannot be read: {error.strerror or error}")


def plain_name(name: str) -> str:
    """Return a header without case, repeated spaces, newlines and non-breaking spaces.

    Accents are composed: a Mac's file names and headers have them apart.
    """
    return " ".join((name if name.isascii() else unicodedata.normalize("NFC", name)).split()).casefold()


def names_of(columns: Sequence[Feature | Target]) -> list[tuple[str, ...]]:
    """Return the names under which each column may stand."""
    return [(*column.sources, column.name) for column in columns]
