"""The one CSV reader, for training, serving and scoring: the rows that every column accepts, and each of the
others with its line and reason."""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import hashlib
import io
import math
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import NAMED_FAULTS, BadTable, Fault, nearest
from gleaner.schema import Array, Feature, Schema, Target, show, show_cell

LONGEST_LINE = 1 << 20
BLOCK_BYTES = 1 << 17
_JUDGED_BYTES = 1 << 11

_DAY = re.compile(r"\s*(\d{4})-(\d{1,2})-(\d{1,2})(?!\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a file that every column accepted, and the faults of those that one did not.

    X: (n, k) matrix; y: (n,) target; lines: (n,) the physical line each row starts on, from 1;
    days: (n,) day number of each row, NaN where the file does not say.
    taken: the file's own header for each column that was read. faults: at most 100 of `refused`.
    """

    path: Path
    X: Array
    y: Array
    lines: NDArray[np.int64]
    days: Array
    taken: Mapping[str, str]
    faults: tuple[Fault, ...]
    refused: int
    sha256: str
    encoding: str


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that a column refused. index: its position among the table's rows, from 0; line: the physical line
    on which it starts, from 1; faults: what is wrong with it; unnamed: how much more is, beyond what was asked for."""

    index: int
    line: int
    faults: tuple[Fault, ...]
    unnamed: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a table, in their order: m accepted ones, and those that a column refused.

    X: (m, k) matrix; index: (m,) position of each among the table's rows, from 0; lines: (m,) the physical line
    on which each starts, from 1; cells: (m) its cells as they stand in the file, also of columns that nothing uses.
    """

    X: Array
    index: NDArray[np.int64]
    lines: NDArray[np.int64]
    cells: Sequence[Sequence[str]]
    refused: tuple[RefusedRow, ...]


class Header:
    """The names of a table's columns. name: what errors call the table; line: where in it they stand, if in one."""

    def __init__(self, name: Path | str, cells: Sequence[str], *, line: int | None = None) -> None:
        self.name, self.cells, self.line = name, cells, line
        self._plain = [plain_name(cell) for cell in cells]

    def find(self, name: str, sources: Sequence[str]) -> int:
        """The position of a column: the first of its sources that there is, and only then its own name.

        Raises BadTable if there is none of them, or it stands twice.
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
        """The position of each column. Raises BadTable, also if two would be read from one: a feature that is the
        target explains everything."""
        found = [self.find(column.name, column.sources) for column in columns]
        for j, at in enumerate(found):
            if at in found[:j]:
                names = f"{columns[found.index(at)].name!r} and {columns[j].name!r}"
                reason = f"header {self.cells[at]!r} would be taken for both {names}; give each its own"
                raise BadTable(self.name, reason, line=self.line)
        return found

    def find_day(self, sources: Sequence[str]) -> int | None:
        present = [source for source in sources if plain_name(source) in self._plain]
        return self.find(present[0], ()) if present else None


class CsvFile:
    """An opened CSV file below its header. What reads it moves it on: its rows are read once.

    name: what errors call it. marked: whether it begins with UTF-8's mark; line_end: what ends its header.
    """

    def __init__(self, name: Path | str, file: BinaryIO) -> None:
        """Raises BadTable, csv.Error for a header that is not CSV, OSError."""
        self.name = name
        self.encoding = _examine(name, file)
        file.seek(0)
        self.marked = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        self.lines = _Lines(name, file, self.encoding, start=len(codecs.BOM_UTF8) * self.marked)
        first = next(self.lines, "")
        if not first.strip():
            if first:
                raise BadTable(name, "is an empty line; wanted the header there", line=1)
            raise BadTable(name, "is empty; wanted a header and rows below it")
        self.delimiter = _delimiter(first)
        self._reader = csv.reader(_and_then(first, self.lines), delimiter=self.delimiter, strict=True)
        self.header: list[str] = next(self._reader)
        self.line_end = "\r\n" if first.endswith("\r\n") else "\n"
        self.columns = Header(name, self.header, line=1)

    def rows(self, until: float = math.inf) -> Iterator[tuple[int, list[str]]]:
        """(physical line on which it starts, cells) of each row that starts before a byte.

        A line without any cell is no row: an empty one, or one of blanks only. One of delimiters is a row of empty
        cells: what a spreadsheet leaves below its table, or a row with every value missing, and nobody can tell which.
        Raises BadTable.
        """
        lines = self.lines
        try:
            while lines.at < until:
                line = lines.number + 1
                cells = next(self._reader, None)
                if cells is None:
                    return
                # In a table of one column, blanks are its cell.
                is_blank = not cells or (len(cells) == 1 < len(self.header) and cells[0].isspace())
                if not is_blank:
                    yield line, cells
        except csv.Error as e:
            raise BadTable(self.name, f"is not CSV: {e}", line=lines.number) from e

    def sha256(self) -> str:
        """The hash of the whole file."""
        file, digest = self.lines.file, hashlib.sha256()
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
        file.seek(self.lines.at)
        return digest.hexdigest()


@contextmanager
def open_csv(source: Path | bytes | BinaryIO, name: str = "") -> Iterator[CsvFile]:
    """A CSV file, opened: UTF-8, with or without a mark, or else Windows-1252; with `,`, `;` or a tab between cells.

    source: a path, a body in memory, or a binary file that can seek, which is read from its start and stays open.
    name: what errors call it; else the path.
    Raises BadTable for a file that cannot be read as one.
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
        except IsADirectoryError as e:
            raise BadTable(called, "is a directory; give a CSV file") from e
        except OSError as e:
            raise _unreadable(called, e) from e
        yield opened


def read_rows(
    file: CsvFile, schema: Schema, *, named: int = sys.maxsize, block_bytes: int = BLOCK_BYTES
) -> Iterator[Chunk]:
    """The rows of an opened file, for predicting: features and no target, in chunks of at most about `block_bytes`.

    A column that no feature claims is ignored. named: of how many faults the reason is told;
    the others are only counted.
    Raises BadTable if a feature has no column, or where the file is not CSV.
    """
    for chunk in _chunks(file, schema.features, file.columns.find_all(schema.features), named, block_bytes):
        yield replace(chunk, X=schema.matrix(chunk.X))


def read_table(
    path: Path, schema: Schema, *, max_rows: int = 1_000_000, advance: Callable[[int], object] | None = None
) -> Table:
    """The table in a CSV file, features and target, in memory bounded by `max_rows`.

    advance: told the number of rows read so far, now and then.
    Raises BadTable for a file that cannot be used at all; a row that a column refuses is only counted.
    """
    columns: list[Feature | Target] = [*schema.features, schema.target]
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
        if not started:
            why = f"; the first refusal: {faults[0]}" if faults else "; it has a header and nothing below it"
            raise BadTable(path, f"no usable row in {refused}{why}")
        rows = np.frombuffer(kept, dtype=np.float64).reshape(len(started), len(columns))
        return Table(
            path=path,
            X=schema.matrix(rows[:, :-1]),
            y=np.ascontiguousarray(rows[:, -1]),
            lines=np.frombuffer(started, dtype=np.int64),
            days=np.frombuffer(days, dtype=np.float64),
            taken={column.name: file.header[at].strip() for column, at in zip(columns, found, strict=True)},
            faults=tuple(faults),
            refused=refused,
            sha256=file.sha256(),
            encoding=file.encoding,
        )


def _chunks(
    file: CsvFile, columns: Sequence[Feature | Target], found: Sequence[int], named: int, block_bytes: int
) -> Iterator[Chunk]:
    """The rest of a file, X being one number per column, with the reasons of its first `named` faults.

    A block of lines is accepted whole, at the speed of C, or judged row by row; only the judge refuses. Around what
    is not accepted the blocks are small, and then grow again.
    """
    seen, size = 0, block_bytes
    while block := file.lines.peek(size):
        chunk = _accept(file, columns, found, block, seen)
        if chunk:
            file.lines.skip(block)
            size = min(2 * size, block_bytes)
        elif size > _JUDGED_BYTES:
            size = _JUDGED_BYTES
            continue
        else:
            chunk = _judge(file, columns, found, len(block), seen, named)
            named -= sum(len(row.faults) for row in chunk.refused)
        if rows := len(chunk.cells) + len(chunk.refused):
            seen += rows
            yield chunk


def _accept(
    file: CsvFile, columns: Sequence[Feature | Target], found: Sequence[int], block: bytes, seen: int
) -> Chunk | None:
    """The chunk in a block of whole lines, if every row in it is whole, as wide as the header, and right in every
    way; else None. Empty lines are fine. The file stays where it is."""
    if len(block) >= LONGEST_LINE:
        return None
    try:
        text = block.decode(file.encoding)
        rows = list(csv.reader(io.StringIO(text, newline="\n"), delimiter=file.delimiter, strict=True))
    except (csv.Error, UnicodeDecodeError):  # also for a block that ends within quotes
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


def _judge(
    file: CsvFile, columns: Sequence[Feature | Target], found: Sequence[int], size: int, seen: int, named: int
) -> Chunk:
    """The chunk in the next `size` bytes of a file, with the reasons of its first `named` faults; the file is moved on,
    and farther where a cell in quotes goes on, which only reading it can tell."""
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
    """(the numbers in a row's cells, one per column; each column that refuses its cell, and where that is).

    Where cells stand beyond the header, no column refuses them.
    """
    numbers: list[float] = []
    wrong: list[tuple[Feature | Target | None, int]] = []
    for column, at in zip(columns, found, strict=True):
        try:
            numbers.append(column.accept_cell(cells[at]))
        except (IndexError, ValueError):
            wrong.append((column, at))
    if any(cells[width:]):  # most often a comma inside a number, which moves every cell behind it
        wrong.append((None, width))
    return numbers, wrong


def _fault(column: Feature | Target | None, at: int, cells: Sequence[str], line: int) -> Fault:
    """What is wrong with the cell that a column refuses, or with the first one beyond the header."""
    if column is None:
        reason = f"wanted nothing beyond the {at} columns of the header, got {show(cells[at])}"
        return Fault("line", line, str(at + 1), reason)
    got = show_cell(column, cells[at]) if at < len(cells) else f"a row of {len(cells)} cells"
    return Fault("line", line, column.name, f"wanted {column.wanted}, got {got}")


def _places(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """(index, line) of every row of a chunk, the accepted ones first."""
    yield from zip(map(int, chunk.index), map(int, chunk.lines), strict=True)
    yield from ((row.index, row.line) for row in chunk.refused)


class _Lines:
    """The physical lines of a file as text, each of bounded length; `at` is the byte and `number` the line reached."""

    def __init__(self, name: Path | str, file: BinaryIO, encoding: str, *, start: int) -> None:
        self.name, self.file, self.encoding, self.at, self.number = name, file, encoding, start, 0
        file.seek(start)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self.file.readline(LONGEST_LINE)
        except OSError as e:
            raise _unreadable(self.name, e) from e
        if not line:
            raise StopIteration
        self.at += len(line)
        self.number += 1
        if len(line) == LONGEST_LINE:
            raise BadTable(self.name, "longer than 1 MB; this is not a CSV file with one row a line", line=self.number)
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as e:
            raise BadTable(self.name, "changed while it was read", line=self.number) from e

    def peek(self, size: int) -> bytes:
        """The next lines, whole, of about so many bytes together, without moving on; empty at the end."""
        try:
            block = self.file.read(size)
            if block and not block.endswith(b"\n"):
                block += self.file.readline(LONGEST_LINE)
            self.file.seek(self.at)
        except OSError as e:
            raise _unreadable(self.name, e) from e
        return block

    def skip(self, block: bytes) -> None:
        """Move on behind a block of lines that was peeked at."""
        self.at += len(block)
        self.number += block.count(b"\n") + (not block.endswith(b"\n"))
        self.file.seek(self.at)


_ZIP = b"PK\x03\x04"  # how an .xlsx begins, and an .ods


def _unreadable(name: Path | str, error: OSError) -> BadTable:
    return BadTable(name, f"cannot be read: {error.strerror or error}")


def _examine(name: Path | str, file: BinaryIO) -> str:
    """The encoding of a file, a property of the whole of it: read once, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding, undefined = "utf-8", False
    first = True
    file.seek(0)
    while piece := file.read(1 << 20):
        if first and piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadTable(name, "is UTF-16; save it as UTF-8 (a spreadsheet calls that 'CSV UTF-8')")
        if first and piece.startswith(_ZIP):
            raise BadTable(name, "is a workbook of a spreadsheet, or another zip file; save it as 'CSV UTF-8'")
        if b"\0" in piece:
            raise BadTable(name, "holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'")
        first = False
        if encoding == "utf-8":
            try:
                decoder.decode(piece)
            except UnicodeDecodeError:
                encoding = "cp1252"
        undefined = undefined or any(byte in piece for byte in b"\x81\x8d\x8f\x90\x9d")
    if encoding == "utf-8":
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            encoding = "cp1252"
    if encoding == "cp1252" and undefined:
        raise BadTable(name, "is neither UTF-8 nor Windows-1252 text; save it as UTF-8")
    return encoding


def _and_then(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    """The one of comma, semicolon and tab that parts the header into the most cells."""
    return max(",;\t", key=lambda d: len(next(csv.reader([header], delimiter=d))))


def plain_name(name: str) -> str:
    """A header's name without case, repeated spaces, newlines and non-breaking spaces."""
    return " ".join(name.replace("\u00a0", " ").split()).casefold()


def read_day(cell: str) -> float:
    """The day number of a cell that starts like 2023-09-27; NaN for anything else."""
    match = _DAY.match(cell)
    try:
        return float(dt.date(*map(int, match.groups())).toordinal()) if match else math.nan
    except ValueError:
        return math.nan
