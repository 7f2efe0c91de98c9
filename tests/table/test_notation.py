"""Numbers as files write them: decimal commas, thousands, currencies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.table.csv import open_csv, read_rows, read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.messages import show_cell
from gleaner.table.notation import Notation
from gleaner.table.schema import Schema
from gleaner.table.words import plain_text

properties = profile(max_examples=400, deadline=None, derandomize=True, database=None)

EUROPE = Notation(",", ".", "€ $ %")


def number_of(notation: Notation, cell: str) -> float | None:
    try:
        return notation.read(plain_text(cell))
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("notation", "cell", "number"),
    [
        (EUROPE, "1.234,56", 1234.56),
        (EUROPE, "1.234.567", 1234567.0),
        (EUROPE, "1234,5", 1234.5),
        (EUROPE, "-,5", -0.5),
        (EUROPE, "5,", 5.0),
        (EUROPE, "1,5e3", 1500.0),
        (EUROPE, " 1.234,56 € ", 1234.56),
        (EUROPE, "€1.234", 1234.0),
        (EUROPE, "€ -5", -5.0),
        (EUROPE, "-€5", -5.0),
        (EUROPE, "- 5", None),
        (EUROPE, "25 %", 25.0),
        (EUROPE, "25\u00a0%", 25.0),
        (EUROPE, "12.34", None),
        (EUROPE, "1.2345", None),
        (EUROPE, "0.123", None),
        (EUROPE, "1.234e5", None),
        (EUROPE, "1,234.5", None),
        (EUROPE, "1.234.56", None),
        (EUROPE, "€", None),
        (EUROPE, "5 €€", None),
        (EUROPE, "£5", None),
        (EUROPE, "", None),
        (EUROPE, "٣", None),
        (Notation(".", ","), "1,234.5", 1234.5),
        (Notation(".", ","), "12,34", None),
        (Notation(",", " "), "1 234,5", 1234.5),
        (Notation(",", " "), "1\u00a0234\u202f567", 1234567.0),
        (Notation(".", "'"), "1'234.5", 1234.5),
        (Notation(".", "'"), "1\u2019234.5", 1234.5),
        (Notation(strip="Fr. kr."), "Fr. 5.50", 5.5),
        (Notation(strip="Fr. kr."), "12 kr.", 12.0),
        (Notation(), "1,234.5", None),
        (Notation(), "(12)", None),
        (Notation(brackets=True), "(12)", -12.0),
        (Notation(brackets=True), " ( 12.5 ) ", -12.5),
        (Notation(brackets=True), "12", 12.0),
        (Notation(brackets=True), "-12", -12.0),
        (Notation(brackets=True), "(-12)", None),
        (Notation(brackets=True), "-(12)", None),
        (Notation(brackets=True), "(12", None),
        (Notation(brackets=True), "12)", None),
        (Notation(brackets=True), "((12))", None),
        (Notation(brackets=True), "()", None),
        (Notation(".", ",", "$ %", True), "$(1,234.50)", -1234.5),
        (Notation(".", ",", "$ %", True), "($ 1,234.50)", -1234.5),
        (Notation(".", ",", "$ %", True), "(25 %)", -25.0),
        (Notation(".", ",", "$ %", True), "(1,23)", None),
    ],
)
def test_a_notation_reads_its_own_numbers_and_no_others(notation, cell, number):
    assert number == number_of(notation, cell)


SIGNS = st.sampled_from(
    [
        Notation(d, t, s, brackets)
        for d in ".,"
        for t in ("", ".", ",", " ", "'")
        if t != d
        for s in ("", "€ %")
        for brackets in (False, True)
    ]
)
WRITTEN = st.text("0123456789.,'+-e \u00a0€%()", max_size=9) | st.sampled_from(
    ["1.234,5", "1,234.5", "1 234", "€5", "7", "(7)", "(€1.234,5)"]
)


@properties
@given(SIGNS, st.lists(WRITTEN | st.integers(-9999, 9999).map(str), max_size=4))
def test_many_cells_are_read_as_each_alone_or_not_at_all(notation, cells):
    numbers = notation.read_all(cells)
    alone = [number_of(notation, cell) for cell in cells]

    if numbers is not None:
        assert alone == numbers.tolist()
    elif not notation.is_plain and "." not in "".join(cells):
        assert None in alone or any(char not in "0123456789+-,eE " for char in "".join(cells))


@properties
@given(st.floats(-1e9, 1e9), SIGNS)
def test_a_number_written_in_a_notation_reads_back_as_itself(number, notation):
    written = f"{number:,.3f}".replace(",", "T").replace(".", notation.decimal).replace("T", notation.thousands)
    cell = written + " €" * bool(notation.strip)
    if notation.brackets and number < 0:
        cell = f"({cell.replace('-', '')})"

    assert float(f"{number:.3f}") == number_of(notation, cell)
    assert [float(f"{number:.3f}")] == np.asarray(Feature(name="a").accept_cells([f"{number:.3f}"])).tolist()


def test_a_refused_cell_names_the_settings_that_would_read_it():
    price = Feature(name="price", decimal=",", thousands=".")

    assert "'12.34'; thousands = \".\" parts groups of three digits; " in show_cell(price, "12.34")
    assert show_cell(price, "12.34").endswith('it is 12.34 with decimal = "." and thousands = ""')
    assert "'$5'; it is 5 with strip = \"$\"" == show_cell(price, "$5")
    assert "'many'" == show_cell(price, "many")


PRICE = Feature(name="price", decimal=",", thousands=".", strip="€", missing="allow", map={"free": 0})
TABLE = "price;y\n1.234,50 €;1.000,5\n12,5;7\nfree;8\n;9\n12.34;10\n"


def test_a_table_is_read_in_its_notation_the_target_too(tmp_path: Path):
    path = tmp_path / "prices.csv"
    path.write_text(TABLE, encoding="utf-8")
    table = read_table(path, Schema((PRICE,), Target(name="y", decimal=",", thousands=".")))

    assert [1234.5, 12.5, 0.0] == table.X[:3, 0].tolist()
    assert math.isnan(table.X[3, 0])
    assert [1000.5, 7.0, 8.0, 9.0] == table.y.tolist()
    assert [6] == [fault.number for fault in table.faults]


def test_a_body_is_read_in_the_notation_of_its_column():
    with open_csv(TABLE.encode(), "the body") as file:
        [chunk] = read_rows(file, Schema((PRICE,), Target(name="y")))

    assert [1234.5, 12.5, 0.0] == chunk.X[:3, 0].tolist()
    assert [6] == [row.line for row in chunk.refused]


def test_a_number_in_json_has_no_notation():
    assert 1234.5 == PRICE.accept(1234.5)
    assert [False] == PRICE.accept_array(["1.234,50"])[1].tolist()
