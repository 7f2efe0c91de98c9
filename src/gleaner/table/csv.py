"""The CSV reader of training, serving and scoring."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gleaner.errors import NAMED_FAULTS, BadTable, Fault, wanted
from gleaner.table.aside import Aside
from gleaner.table.encodings import Encoded, examine
from gleaner.table.feature import Feature, Target
from gleaner.table.header import explain_csv, explain_row, find_header
from gleaner.table.learning import Learner
from gleaner.table.lines import LONGEST_LINE, Lines, recoded
from gleaner.table.messages import show, show_cell
from gleaner.table.schema import Schema
from gleaner.table.tables import (
    EMPTY,
    WRONG,
    Chunk,
    Header,
    RefusedRow,
    Table,
    Tally,
    names_of,
    tally_text,
    unreadable,
)
from gleaner.table.totals import refuse_totals, rows_of_values

BLOCK_BYTES = 1 << 17
_SMALL_BYTES = 1 << 11  # about as many as are read row by row around a refused row


class CsvFile:
    """An opened CSV file below its header, for one read.

    name: the file's name in errors.
    encoding: the encoding of the file. codec: that of the lines.
    mark: the byte order mark at the file's start, empty for none.
    line_end: the line end of the header.
    """

    def __init__(
        self, name: Path | str, file: BinaryIO, found: Encoded, whole: BinaryIO, names: Sequence[Sequence[str]]
    ) -> None:
        """Find the header.

        file: the file, or its copy in UTF-8. whole: the file. names: the columns wanted; see `find_header`.
        Raises BadTable, OSError, csv.Error.
        """
        self.name, self._whole = name, whole
        self.encoding, self.mark = found.encoding, found.mark
        self.codec = found.encoding if file is whole else "utf-8"
        self.lines = Lines(name, file, self.codec, start=len(found.mark) if file is whole else 0)
        self.header, line, first, self.delimiter, self._reader = find_header(self.lines, names)
        self.line_end = "\r\n" if first.endswith("\r\n") else "\n"
        self.columns = Header(name, self.header, line=line)

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
            raise BadTable(self.name, f"is not CSV: {explain_csv(e)}", line=lines.number) from e

    def above(self) -> list[list[str]]:
        """Return the rows above the header. Raises BadTable."""
        lines, at, number = self.lines, self.lines.at, self.lines.number
        lines.go(lines.start, 0)
        try:
            return list(csv.reader(islice(lines, (self.columns.line or 1) - 1), delimiter=self.delimiter))
        except csv.Error as e:
            raise BadTable(self.name, f"is not CSV: {explain_csv(e)}", line=lines.number) from e
        finally:
            lines.go(at, number)

    def sha256(self) -> str:
        """Return the hash of the whole file."""
        file, digest = self._whole, hashlib.sha256()
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
        self.lines.file.seek(self.lines.at)
        return digest.hexdigest()


@contextmanager
def open_csv(
    source: Path | bytes | BinaryIO,
    name: str = "",
    *,
    encoding: str = "",
    charset: str | None = None,
    names: Sequence[Sequence[str]] = (),
) -> Iterator[CsvFile]:
    """Open a CSV file for a `with` block.

    The delimiter is `,`, `;`, `|` or a tab.
    source: a path, a body in memory, or a seekable binary file, which is read from its start and stays open.
    name: the file's name in errors; by default its path.
    encoding, charset: the encoding in the settings and in a request; see `examine`.
    names: the names of each column wanted; see `find_header`.
    Raises BadTable for a file that is not CSV.
    """
    called = name or (source if isinstance(source, Path) else "the table")
    with ExitStack() as stack:
        try:
            if isinstance(source, Path):
                file: BinaryIO = stack.enter_context(source.open("rb"))
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else source
            found = examine(called, file, encoding, charset)
            lines = file if found.is_plain else stack.enter_context(recoded(file, found))
            opened = CsvFile(called, lines, found, file, names)
        except csv.Error as e:
            raise BadTable(called, f"is not CSV: {explain_csv(e)}", line=1) from e
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
    chunks = _chunks(file, schema.features, found, named, block_bytes, max_lines)
    for chunk in refuse_totals(chunks, schema.features, found, file.header):
        yield replace(chunk, X=schema.matrix(chunk.X))


def read_table(
    path: Path,
    schema: Schema,
    *,
    encoding: str = "",
    max_rows: int = 1_000_000,
    advance: Callable[[int], object] | None = None,
) -> Table:
    """Read the features and the target of a CSV file.

    encoding: the encoding in the settings; see `examine`.
    max_rows: the most rows of the file, which bounds the memory.
    advance: a function that gets the number of rows read so far, after each chunk.
    Raises BadTable for a file that cannot be used at all. Rows that are refused or lack the target are only counted.
    """
    schema = _learn(path, schema, encoding)
    columns: list[Feature | Target] = [*schema.features, schema.target.column]
    kept, started = array("d"), array("q")
    faults: list[Fault] = []
    refused, tally = 0, Counter[tuple[str, str]]()
    with open_csv(path, encoding=encoding, names=names_of(columns)) as file:
        found = file.columns.find_all(columns)
        aside = Aside(file.columns, schema)
        chunks = _chunks(file, columns, found, NAMED_FAULTS, BLOCK_BYTES)
        for chunk in refuse_totals(chunks, columns, found, file.header):
            kept.frombytes(chunk.X.tobytes())
            started.frombytes(chunk.lines.tobytes())
            aside.add(chunk)
            refused += len(chunk.refused)
            faults.extend(fault for row in chunk.refused for fault in row.faults)
            tally.update(kind for row in chunk.refused for kind in row.kinds)
            if len(started) + refused > max_rows:
                line = next(line for index, line in _places(chunk) if index == max_rows)
                raise BadTable(path, f"more than {max_rows:,} rows; raise training.max_rows to use them", line=line)
            if advance:
                advance(len(started) + refused)
        numbers = np.frombuffer(kept, dtype=np.float64).reshape(len(started), len(columns))
        known = ~np.isnan(numbers[:, -1])
        if not known.any():
            none = f"{schema.target.name!r} is missing in every row" if len(numbers) else ""
            raise _no_row(path, len(numbers) + refused, tally, faults, none)
        groups = aside.groups()
        return Table(
            path=path,
            schema=schema,
            X=schema.matrix(numbers[known, :-1]),
            y=numbers[known, -1],
            lines=np.frombuffer(started, dtype=np.int64)[known],
            days=aside.days(columns, numbers)[known],
            taken={column.name: file.header[at].strip() for column, at in zip(columns, found, strict=True)},
            faults=tuple(faults),
            refused=refused,
            tally=tally,
            sha256=file.sha256(),
            encoding=file.encoding,
            header_line=file.columns.line or 1,
            unlabelled=int(np.count_nonzero(~known)),
            undated=aside.undated,
            groups=None if groups is None else groups[known],
        )


def _no_row(path: Path, count: int, tally: Tally, faults: Sequence[Fault], none: str) -> BadTable:
    why = f"; {none or 'it has a header and nothing below it'}"
    if faults:
        why = f": {tally_text(tally)}; the first refusal: {faults[0]}"
    return BadTable(path, f"no usable row in {count:,}{why}")


def _learn(path: Path, schema: Schema, encoding: str) -> Schema:
    """Return the schema with the words of a file. Raises BadTable."""
    if all(feature.values != "learn" for feature in schema.features):
        return schema
    columns: list[Feature | Target] = [*schema.features, schema.target]
    with open_csv(path, encoding=encoding, names=names_of(columns)) as file:
        learner = Learner(path, schema, file.columns.find_all(schema.features))
        for cells in rows_of_values(file.rows(), file.header):
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
        if rows := len(chunk.cells):
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
        text = block.decode(file.codec)
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
    rows: list[list[str]] = []
    refused: list[RefusedRow] = []
    for i, (line, cells) in enumerate(file.rows(file.lines.at + size), seen):
        rows.append(cells)
        numbers, wrong = _read_cells(columns, found, cells, len(file.header))
        if wrong:
            if why := explain_row(cells, file.header):
                faults: tuple[Fault, ...] = (Fault("line", line, file.header[0].strip(), why),)[:named]
                wrong = wrong[:1]
            else:
                missing = [(column, at) for column, at in wrong if at >= len(cells)]
                wrong = [one for one in wrong if one not in missing[1:]]
                faults = tuple(_fault(column, at, cells, line) for column, at in wrong[:named])
            named -= len(faults)
            refused.append(RefusedRow(i, line, faults, tuple(_kind(column, at, cells) for column, at in wrong)))
            continue
        X.extend(numbers)
        index.append(i)
        lines.append(line)
    return Chunk(
        np.array(X, dtype=np.float64).reshape(len(index), len(columns)),
        np.array(index, dtype=np.int64),
        np.array(lines, dtype=np.int64),
        rows,
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


def _kind(column: Feature | Target | None, at: int, cells: Sequence[str]) -> tuple[str, str]:
    """Return the (column, kind) of a refused cell."""
    name = column.name if column else f"column {at + 1}"
    return name, WRONG if "".join(cells[at : at + 1]).strip() else EMPTY


def _places(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """Yield (index, line) of each row of a chunk, accepted rows first."""
    yield from zip(map(int, chunk.index), map(int, chunk.lines), strict=True)
    yield from ((row.index, row.line) for row in chunk.refused)
