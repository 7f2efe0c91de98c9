"""Missing values, bools, words and dates: the same rows in every format."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.scoring.parquet import ParquetSource
from gleaner.serving.formats.arrow import read_arrow
from gleaner.serving.formats.csv import read_csv
from gleaner.serving.formats.json import RowReader, read_json
from gleaner.serving.formats.mlflow import read_invocation
from gleaner.serving.formats.open_inference import datatype_of, read_inference
from gleaner.table.feature import Feature, Target
from gleaner.table.rows import Rows, read_objects
from gleaner.table.schema import Schema

properties = profile(max_examples=200, deadline=None, derandomize=True, database=None)

FEATURES = (
    Feature(name="gap", min=0.0, max=1440.0, missing="allow", missing_values=("n/a", "-200")),
    Feature(name="count", type="int"),
    Feature(name="yes", type="bool", missing="allow"),
    Feature(name="fuel", type="category", values=("petrol", "diesel", "säcke"), fold=True, unknown="other"),
    Feature(name="zip", type="category", values=("10115", "01069"), missing="allow"),
    Feature(
        name="street", type="category", values=tuple(f"s{i}" for i in range(300)), missing="allow", unknown="other"
    ),
    Feature(name="day", type="date", parts=("weekday", "month", "days_since"), missing="allow"),
    Feature(name="when", type="datetime", parts=("hour", "days_since"), timezone="Europe/Berlin"),
)
SCHEMA = Schema(FEATURES, Target(name="y"))
Row = Mapping[str, Any]
Outcome = tuple[bytes, frozenset[tuple[int, str]]]

RIGHT: Mapping[str, Sequence[Any]] = {
    "gap": (None, 0.0, 1440.0, 12.5, -200.0),
    "count": (0.0, -7.0, 2.0**53),
    "yes": (None, True, False),
    "fuel": ("petrol", " DIESEL", "Sa\u0308cke", "gas", "=1+1"),
    "zip": (None, "10115", "01069", ""),
    "street": (None, "s0", "s299", " s7 ", "s300"),
    "day": (None, "2024-01-31", "1969-12-31", "2024-02-29"),
    "when": ("2024-01-31T13:30:00", "2024-07-01T00:00:00.25", "2024-10-27T02:30:00+02:00", "1950-01-01"),
}
WRONG: Mapping[str, Sequence[Any]] = {
    "gap": (1440.5, -1.0),
    "count": (None, 0.5),
    "yes": ("perhaps",),
    "fuel": (None, ""),
    "zip": ("1069", "north"),
    "street": (),
    "day": ("2024-02-30", "31.01.2024"),
    "when": (None, "noon"),
}


def outcome(rows: Rows) -> Outcome:
    return rows.X.tobytes(), frozenset((i, fault.column) for i, faults in rows.faults.items() for fault in faults)


def as_json(rows: Sequence[Row]) -> Outcome:
    return outcome(RowReader(SCHEMA, max_rows=99, max_depth=9).read(json.dumps(rows).encode()))


def as_json_without_nulls(rows: Sequence[Row]) -> Outcome:
    return as_json([{name: v for name, v in row.items() if v is not None} for row in rows])


def cell(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_csv(rows: Sequence[Row]) -> Outcome:
    text = io.StringIO()
    csv.writer(text).writerows([SCHEMA.names, *([cell(row[name]) for name in SCHEMA.names] for row in rows)])
    return outcome(read_csv(text.getvalue().encode(), SCHEMA, 99, 99))


def arrow_table(rows: Sequence[Row], *, native: bool) -> pa.Table:
    """Return the rows as Arrow.

    native: whether dates are dates where all of them are right; else they are text.
    """
    columns = {}
    for feature in FEATURES:
        column: list[Any] = [row[feature.name] for row in rows]
        kind = pa.float64() if feature.is_number else pa.string()
        if feature.type == "bool" and not any(isinstance(value, str) for value in column):
            kind = pa.bool_()
        elif feature.type == "bool":
            column = [None if value is None else cell(value) for value in column]
        elif native and feature.name == "day" and not set(column) & set(WRONG["day"]):
            column, kind = [value and dt.date.fromisoformat(value) for value in column], pa.date32()
        elif native and feature.name == "when" and not set(column) & {"noon"}:
            moments = [value and dt.datetime.fromisoformat(value) for value in column]
            # A time in the past with an offset is another column type than one without.
            if all(value is None or value.tzinfo for value in moments):
                column, kind = moments, pa.timestamp("us", "UTC")
            elif all(value is None or not value.tzinfo for value in moments):
                column, kind = moments, pa.timestamp("ns")
        columns[feature.name] = pa.array(column, kind)
    return pa.table(columns)


def as_arrow(*, native: bool) -> Callable[[Sequence[Row]], Outcome]:
    def read(rows: Sequence[Row]) -> Outcome:
        table, sink = arrow_table(rows, native=native), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return outcome(read_arrow(sink.getvalue().to_pybytes(), SCHEMA, 99, 99))

    return read


def as_parquet(*, native: bool) -> Callable[[Sequence[Row]], Outcome]:
    def read(rows: Sequence[Row]) -> Outcome:
        file = io.BytesIO()
        pq.write_table(arrow_table(rows, native=native), file)
        chunks = list(ParquetSource(file, "made").chunks(SCHEMA))
        X = np.concatenate([np.empty((0, len(SCHEMA.columns))), *(chunk.X for chunk in chunks)])
        refused = [row for chunk in chunks for row in chunk.refused]
        return X.tobytes(), frozenset((row.index, fault.column) for row in refused for fault in row.faults)

    return read


def as_records(rows: Sequence[Row]) -> Outcome:
    return outcome(read_invocation(SCHEMA, {"dataframe_records": list(rows)}, max_rows=99))


def as_split_with_nan(rows: Sequence[Row]) -> Outcome:
    """Send the literal NaN for a missing number, as pandas does."""
    data = [[math.nan if row[n] is None and n == "gap" else row[n] for n in SCHEMA.names] for row in rows]
    body = json.dumps({"dataframe_split": {"columns": SCHEMA.names, "data": data}}).encode()
    return outcome(read_invocation(SCHEMA, read_json(body, max_depth=9, takes_nan=True), max_rows=99))


def as_inputs(rows: Sequence[Row]) -> Outcome:
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    return outcome(read_invocation(SCHEMA, {"inputs": columns}, max_rows=99))


def as_tensors(rows: Sequence[Row]) -> Outcome:
    tensors = []
    for feature in FEATURES:
        kind = "FP64" if feature.is_number else datatype_of(feature)
        data = [row[feature.name] for row in rows]
        tensors.append({"name": feature.name, "shape": [len(rows)], "datatype": kind, "data": data})
    read, _ = read_inference(SCHEMA, {"inputs": tensors}, b"", max_rows=99, max_table_rows=99)
    return outcome(read)


def as_binary_tensors(rows: Sequence[Row]) -> Outcome:
    tensors, pieces = [], []
    for feature in FEATURES:
        values = [row[feature.name] for row in rows]
        if feature.is_number:
            kind, piece = "FP64", np.array([math.nan if v is None else v for v in values], "<f8").tobytes()
        else:
            kind, texts = "BYTES", [cell(value).encode() for value in values]
            piece = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        size = {"binary_data_size": len(piece)}
        tensors.append({"name": feature.name, "shape": [len(rows)], "datatype": kind, "parameters": size})
        pieces.append(piece)
    read, _ = read_inference(SCHEMA, {"inputs": tensors}, b"".join(pieces), max_rows=99, max_table_rows=99)
    return outcome(read)


FORMATS: Mapping[str, Callable[[Sequence[Row]], Outcome]] = {
    "JSON, absent keys": as_json_without_nulls,
    "CSV": as_csv,
    "Arrow, text": as_arrow(native=False),
    "Arrow, dates": as_arrow(native=True),
    "Parquet, text": as_parquet(native=False),
    "Parquet, dates": as_parquet(native=True),
    "MLflow, records": as_records,
    "MLflow, split": as_split_with_nan,
    "MLflow, inputs": as_inputs,
    "Open Inference": as_tensors,
    "Open Inference, binary": as_binary_tensors,
}


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_the_same_rows(name, wrong):
    choices = {n: st.sampled_from([*RIGHT[n], *(WRONG[n] if wrong else ())]) for n in SCHEMA.names}

    @properties
    @given(st.lists(st.fixed_dictionaries(choices), min_size=1, max_size=6))
    def check(rows: list[Row]) -> None:
        assert as_json(rows) == FORMATS[name](rows)

    check()


def test_a_column_may_be_absent_if_its_feature_may_be_missing():
    row = {name: RIGHT[name][1] for name in SCHEMA.names}
    gaps = [feature.name for feature in FEATURES if feature.allows_gaps]
    lacking = {name: value for name, value in row.items() if name not in gaps}
    table, sink = pa.table({name: [value] for name, value in lacking.items()}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    by_arrow = read_arrow(sink.getvalue().to_pybytes(), SCHEMA, 9, 9)

    assert outcome(read_objects(SCHEMA, [lacking])) == outcome(by_arrow)
    assert not by_arrow.faults


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_a_timestamp_is_the_same_moment_in_every_unit(unit, zone):
    moments = [dt.datetime(2024, 1, 31, 13, 30), dt.datetime(1969, 12, 31, 23, 59, 59), None]
    column = pa.array(moments, pa.timestamp("us", zone)).cast(pa.timestamp(unit, zone))
    feature = Feature(
        name="when", type="datetime", parts=("hour", "days_since"), timezone="Asia/Tokyo", missing="allow"
    )
    schema = Schema((feature,), Target(name="y"))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema({"when": column.type})) as writer:
        writer.write_table(pa.table({"when": column}))
    texts = [None if m is None else m.isoformat() + ("" if zone is None else "+00:00") for m in moments]

    read = read_arrow(sink.getvalue().to_pybytes(), schema, 9, 9)

    assert outcome(read_objects(schema, [{"when": text} for text in texts])) == outcome(read)


def test_days_in_milliseconds_are_days():
    schema = Schema((Feature(name="day", type="date", parts=("days_since",)),), Target(name="y"))
    sink = pa.BufferOutputStream()
    table = pa.table({"day": pa.array([dt.date(2024, 1, 31)], pa.date64())})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    assert [[19753.0]] == read_arrow(sink.getvalue().to_pybytes(), schema, 9, 9).X.tolist()
