"""The cells of each column of a file, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gleaner.table.words import plain_text

# So many different cells of a column decide its type. The trial of the draft then reads every row.
_MOST_CELLS = 20_000

# Texts that many programs write for a missing value. "None" can be a word, such as that of a house without a garage.
GAP_WORDS = frozenset(["na", "n/a", "#n/a", "nan", "null", "nil", "?", "-", "--", ".", "missing"])


@dataclass(slots=True)
class Profile:
    """The cells of one column.

    at: its position in the file.
    rows: the number of rows.
    empty: the number of empty cells.
    cells: the number of rows of each different cell.
    more: the number of rows with further cells, once 20,000 different ones are known.
    decimal: the decimal sign that the file's other columns settle, "" if they do not.
    """

    header: str
    at: int
    rows: int = 0
    empty: int = 0
    cells: Counter[str] = field(default_factory=Counter)
    more: int = 0
    decimal: str = ""

    def add(self, cell: str) -> None:
        """Count one cell."""
        self.rows += 1
        if not cell or cell.isspace():
            self.empty += 1
        elif cell in self.cells or len(self.cells) < _MOST_CELLS:
            self.cells[cell] += 1
        else:
            self.more += 1

    @property
    def filled(self) -> int:
        return self.rows - self.empty

    @property
    def gap_words(self) -> list[str]:
        """The file's words for a missing value."""
        return [cell for cell in self.cells if cell.lower() in GAP_WORDS]

    @property
    def values(self) -> Counter[str]:
        """The number of rows of each cell that is a value."""
        gaps = set(self.gap_words)
        return Counter({cell: count for cell, count in self.cells.items() if cell not in gaps})


def profile_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Profile]:
    """Count the cells of every column.

    header: the headers of the columns.
    """
    profiles = [Profile(cell.strip(), at) for at, cell in enumerate(header)]
    width = len(profiles)
    for cells in rows:
        for profile, cell in zip(profiles, cells, strict=False):
            profile.add(plain_text(cell))
        for profile in profiles[len(cells) : width]:
            profile.add("")
    return profiles
