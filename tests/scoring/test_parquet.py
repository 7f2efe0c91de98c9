"""Parquet through `gleaner score`, compared with other formats."""

from __future__ import annotations

import csv
import datetime as dt
import io
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from projects import NUMBER, SETTINGS
from started import gleaner

from gleaner.errors import BadTable, explain_install
from gleaner.scoring.parquet import ParquetSource
from gleaner.table.csv import open_csv, read_rows
from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import LARGEST
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk

properties = profile(max_examples=150, deadline=None, derandomize=True, database=None)

TIME = Feature(name="time", min=0.0, max=1440.0, sources=("Time to Complete (min)",), map={"a while": 15.0})
DOORS = Feature(name="doors", type="int", min=0.0)
WARD = Feature(name="ward", type="category", values=("north", "south"))
SCHEMA = Schema((TIME, DOORS, WARD), Target(name="bags"))
WARDS = pa.array(["north", "south", "north"])
ROUTES = pa.table(
    {
        "time_spent": [30.0, 250.0],
        "note": ["a", None],
        "doors_in_route": pa.array([50, 700], pa.int16()),
        "assessed_value": pa.array([200_000, 900_000], pa.int64()),
        "day": [dt.date(2023, 9, 27), None],
    }
)


def parquet(table: pa.Table, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    file.seek(0)
    return file


def chunks(table: pa.Table, schema: Schema = SCHEMA, **options: Any) -> list[Chunk]:
    return list(ParquetSource(parquet(table, **options), "routes.parquet").chunks(schema))


def refusal(table: pa.Table, schema: Schema = SCHEMA) -> str:
    with pytest.raises(BadTable) as caught:
        chunks(table, schema)
    return str(caught.value)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    made.fill(tmp_path / ".gleaner" / "store", made.artifact("decision_tree"))
    return tmp_path


# Columns


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint8(),
        pa.int64(),
        pa.uint64(),
        pa.float32(),
        pa.float64(),
        pa.decimal128(10, 2),
        pa.decimal256(40, 5),
    ],
)
def test_numbers_of_every_type_are_read(kind):
    numbers = pa.array([Decimal(30), Decimal(0), Decimal(7)]).cast(kind)
    [chunk] = chunks(pa.table({"time": numbers, "doors": numbers, "ward": WARDS}))

    assert [[30.0, 30.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [7.0, 7.0, 1.0, 0.0]] == chunk.X.tolist()
    assert [0, 1, 2] == chunk.index.tolist() == chunk.lines.tolist()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_is_read_like_cells_of_csv(kind):
    time = pa.array([" 30", "a while", "1,5"]).cast(kind)
    doors = pa.array(["5e1", "7.0", "7"]).cast(kind)
    [chunk] = chunks(pa.table({"time": time, "doors": doors, "ward": WARDS.cast(kind)}))

    assert [[30.0, 50.0, 1.0, 0.0], [15.0, 7.0, 0.0, 1.0]] == chunk.X.tolist()
    reason = "wanted a number from 0 to 1,440, got '1,5'; it is 1.5 with decimal = \",\""
    assert [f"row 2, column 'time': {reason}"] == list(map(str, chunk.refused[0].faults))


def test_every_refused_value_is_named_with_its_row():
    table = pa.table(
        {
            "time": [30.0, None, math.nan, 1440.5, math.inf],
            "doors": [50.0, 1.5, -1.0, 5.0, 5.0],
            "ward": ["north", None, "east", "south", "south"],
        }
    )
    [chunk] = chunks(table)

    assert [[30.0, 50.0, 1.0, 0.0]] == chunk.X.tolist()
    assert [
        "row 1, column 'time': wanted a number from 0 to 1,440, got null",
        "row 1, column 'doors': wanted a whole number, 0 or more, got 1.5",
        "row 1, column 'ward': wanted one of 'north', 'south', got null",
        "row 2, column 'time': wanted a number from 0 to 1,440, got NaN",
        "row 2, column 'doors': wanted a whole number, 0 or more, got -1.0",
        "row 2, column 'ward': wanted one of 'north', 'south', got 'east'",
        "row 3, column 'time': wanted a number from 0 to 1,440, got 1440.5",
        "row 4, column 'time': wanted a number from 0 to 1,440, got a number too large for any column",
    ] == [str(fault) for row in chunk.refused for fault in row.faults]


def test_a_column_without_a_value_refuses_every_row():
    [chunk] = chunks(pa.table({"time": pa.nulls(3), "doors": [1, 2, 3], "ward": WARDS}))

    assert 3 == len(chunk.refused)
    assert 0 == len(chunk.X)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("time", pa.array([True, False, True]), "column 'time': wanted numbers or text, got bool"),
        ("time", pa.array([dt.date(2020, 1, 1)] * 3), "column 'time': wanted numbers or text, got date32[day]"),
        ("time", pa.array([[1.0]] * 3), "column 'time': wanted numbers or text, got list<element: double>"),
        ("time", pa.array([b"1"] * 3), "column 'time': wanted numbers or text, got binary"),
        ("ward", pa.array([1.5, 2, 3]), "column 'ward': wanted text, got double"),
    ],
)
def test_a_column_of_another_type_is_refused_as_a_whole(column, values, said):
    table = pa.table({"time": [1, 2, 3], "doors": [1, 2, 3], "ward": WARDS})
    at = table.schema.get_field_index(column)

    assert f"routes.parquet: {said}" == refusal(table.set_column(at, column, values))


