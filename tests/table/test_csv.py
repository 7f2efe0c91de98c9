"""Real CSV files: accepted rows, refused rows, and their lines."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import hashlib
import io
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.errors import NAMED_FAULTS, BadTable
from gleaner.table import csv as tables
from gleaner.table.csv import BLOCK_BYTES, LONGEST_LINE, open_csv, read_rows, read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, Table

properties = profile(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

TIME = Feature(
    name="time_spent",
    unit="minutes",
    min=0.0,
    max=1440.0,
    sources=("Time to Complete (min)", "Time Spent Collecting Donations"),
    map={"0 - 30 Minutes": 15, "30 - 60 Minutes": 45},
)
DOORS = Feature(name="doors", type="int", min=0.0)
BAGS = Target(name="bags", sources=("Donation Bags Collected",), min=0.0)
SCHEMA = Schema((TIME, DOORS), BAGS, date_sources=("Date", "Day"))
NEVER_CLOSED = "is not CSV: a quote opens a cell and is never closed"
CLOSED_WITHIN = 'is not CSV: a quote closes a cell within its text; write "" for a quote inside a cell in quotes'
PLAIN = Schema((Feature(name="a"), Feature(name="b")), Target(name="y"))


def write(tmp_path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = tmp_path / "routes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(tmp_path: Path, content: str | bytes, schema: Schema = SCHEMA, **options: Any) -> Table:
    return read_table(write(tmp_path, content), schema, **options)


def refusal(path: Path, schema: Schema = SCHEMA, **options: Any) -> str:
    """Return the message about an unusable file, without its path."""
    with pytest.raises(BadTable) as caught:
        read_table(path, schema, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


# Headers


@pytest.mark.parametrize(
    "header",
    [
        "Time to Complete (min)",
        "time TO complete (MIN)",
        "  Time   to  Complete (min) ",
        "Time\u00a0to Complete\u00a0(min)",
        "\u00a0Time to Complete (min)\u00a0",
        '"Time to\nComplete\r\n(min)"',
        "Time\tto Complete (min)",
        '"Time to Complete (min)"',
    ],
)
def test_a_header_is_found_without_regard_to_case_spaces_and_line_breaks(tmp_path, header):
    table = read(tmp_path, f"{header},doors,bags\n30,50,7\n")

    assert [[30.0, 50.0]] == table.X.tolist()
    assert [7.0] == table.y.tolist()


@pytest.mark.parametrize("header", ["time_spent", "Time to Complete (min)", "Time Spent Collecting Donations"])
def test_each_source_and_the_own_name_is_found_and_reported(tmp_path, header):
    table = read(tmp_path, f"doors,{header},bags\n50,30,7\n")

    assert {"time_spent": header, "doors": "doors", "bags": "bags"} == dict(table.taken)
    assert [[30.0, 50.0]] == table.X.tolist()


@pytest.mark.parametrize(
    "columns",
    [
        ["time_spent", "Time Spent Collecting Donations", "Time to Complete (min)"],
        ["Time to Complete (min)", "Time Spent Collecting Donations", "time_spent"],
        ["Time Spent Collecting Donations", "time_spent", "Time to Complete (min)"],
    ],
)
def test_the_first_source_wins_whatever_the_files_order(tmp_path, columns):
    values = {"Time to Complete (min)": "1", "Time Spent Collecting Donations": "2", "time_spent": "3"}
    cells = ",".join(values[name] for name in columns)
    table = read(tmp_path, f"{','.join(columns)},doors,bags\n{cells},50,7\n")

    assert "Time to Complete (min)" == table.taken["time_spent"]
    assert 1.0 == table.X[0, 0]


def test_the_second_source_goes_before_the_own_name(tmp_path):
    table = read(tmp_path, "time_spent,Time Spent Collecting Donations,doors,bags\n3,0 - 30 Minutes,50,7\n")

    assert "Time Spent Collecting Donations" == table.taken["time_spent"]
    assert 15.0 == table.X[0, 0]


def test_a_space_is_not_an_underscore(tmp_path):
    said = refusal(write(tmp_path, "Time Spent,doors,bags\n600,50,7\n"))

    assert said.startswith(", line 1: no column for 'time_spent': wanted 'Time to Complete (min)' or 'Time Spent ")


def test_clock_times_beside_the_minutes_are_not_read(tmp_path):
    table = read(tmp_path, "Time Spent,Time to Complete (min),doors,bags\n630,30,50,7\n")

    assert 30.0 == table.X[0, 0]


def test_a_missing_column_is_reported_with_its_sources_and_the_nearest_header(tmp_path):
    said = refusal(write(tmp_path, "time_spent,dors,bags\n30,50,7\n"))

    assert ", line 1: no column for 'doors': wanted 'doors'; did you mean 'dors'?" == said


def test_a_missing_target_is_reported_like_any_column(tmp_path):
    assert "no column for 'bags': wanted 'Donation Bags Collected' or 'bags'" in refusal(
        write(tmp_path, "time_spent,doors\n30,50\n")
    )


def test_a_used_header_that_stands_twice_is_refused(tmp_path):
    said = refusal(write(tmp_path, "time_spent,doors,bags, DOORS\n30,50,7,51\n"))

    assert ", line 1: header 'doors' stands twice, as columns 2 and 4; rename one" == said


def test_a_day_that_stands_twice_is_refused(tmp_path):
    assert "header 'Date' stands twice" in refusal(write(tmp_path, "time_spent,Date,doors,bags,date\n30,x,50,7,y\n"))


def test_an_unused_header_may_stand_twice(tmp_path):
    table = read(tmp_path, "note,time_spent,doors,bags,note,,\nx,30,50,7,y,,\n")

    assert [[30.0, 50.0]] == table.X.tolist()


def test_a_later_source_may_stand_twice_if_an_earlier_one_is_found(tmp_path):
    table = read(tmp_path, "time_spent,Time to Complete (min),time_spent,doors,bags\n1,30,2,50,7\n")

    assert [[30.0, 50.0]] == table.X.tolist()


def test_one_header_cannot_be_the_target_and_a_feature_at_once(tmp_path):
    leaking = Schema((Feature(name="collected", sources=("Bags",)),), Target(name="bags"))
    said = refusal(write(tmp_path, "bags\n7\n"), leaking)

    assert ", line 1: header 'bags' would be read as both 'collected' and 'bags'; give each a header of its own" == said


# Rows


def test_a_refused_cell_refuses_its_own_row_only(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n30,50,7\nsoon,50,8\n31,50.5,9\n32,50,-1\n33,51,10\n")

    assert [[30.0, 50.0], [33.0, 51.0]] == table.X.tolist()
    assert [7.0, 10.0] == table.y.tolist()
    assert [2, 6] == table.lines.tolist()
    assert 3 == table.refused
    assert [
        "line 3, column 'time_spent': wanted a number of minutes from 0 to 1,440, got 'soon'",
        "line 4, column 'doors': wanted a whole number, 0 or more, got '50.5'",
        "line 5, column 'bags': wanted a number, 0 or more, got '-1'",
    ] == [str(fault) for fault in table.faults]


def test_a_decimal_comma_is_refused_with_the_number_it_may_mean(tmp_path):
    table = read(tmp_path, "time_spent;doors;bags\n30,5;50;7\n30;50;2,18\n31;50;9\n")

    assert [
        "line 2, column 'time_spent': wanted a number of minutes from 0 to 1,440, got '30,5'; "
        'it is 30.5 with decimal = ","',
        "line 3, column 'bags': wanted a number, 0 or more, got '2,18'; it is 2.18 with decimal = \",\"",
    ] == [str(fault) for fault in table.faults]


def test_every_fault_of_a_row_is_named_and_the_row_counted_once(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n1441,,?\n30,50,7\n")

    assert 1 == table.refused
    assert ["time_spent", "doors", "bags"] == [fault.column for fault in table.faults]
    assert "wanted a whole number, 0 or more, got an empty cell" == table.faults[1].reason


def test_lines_are_physical_also_after_line_breaks_in_cells_and_blank_lines(tmp_path):
    content = (
        '"time_spent","doors\n",bags,note\n'  # lines 1 and 2
        '30,50,7,"two\nlines"\n'  # 3 and 4
        "\n"  # 5
        "\r\n"  # 6
        'x,50,8,"three\r\n\r\nlines"\r\n'  # 7 to 9
        "31,51,9,\n"  # 10
        "y,51,9,"  # 11, without an end
    )
    table = read(tmp_path, content)

    assert [3, 10] == table.lines.tolist()
    assert [7, 11] == [fault.number for fault in table.faults]


def test_a_line_without_cells_is_skipped_and_a_line_of_empty_cells_is_refused(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n30,50,7\n,,\n\n31,50,7\n  \t \n,,\n" + '"","",""\n')

    assert [2, 5] == table.lines.tolist()
    assert 3 == table.refused
    assert [(line, name) for line in (3, 7, 8) for name in ("time_spent", "doors")] == [
        (fault.number, fault.column) for fault in table.faults
    ]
    assert "line 3, column 'doors': wanted a whole number, 0 or more, got an empty cell" == str(table.faults[1])


def test_in_a_table_of_one_column_an_empty_cell_differs_from_an_empty_line():
    [chunk] = chunks(b'a\n1\n""\n\n \n2\n', Schema((Feature(name="a"),), Target(name="y")))

    assert [[1.0], [2.0]] == chunk.X.tolist()
    assert [(1, 3), (2, 5)] == [(row.index, row.line) for row in chunk.refused]


@pytest.mark.parametrize("cell", ["", "  ", "n/a", "-99", "-99.0"])
def test_a_row_without_a_target_is_left_out_and_counted_and_is_no_fault(tmp_path, cell):
    schema = replace(SCHEMA, target=replace(SCHEMA.target, missing_values=("n/a", "-99")))
    table = read(tmp_path, f"time_spent,doors,bags\n30,50,7\n31,50,{cell}\n32,50,8\n33,x,{cell}\n", schema)

    assert [2, 4] == table.lines.tolist()
    assert [7.0, 8.0] == table.y.tolist()
    assert (1, 1) == (table.unlabelled, table.refused)
    assert [(5, "doors")] == [(fault.number, fault.column) for fault in table.faults]


def test_a_table_whose_target_is_missing_in_every_row_is_refused(tmp_path):
    path = write(tmp_path, "time_spent,doors,bags\n30,50,\n31,50,\n")

    assert ": no usable row in 2; 'bags' is missing in every row" == refusal(path)


def test_a_row_that_is_too_short_is_refused(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n30,50,7\n30,50\n")

    assert ["line 3, column 'bags': wanted a number, 0 or more, got a row of 2 cells"] == list(map(str, table.faults))


def test_a_row_with_a_comma_inside_a_number_is_refused(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n30,50,7\n1,200,50,7\n")

    assert [[30.0, 50.0]] == table.X.tolist()
    assert ["line 3, column '4': wanted nothing beyond the 3 columns of the header, got '7'"] == list(
        map(str, table.faults)
    )


def test_empty_cells_behind_the_last_column_are_harmless(tmp_path):
    assert [[30.0, 50.0]] == read(tmp_path, "time_spent,doors,bags\n30,50,7,,\n").X.tolist()


def test_a_hundred_faults_are_kept_and_all_refusals_counted(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n30,50,7\n" + "x,y,z\n" * 150)

    assert 150 == table.refused
    assert NAMED_FAULTS == len(table.faults) == 100


def test_a_table_without_a_usable_row_is_refused_with_the_first_fault(tmp_path):
    said = refusal(write(tmp_path, "time_spent,doors,bags\nx,50,7\ny,50,7\n"))

    assert said.startswith(": no usable row in 2: time_spent 2 not accepted; the first refusal: line 2, column ")
    assert said.endswith("got 'x'")


def test_words_stand_for_numbers(tmp_path):
    table = read(tmp_path, "time_spent,doors,bags\n0 - 30 Minutes,50,7\n 30 - 60 Minutes ,50,7\n60 - 90 Minutes,50,7\n")

    assert [15.0, 45.0] == table.X[:, 0].tolist()
    assert 1 == table.refused


def test_a_category_becomes_columns_of_zeros_and_ones(tmp_path):
    ward = Feature(name="ward", type="category", values=("north", "south"))
    table = read(tmp_path, "bags,ward,doors\n1,south,5\n2,north,6\n3,east,7\n", Schema((ward, DOORS), BAGS))

    assert [[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]] == table.X.tolist()
    assert ["line 4, column 'ward': wanted one of 'north', 'south', got 'east'"] == list(map(str, table.faults))


def test_days_are_read_from_the_column_of_dates(tmp_path):
    content = "Day,time_spent,doors,bags\n2023-09-27 10:36,1,1,1\n2023-9-7,2,2,2\n27.09.2023,3,3,3\n2023-02-30,4,4,4\n"
    days = read(tmp_path, content).days

    assert [dt.date(2023, 9, 27).toordinal(), dt.date(2023, 9, 7).toordinal()] == days[:2].tolist()
    assert all(map(math.isnan, days[2:]))


def test_the_first_source_of_the_day_wins(tmp_path):
    table = read(tmp_path, "Day,time_spent,doors,bags,date\n2020-01-01,1,1,1,2023-01-02\n")

    assert [dt.date(2023, 1, 2).toordinal()] == table.days.tolist()


def test_without_a_column_of_dates_every_day_is_nan(tmp_path):
    assert math.isnan(read(tmp_path, "time_spent,doors,bags\n1,1,1\n").days[0])


def test_max_rows_are_read_and_one_more_is_refused(tmp_path):
    path = write(tmp_path, "time_spent,doors,bags\n" + "1,1,1\n" * 3)

    assert 3 == len(read_table(path, SCHEMA, max_rows=3).y)
    assert ", line 4: more than 2 rows; raise training.max_rows to use them" == refusal(path, max_rows=2)


def test_progress_is_reported_during_the_read(tmp_path):
    path = write(tmp_path, "a,b,y\n" + "1,1,1\n" * 50_001)
    seen: list[int] = []
    read_table(path, PLAIN, advance=seen.append)

    assert sorted(seen) == seen
    assert 0 < seen[0] < seen[-1] == 50_001


def test_a_table_has_the_hash_of_its_file(tmp_path):
    content = b"\xef\xbb\xbftime_spent,doors,bags\r\n1,1,1\r\n"

    assert hashlib.sha256(content).hexdigest() == read(tmp_path, content).sha256


# Files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ": is empty; wanted a header and rows below it"),
        (b"\xef\xbb\xbf", ": is empty; wanted a header and rows below it"),
        (b"time_spent,doors,bags\n", ": no usable row in 0; it has a header and nothing below it"),
        (b"time_spent,doors,bags", ": no usable row in 0; it has a header and nothing below it"),
        (
            "time_spent,doors,bags\n1,1,1\n".encode("utf-16-le"),
            ": holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'",
        ),
        (
            b"time_spent,doors,bags\n1,1,\x001\n",
            ": holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'",
        ),
        (
            b"time_spent,doors,bags,caf\xe9,\x81\n1,1,1,,\n",
            ", line 1: byte 26 of the file, 0xe9, is not UTF-8; name the encoding by "
            'encoding = "..." under [table] in gleaner.toml, or send UTF-8',
        ),
        (
            b'time_spent,doors,bags\n1,1,1\n2,2,"2\n3,3,3\n',
            ", line 4: is not CSV: a quote opens a cell and is never closed",
        ),
        (b'time_spent,doors,"bags\n1,1,1\n', f", line 1: {NEVER_CLOSED}"),
        (
            b'time_spent,doors,bags\n1,"1"x,1\n',
            f", line 2: {CLOSED_WITHIN}",
        ),
    ],
)
def test_a_file_without_a_table_is_refused_in_one_line(tmp_path, content, said):
    assert said == refusal(write(tmp_path, content))


def test_carriage_returns_alone_end_lines(tmp_path):
    table = read(tmp_path, b"time_spent,doors,bags\r1,2,3\r4,5,x\r")

    assert [[1.0, 2.0]] == table.X.tolist()
    assert [3] == [fault.number for fault in table.faults]


def test_a_folder_is_refused(tmp_path):
    assert ": is a folder; name a file" == refusal(tmp_path)


def test_a_missing_file_is_reported(tmp_path):
    assert ": cannot be read: No such file or directory" == refusal(tmp_path / "nowhere.csv")


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def send() -> None:
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(b"time_spent,doors,bags\n1,1,1\n")

    writer = threading.Thread(target=send)
    writer.start()
    try:
        said = refusal(path)
    finally:
        writer.join()

    assert ": cannot be read: File or stream is not seekable." == said


def test_a_line_longer_than_a_megabyte_is_refused_with_its_number(tmp_path):
    content = b"time_spent,doors,bags\n1,1,1\n" + b"1," * LONGEST_LINE + b"\n"

    assert refusal(write(tmp_path, content)).startswith(", line 3: is longer than 1 MB")


def test_a_cell_beyond_the_csv_modules_limit_is_refused(tmp_path):
    content = b'time_spent,doors,bags,note\n1,1,1,"' + b"x\n" * 100_000 + b'"\n'

    assert "is not CSV: a cell is longer than 131,072 characters" in refusal(write(tmp_path, content))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_commas_semicolons_and_tabs_part_cells_with_and_without_a_mark(tmp_path, delimiter, end, mark):
    lines = [["time_spent", "doors", "bags", "Größe, ½"], ["1.5", "2", "3", "é"]]
    text = mark + end.join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    table = read(tmp_path, text)

    assert [[1.5, 2.0]] == table.X.tolist()
    assert "utf-8" == table.encoding


def test_a_declared_encoding_is_read(tmp_path):
    ward = Feature(name="größe", type="category", values=("5 €", "naïve"))
    content = "größe,bags\n5 €,1\nnaïve,2\n".encode("cp1252")
    table = read(tmp_path, content, Schema((ward,), BAGS), encoding="cp1252")

    assert [[1.0, 0.0], [0.0, 1.0]] == table.X.tolist()
    assert "cp1252" == table.encoding


def test_a_byte_beyond_the_first_megabyte_decides_the_encoding_too(tmp_path):
    filler = b"1,1,1,x\n" * 150_000
    content = b"time_spent,doors,bags,note\n" + filler + b"2,2,2,caf\xe9\n"
    table = read(tmp_path, content, encoding="cp1252")

    assert "cp1252" == table.encoding
    assert 150_001 == len(table.y)
    at = content.index(b"\xe9") + 1
    assert f", line 150002: byte {at:,} of the file, 0xe9, is not UTF-8; " in refusal(write(tmp_path, content))


def test_a_character_across_two_pieces_of_the_file_is_whole(tmp_path):
    head = b"time_spent,doors,bags,note\n"
    body = b"1,1,1,x\n" * ((1 << 17) - 10)
    start = head + body + b"1,1,1,"
    content = start + b" " * ((1 << 20) - 1 - len(start)) + "é\n".encode()

    assert 0xC3 == content[(1 << 20) - 1]
    assert "utf-8" == read(tmp_path, content).encoding


def test_a_sparse_file_of_two_gigabytes_is_refused_at_once_in_little_memory(tmp_path):
    path = write(tmp_path, "time_spent,doors,bags\n1,1,1\n")
    os.truncate(path, 2 << 30)
    program = """
