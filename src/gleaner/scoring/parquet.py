"""Parquet in and out of a scoring; the only user of pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gleaner.errors import BadTable, Fault, Unwritable, wanted
from gleaner.scoring.output import Output
from gleaner.scoring.source import Source
from gleaner.table.csv_text import padded
from gleaner.table.feature import Feature
from gleaner.table.messages import show_cell
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import EMPTY, WRONG, Chunk, Header, RefusedRow

_BATCH_BYTES, _GROUP_BYTES = 1 << 20, 1 << 24
_MOST_ROWS = 1 << 16


class ParquetSource:
    """A Parquet file as the input of a scoring.

    Text in the file is read like cells of CSV.
    """

    place = "row"
    header_line: int | None = None

    def __init__(self, file: BinaryIO, name: Path | str, *, to_csv: bool = False) -> None:
        """Open the file.

        to_csv: whether the output is CSV, so that every column has to be one that CSV can hold.
        Raises BadTable.
        """
        self.name, self._seen = name, 0
        with _reading(name):
            # Without these two, pyarrow reads a whole group of rows at once.
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BATCH_BYTES)
            self.arrow_schema = self._file.schema_arrow
            self._rows: int = self._file.metadata.num_rows
            groups = range(self._file.metadata.num_row_groups)
            size = sum(self._file.metadata.row_group(i).total_byte_size for i in groups)
        self.header: Sequence[str] = self.arrow_schema.names
        for field in self.arrow_schema if to_csv else ():
            if not _has_text(field.type):
                reason = f"column {field.name!r} is of type {field.type}, which CSV cannot hold; write Parquet"
                raise BadTable(name, reason)
        self._batch_rows = max(1, min(_MOST_ROWS, self._rows * _BATCH_BYTES // max(1, size)))

    @property
    def done(self) -> float:
        return self._seen / max(1, self._rows)

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        """Yield its rows. Raises BadTable, also half-way."""
        found = Header(self.name, self.header).find_all(schema.features)
        for feature, at in zip(schema.features, found, strict=True):
            self._check_type(feature, at)
        batches = self._file.iter_batches(self._batch_rows)
        while True:
            with _reading(self.name):
                batch = next(batches, None)
                if batch is None:
                    return
                pairs = zip(schema.features, found, strict=True)
                chunk = self._chunk(schema, batch, [_Column(feature, batch.column(at)) for feature, at in pairs])
            yield chunk

    def _chunk(self, schema: Schema, batch: pa.RecordBatch, columns: Sequence[_Column]) -> Chunk:
        good = np.logical_and.reduce([column.good for column in columns])
        refused = []
        for i in map(int, np.flatnonzero(~good)):
            row = self._seen + i
            wrong = [column for column in columns if not column.good[i]]
            reasons = [(column.feature, show_cell(column.feature, column.values[i].as_py())) for column in wrong]
            faults = [Fault("row", row, f.name, wanted(f.wanted, got)) for f, got in reasons]
            kinds = [(c.feature.name, WRONG if c.values[i].is_valid else EMPTY) for c in wrong]
            refused.append(RefusedRow(row, row, tuple(faults), tuple(kinds)))
        index = self._seen + np.flatnonzero(good)
        X = schema.matrix(np.column_stack([column.numbers for column in columns])[good])
        self._seen += batch.num_rows
        return Chunk(X, index, index, _Rows(batch), tuple(refused))

    def _check_type(self, feature: Feature, at: int) -> None:
        kind = self.arrow_schema.field(at).type
        is_fine = _is_text(kind) or pa.types.is_null(kind)
        if feature.is_number:
            is_fine, right = is_fine or _is_number(kind), "numbers or text"
        elif feature.is_date:
            is_fine, right = is_fine or _is_time(kind) or pa.types.is_integer(kind), "dates or text"
        else:
            is_fine, right = is_fine or pa.types.is_integer(kind), "text"
            if feature.type == "bool":
                is_fine, right = is_fine or pa.types.is_boolean(kind), "bools or text"
        if not is_fine:
            raise BadTable(self.name, f"column {self.header[at]!r}: {wanted(right, str(kind))}")


class _Column:
    """The values of one feature in a batch.

    numbers: (n,) numbers.
    good: (n,) True for each accepted value.
    """

    def __init__(self, feature: Feature, values: pa.Array) -> None:
        self.feature = feature
        self.values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        kind = values.type
        if _is_time(kind):
            there = ~np.asarray(values.is_null())
            is_aware = pa.types.is_timestamp(kind) and kind.tz is not None
            moments, good = feature.accept_moments(_seconds(values), is_aware=is_aware)
            self.numbers = np.where(there, moments, np.nan)
            self.good = np.where(there, good, feature.allows_gaps)
        elif _is_number(kind) and feature.is_number:
            self.numbers, self.good = feature.accept_array(_doubles(values))
        elif _is_text(kind):
            cells = self.values.to_pylist()
            numbers = feature.accept_cells(cells) if None not in cells else None
            self.good = np.ones(len(cells), np.bool_)
            self.numbers = np.full(len(cells), np.nan) if numbers is None else numbers
            for i, cell in enumerate(cells if numbers is None else ()):
                try:
                    self.numbers[i] = feature.accept(None) if cell is None else feature.accept_cell(cell)
                except ValueError:
                    self.good[i] = False
        else:  # codes, bools and nulls
            self.numbers, self.good = feature.accept_array(values.to_pylist())


class _Rows(Sequence[Sequence[str]]):
    """A batch as rows of text cells."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def __iter__(self) -> Iterator[Sequence[str]]:
        return iter(zip(*map(_texts, self.batch.columns), strict=True))

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]


