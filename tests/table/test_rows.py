"""The faults of a body, named or counted in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from gleaner.errors import NAMED_FAULTS, BadRows
from gleaner.serving.formats.csv import CSV
from gleaner.serving.formats.json import JSON, RowReader
from gleaner.serving.formats.mlflow import read_invocation
from gleaner.serving.formats.tables import MOST_FAULTS, read_rows
from gleaner.table.arrow.format import ARROW
from gleaner.table.feature import Feature, Target
from gleaner.table.rows import Rows, check_names
from gleaner.table.schema import Schema

SCHEMA = Schema((Feature(name="a", min=0.0), Feature(name="b"), Feature(name="c")), Target(name="y"))
READER = RowReader(SCHEMA, max_rows=10_000, max_depth=32)
HEAD, GOOD, BAD = b"a,b,c\n", b"1,2,3\n", b"x,y,z\n"


def read(kind: str, body: bytes, *, partial: bool = False) -> Rows:
    return read_rows(kind, body, READER, max_rows=1_000_000, partial=partial)


def invoke(value: object) -> Rows:
    return read_invocation(SCHEMA, value, max_rows=1_000_000)


def stream(rows: list[tuple[float | None, ...]]) -> bytes:
    sink = pa.BufferOutputStream()
    columns = zip(*rows, strict=True)
    table = pa.table({name: pa.array(column, pa.float64()) for name, column in zip("abc", columns, strict=True)})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


# Reads of bodies with many faults. If every fault was kept, each read would hold at least 0.3 KB a fault, or 18 MB.
READS: dict[str, tuple[Callable[[], Callable[[], Rows]], int]] = {
    "csv": (lambda: partial(read, CSV, HEAD + BAD * 20_000), 60_000),
    "csv, in part": (lambda: partial(read, CSV, HEAD + BAD * 20_000, partial=True), 60_000),
    "arrow": (lambda: partial(read, ARROW, stream([(-1.0, None, None)] * 20_000)), 60_000),
    "json": (lambda: partial(read, JSON, json.dumps([{}] * 10_000).encode()), 30_000),
    "json of many keys": (
        lambda: partial(read, JSON, json.dumps(dict.fromkeys(map(str, range(40_000)))).encode()),
        40_003,
    ),
    "instances": (lambda: partial(invoke, {"instances": [[None] * 3] * 20_000}), 60_000),
    "short instances": (lambda: partial(invoke, {"instances": [[0]] * 60_000}), 60_000),
}


@pytest.mark.parametrize("name", READS)
def test_refused_rows_are_read_in_little_memory_and_their_faults_counted(name):
    make, faults = READS[name]
    ask = make()
    tracemalloc.start()
    try:
        rows = ask()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert 0 == len(rows.X)
    assert faults == sum(map(len, rows.faults.values())) + rows.unnamed
    assert peak < 10_000_000
    with pytest.raises(BadRows, match=rf"^100 faults, and {faults - 100} more$"):
        rows.check()


def test_the_named_faults_are_the_first_of_the_table():
    csv = read(CSV, HEAD + GOOD + BAD * 2 + b"1,2\n" + BAD * 200)
    arrow = read(
        ARROW, stream([(0.0, 0.0, 0.0), *[(None, None, None)] * 2, (0.0, 0.0, None), *[(None, 0.0, None)] * 200])
    )

    assert [(1, "abc"), (2, "abc"), (3, "c")] == [
        (i, "".join(fault.column for fault in faults)) for i, faults in list(csv.faults.items())[:3]
    ]
    assert [(1, "abc"), (2, "abc"), (3, "c"), (4, "ac")] == [
        (i, "".join(fault.column for fault in faults)) for i, faults in list(arrow.faults.items())[:4]
    ]
    for rows in (csv, arrow):
        assert list(rows.faults) == sorted(rows.faults)
        assert NAMED_FAULTS == sum(map(len, rows.faults.values()))
    assert (607 - 100, 407 - 100) == (csv.unnamed, arrow.unnamed)


def tables(refused: int) -> dict[str, bytes]:
    """Return one accepted and `refused` refused rows in every format."""
    return {
        CSV: HEAD + GOOD + b"1,2,\n" * refused,
        ARROW: stream([(1.0, 2.0, 3.0), *[(1.0, 2.0, None)] * refused]),
        JSON: json.dumps([{"a": 1, "b": 2, "c": 3}, *[{"a": 1, "b": 2, "c": None}] * refused]).encode(),
    }


@pytest.mark.parametrize("kind", [CSV, ARROW, JSON])
def test_with_partial_every_fault_is_kept_up_to_the_bound(kind):
    some = 300 if kind == JSON else MOST_FAULTS

    rows = read(kind, tables(some)[kind], partial=True)

    assert [[1.0, 2.0, 3.0]] == rows.X.tolist()
    assert list(range(1, some + 1)) == list(rows.faults)
    assert 0 == rows.unnamed
    assert [0] == rows.accepted.tolist()


@pytest.mark.parametrize("kind", [CSV, ARROW])
def test_with_partial_one_fault_beyond_the_bound_is_refused_with_another_way(kind):
    with pytest.raises(BadRows) as caught:
        read(kind, tables(MOST_FAULTS + 1)[kind], partial=True)

    said = "10,001 faults, and a partial response names at most 10,000; use `gleaner score` for such a table"
    assert [("", said)] == caught.value.faults
    assert said == str(caught.value)


def test_with_partial_the_bound_counts_faults_and_not_rows():
    body = json.dumps([{"a": 1, "b": 2, "c": 3}, *[{}] * 3_334]).encode()

    with pytest.raises(BadRows, match="10,002 faults, and a partial response names at most 10,000"):
        read(JSON, body, partial=True)


def test_with_partial_a_table_without_an_accepted_row_is_refused():
    rows = read(CSV, HEAD + BAD * 10_000, partial=True)

    assert np.empty((0, 3)).shape == rows.X.shape
    with pytest.raises(BadRows, match=r"^100 faults, and 29900 more$"):
        rows.check()


def suggestions(ask: Callable[[], object]) -> tuple[int, int]:
    """Return (the faults with a suggestion, all faults) in numbers."""
    with pytest.raises(BadRows) as caught:
        ask()
    details = [detail for _, detail in caught.value.faults]
    assert all("no such column" in detail or "is missing" in detail for detail in details)
    return sum("did you mean" in detail for detail in details), len(details) + caught.value.unnamed


def test_only_the_first_unknown_columns_of_a_body_get_a_suggestion():
    long = Schema(tuple(Feature(name=f"a_long_name_{i}") for i in range(3)), Target(name="y"))
    reader = RowReader(long, max_rows=1_000, max_depth=32)
    keys = [f"a_long_name{i}" for i in range(400)]
    rows = [{key: 1, **dict.fromkeys(long.names, 1)} for key in keys]

    for body in (dict.fromkeys([*keys, *long.names], 1), rows):
        assert (5, 400) == suggestions(lambda body=body: reader.read(json.dumps(body).encode(), named=100).check())
    assert (5, 403) == suggestions(lambda: check_names(long, keys))


def test_a_header_of_many_columns_is_listed_in_part():
    body = ",".join(["a", *(f"a{i}" for i in range(15_000))]).encode()

    with pytest.raises(BadRows) as caught:
        read(CSV, body + b"\n")

    [(_, detail)] = caught.value.faults
    assert detail.startswith("no column for 'b': wanted 'b'; known: 'a', 'a0', 'a1', 'a10', ")
    assert detail.endswith("'a132', ...")