import resource, sys
from pathlib import Path
from gleaner.errors import BadTable
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema
from gleaner.table.csv import read_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_table(Path(sys.argv[1]), Schema((Feature(name="time_spent"),), Target(name="bags")))
except BadTable as e:
    print(e, end="")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    seconds = time.monotonic() - started

    assert f"{path}: holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'" == done.stdout
    assert int(done.stderr) < 20_000, "kilobytes more than after the imports"
    assert seconds < 10


def test_a_large_file_is_read_in_memory_bounded_by_its_numbers(tmp_path):
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.write(b"a,b,y,note\n")
        for _ in range(300):
            file.write(b'1,2,3,"' + b"x" * 120_000 + b'"\n')
    program = """
import resource, sys
from pathlib import Path
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema
from gleaner.table.csv import read_table
schema = Schema((Feature(name="a"), Feature(name="b")), Target(name="y"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(read_table(Path(sys.argv[1]), schema).y))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    rows, grown = map(int, done.stdout.split())

    assert 300 == rows
    assert grown < 12_000, "kilobytes, of a file three times as large"


# Tables written by the csv module


def written(rows: Sequence[Sequence[str]], delimiter: str, quoting: int, end: str) -> tuple[str, list[int]]:
    """Return (the text of a CSV file, each row's first line)."""
    out, starts = io.StringIO(), []
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    for row in rows:
        starts.append(out.getvalue().count("\n") + 1)
        writer.writerow(row)
    return out.getvalue(), starts


NOTES = st.text(st.sampled_from("ab ,;\t\n\"'é€1"), max_size=12) | st.sampled_from(["\r\n", "a\n\nb", '"', "ÿ\n"])
NUMBERS = st.floats(-1e30, 1e30).map(repr) | st.integers(-(10**9), 10**9).map(str)


@properties
@given(
    rows=st.lists(st.tuples(NUMBERS | st.just("bad"), NUMBERS, NOTES, NUMBERS), min_size=1, max_size=12),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    header=st.sampled_from(["note", "a\nnote", "n\n\n\no"]),
)
def test_tables_of_the_csv_module_are_read_with_exact_lines(tmp_path, rows, delimiter, quoting, end, encoding, header):
    text, starts = written([["b", "y", header, "a"], *rows], delimiter, quoting, end)
    path = write(tmp_path, text, encoding)
    good = [(row, line) for row, line in zip(rows, starts[1:], strict=True) if row[0] != "bad"]
    bad = [line for row, line in zip(rows, starts[1:], strict=True) if row[0] == "bad"]

    if not good:
        said = refusal(path, PLAIN, encoding="cp1252")
        assert f": no usable row in {len(rows)}: b {len(rows)} not accepted; the first refusal: line {bad[0]}" in said
        return
    table = read_table(path, PLAIN, encoding="cp1252")
    assert [[float(row[3]), float(row[0])] for row, _ in good] == table.X.tolist()
    assert [float(row[1]) for row, _ in good] == table.y.tolist()
    assert [line for _, line in good] == table.lines.tolist()
    assert bad == [fault.number for fault in table.faults]
    assert len(bad) == table.refused


@properties
@given(
    rows=st.lists(st.tuples(NOTES, NOTES, NOTES) | st.just(("", "", "")), max_size=8),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "cp1252"]),
)
def test_every_cell_is_read_back_as_it_was_written(tmp_path, rows, delimiter, encoding):
    text, starts = written([["a", "b", "c"], *rows], delimiter, csv.QUOTE_ALL, "\n")

    with open_csv(write(tmp_path, text, encoding), encoding="cp1252") as file:
        assert [(line, list(row)) for line, row in zip(starts[1:], rows, strict=True)] == list(file.rows())


