"""A row of totals at a table's end that its columns accept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from gleaner.errors import Fault
from gleaner.table.feature import Feature, Target
from gleaner.table.header import explain_totals, repeats_header
from gleaner.table.tables import WRONG, Chunk, RefusedRow

_FEWEST = 2  # rows above a row of totals


def refuse_totals(
    chunks: Iterable[Chunk], columns: Sequence[Feature | Target], found: Sequence[int], header: Sequence[str]
) -> Iterator[Chunk]:
    """Yield the chunks of a file; refuse totals at its end.

    Its first filled cell is a label such as "Total", and at least one of its numbers is the sum of the accepted
    rows above. Rows without any value that is read may follow it.
    columns, found: the columns that are read, and their positions in the file.
    """
    sums, count, held = np.zeros(len(columns)), 0, None
    for chunk in chunks:
        if held:
            sums += np.nansum(held.X, axis=0)
            count += len(held.X)
            yield held
        held = chunk
    if held:
        at, why = _find_label(held, found)
        row = int(np.count_nonzero(held.accepted[:at]))
        above = held.X[:row]
        numbers = [j for j, column in enumerate(columns) if isinstance(column, Target) or column.is_number]
        sums += np.nansum(above, axis=0)
        if why and count + row >= _FEWEST and any(_are_equal(held.X[row, j], sums[j]) for j in numbers):
            line = int(held.lines[row])
            fault = Fault("line", line, header[0].strip(), why)
            refused = RefusedRow(int(held.index[row]), line, (fault,), ((columns[numbers[0]].name, WRONG),))
            held = _without(held, row, refused)
        yield held


def rows_of_values(rows: Iterable[tuple[int, list[str]]], header: Sequence[str]) -> Iterator[list[str]]:
    """Yield the rows that hold values.

    A repeated header and a last row of totals are left out.
    rows: the rows of a file with their lines.
    """
    held: list[list[str]] = []
    for _, cells in rows:
        if repeats_header(cells, header):
            continue
        if held and any(cell.strip() for cell in cells):
            yield from held
            held = []
        if held or explain_totals(cells):
            held.append(cells)
        else:
            yield cells
    yield from held[1:]


def _find_label(chunk: Chunk, found: Sequence[int]) -> tuple[int, str]:
    """Return (position, reason) of the last row with a value.

    The reason says why it is refused; "" for a row of values.
    """
    at = len(chunk.cells) - 1
    while at > 0 and not any(chunk.cells[at][i : i + 1] and chunk.cells[at][i].strip() for i in found):
        at -= 1
    return at, explain_totals(chunk.cells[at]) if chunk.accepted[at] else ""


def _are_equal(total: float, above: float) -> bool:
    return total != 0 and math.isclose(total, above, rel_tol=1e-9)


def _without(chunk: Chunk, row: int, refused: RefusedRow) -> Chunk:
    """Return a chunk whose accepted row is refused."""
    kept = np.arange(len(chunk.X)) != row
    ordered = tuple(sorted((*chunk.refused, refused), key=lambda one: one.index))
    return replace(chunk, X=chunk.X[kept], index=chunk.index[kept], lines=chunk.lines[kept], refused=ordered)