def test_columns_are_found_like_headers_of_csv():
    table = pa.table({"TIME to complete  (min)": [1], "time": [2], "doors": [3], "ward": ["north"]})

    assert 1.0 == chunks(table)[0].X[0, 0]
    assert "routes.parquet: no column for 'doors': wanted 'doors'; did you mean 'dors'?" == refusal(
        table.rename_columns(["x", "time", "dors", "ward"])
    )


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=64),
    st.sampled_from([2**53 + 1, -0.0, 1440.0, LARGEST, -LARGEST, 5e-324, 0, 50]),
)


@properties
@given(st.lists(VALUES | st.none(), min_size=1, max_size=8), st.sampled_from([TIME, DOORS, Feature(name="any")]))
def test_a_number_is_accepted_exactly_if_json_accepts_it(values, feature):
    whole = all(value is None or isinstance(value, int) for value in values)
    numbers = pa.array(values if whole else [None if v is None else float(v) for v in values])
    schema = Schema((feature,), Target(name="y"))
    [chunk] = chunks(pa.table({feature.name: numbers}), schema)
    accepted = {}
    for i, value in enumerate(numbers.to_pylist()):
        try:
            accepted[i] = feature.accept(value).hex()
        except ValueError:
            continue

    assert accepted == dict(zip(chunk.index.tolist(), map(float.hex, chunk.X[:, 0].tolist()), strict=True))
    assert sorted(set(range(len(values))) - set(accepted)) == [row.index for row in chunk.refused]


@properties
@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=20, min_value=-(10**15), max_value=10**15)))
def test_decimals_are_rounded_as_python_rounds_them(values):
    schema = Schema((Feature(name="a"),), Target(name="y"))
    found = chunks(pa.table({"a": pa.array(values, pa.decimal128(38, 20))}), schema)

    assert list(map(float, values)) == [number for chunk in found for number in chunk.X[:, 0].tolist()]


def test_a_large_table_comes_in_chunks_with_consecutive_rows():
    n = 300_000
    table = pa.table({"a": pa.array(range(n)), "b": ["x"] + ["1"] * (n - 1), "note": ["some text"] * n})
    found = chunks(table, Schema((Feature(name="a"), Feature(name="b")), Target(name="y")), row_group_size=100_001)

    assert list(range(1, n)) == [int(i) for chunk in found for i in chunk.index]
    assert list(range(1, n)) == [int(a) for chunk in found for a in chunk.X[:, 0]]
    assert [0] == [row.index for chunk in found for row in chunk.refused]
    assert len(found) > 3


# Files


def test_parquet_in_and_out_keeps_every_column_and_its_type(home):
    table = ROUTES.replace_schema_metadata({"made": "by hand"})
    pq.write_table(table, home / "in.parquet")
    done = gleaner("score", "in.parquet", "out.parquet", folder=home)

    assert (0, "") == (done.returncode, done.stderr)
    scored = pq.read_table(home / "out.parquet")
    assert table == scored.drop_columns(["prediction", "problem"])
    assert table.schema.metadata == scored.schema.metadata
    assert NUMBER == scored["prediction"][0].as_py()
    assert pa.float64() == scored["prediction"].type