class _Unfinished(pq.ParquetWriter):  # type: ignore[misc]
    """A writer that leaves a broken-off table unreadable.

    pyarrow's own writer ends the table as if it were whole when it is garbage collected.
    """

    def __del__(self) -> None:
        pass


class ParquetWriter:
    """A writer of Parquet: the input's columns, then those of `new_columns`.

    The columns of a Parquet file keep their types; those of a CSV file become text.
    """

    def __init__(self, output: Output, source: Source, columns: Sequence[str]) -> None:
        """Begin the file.

        columns: the names of the columns to add; without the second one, refused rows are dropped.
        Raises Unwritable.
        """
        self._output = output
        twice = {name for name in source.header if list(source.header).count(name) > 1}
        if twice:
            reason = f"column {min(twice)!r} stands twice, and few programs read such a Parquet file; write CSV"
            raise Unwritable(output.name, reason)
        if isinstance(source, ParquetSource):
            self._before = source.arrow_schema
        else:
            self._before = pa.schema([(name, pa.string()) for name in source.header])
        self._schema = self._before
        for name, kind in zip(columns, (pa.float64(), pa.string()), strict=False):
            self._schema = self._schema.append(pa.field(name, kind))
        self._keeps_refused = len(columns) > 1
        self._pending: list[pa.RecordBatch] = []
        with output.writing():
            self._writer = _Unfinished(output.file, self._schema)

    def write(self, chunk: Chunk, predictions: Array) -> None:
        if isinstance(chunk.cells, _Rows):
            batch = chunk.cells.batch
        else:
            rows = padded(chunk.cells, len(self._before))
            columns = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
            batch = pa.RecordBatch.from_arrays(columns, schema=self._before)
        if self._keeps_refused:
            spread = np.empty(len(chunk.cells))
            spread[chunk.accepted] = predictions
            problems = [problem or None for problem in chunk.problems()]
            added = [pa.array(spread, mask=~chunk.accepted), pa.array(problems, pa.string())]
        else:
            batch, added = batch.filter(pa.array(chunk.accepted)), [pa.array(predictions)]
        self._pending.append(pa.RecordBatch.from_arrays([*batch.columns, *added], schema=self._schema))
        if sum(batch.nbytes for batch in self._pending) >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        with self._output.writing():
            self._writer.close()

    def _flush(self) -> None:
        """Write the pending batches as one group of rows.

        Many small groups are slow to read.
        """
        if self._pending:
            with self._output.writing():
                self._writer.write_table(pa.Table.from_batches(self._pending, self._schema))
            self._pending.clear()


@contextmanager
def _reading(name: Path | str) -> Iterator[None]:
    """Turn an error of pyarrow in the block into BadTable."""
    try:
        yield
    except (pa.ArrowException, OSError) as e:
        raise BadTable(name, f"cannot be read as Parquet: {str(e).partition(chr(10))[0]}") from e


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has_text(kind: pa.DataType) -> bool:
    """Return whether every value of a type can become text."""
    try:
        pa.array([], kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _doubles(values: pa.Array) -> Array:
    """Return the nearest doubles, as Python rounds; NaN if missing."""
    if pa.types.is_decimal(values.type):  # pyarrow's own rounding can be one bit off
        return np.array([math.nan if value is None else float(value) for value in values.to_pylist()])
    numbers: Array = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _seconds(values: pa.Array) -> Array:
    """Return times as seconds since 1970-01-01 00:00.

    The smallest part is a microsecond. A missing time is 0.
    """
    zone = values.type.tz if pa.types.is_timestamp(values.type) else None
    ticks = values.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).fill_null(0).to_numpy()
    whole = ticks // 1_000_000
    return np.asarray(whole + (ticks - whole * 1_000_000) / 1_000_000, dtype=np.float64)


def _texts(column: pa.Array) -> list[str]:
    return ["" if text is None else text for text in column.cast(pa.string()).to_pylist()]