@properties
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda body: b"a,b,y\n1,2,3\n" + body))
def test_random_bytes_are_read_or_refused_in_one_line(tmp_path, content):
    path = write(tmp_path, content)
    try:
        table = read_table(path, PLAIN)
    except BadTable as e:
        said = str(e)
    else:
        assert len(table.X) == len(table.y) == len(table.lines) == len(table.days) > 0
        return

    assert said.startswith(str(path))
    assert "\n" not in said


# Rows for predicting: no target, in chunks

WARD = Feature(name="ward", type="category", values=("north", "south"))
ROUTES = Schema((TIME, DOORS, WARD), BAGS)
BODY = b"note,ward,doors,time_spent\nx,south,50,30\n,north,5,0 - 30 Minutes\n"


def chunks(
    source: Path | bytes | io.BytesIO, schema: Schema = ROUTES, name: str = "body", **options: int
) -> list[Chunk]:
    with open_csv(source, name) as file:
        return list(read_rows(file, schema, **options))


def refused_body(body: bytes, schema: Schema = ROUTES) -> str:
    with pytest.raises(BadTable) as caught:
        chunks(body, schema)
    return str(caught.value)


def test_rows_are_read_alike_from_a_path_a_body_and_an_open_file(tmp_path):
    for source in (write(tmp_path, BODY), BODY, io.BytesIO(BODY)):
        [chunk] = chunks(source)

        assert [[30.0, 50.0, 0.0, 1.0], [15.0, 5.0, 1.0, 0.0]] == chunk.X.tolist()
        assert [0, 1] == chunk.index.tolist()
        assert [2, 3] == chunk.lines.tolist()
        assert [["x", "south", "50", "30"], ["", "north", "5", "0 - 30 Minutes"]] == chunk.cells
        assert () == chunk.refused