def test_refused_rows_are_named_by_their_position(home):
    pq.write_table(ROUTES.set_column(0, "time_spent", pa.array([-1.0, 30.0])), home / "in.parquet")
    done = gleaner("score", "in.parquet", "out.parquet", folder=home)

    assert 3 == done.returncode
    assert (
        'row,column,reason\n0,time_spent,"wanted a number from 0 to 1,440, got -1.0"\n'
        == (home / "out.parquet.faults.csv").read_text()
    )
    scored = pq.read_table(home / "out.parquet")
    reason = "row 0, column 'time_spent': wanted a number from 0 to 1,440, got -1.0"
    assert ROUTES["note"].to_pylist() == scored["note"].to_pylist()
    assert [True, False] == [value is None for value in scored["prediction"].to_pylist()]
    assert [reason, None] == scored["problem"].to_pylist()


def test_refused_rows_of_parquet_can_be_left_out(home):
    pq.write_table(ROUTES.set_column(0, "time_spent", pa.array([-1.0, 30.0])), home / "in.parquet")

    assert 3 == gleaner("score", "in.parquet", "out.parquet", "--drop-refused", folder=home).returncode
    scored = pq.read_table(home / "out.parquet")
    assert [*ROUTES.column_names, "prediction"] == scored.column_names
    assert [30.0] == scored["time_spent"].to_pylist()


def test_parquet_becomes_csv_with_formulas_marked(home):
    table = ROUTES.set_column(1, "note", pa.array(["=1+1", None]))
    pq.write_table(table, home / "in.parquet")

    assert 0 == gleaner("score", "in.parquet", "out.csv", folder=home).returncode
    rows = list(csv.reader((home / "out.csv").read_text().splitlines()))
    assert [*ROUTES.column_names, "prediction", "problem"] == rows[0]
    assert ["30", "'=1+1", "50", "200000", "2023-09-27", repr(NUMBER), ""] == rows[1]
    assert ["250", "", "700", "900000", ""] == rows[2][:5]


def test_csv_becomes_parquet_with_its_cells_as_text(home):
    (home / "in.csv").write_text("note,time_spent,doors_in_route,assessed_value\n=x,30,5e1,200000\n,30,50,200000,\n")

    assert 0 == gleaner("score", "in.csv", "out.parquet", folder=home).returncode
    scored = pq.read_table(home / "out.parquet")
    assert ["=x", "30", "5e1", "200000", NUMBER, None] == list(scored.to_pylist()[0].values())
    assert ["", "30", "50", "200000", NUMBER, None] == list(scored.to_pylist()[1].values())


def test_parquet_is_read_from_and_written_to_pipes(home):
    command = [sys.executable, "-m", "gleaner", "score", "--format", "parquet", "-", "-"]
    done = subprocess.run(command, cwd=home, input=parquet(ROUTES).read(), capture_output=True, timeout=60, check=True)

    assert ROUTES == pq.read_table(io.BytesIO(done.stdout)).drop_columns(["prediction", "problem"])


def test_a_table_without_rows_comes_back_without_rows(home):
    pq.write_table(ROUTES.slice(0, 0), home / "in.parquet")

    assert 0 == gleaner("score", "in.parquet", "out.parquet", folder=home).returncode
    assert (0, 7) == pq.read_table(home / "out.parquet").shape


