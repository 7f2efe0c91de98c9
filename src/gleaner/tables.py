"""A CSV file -> a table: the rows that every column accepts, and each of the others with its line and reason."""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import hashlib
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadTable, BadValue, nearest
from gleaner.schema import Array, Feature, Schema, Target, show

LONGEST_LINE = 1 << 20
NAMED_FAULTS = 100

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
    faults: tuple[BadValue, ...]
    refused: int
    sha256: str
    encoding: str


@dataclass(frozen=True, slots=True)
class _File:
    """An opened CSV file: its header, and a reader of the rows below it."""

    path: Path
    header: list[str]
    reader: Any  # csv.reader, whose type has no public name
    sha256: str
    encoding: str

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(physical line on which it starts, cells) of each row that is not blank. Raises BadTable."""
        end = self.reader.line_num
        try:
            for cells in self.reader:
                line, end = end + 1, self.reader.line_num
                if any(cells):
                    yield line, cells
        except csv.Error as e:
            raise BadTable(self.path, f"is not CSV: {e}", line=self.reader.line_num) from e


@contextmanager
def open_csv(path: Path) -> Iterator[_File]:
    """A CSV file, opened: UTF-8, with or without a mark, or else Windows-1252; with `,`, `;` or a tab between cells.

    Raises BadTable, also from inside the block, for a file that cannot be read as one.
    """
    try:
        with path.open("rb") as file:
            sha256, encoding = _examine(path, file)
            file.seek(0)
            lines = _Lines(path, file, encoding)
            first = next(lines, "")
            if not first.strip():
                if first:
                    raise BadTable(path, "is an empty line; wanted the header there", line=1)
                raise BadTable(path, "is empty; wanted a header and rows below it")
            reader = csv.reader(_and_then(first, lines), delimiter=_delimiter(first), strict=True)
            yield _File(path, next(reader), reader, sha256, encoding)
    except csv.Error as e:
        raise BadTable(path, f"is not CSV: {e}", line=1) from e
    except IsADirectoryError as e:
        raise BadTable(path, "is a directory; give a CSV file") from e
    except OSError as e:
        raise BadTable(path, f"cannot be read: {e.strerror or e}") from e


def read_table(
    path: Path, schema: Schema, *, max_rows: int = 1_000_000, advance: Callable[[int], object] | None = None
) -> Table:
    """The table in a CSV file, features and target, in memory bounded by `max_rows`.

    advance: told the number of rows read so far, now and then.
    Raises BadTable for a file that cannot be used at all; a row that a column refuses is only counted.
    """
    columns: list[Feature | Target] = [*schema.features, schema.target]
    kept, days, started = array("d"), array("d"), array("q")
    faults: list[BadValue] = []
    refused = seen = 0
    with open_csv(path) as file:
        found = [find_column(path, file.header, column.name, column.sources) for column in columns]
        _check_apart(path, file.header, columns, found)
        day = _find_day(path, file.header, schema.date_sources)
        for line, cells in file.rows():
            seen += 1
            if seen > max_rows:
                raise BadTable(path, f"more than {max_rows:,} rows; raise training.max_rows to use them", line=line)
            if advance and seen % 10_000 == 0:
                advance(seen)
            row = _accept(columns, found, cells, line, len(file.header))
            if row and isinstance(row[0], BadValue):
                refused += 1
                faults.extend(fault for fault in row[: NAMED_FAULTS - len(faults)] if isinstance(fault, BadValue))
                continue
            kept.extend(number for number in row if isinstance(number, float))
            started.append(line)
            days.append(_day(cells[day]) if day is not None and day < len(cells) else math.nan)
        if not started:
            why = f"; the first refusal: {faults[0]}" if faults else "; it has a header and nothing below it"
            raise BadTable(path, f"no usable row in {seen}{why}")
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
            sha256=file.sha256,
            encoding=file.encoding,
        )


def _accept(
    columns: Sequence[Feature | Target], found: Sequence[int], cells: Sequence[str], line: int, width: int
) -> list[float] | list[BadValue]:
    """The numbers in a row's cells, one per column; or everything that is wrong with it."""
    numbers, wrong = [], []
    for column, at in zip(columns, found, strict=True):
        try:
            numbers.append(column.accept_cell(cells[at]))
        except (IndexError, ValueError):
            if at >= len(cells):
                got = f"a row of {len(cells)} cells"
            else:
                got = show(cells[at]) if cells[at].strip() else "an empty cell"
            wrong.append(BadValue("line", line, column.name, f"wanted {column.wanted}, got {got}"))
    if any(cells[width:]):  # most often a comma inside a number, which moves every cell behind it
        reason = f"wanted nothing beyond the {width} columns of the header, got {show(cells[width])}"
        wrong.append(BadValue("line", line, str(width + 1), reason))
    return wrong or numbers


