"""The day and the group of each row of a file."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace

import pytest

from gleaner.errors import BadTable
from gleaner.table.aside import read_day
from gleaner.table.csv import read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema

SCHEMA = Schema((Feature(name="x"), Feature(name="ward", sources=("Ward/Branch",))), Target(name="y"))


def day(*date: int) -> float:
    return float(dt.date(*date).toordinal())


@pytest.fixture
def read(tmp_path):
    def read(text: str, **changes: object):
        (tmp_path / "t.csv").write_text(text)
        return read_table(tmp_path / "t.csv", replace(SCHEMA, **changes))

    return read


@pytest.mark.parametrize(
    ("cell", "formats", "number"),
    [
        ("2023-09-07", (), day(2023, 9, 7)),
        (" 2023-9-7 10:00", (), day(2023, 9, 7)),
        ("07.09.2023", ("%d.%m.%Y",), day(2023, 9, 7)),
        (" 9/7/23 ", ("%d.%m.%Y", "%m/%d/%y"), day(2023, 9, 7)),
        ("2023-09-07", ("%d.%m.%Y",), day(2023, 9, 7)),
        ("07.09.2023 23:59", ("%d.%m.%Y %H:%M",), day(2023, 9, 7)),
    ],
)
def test_a_day_is_read_by_a_format_or_as_iso(cell, formats, number):
    assert number == read_day(cell, formats)


@pytest.mark.parametrize(
    ("cell", "formats"),
    [("07.09.2023", ()), ("31.02.2023", ("%d.%m.%Y",)), ("2023-02-31", ()), ("soon", ("%d.%m.%Y",)), ("", ())],
)
def test_what_is_no_date_has_no_day(cell, formats):
    assert math.isnan(read_day(cell, formats))


def test_entries_that_are_no_date_are_counted_and_their_rows_kept(read):
    text = "x,Ward/Branch,y,When\n1,1,1,07.09.2023\n1,1,2,\n1,1,3,tomorrow\n1,1,4,2023-09-08\n1,1,5\n"
    table = read(text, date_sources=("when",), date_formats=("%d.%m.%Y",))
    assert [1, 2, 3, 4, 5] == table.y.tolist()
    assert [day(2023, 9, 7), day(2023, 9, 8)] == table.days[[0, 3]].tolist()
    assert all(map(math.isnan, table.days[[1, 2, 4]]))
    assert 1 == table.undated


def test_rows_of_a_group_have_one_number(read):
    text = "x,Ward/Branch,y,Leader\n1,1,1,Ann\n1,1,2, ANN\n1,1,3,Bo\n1,1,4,\n1,,5,Bo\n1,1,,Cy\n1,1,6\n"
    table = read(text, group="leader")
    assert [1, 2, 3, 4, 6] == table.y.tolist()
    assert [0, 0, 1, 2, 2] == table.groups.tolist()


def test_a_group_may_be_a_feature_under_its_own_name(read):
    assert [0, 1, 0] == read("x,Ward/Branch,y\n1,4,1\n1,5,1\n1,4,1\n", group="ward").groups.tolist()


def test_without_a_group_there_are_no_groups(read):
    assert read("x,Ward/Branch,y\n1,4,1\n").groups is None


def test_a_group_without_a_column_is_refused(read):
    with pytest.raises(BadTable, match="line 1: no column for 'leaders': wanted 'leaders'; did you mean 'Leader'"):
        read("x,Ward/Branch,y,Leader\n1,1,1,Ann\n", group="leaders")
