"""The CSV reader of training, serving and scoring."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gleaner.errors import NAMED_FAULTS, BadTable, Fault, wanted
from gleaner.table.dates import DAY, EPOCH_DAY
from gleaner.table.encodings import examine, find_delimiter
from gleaner.table.feature import Feature, Target
from gleaner.table.learning import Learner
from gleaner.table.messages import show, show_cell
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, Header, RefusedRow, Table, read_day, unreadable

LONGEST_LINE = 1 << 20
BLOCK_BYTES = 1 << 17
_SMALL_BYTES = 1 << 11  # about as many as are read row by row around a refused row


class CsvFile:
    """An opened CSV file below its header, for one read.

    name: the file's name in errors.
    marked: whether the file begins with a UTF-8 byte order mark.
    line_end: the line end of the header.
    """

    def __init__(self, name: Path | str, file: BinaryIO) -> None:
        """Read the header. Raises BadTable, OSError, csv.Error."""
        self.name = name
        self.encoding = examine(name, file)
        file.seek(0)
        self.marked = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        self.lines = _Lines(name, file, self.encoding, start=len(codecs.BOM_UTF8) * self.marked)
        first = next(self.lines, "")
        if not first.strip():
            if first:
                raise BadTable(name, "is empty; wanted the header", line=1)
            raise BadTable(name, "is empty; wanted a header and rows below it")
        self.delimiter = find_delimiter(first)
        self._reader = csv.reader(chain([first], self.lines), delimiter=self.delimiter, strict=True)
        self.header: list[str] = next(self._reader)
        self.line_end = "\r\n" if first.endswith("\r\n") else "\n"
        self.columns = Header(name, self.header, line=1)

    def rows(self, until: float = math.inf) -> Iterator[tuple[int, list[str]]]:
        """Yield (the physical line of its start, cells) of each row.

        until: the byte before which the last row starts.
        A line without any cell is no row: an empty line, or blanks only. A line of delimiters only is a row of
        empty cells: a spreadsheet's rest below its table looks the same as a row with every value missing.
        Raises BadTable.
        """
        lines = self.lines
        try:
            while lines.at < until:
                line = lines.number + 1
                cells = next(self._reader, None)
                if cells is None:
                    return
                # In a table of one column, a line of blanks is a cell.
                is_blank = not cells or (len(cells) == 1 < len(self.header) and cells[0].isspace())
                if not is_blank:
                    yield line, cells
        except csv.Error as e:
            raise BadTable(self.name, f"is not CSV: {e}", line=lines.number) from e

    def sha256(self) -> str:
        """Return the hash of the whole file."""
        file, digest = self.lines.file, hashlib.sha256()
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
        file.seek(self.lines.at)
        return digest.hexdigest()


@contextmanager
def open_csv(source: Path | bytes | BinaryIO, name: str = "") -> Iterator[CsvFile]:
    """Open a CSV file for a `with` block.

    The encoding is UTF-8, with or without a byte order mark, or Windows-1252; the delimiter is `,`, `;` or a tab.
    source: a path, a body in memory, or a seekable binary file, which is read from its start and stays open.
    name: the file's name in errors; by default its path.
    Raises BadTable for a file that is not CSV.
    """
    called = name or (source if isinstance(source, Path) else "the table")
    with ExitStack() as stack:
        try:
            if isinstance(source, Path):
                file: BinaryIO = stack.enter_context(source.open("rb"))
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else source
            opened = CsvFile(called, file)
        except csv.Error as e:
            raise BadTable(called, f"is not CSV: {e}", line=1) from e
        except OSError as e:
            raise unreadable(called, e) from e
        yield opened


def read_rows(
    file: CsvFile,
    schema: Schema,
    *,
    named: int = sys.maxsize,
    block_bytes: int = BLOCK_BYTES,
    max_lines: int = sys.maxsize,
) -> Iterator[Chunk]:
    """Yield the rows of a file for predicting.

    The target and the columns that no feature uses are left out.
    named: the number of faults to name; further ones are only counted.
    block_bytes: about the largest chunk, in bytes of the file.
    max_lines: the most lines, empty ones among them.
    Raises BadTable if a feature has no column, for a line that is not CSV, and for too many lines.
    """
    found = file.columns.find_all(schema.features)
    for chunk in _chunks(file, schema.features, found, named, block_bytes, max_lines):
        yield replace(chunk, X=schema.matrix(chunk.X))


def read_table(
    path: Path, schema: Schema, *, max_rows: int = 1_000_000, advance: Callable[[int], object] | None = None
) -> Table:
    """Read the features and the target of a CSV file.

    max_rows: the most rows of the file, which bounds the memory.
    advance: a function that gets the number of rows read so far, after each chunk.
    Raises BadTable for a file that cannot be used at all. Rows that are refused or lack the target are only counted.
    """
    schema = _learn(path, schema)
    columns: list[Feature | Target] = [*schema.features, schema.target.column]
    kept, days, started = array("d"), array("d"), array("q")
    faults: list[Fault] = []
    refused = 0
    with open_csv(path) as file:
        found = file.columns.find_all(columns)
        day = file.columns.find_day(schema.date_sources)
        for chunk in _chunks(file, columns, found, NAMED_FAULTS, BLOCK_BYTES):
            kept.frombytes(chunk.X.tobytes())
            started.frombytes(chunk.lines.tobytes())
            if day is None:
                days.extend([math.nan] * len(chunk.lines))
            else:
                days.extend(read_day(cells[day]) if day < len(cells) else math.nan for cells in chunk.cells)
            refused += len(chunk.refused)
            for row in chunk.refused:
                faults.extend(row.faults)
            if len(started) + refused > max_rows:
                line = next(line for index, line in _places(chunk) if index == max_rows)
                raise BadTable(path, f"more than {max_rows:,} rows; raise training.max_rows to use them", line=line)
            if advance:
                advance(len(started) + refused)
        rows = np.frombuffer(kept, dtype=np.float64).reshape(len(started), len(columns))
        known = ~np.isnan(rows[:, -1])
        if not known.any():
            none = "it has a header and nothing below it"
            none = f"{schema.target.name!r} is missing in every row" if len(rows) else none
            why = f"the first refusal: {faults[0]}" if faults else none
            raise BadTable(path, f"no usable row in {len(rows) + refused}; {why}")
        dated = _days_of(columns, rows) if day is None else np.frombuffer(days, dtype=np.float64)
        return Table(
            path=path,
            schema=schema,
            X=schema.matrix(rows[known, :-1]),
            y=rows[known, -1],
            lines=np.frombuffer(started, dtype=np.int64)[known],
            days=dated[known],
            groups=None,
            taken={column.name: file.header[at].strip() for column, at in zip(columns, found, strict=True)},
            faults=tuple(faults),
            refused=refused,
            sha256=file.sha256(),
            encoding=file.encoding,
            unlabelled=int(np.count_nonzero(~known)),
        )


def _days_of(columns: Sequence[Feature | Target], rows: Array) -> Array:
    """Return each row's day by the first feature with dates."""
    for j, column in enumerate(columns):
        if isinstance(column, Feature) and column.is_date:
            days: Array = np.floor(rows[:, j] / DAY) + EPOCH_DAY
            return days
    return np.full(len(rows), np.nan)


