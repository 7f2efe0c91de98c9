"""Where the header is: separators, titles, repeated headers, totals."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from gleaner.drafting.draft import slug
from gleaner.errors import BadTable
from gleaner.table.csv import read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.messages import show
from gleaner.table.schema import Schema
from gleaner.table.tables import Table

SCHEMA = Schema((Feature(name="doors"), Feature(name="miasto Łódź")), Target(name="bags"))
HEAD = "doors,Miasto Łódź,bags\n"


def read(tmp_path: Path, content: str | bytes) -> Table:
    path = tmp_path / "routes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, SCHEMA)


def refusal(tmp_path: Path, content: str) -> str:
    with pytest.raises(BadTable) as caught:
        read(tmp_path, content)
    return str(caught.value).removeprefix(f"{tmp_path}/routes.csv")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (HEAD + "1,2,3\n", 2),
        (HEAD.replace(",", "|") + "1|2|3\n", 2),
        (HEAD.replace(",", ";") + "1;2;3\n", 2),
        ("sep=;\n" + HEAD.replace(",", ";") + "1;2;3\n", 3),
        ('"sep=|"\r\n' + HEAD.replace(",", "|") + "1|2|3\n", 3),
        ("\n\n" + HEAD + "1,2,3\n", 4),
        ("Routes of 2023\n\nall wards, both stakes; and more\n" + HEAD + "1,2,3\n", 5),
        ('Routes "of" 2023\n' + HEAD + "1,2,3\n", 3),
        ('"An open quote\n' + HEAD + "1,2,3\n", 3),
        (unicodedata.normalize("NFD", HEAD) + "1,2,3\n", 2),
        (HEAD.replace("\n", "\r") + "1,2,3\r", 2),
    ],
)
def test_the_header_is_the_first_row_that_names_the_columns(tmp_path, content, line):
    table = read(tmp_path, content)

    assert [[1.0, 2.0]] == table.X.tolist()
    assert [line] == table.lines.tolist()
    assert line - 1 == table.header_line


def test_a_file_without_a_header_is_refused(tmp_path):
    said = refusal(tmp_path, "1,2,3\n4,5,6\n")

    assert ", line 1: holds values, not names; wanted a header above the rows, with 'doors', 'miasto Łódź'" in said


def test_a_missing_column_is_reported_on_the_line_of_the_header(tmp_path):
    assert ", line 3: no column for 'doors': wanted 'doors'; did you mean 'bad_doors'?" == refusal(
        tmp_path, "Routes\n\n" + HEAD.replace("doors", "bad_doors") + "1,2,3\n"
    )


def test_a_header_in_the_middle_is_one_fault(tmp_path):
    table = read(tmp_path, HEAD + "1,2,3\n" + HEAD + "4,5,6\n")

    assert [2, 4] == table.lines.tolist()
    assert ["line 3, column 'doors': repeats the header; delete this line"] == list(map(str, table.faults))


@pytest.mark.parametrize("label", ["Total", "Summe:", "Grand Total", "ИТОГО"])
def test_a_row_of_totals_is_one_fault(tmp_path, label):
    table = read(tmp_path, HEAD + f"1,2,3\n{label},,3\n")

    said = f"line 3, column 'doors': is a row of totals, {label!r}; delete this line"
    assert [said] == list(map(str, table.faults))


def test_a_short_row_is_one_fault(tmp_path):
    table = read(tmp_path, HEAD + "1,2,3\n7\n")

    assert ["line 3, column 'miasto Łódź': wanted a number, got a row of 1 cells"] == list(map(str, table.faults))


def test_names_keep_letters_of_any_script():
    assert "'Łódź'" == show("Łódź")
    assert "двери" == slug("Двери")
    assert "łódź" == slug(unicodedata.normalize("NFD", "Łódź"))