def test_an_open_file_is_read_from_its_start_and_stays_open():
    file = io.BytesIO(BODY)
    file.seek(10)

    assert 2 == len(chunks(file)[0].X)
    assert not file.closed


def test_a_header_alone_is_a_table_of_no_rows():
    assert [] == chunks(b"time_spent,doors,ward")
    assert [] == chunks(b"time_spent,doors,ward\n\n\r\n  \n")


def test_a_misspelt_header_counts_as_missing_and_the_error_names_the_body():
    assert "body, line 1: no column for 'doors': wanted 'doors'; did you mean 'dors'?" == refused_body(
        b"time_spent,dors,ward\n"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: is empty; wanted a header and rows below it"),
        (b"a\0", "body: holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'"),
        (b'a,b\n1,2\n3,"4\n', "body, line 3: is not CSV: a quote opens a cell and is never closed"),
        (b"a,b\n1,2\r3,4\n", "body, line 2: is not CSV: a carriage return stands within a line"),
        (b"a,b,A\n", "body, line 1: header 'a' stands twice, as columns 1 and 3; rename one"),
        (
            b"a,b\n1,2\n" + b"1" * LONGEST_LINE,
            "body, line 3: is longer than 1 MB; wanted a CSV file with one row per line",
        ),
    ],
)
def test_a_body_without_a_table_is_refused_like_a_file(body, said):
    assert refused_body(body, PLAIN).startswith(said)