def _learn(path: Path, schema: Schema) -> Schema:
    """Return the schema with the words of a file. Raises BadTable."""
    if all(feature.values != "learn" for feature in schema.features):
        return schema
    with open_csv(path) as file:
        learner = Learner(path, schema, file.columns.find_all(schema.features))
        for _, cells in file.rows():
            learner.add(cells)
    return learner.schema()


def _chunks(
    file: CsvFile,
    columns: Sequence[Feature | Target],
    found: Sequence[int],
    named: int,
    block_bytes: int,
    max_lines: int = sys.maxsize,
) -> Iterator[Chunk]:
    """Yield the rest of a file in chunks.

    The X of a chunk has one number per column, without 0/1 columns.
    `_accept` takes a whole block of lines at the speed of C, or none of it. `_read` then reads the block row by
    row, and it alone refuses rows. The blocks around a refused row are small, and grow again behind it.
    named: the number of faults to name.
    """
    seen, size = 0, block_bytes
    while block := file.lines.peek(size):
        chunk = _accept(file, columns, found, block, seen)
        if chunk:
            file.lines.skip(block)
            size = min(2 * size, block_bytes)
        elif size > _SMALL_BYTES:
            size = _SMALL_BYTES
            continue
        else:
            chunk = _read(file, columns, found, len(block), seen, named)
            named -= sum(len(row.faults) for row in chunk.refused)
        if file.lines.number > max_lines:
            raise BadTable(file.lines.name, f"more than {max_lines:,} lines, empty ones among them")
        if rows := len(chunk.cells) + len(chunk.refused):
            seen += rows
            yield chunk


