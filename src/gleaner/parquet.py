"""Parquet files to be scored; alone imports pyarrow, which the extra `parquet` brings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gleaner.errors import BadTable, Fault, Unwritable
from gleaner.schema import Array, Feature, Schema, show_cell
from gleaner.scoring import Output, Source
from gleaner.tables import Chunk, Header, RefusedRow

_BATCH_BYTES, _GROUP_BYTES = 1 << 20, 1 << 24
_MOST_ROWS = 1 << 16


class ParquetSource:
    """A Parquet file to be scored: numbers are numbers, text is read as a CSV's cells are."""

    place = "row"

    def __init__(self, file: BinaryIO, name: Path | str, *, to_csv: bool = False) -> None:
        """Raises BadTable, also for a column that is to become CSV and cannot."""
        self.name, self._seen = name, 0
        with _reading(name):
            # Without these, whole groups of rows are read at once.
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BATCH_BYTES)
            self.arrow_schema = self._file.schema_arrow
            self._rows: int = self._file.metadata.num_rows
            groups = range(self._file.metadata.num_row_groups)
            size = sum(self._file.metadata.row_group(i).total_byte_size for i in groups)
        self.header: Sequence[str] = self.arrow_schema.names
        for field in self.arrow_schema if to_csv else ():
            if not _has_text(field.type):
                raise BadTable(name, f"column {field.name!r} holds {field.type}, which CSV cannot; write Parquet")
        self._batch_rows = max(1, min(_MOST_ROWS, self._rows * _BATCH_BYTES // max(1, size)))

    @property
    def done(self) -> float:
        return self._seen / max(1, self._rows)

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        """Raises BadTable, also half-way."""
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
            faults = [Fault("row", row, f.name, f"wanted {f.wanted}, got {got}") for f, got in reasons]
            refused.append(RefusedRow(row, row, tuple(faults)))
        index = self._seen + np.flatnonzero(good)
        X = schema.matrix(np.column_stack([column.numbers for column in columns])[good])
        self._seen += batch.num_rows
        kept = batch.filter(pa.array(good)) if refused else batch
        return Chunk(X, index, index, _Rows(kept), tuple(refused))

    def _check_type(self, feature: Feature, at: int) -> None:
        kind = self.arrow_schema.field(at).type
        is_fine = _is_text(kind) or pa.types.is_null(kind) or (feature.type != "category" and _is_number(kind))
        if not is_fine:
            wanted = "text" if feature.type == "category" else "numbers, or text"
            raise BadTable(self.name, f"column {self.header[at]!r} holds {kind}; wanted {wanted}")


class _Column:
    """One feature's values in a batch: numbers (n,), and which of them it accepts."""

    def __init__(self, feature: Feature, values: pa.Array) -> None:
        self.feature = feature
        self.values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        if _is_number(values.type):
            self.numbers = _doubles(values)
            good = (feature.lowest <= self.numbers) & (self.numbers <= feature.highest)
            self.good = good & (self.numbers == np.floor(self.numbers)) if feature.type == "int" else good
            return
        cells = self.values.to_pylist()
        numbers = feature.accept_cells(cells) if None not in cells else None
        self.numbers = np.array([_number(feature, cell) for cell in cells]) if numbers is None else numbers
        self.good = ~np.isnan(self.numbers)


class _Rows(Sequence[Sequence[str]]):
    """A batch, as rows of cells for those that want text."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def __iter__(self) -> Iterator[Sequence[str]]:
        return iter(zip(*map(_texts, self.batch.columns), strict=True))

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]


class _Unfinished(pq.ParquetWriter):  # type: ignore[misc]
    """Does not end a table that breaks off as if it were whole, which pyarrow does when the writer is forgotten."""

    def __del__(self) -> None:
        pass


class ParquetWriter:
    """Writes Parquet: the columns as they were, a CSV's as text, and behind them the prediction, a double."""

    def __init__(self, output: Output, source: Source, column: str) -> None:
        """Raises Unwritable."""
        self._output = output
        twice = {name for name in source.header if list(source.header).count(name) > 1}
        if twice:
            raise Unwritable(
                output.name, f"column {min(twice)!r} stands twice, which few can read from Parquet; write CSV"
            )
        if isinstance(source, ParquetSource):
            self._before = source.arrow_schema
        else:
            self._before = pa.schema([(name, pa.string()) for name in source.header])
        self._schema = self._before.append(pa.field(column, pa.float64()))
        self._pending: list[pa.RecordBatch] = []
        with output.writing():
            self._writer = _Unfinished(output.file, self._schema)

    def write(self, chunk: Chunk, predictions: Array) -> None:
        if isinstance(chunk.cells, _Rows):
            columns = chunk.cells.batch.columns
        else:
            width = len(self._before)
            rows = (row if len(row) == width else [*row[:width], *[""] * (width - len(row))] for row in chunk.cells)
            columns = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
        self._pending.append(pa.RecordBatch.from_arrays([*columns, pa.array(predictions)], schema=self._schema))
        if sum(batch.nbytes for batch in self._pending) >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        with self._output.writing():
            self._writer.close()

    def _flush(self) -> None:
        """What is pending, as a group of rows: many small ones would be slow to read."""
        if self._pending:
            with self._output.writing():
                self._writer.write_table(pa.Table.from_batches(self._pending, self._schema))
            self._pending.clear()


@contextmanager
def _reading(name: Path | str) -> Iterator[None]:
    """What pyarrow does not like in the block is the file's fault. Raises BadTable."""
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
    """Whether every value of a type can be written as text."""
    try:
        pa.array([], kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _doubles(values: pa.Array) -> Array:
    """The nearest doubles, as Python rounds; NaN where there is no value."""
    if pa.types.is_decimal(values.type):  # Arrow's own rounding can be one bit off
        return np.array([math.nan if value is None else float(value) for value in values.to_pylist()])
    numbers: Array = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _number(feature: Feature, cell: str | None) -> float:
    """The number that stands for a text; NaN if the feature does not accept it."""
    try:
        return math.nan if cell is None else feature.accept_cell(cell)
    except ValueError:
        return math.nan


def _texts(column: pa.Array) -> list[str]:
    return ["" if text is None else text for text in column.cast(pa.string()).to_pylist()]