def test_a_line_longer_than_a_megabyte_is_refused_even_if_every_cell_is_short():
    body = b"a,b" + b",n" * 10 + b"\n1,2" + b",n" * 10 + b"\n1,2" + (b"," + b"n" * 110_000) * 10 + b"\n"

    assert refused_body(body, PLAIN).startswith("body, line 3: is longer than 1 MB")


def test_a_file_that_changes_during_the_read_is_reported(tmp_path):
    path = write(tmp_path, "a,b\n" + "1,2\n" * 100_000)
    with open_csv(path) as file:
        rows = read_rows(file, PLAIN)
        next(rows)
        with path.open("ab") as other:
            other.write(b"3,4,\xff\n")

        with pytest.raises(BadTable, match=r", line 100002: changed while it was read; try again$"):
            list(rows)


def test_a_read_that_fails_half_way_is_reported(tmp_path):
    class Failing(io.BytesIO):
        failing = False

        def read(self, size: int | None = -1) -> bytes:
            if self.failing:
                raise OSError(5, "Input/output error")
            return super().read(size)

    source = Failing(b"a,b\n" + b"1,2\n" * 100_000)
    with open_csv(source, "body") as file:
        rows = read_rows(file, PLAIN)
        next(rows)
        source.failing = True

        with pytest.raises(BadTable, match=r"^body: cannot be read: Input/output error$"):
            list(rows)