def _accept(
    file: CsvFile, columns: Sequence[Feature | Target], found: Sequence[int], block: bytes, seen: int
) -> Chunk | None:
    """Return the chunk of a block without any fault; else None.

    Every row has to be as wide as the header; empty lines are skipped. The position of the file stays.
    """
    if len(block) >= LONGEST_LINE:
        return None
    try:
        text = block.decode(file.encoding)
        rows = list(csv.reader(io.StringIO(text, newline="\n"), delimiter=file.delimiter, strict=True))
    except (csv.Error, UnicodeDecodeError):  # a block that ends within quotes, too
        return None
    ends = text.count("\n") + (not text.endswith("\n"))
    lines = np.arange(len(rows), dtype=np.int64)
    if len(rows) != ends:
        lines[1:] = np.cumsum([1 + "".join(cells).count("\n") for cells in rows[:-1]])
    widths = np.fromiter(map(len, rows), np.int64, len(rows))
    if not widths.all():
        lines, widths, rows = lines[widths > 0], widths[widths > 0], list(filter(None, rows))
    if (widths != len(file.header)).any():
        return None
    X = np.empty((len(rows), len(columns)))
    for j, (column, at) in enumerate(zip(columns, found, strict=True)):
        numbers = column.accept_cells([cells[at] for cells in rows])
        if numbers is None:
            return None
        X[:, j] = numbers
    lines += file.lines.number + 1
    return Chunk(X, np.arange(seen, seen + len(rows)), lines, rows, ())


def _read(
    file: CsvFile, columns: Sequence[Feature | Target], found: Sequence[int], size: int, seen: int, named: int
) -> Chunk:
    """Read the next `size` bytes of a file row by row.

    The read goes on to the end of a cell in quotes.
    named: the number of faults to name.
    """
    X, index, lines = array("d"), array("q"), array("q")
    accepted: list[list[str]] = []
    refused: list[RefusedRow] = []
    for i, (line, cells) in enumerate(file.rows(file.lines.at + size), seen):
        numbers, wrong = _read_cells(columns, found, cells, len(file.header))
        if wrong:
            faults = tuple(_fault(column, at, cells, line) for column, at in wrong[:named])
            named -= len(faults)
            refused.append(RefusedRow(i, line, faults, len(wrong) - len(faults)))
            continue
        X.extend(numbers)
        index.append(i)
        lines.append(line)
        accepted.append(cells)
    return Chunk(
        np.array(X, dtype=np.float64).reshape(len(accepted), len(columns)),
        np.array(index, dtype=np.int64),
        np.array(lines, dtype=np.int64),
        accepted,
        tuple(refused),
    )


def _read_cells(
    columns: Sequence[Feature | Target], found: Sequence[int], cells: Sequence[str], width: int
) -> tuple[list[float], list[tuple[Feature | Target | None, int]]]:
    """Return (the numbers, the faults as (column, position) pairs) of a row.

    Filled cells beyond the header are a fault without a column.
    """
    numbers: list[float] = []
    wrong: list[tuple[Feature | Target | None, int]] = []
    for column, at in zip(columns, found, strict=True):
        try:
            numbers.append(column.accept_cell(cells[at]))
        except (IndexError, ValueError):
            wrong.append((column, at))
    if any(cells[width:]):  # most often caused by a comma inside a number, which moves every cell behind it
        wrong.append((None, width))
    return numbers, wrong


def _fault(column: Feature | Target | None, at: int, cells: Sequence[str], line: int) -> Fault:
    """Return the fault of a refused cell.

    column: the column that refuses the cell, None for the first cell beyond the header.
    """
    if column is None:
        reason = wanted(f"nothing beyond the {at} columns of the header", show(cells[at]))
        return Fault("line", line, str(at + 1), reason)
    got = show_cell(column, cells[at]) if at < len(cells) else f"a row of {len(cells)} cells"
    return Fault("line", line, column.name, wanted(column.wanted, got))


def _places(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """Yield (index, line) of each row of a chunk, accepted rows first."""
    yield from zip(map(int, chunk.index), map(int, chunk.lines), strict=True)
    yield from ((row.index, row.line) for row in chunk.refused)


class _Lines:
    """The physical lines of a file as text, each of bounded length.

    at: the byte that has been reached.
    number: the line that has been reached, from 1.
    """

    def __init__(self, name: Path | str, file: BinaryIO, encoding: str, *, start: int) -> None:
        self.name, self.file, self.encoding, self.at, self.number = name, file, encoding, start, 0
        file.seek(start)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self.file.readline(LONGEST_LINE)
        except OSError as e:
            raise unreadable(self.name, e) from e
        if not line:
            raise StopIteration
        self.at += len(line)
        self.number += 1
        if len(line) == LONGEST_LINE:
            raise BadTable(self.name, "is longer than 1 MB; wanted a CSV file with one row per line", line=self.number)
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as e:
            raise BadTable(self.name, "changed while it was read; try again", line=self.number) from e

    def peek(self, size: int) -> bytes:
        """Return the next whole lines, about `size` bytes, without moving."""
        try:
            block = self.file.read(size)
            if block and not block.endswith(b"\n"):
                block += self.file.readline(LONGEST_LINE)
            self.file.seek(self.at)
        except OSError as e:
            raise unreadable(self.name, e) from e
        return block

    def skip(self, block: bytes) -> None:
        """Move behind a block that `peek` returned."""
        self.at += len(block)
        self.number += block.count(b"\n") + (not block.endswith(b"\n"))
        self.file.seek(self.at)
