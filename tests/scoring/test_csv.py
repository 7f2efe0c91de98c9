"""Cells of CSV that spreadsheets neither run nor change."""

from __future__ import annotations

import csv
import io
from itertools import chain

from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.scoring.csv import csv_text, disarm

properties = profile(max_examples=300, deadline=None, derandomize=True, database=None)

SIGNS = set("=+-@\uff1d\uff0b\uff0d\uff20")
LETTERS = [*SIGNS, *"\t\r\n '\"1.,e5a%é"]


@properties
@given(st.lists(st.tuples(*[st.text(st.sampled_from(LETTERS), max_size=6)] * 3), min_size=1))
@example([("-5\nx", "-5", "\n"), ("", "", "")])
def test_every_cell_that_could_be_run_is_marked_and_no_other_is_changed(rows):
    safe = disarm(rows, 3)

    for before, after in zip(chain(*rows), chain(*safe), strict=True):
        could_be_run = bool(SIGNS & set(before.lstrip()[:1])) or before[:1] in {"\t", "\r", "\n"}
        if not could_be_run or is_float(before):
            assert before == after
        elif not set("15.,e%+- \t\r\n") >= set(before) or not set("15") & set(before):
            assert f"'{before}" == after
        else:  # such as 1,5 or 5-1; FORMULAS and NUMBERS in test_score.py list which of them are numbers
            assert after in {before, f"'{before}"}


def is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@properties
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_is_marked_as_a_formula(number):
    assert [[repr(number)]] == list(map(list, disarm([[repr(number)]], 1)))


@properties
@given(
    st.lists(st.tuples(*[st.text(st.sampled_from('a1,;\t\r\n "'), max_size=6)] * 3), min_size=1),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_every_cell_that_is_written_is_read_back(rows, delimiter, end):
    text = csv_text(rows, delimiter, end)

    assert list(map(list, rows)) == list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