def test_an_error_inside_the_with_block_is_not_changed(tmp_path):
    with pytest.raises(OSError, match="No space left"), open_csv(write(tmp_path, "a,b\n")):
        raise OSError(28, "No space left on device")


def test_two_features_cannot_be_read_from_one_header():
    schema = Schema((Feature(name="a"), Feature(name="b", sources=("A",))), Target(name="y"))

    assert "body, line 1: header 'a' would be read as both 'a' and 'b'; give each a header of its own" == refused_body(
        b"a,b\n1,2\n", schema
    )


def test_every_fault_is_named_with_the_position_of_its_row():
    body = b"a,b\n1,2\n\nx,y\n3,4\n" + b"5,\n" * 300 + b'6,7,8\n"9",10\n'
    [chunk] = chunks(body, PLAIN)

    assert [[1.0, 2.0], [3.0, 4.0], [9.0, 10.0]] == chunk.X.tolist()
    assert [0, 2, 304] == chunk.index.tolist()
    assert [2, 5, 307] == chunk.lines.tolist()
    assert [1, *range(3, 304)] == [row.index for row in chunk.refused]
    assert [4, *range(6, 307)] == [row.line for row in chunk.refused]
    assert ["line 4, column 'a': wanted a number, got 'x'", "line 4, column 'b': wanted a number, got 'y'"] == list(
        map(str, chunk.refused[0].faults)
    )
    assert ["line 306, column '3': wanted nothing beyond the 2 columns of the header, got '8'"] == list(
        map(str, chunk.refused[-1].faults)
    )