@pytest.mark.parametrize("content", [b"", b"time_spent\n1\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_reported_in_one_line(home, content):
    (home / "in.parquet").write_bytes(content)
    done = gleaner("score", "in.parquet", "out.parquet", folder=home)

    assert 1 == done.returncode
    assert done.stderr.startswith("error: in.parquet: cannot be read as Parquet: ")
    assert 1 == len(done.stderr.splitlines())
    assert not (home / "out.parquet").exists()


def test_a_damaged_page_leaves_nothing(home):
    many = pa.table(
        {
            name: column.chunk(0).take(pa.array([0] * 200_000))
            for name, column in zip(ROUTES.column_names, ROUTES.columns, strict=True)
        }
    )
    pq.write_table(many, home / "in.parquet", compression="zstd", use_dictionary=False, row_group_size=20_000)
    body = bytearray((home / "in.parquet").read_bytes())
    body[len(body) // 2 : len(body) // 2 + 500] = b"\xff" * 500
    (home / "in.parquet").write_bytes(body)
    done = gleaner("score", "in.parquet", "out.parquet", folder=home)

    assert 1 == done.returncode
    last = done.stderr.splitlines()[-1]  # below lines of progress on a slow machine
    assert last.startswith("error: in.parquet: cannot be read as Parquet: ")
    assert [".gleaner", "gleaner.toml", "in.parquet"] == sorted(path.name for path in home.iterdir())


def test_a_table_that_breaks_off_in_a_pipe_is_unreadable(home):
    row = "30,50,200000," + "x" * 1000 + "\n"
    (home / "in.csv").write_text("time_spent,doors_in_route,assessed_value,note\n" + row * 100_000 + '1,1,1,"')
    command = [sys.executable, "-m", "gleaner", "score", "--format", "parquet", "in.csv", "-"]
    done = subprocess.run(command, cwd=home, capture_output=True, timeout=60, check=False)

    last = done.stderr.splitlines()[-1]  # below lines of progress on a slow machine
    assert (1, b"error: in.csv, line 100002: is not CSV: a quote opens a cell and is never closed") == (
        done.returncode,
        last,
    )
    assert len(done.stdout) > 1000, "some of it was written"
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(io.BytesIO(done.stdout))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([[1], [2]]),
            "in.parquet: column 'note' is of type list<element: int64>, which CSV cannot hold; write Parquet",
        ),
        (pa.array([b"a", b"b"]), "in.parquet: column 'note' is of type binary, which CSV cannot hold; write Parquet"),
        (pa.array(["a\0", "b"]), "out.csv: a cell has a NUL character, which CSV cannot hold; write Parquet"),
    ],
)
def test_a_value_that_csv_cannot_hold_is_refused(home, column, said):
    pq.write_table(ROUTES.set_column(1, "note", column), home / "in.parquet")
    done = gleaner("score", "in.parquet", "out.csv", folder=home)

    assert (1, f"error: {said}\n") == (done.returncode, done.stderr)


def test_a_header_that_stands_twice_is_not_written_as_parquet(home):
    (home / "in.csv").write_text("note,time_spent,doors_in_route,assessed_value,note\na,30,50,200000,b\n")
    done = gleaner("score", "in.csv", "out.parquet", folder=home)

    assert (
        "error: out.parquet: column 'note' stands twice, and few programs read such a Parquet file; write CSV\n"
        == done.stderr
    )


def test_without_pyarrow_the_error_says_what_to_install(home):
    program = "import sys; sys.modules['pyarrow'] = None; from gleaner.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "score", "in.parquet", "out.csv"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    command = explain_install("parquet")
    assert (1, f"error: pyarrow is not installed; to install the extra 'parquet': {command}\n") == (
        done.returncode,
        done.stderr,
    )


def test_parquet_and_csv_of_the_same_rows_give_the_same_bits():
    rows = [("30.1", "50", "north"), ("1e-3", "7", "south"), ("0.30000000000000004", "9007199254740993", "north")]
    text = "time,doors,ward\n" + "".join(",".join(row) + "\n" for row in rows)
    with open_csv(text.encode()) as file:
        [read] = read_rows(file, SCHEMA)
    time, doors, ward = zip(*rows, strict=True)
    numbers = {"time": list(map(float, time)), "doors": list(map(int, doors)), "ward": list(ward)}

    assert read.X.tobytes() == chunks(pa.table(numbers))[0].X.tobytes()


def test_a_group_of_four_times_the_rows_takes_little_more_memory(home):
    program = """
import atexit, re, sys
from pathlib import Path
from gleaner.cli.main import main
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
main(["score", "in.parquet", "out.parquet", "--json"])
"""
    peaks = []
    for rows in (1_500_000, 6_000_000):
        columns = {
            name: pa.array([1.0, 2.0, 3.0] * (rows // 3)) for name in ("time_spent", "doors_in_route", "assessed_value")
        }
        pq.write_table(
            pa.table(columns), home / "in.parquet", row_group_size=rows, use_dictionary=False, compression=None
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=home, capture_output=True, text=True, timeout=120, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))

    assert peaks[1] < peaks[0] + 20_000, "kilobytes; the table is 108 MB larger"