class _Lines:
    """The physical lines of a file as text, each of bounded length."""

    def __init__(self, path: Path, file: BinaryIO, encoding: str) -> None:
        self.path, self.file, self.encoding, self.number = path, file, encoding, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == LONGEST_LINE:
            raise BadTable(self.path, "longer than 1 MB; this is not a CSV file with one row a line", line=self.number)
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(self.encoding)


def _examine(path: Path, file: BinaryIO) -> tuple[str, str]:
    """The sha256 of a file, and its encoding: read once, in pieces."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    encoding, undefined = "utf-8", False
    first = True
    while piece := file.read(1 << 20):
        if first and piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadTable(path, "is UTF-16; save it as UTF-8 (a spreadsheet calls that 'CSV UTF-8')")
        if b"\0" in piece:
            raise BadTable(path, "holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'")
        first = False
        digest.update(piece)
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
        raise BadTable(path, "is neither UTF-8 nor Windows-1252 text; save it as UTF-8")
    return digest.hexdigest(), encoding


def _and_then(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    """The one of comma, semicolon and tab that parts the header into the most cells."""
    return max(",;\t", key=lambda d: len(next(csv.reader([header], delimiter=d))))


def plain_name(name: str) -> str:
    """A header's name without case, repeated spaces, newlines and non-breaking spaces."""
    return " ".join(name.replace("\u00a0", " ").split()).casefold()


def find_column(path: Path, header: Sequence[str], name: str, sources: Sequence[str]) -> int:
    """The position of a column: the first of its sources that the file has, and only then its own name.

    Raises BadTable if the file has none of them, or has it twice.
    """
    names = [plain_name(cell) for cell in header]
    for source in (*sources, name):
        at = [i for i, cell in enumerate(names) if cell == plain_name(source)]
        if len(at) > 1:
            places = " and ".join(str(i + 1) for i in at)
            raise BadTable(path, f"header {header[at[0]]!r} stands twice, as columns {places}; rename one", line=1)
        if at:
            return at[0]
    wanted = " or ".join(repr(source) for source in (*sources, name))
    cells = [cell.strip() for cell in header]
    raise BadTable(path, f"no column for {name!r}: wanted {wanted}{nearest((*sources, name)[0], cells)}", line=1)


def _check_apart(path: Path, header: Sequence[str], columns: Sequence[Feature | Target], found: Sequence[int]) -> None:
    """Raises BadTable if two columns would be read from one: a feature that is the target explains everything."""
    for j, at in enumerate(found):
        if at in found[:j]:
            names = f"{columns[found.index(at)].name!r} and {columns[j].name!r}"
            raise BadTable(path, f"header {header[at]!r} would be taken for both {names}; give each its own", line=1)


def _find_day(path: Path, header: Sequence[str], sources: Sequence[str]) -> int | None:
    names = {plain_name(cell) for cell in header}
    present = [source for source in sources if plain_name(source) in names]
    return find_column(path, header, present[0], ()) if present else None


def _day(cell: str) -> float:
    """The day number of a cell that starts like 2023-09-27; NaN for anything else."""
    match = _DAY.match(cell)
    try:
        return float(dt.date(*map(int, match.groups())).toordinal()) if match else math.nan
    except ValueError:
        return math.nan