@pytest.mark.parametrize("good", [True, False])
def test_a_large_table_comes_in_chunks_of_bounded_size(good):
    rows = 100_000
    found = chunks(b"a,b\n" + b"1,2\n" * rows + (b"" if good else b"x,y\n" * rows), PLAIN)
    sizes = [len(chunk.cells) for chunk in found]

    assert (1 if good else 2) * rows == sum(sizes)
    assert max(sizes) <= BLOCK_BYTES // 4 + 1
    assert list(range(rows)) == np.concatenate([chunk.index for chunk in found]).tolist()
    assert max(len(chunk.refused) for chunk in found) <= 513


CLEAN = [
    pytest.param(b"a,b,y\n1,2,3\n-4.5,+.5e-3, 6. \n", id="numbers"),
    pytest.param(b"a,b\r\n1,2\r\n3,4", id="line ends of Windows, none at the end"),
    pytest.param(b'a;b;n\n"1";"2";"x\ny\r\n\n"\n\n\r\n3;4;\n', id="line breaks in cells, blank lines"),
    pytest.param("\ufeffa\tb\tn\n1\t2\té\n".encode(), id="a mark, tabs, an accent"),
    pytest.param("a,b,n\n1,2,caf\xe9\n".encode("utf-16"), id="UTF-16"),
]


@pytest.mark.parametrize("body", CLEAN)
def test_a_clean_table_is_accepted_in_whole_blocks_with_exact_lines(body, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_accept", lambda *_: None)
        row_by_row = everything(body, PLAIN)
    monkeypatch.delattr(tables, "_read")

    assert row_by_row == everything(body, PLAIN)


def test_whole_numbers_and_words_are_accepted_in_whole_blocks(monkeypatch):
    monkeypatch.delattr(tables, "_read")
    [chunk] = chunks(b"ward,doors,time_spent\n south,50.0,1440\nnorth,5e1, 30 - 60 Minutes\n")

    assert [[1440.0, 50.0, 0.0, 1.0], [45.0, 50.0, 1.0, 0.0]] == chunk.X.tolist()


@pytest.mark.parametrize("bad", [b"", b"west,\n"])
def test_a_row_of_empty_cells_is_accepted_if_its_columns_accept_empty_cells(bad):
    ward = Feature(name="ward", type="category", values=("", "north"))
    [chunk] = chunks(b"ward,note\nnorth,\n,\n\n,x\n" + bad, Schema((ward,), BAGS))

    assert [2, 3, 5] == chunk.lines.tolist()
    assert [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]] == chunk.X.tolist()


def test_only_the_rows_around_a_refused_cell_are_read_one_by_one(monkeypatch):
    original, slow = tables._read, []

    def count(*arguments: Any) -> Chunk:
        slow.append(original(*arguments))
        return slow[-1]

    monkeypatch.setattr(tables, "_read", count)
    found = chunks(b"a,b\n" + b"1,2\n" * 200_000 + b"x,2\n" + b"1,2\n" * 200_000, PLAIN)

    assert 400_000 == sum(len(chunk.X) for chunk in found)
    assert [[200_000]] == [[row.index for row in chunk.refused] for chunk in slow]
    assert len(slow[0].X) <= 513


