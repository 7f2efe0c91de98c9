"""The values that a column accepts, and their matrix."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.errors import Fault
from gleaner.table.feature import Feature, Target
from gleaner.table.messages import explain_cell, show, show_cell
from gleaner.table.notation import Notation
from gleaner.table.numbers import LARGEST, read_number
from gleaner.table.schema import Schema
from gleaner.table.words import plain_text

properties = profile(max_examples=300, deadline=None, derandomize=True, database=None)

TIME = Feature(name="time_spent", unit="minutes", min=0.0, max=1440.0, monotone="up", map={"a while": 15})
DOORS = Feature(name="doors", type="int", monotone="down")
WARD = Feature(name="ward", type="category", values=("north", "south", "mid west"))
SCHEMA = Schema((TIME, WARD, DOORS), Target(name="bags", min=0.0, unit="bags"))


def is_refused(read: Callable[[Any], float], value: object) -> bool:
    try:
        read(value)
    except ValueError:
        return True
    return False


@properties
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_that_python_writes_is_read_back(number):
    assert number == read_number(repr(number))


@properties
@given(st.integers() | st.decimals(allow_nan=False, allow_infinity=False))
def test_every_integer_and_decimal_is_read_as_float_reads_it(number):
    assert float(str(number)) == read_number(str(number))


@properties
@given(st.text("0123456789+-.eE_ ,infax\u0663\u00bd\u00a0\n", max_size=8))
def test_a_text_is_a_number_exactly_where_float_takes_its_plain_ascii_digits(text):
    try:
        expected = float(text) if set(text) <= set("0123456789+-.eE") else None
    except ValueError:
        expected = None

    if expected is None:
        assert is_refused(read_number, text)
    else:
        assert expected == read_number(text)


@pytest.mark.parametrize(
    "text", ["1_000", "1,000", "inf", "nan", "-Infinity", "", " 1", "1 ", "0x10", "1e", "٣", "1\n"]
)
def test_a_text_in_another_notation_is_not_a_number(text):
    assert is_refused(read_number, text)


@pytest.mark.parametrize(
    "value", [True, False, "30", None, [30], {"a": 30}, math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("feature", [TIME, DOORS])
def test_a_json_value_other_than_a_number_is_refused(feature, value):
    assert is_refused(feature.accept, value)


@pytest.mark.parametrize("value", [0, 0.0, 1440, 1440.0, 1e-300])
def test_both_bounds_are_accepted(value):
    assert float(value) == TIME.accept(value)


@pytest.mark.parametrize("value", [-5e-324, -1, 1440.0000000000002])
def test_just_beyond_a_bound_is_refused(value):
    assert is_refused(TIME.accept, value)


@properties
@given(st.floats() | st.integers(), st.sampled_from([None, 0.0, 1e300, -1e300]), st.sampled_from([None, 1e301]))
def test_an_accepted_number_stays_finite_in_single_precision(number, low, high):
    feature = Feature(name="a", min=low, max=high)
    try:
        accepted = feature.accept(number)
    except ValueError:
        return

    assert np.isfinite(np.float32(accepted))


def test_an_integer_column_accepts_whole_numbers_in_any_spelling():
    assert [3.0, 3.0, -2.0, 1e20] == [DOORS.accept(3), DOORS.accept(3.0), DOORS.accept(-2), DOORS.accept(1e20)]
    assert [3.0, 300.0] == [DOORS.accept_cell(" 3.0 "), DOORS.accept_cell("3e2")]


@pytest.mark.parametrize("value", [3.5, 1e-9])
def test_an_integer_column_refuses_a_fraction(value):
    assert is_refused(DOORS.accept, value)


@pytest.mark.parametrize("value", ["North", "west", "", 0, True, None, ["north"]])
def test_a_category_accepts_only_its_own_words(value):
    assert is_refused(WARD.accept, value)

    assert [0.0, 1.0, 2.0] == [WARD.accept(word) for word in WARD.values]
    assert 2.0 == WARD.accept_cell("  mid west ")


def test_a_word_of_the_map_stands_for_its_number_in_a_cell_but_not_in_json():
    assert 15.0 == TIME.accept_cell(" a while ")
    assert is_refused(TIME.accept, "a while")


def test_the_number_of_a_mapped_word_has_to_be_within_the_bounds():
    feature = Feature(name="time", max=10.0, map={"long": 90})

    assert is_refused(feature.accept_cell, "long")


@pytest.mark.parametrize("cell", ["-0.1", "nan", "", "1e39", "twelve"])
def test_a_target_refuses_numbers_below_its_minimum_and_text(cell):
    assert is_refused(SCHEMA.target.accept_cell, cell)

    assert [0.0, 555.0] == [SCHEMA.target.accept_cell("0"), SCHEMA.target.accept_cell(" 555 ")]


def test_a_target_without_a_minimum_can_be_negative():
    assert -12.5 == Target(name="change").accept_cell("-12.5")


def test_a_category_becomes_one_column_of_zeros_and_ones_per_value():
    X = SCHEMA.matrix([[30.0, 2.0, 7.0], [0.0, 0.0, -1.0]])

    assert ("time_spent", "ward=north", "ward=south", "ward=mid west", "doors") == SCHEMA.columns
    assert [[30, 0, 0, 1, 7], [0, 1, 0, 0, -1]] == X.tolist()
    assert np.float64 == X.dtype
    assert X.flags.c_contiguous


def test_a_matrix_of_no_rows_keeps_its_width():
    assert (0, 5) == SCHEMA.matrix([]).shape
    assert (0, 1) == Schema((TIME,), SCHEMA.target).matrix([]).shape


def test_directions_stand_in_the_order_of_the_matrix():
    assert (1, 0, 0, 0, -1) == SCHEMA.monotone
    assert len(SCHEMA.columns) == len(SCHEMA.monotone)


def test_an_object_becomes_one_number_per_feature_in_any_order_of_keys():
    assert [30.0, 1.0, 7.0] == SCHEMA.accept({"doors": 7, "ward": "south", "time_spent": 30})


def test_every_fault_of_an_object_is_named_at_once():
    row = {"time_spnt": 30, "ward": "east", "doors": True}
    faults, _ = SCHEMA.faults(row, 4, 10)

    with pytest.raises((KeyError, ValueError)):
        SCHEMA.accept(row)
    assert [
        "row 4, column 'time_spnt': no such column; did you mean 'time_spent'?",
        "row 4, column 'time_spent': is missing; wanted a number of minutes from 0 to 1,440",
        "row 4, column 'ward': wanted one of 'north', 'south', 'mid west', got 'east'",
        "row 4, column 'doors': wanted a whole number, got true",
    ] == [str(fault) for fault in faults]


@pytest.mark.parametrize("most", range(6))
def test_the_first_faults_of_an_object_are_named_and_the_others_counted(most):
    row = {"x": 1, "y": 2, "ward": "east", "doors": True}
    every, none = SCHEMA.faults(row, 4, 10)

    assert (5, 0) == (len(every), none)
    assert (every[:most], 5 - most) == SCHEMA.faults(row, 4, most)


@pytest.mark.parametrize("near", [-1, 0, 1, 2, 9])
def test_the_nearest_feature_is_looked_up_at_most_as_often_as_asked(near):
    row = {"time_spnt": 30, "wart": "south", "dors": 1, "time_spent": 30, "ward": "south", "doors": 7}
    faults, _ = SCHEMA.faults(row, 0, 10, near)
    nearest = ["; did you mean 'time_spent'?", "; did you mean 'ward'?", "; did you mean 'doors'?"]

    assert [f"no such column{text if i < near else ''}" for i, text in enumerate(nearest)] == [f.reason for f in faults]


def test_a_fault_keeps_its_parts():
    [fault], _ = SCHEMA.faults({"time_spent": 1441, "ward": "south", "doors": 7}, 2, 10)

    assert isinstance(fault, Fault)
    assert ("row", 2, "time_spent") == (fault.place, fault.number, fault.column)
    assert "wanted a number of minutes from 0 to 1,440, got 1441" == fault.reason


@pytest.mark.parametrize(
    ("feature", "wanted"),
    [
        (Feature(name="a"), "a number"),
        (Feature(name="a", type="int", unit="doors", min=1.0), "a whole number of doors, 1 or more"),
        (Feature(name="a", max=0.5), "a number, 0.5 or less"),
        (Feature(name="a", min=-1.0, max=28_618_500.0), "a number from -1 to 28,618,500"),
        (SCHEMA.target, "a number of bags, 0 or more"),
    ],
)
def test_the_accepted_values_are_described_in_words(feature, wanted):
    assert wanted == feature.wanted


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("null", "null"),
        ("true", "true"),
        ("false", "false"),
        ("30", "30"),
        ("0.1", "0.1"),
        ('"30"', "'30'"),
        ('{"a": 1}', "an object"),
        ("[1]", "a list"),
        ("1e999", "a number too large for any column"),
    ],
)
def test_a_value_is_shown_as_its_sender_spelled_it(sent, shown):
    assert shown == show(json.loads(sent))


@properties
@given(st.text() | st.integers() | st.floats(allow_nan=False))
def test_a_value_is_shown_short_and_in_one_line(value):
    assert show(value).isprintable()
    assert len(show(value)) <= 60


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("2,18", 'it is 2.18 with decimal = ","'),
        ("-,5", 'it is -0.5 with decimal = ","'),
        ("0,123", 'it is 0.123 with decimal = ","'),
        ("1,234", 'it is 1234 with thousands = ",", or 1.234 with decimal = ","'),
        ("1,234,567", 'it is 1234567 with thousands = ","'),
        ("1,234.50", 'it is 1234.5 with thousands = ","'),
        ("1 234", 'it is 1234 with thousands = " "'),
        ("1\u202f234,5", 'it is 1234.5 with decimal = "," and thousands = " "'),
        ("-1.234,56", 'it is -1234.56 with decimal = "," and thousands = "."'),
        ("$101.20", 'it is 101.2 with strip = "$"'),
        (" 101,20 \u20ac ", 'it is 101.2 with decimal = "," and strip = "\u20ac"'),
        ("12%", 'it is 12 with strip = "%"'),
        ("12,5 %", 'it is 12.5 with decimal = "," and strip = "%"'),
    ],
)
def test_a_number_in_a_spreadsheets_notation_is_refused_with_the_reason(cell, said):
    assert is_refused(Feature(name="a").accept_cell, cell)

    for column in (Feature(name="a"), DOORS, SCHEMA.target):
        assert f"{show(cell)}; {said}" == show_cell(column, cell)
    assert show(cell) == show_cell(WARD, cell)


@pytest.mark.parametrize("cell", ["-5", "1.234", "many", "$", "%", ".", "1,2,3", "1,234,56", "5 min", "1" * 50 + ",5"])
def test_a_cell_in_no_known_notation_is_refused_without_a_hint(cell):
    assert show(cell) == show_cell(Feature(name="a"), cell)


def test_an_empty_cell_and_other_values_are_shown_in_messages():
    assert "an empty cell" == show_cell(WARD, " \u00a0")
    assert ["null", "5", "NaN"] == [show_cell(TIME, value) for value in (None, 5, math.nan)]


@properties
@given(st.text("0123456789+-., '\u00a0$\u20ac%", max_size=9))
def test_a_hint_for_a_cell_names_a_readable_number(cell):
    said = explain_cell(cell)

    assert not said or is_refused(read_number, cell.strip())
    for number, keys in re.findall(r"(?:it is|or) (\S+) with (.*?)(?=, or |$)", said):
        signs = dict(re.findall(r'(\w+) = "(.*?)"', keys))
        assert read_number(number) == pytest.approx(Notation(**signs).read(plain_text(cell)))
    assert not said or re.match("; it is [0-9.-]", said)


def test_the_largest_number_is_the_largest_of_single_precision():
    assert LARGEST == Feature(name="a").accept(LARGEST)
    assert is_refused(Feature(name="a").accept, LARGEST * 1.001)


VALUES = [0, -0.0, 3, 3.5, -2, 1440, 1441, 0.1, 1e20, 1e300, -1e300, 2**53 + 1, LARGEST, -LARGEST, math.inf, math.nan]
FEATURES = [
    TIME,
    DOORS,
    Feature(name="any"),
    Feature(name="wide", min=-1e300, max=1e300),
    Feature(name="n", type="int", min=0.5, max=9.0),
]


@properties
@given(
    st.lists(st.sampled_from(VALUES) | st.floats() | st.integers(-(2**63), 2**63 - 1), max_size=9),
    st.sampled_from(FEATURES),
    st.sampled_from([None, np.float64, np.float32, np.float16, np.int64, np.uint8]),
)
def test_an_array_is_accepted_as_each_of_its_numbers(values, feature, kind):
    with np.errstate(all="ignore"):
        array = np.array(values, np.float64)
        if kind is not None:
            fits = (
                np.isfinite(array) & (np.abs(array) < 2**62)
                if np.dtype(kind).kind in "iu"
                else np.ones(len(array), bool)
            )
            array = array[fits].astype(kind)

    numbers, accepted = feature.accept_array(array)

    assert [not is_refused(feature.accept, value) for value in array.tolist()] == accepted.tolist()
    assert [feature.accept(value).hex() for value in array[accepted].tolist()] == [n.hex() for n in numbers[accepted]]


WORDS = Feature(name="w", type="category", values=("north", "south", "north", "", "é"))


@properties
@given(
    st.lists(
        st.sampled_from([*WORDS.values, " north", "North", None, True, 0, 1.5, ["north"], {"a": 1}]) | st.text(),
        max_size=9,
    )
)
def test_words_are_accepted_together_as_each_of_them(values):
    numbers, accepted = WORDS.accept_array(values)

    assert [not is_refused(WORDS.accept, value) for value in values] == accepted.tolist()
    assert [WORDS.accept(value) for value, fits in zip(values, accepted, strict=True) if fits] == numbers[
        accepted
    ].tolist()
    assert (len(values),) == numbers.shape


@properties
@given(st.sampled_from(VALUES) | st.floats() | st.integers(), st.sampled_from(FEATURES))
def test_the_json_schema_of_a_column_allows_the_numbers_that_it_accepts(value, feature):
    declared = feature.json_schema
    is_allowed = declared["minimum"] <= value <= declared["maximum"]
    if declared["type"] == "integer":
        is_allowed = is_allowed and value == math.floor(value)

    assert is_allowed == (not is_refused(feature.accept, value))
    assert {"type": "string", "enum": list(WARD.values)} == WARD.json_schema


CELLS = [
    *("0", "-0", "-0.0", "+1", "1.", ".5", "1e5", "1E+05", "5e-324", " 5 ", "7", "-5", "4.9", "3.4028234663852886e38"),
    *("", " ", ".", "+", "-", "e", "1e", "--1", "1 2", "1_000", "1,000", "inf", "nan", "Infinity", "0x10", "١٢", "½"),
    *("1e400", "-1e400", "3.5e38", "1e31", "-6", "5\u00a0", "\t5", "5\n", "12345678901234567890.5"),
    *("many", "far", "north", " south", "North", "south\u00a0", "nor\nth", "true"),
]
COLUMNS = [
    Feature(name="a"),
    Feature(name="a", min=-5.0, max=7.0),
    Feature(name="a", map={"many": 1e6, "far": 1e31, "true": 1.0}, max=1e30),
    Feature(name="a", map={"7": 8.0}),
    Feature(name="a", type="int", min=-5.0),
    Feature(name="a", type="category", values=("north", "south", "north", " far", "")),
    Target(name="y"),
    Target(name="y", min=0.0),
]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("cell", CELLS)
def test_many_cells_give_the_numbers_of_each_cell_or_none(column, cell):
    together = column.accept_cells([cell, cell])
    try:
        alone = column.accept_cell(cell)
    except ValueError:
        assert together is None
        return

    assert together is None or [alone.hex()] * 2 == [number.hex() for number in together.tolist()]


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (COLUMNS[0], CELLS[:14]),
        (COLUMNS[1], ["-5", "7", " 0 ", "6.99"]),
        (COLUMNS[2], ["1", " many ", "1e30", "true"]),
        (COLUMNS[3], ["7", " 7 ", "7.0"]),
        (COLUMNS[4], ["-5", "5.0", "1e5", "12345678901234567890"]),
        (COLUMNS[5], ["north", " south"]),
        (COLUMNS[7], ["0", "-0", "1e38"]),
    ],
)
def test_plain_cells_are_accepted_together(column, cells):
    numbers = column.accept_cells(cells)

    assert numbers is not None
    assert [column.accept_cell(cell) for cell in cells] == numbers.tolist()