def everything(body: bytes, schema: Schema, **options: int) -> object:
    """Return everything that is read from a body, or the error."""
    try:
        found = chunks(body, schema, **options)
    except BadTable as e:
        return str(e)
    return (
        b"".join(chunk.X.tobytes() for chunk in found),
        [i for chunk in found for i in chunk.index.tolist()],
        [line for chunk in found for line in chunk.lines.tolist()],
        [cells for chunk in found for cells in chunk.cells],
        [(row.index, row.line, *map(str, row.faults)) for chunk in found for row in chunk.refused],
    )


TRICKY = Schema(
    (
        Feature(name="a", min=-1e30, max=1e30, map={"many": 1e6, "7": 8.0, "far": 1e31}),
        Feature(name="b"),
        Feature(name="c", type="int", min=-5.0, map={"none": 0.0}),
        Feature(name="d", type="category", values=("north", "south", "north")),
    ),
    Target(name="y"),
)
EDGES = [
    *("0", "-0", "-0.0", "+1", "1.", ".5", ".", "+", "-", "e", "1e", "1e5", "1E+05", "1e400", "-1e400", "5e-324"),
    *("3.4028234663852886e38", "3.5e38", "1e31", "-5", "-6", "4.9", "12345678901234567890.5", "1_000", "1,000"),
    *("inf", "nan", "Infinity", "0x10", "7", "١٢", "½", "many", "none", "far", "North", "'north", '"north"', '1"2'),
]
CELLS = st.sampled_from(
    [*EDGES, "", " ", " 5 ", "5\u00a0", "\t5", "5\n", "1 2", "nor\nth", "south ", "\u3000", "5\x1c"]
)
LIKELY = (st.integers(0, 9) | st.floats(-10, 10)).map(str)


def body_of(header: str, rows: Sequence[Sequence[str]], delimiter: str, quoted: Sequence[bool], end: str) -> bytes:
    """Return a table with some rows in quotes.

    The other rows have no quotes, even if they need some.
    """
    lines = [header.replace(",", delimiter)]
    for row, quote in zip(rows, quoted, strict=False):
        lines.append(delimiter.join('"' + cell.replace('"', '""') + '"' if quote else cell for cell in row))
    return end.join(lines).encode()


@properties
@given(
    rows=st.lists(
        st.tuples(LIKELY, LIKELY, st.integers(0, 9).map(str), st.sampled_from(["north", "south"]), NOTES)
        | st.lists(CELLS, max_size=6)
        | st.integers(1, 6).map(lambda width: [""] * width)
        | st.tuples(LIKELY, CELLS, st.just("1"), st.just("south"))
        | st.tuples(CELLS, LIKELY, st.integers(-9, 9).map(str), CELLS),
        max_size=12,
    ),
    quoted=st.lists(st.booleans(), min_size=12, max_size=12),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    extra=st.sampled_from(["", ",note", ',"no\nte"']),
    block_bytes=st.sampled_from([1, 20, 60, BLOCK_BYTES]),
)
def test_reading_in_blocks_and_row_by_row_gives_the_same(rows, quoted, delimiter, end, extra, block_bytes):
    body = body_of("a,b,c,d" + extra, rows, delimiter, quoted, end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_accept", lambda *_: None)
        row_by_row = everything(body, TRICKY)

    assert row_by_row == everything(body, TRICKY, block_bytes=block_bytes)


@properties
@given(
    rows=st.lists(st.tuples(LIKELY, LIKELY, NOTES), max_size=20),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bad=st.sets(st.integers(0, 30), max_size=2),
    block_bytes=st.sampled_from([1, 30, 100, BLOCK_BYTES]),
)
def test_no_row_is_lost_or_doubled_between_blocks(rows, quoting, bad, block_bytes):
    rows = [("x" if i in bad else a, b, note) for i, (a, b, note) in enumerate(rows)]
    text, starts = written([["a", "b", "note"], *rows], ",", quoting, "\n")
    found = chunks(text.encode(), PLAIN, block_bytes=block_bytes)
    good = [i for i in range(len(rows)) if i not in bad]

    assert good == [i for chunk in found for i in chunk.index.tolist()]
    assert [starts[1 + i] for i in good] == [line for chunk in found for line in chunk.lines.tolist()]
    assert [list(row) for row in rows] == [cells for chunk in found for cells in chunk.cells]
    assert good == np.flatnonzero(np.concatenate([[], *(chunk.accepted for chunk in found)])).tolist()
    assert [(i, starts[1 + i]) for i in sorted(bad) if i < len(rows)] == [
        (row.index, row.line) for chunk in found for row in chunk.refused
    ]
