"""Missing values, bools, words and dates, by every way of reading."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.errors import BadTable
from gleaner.serving.formats.json import RowReader, write_json
from gleaner.table.csv import read_table
from gleaner.table.dates import PARTS, part_columns, part_names, part_row, read_moment
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema, example_row

properties = profile(max_examples=300, deadline=None, derandomize=True, database=None)

GAP = Feature(name="gap", min=0.0, max=1440.0, missing="allow", missing_values=("n/a", "-200", "999"))
COUNT = Feature(name="count", type="int", missing="allow", map={"a few": 3})
YES = Feature(name="yes", type="bool")
JA = Feature(name="ja", type="bool", true_values=("ja", "j"), false_values=("nein",), missing="allow")
FUEL = Feature(name="fuel", type="category", values=("Petrol", "Diesel", "Säcke"), fold=True, unknown="other")
ZIP = Feature(name="zip", type="category", values=("10115", "01069"), missing="allow", missing_values=("?",))
DAY = Feature(name="day", type="date", parts=("weekday", "month", "days_since"), formats=("%d.%m.%Y", "%Y%m%d"))
WHEN = Feature(name="when", type="datetime", parts=PARTS, timezone="Europe/Berlin", missing="allow")
FEATURES = (GAP, COUNT, YES, JA, FUEL, ZIP, DAY, WHEN)
SCHEMA = Schema(FEATURES, Target(name="y"))

TEXTS = [
    *("", " ", "n/a", "N/A", "-200", "-200.0", "999", "1", "0", "true", "FALSE", "ja", " J ", "nein", "a few", "?"),
    *("petrol", " Petrol ", "DIESEL", "Sa\u0308cke", "gas", "10115", "01069", "1069", "north"),
    *(
        "2024-01-31",
        "31.01.2024",
        "20240131",
        "2024-01-31T13:30:00+01:00",
        "2024-02-30",
        "1/2/2024",
        "2024-01-31 23:59",
    ),
]
VALUES = [*TEXTS, None, True, False, 0, 1, 1.0, 1.5, -200, -200.0, 999, 10115, 10115.0, 1069, 20240131, 10**400, [], {}]


def outcome(read: Any, *values: Any) -> str | None:
    """Return the bits of a number, or None for a refused value."""
    try:
        return float(read(*values)).hex()
    except ValueError:
        return None


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_values_are_accepted_together_as_each_of_them(feature):
    numbers, accepted = feature.accept_array(VALUES)

    assert [outcome(feature.accept, value) is not None for value in VALUES] == accepted.tolist()
    assert [outcome(feature.accept, value) for value in VALUES if outcome(feature.accept, value)] == [
        number.hex() for number in numbers[accepted].tolist()
    ]


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.int32, np.uint64, np.float32, np.bool_])
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_arrays_of_numbers_are_accepted_as_each_of_them(feature, kind):
    values = np.array([0, 1, 1, 10115, 1069, 20240131, 999, 7], dtype=np.float64).astype(kind)
    if np.dtype(kind).kind == "f":
        values = np.append(values, [np.nan, -200, 1.5]).astype(kind)

    numbers, accepted = feature.accept_array(values)

    assert [outcome(feature.accept, value) is not None for value in values.tolist()] == accepted.tolist()
    right = [outcome(feature.accept, value) for value in values.tolist()]
    assert [one for one in right if one] == [number.hex() for number in numbers[accepted].tolist()]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_cells_are_accepted_together_as_each_of_them(feature):
    for cell in TEXTS:
        together = feature.accept_cells([cell, cell])

        alone = outcome(feature.accept_cell, cell)
        if together is not None:
            assert [alone] * 2 == [number.hex() for number in together.tolist()]
        else:
            assert alone is None or feature.is_number, cell
    right = [cell for cell in TEXTS if outcome(feature.accept_cell, cell)]
    assert [outcome(feature.accept_cell, cell) for cell in right] == [
        number.hex() for number in np.asarray(feature.accept_cells(right)).tolist()
    ]


@pytest.mark.parametrize("feature", [f for f in FEATURES if not f.is_number], ids=lambda feature: feature.name)
def test_a_text_means_the_same_in_a_cell_and_in_json(feature):
    for cell in TEXTS:
        assert outcome(feature.accept_cell, cell) == outcome(feature.accept, cell), cell


def test_an_entry_that_is_a_number_is_missing_in_every_spelling_and_others_are_words():
    for value in (-200, -200.0, 999, None, math.nan):
        assert math.isnan(GAP.accept(value))
    for cell in ("-200", " -200.0 ", "-2e2", "999", "n/a", "", " "):
        assert math.isnan(GAP.accept_cell(cell))
    assert outcome(GAP.accept_cell, "N/A") is None
    assert math.isnan(GAP.accept("n/a"))


def test_the_map_comes_before_the_missing_values():
    assert 3.0 == COUNT.accept_cell("a few")
    with_empty = Feature(name="a", missing="allow", map={"": 0.0})
    assert 0.0 == with_empty.accept_cell(" ")


def test_a_missing_value_is_refused_unless_it_is_allowed():
    refusing = Feature(name="a", missing_values=("-200",))

    for value in (None, -200, -200.0, math.nan):
        assert outcome(refusing.accept, value) is None
    assert outcome(refusing.accept_cell, "-200") is None
    assert not refusing.accept_array(np.array([-200.0, np.nan]))[1].any()


def test_words_are_compared_in_nfc_and_folded_where_declared():
    assert [0.0, 0.0, 2.0, 3.0] == [FUEL.accept(word) for word in (" petrol", "PETROL", "sa\u0308cke", "gas")]
    exact = Feature(name="a", type="category", values=("Säcke",))
    assert 0.0 == exact.accept("Sa\u0308cke ")
    assert outcome(exact.accept, "säcke") is None


def test_whole_numbers_are_codes():
    assert [0.0, 0.0, 1.0] == [ZIP.accept(10115), ZIP.accept(10115.0), ZIP.accept("01069")]
    assert outcome(ZIP.accept, 1069) is None


def test_a_category_has_columns_for_other_and_missing_words():
    assert ("fuel=Petrol", "fuel=Diesel", "fuel=Säcke", "fuel=(other)") == FUEL.columns
    assert ("zip=10115", "zip=01069", "zip=(missing)") == ZIP.columns
    assert ("day.weekday.sin", "day.weekday.cos", "day.month.sin", "day.month.cos", "day.days_since") == DAY.columns
    rows = [[1.0, 0.0, 1.0, math.nan, 3.0, math.nan, 0.0, math.nan]]
    X = SCHEMA.matrix(rows)
    assert [0, 0, 0, 1] == X[0, 4:8].tolist()
    assert [0, 0, 1] == X[0, 8:11].tolist()
    assert np.isnan(X[0, -len(WHEN.columns) :]).all()


@properties
@given(st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29)))
def test_parts_are_those_of_the_calendar(moment):
    seconds = read_moment(moment.isoformat(), (), "")

    row = part_row(seconds, PARTS)

    turns = {
        "weekday": moment.weekday() / 7,
        "month": (moment.month - 1) / 12,
        "day_of_year": (moment.timetuple().tm_yday - 1) / 366,
        "hour": moment.hour / 24,
    }
    right = [wave(2 * math.pi * turn) for turn in turns.values() for wave in (math.sin, math.cos)]
    days = (moment - dt.datetime(1970, 1, 1)) / dt.timedelta(days=1)
    assert np.allclose([*right, days], row, rtol=1e-12, atol=1e-12)
    assert part_columns(np.array([seconds]), PARTS).tobytes() == np.array([row]).tobytes()
    assert len(part_names(PARTS)) == len(row)


@properties
@given(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)))
def test_a_time_with_an_offset_is_moved_to_the_columns_own_zone(moment):
    aware = moment.replace(tzinfo=dt.UTC)
    local = aware.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)

    text = WHEN.accept(aware.isoformat())
    since = aware - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    seconds = since.days * 86_400 + since.seconds + since.microseconds / 1e6
    numbers, accepted = WHEN.accept_moments(np.array([seconds]), is_aware=True)

    assert text == WHEN.accept(local.isoformat())
    assert accepted.all()
    assert math.isclose(text, numbers[0], rel_tol=0, abs_tol=1e-5)
    assert math.floor(text) == math.floor(numbers[0])


@pytest.mark.parametrize("text", ["2024-02-30", "1/2/2024", "20240131", "2024-1-1", "yesterday", "2024-01-31T25:00"])
def test_a_date_is_never_guessed(text):
    assert outcome(WHEN.accept, text) is None


def test_a_date_takes_the_day_of_a_time():
    assert (
        DAY.accept("2024-01-31") == DAY.accept("2024-01-31 23:59") == DAY.accept("31.01.2024") == DAY.accept(20240131)
    )


ROWS = st.fixed_dictionaries(
    {},
    optional={feature.name: st.sampled_from([value for value in VALUES if value != 10**400]) for feature in FEATURES},
)


@properties
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_the_fast_reader_of_json_returns_what_the_slow_one_returns(rows):
    reader = RowReader(SCHEMA, max_rows=10, max_depth=9)
    body = write_json(rows)

    fast, slow = reader.accept(body), reader.read(body)

    if fast is not None:
        assert not slow.faults
        assert np.array(fast, dtype=np.float64).tobytes() == slow.X.tobytes()


def test_the_fast_reader_of_json_reads_an_ordinary_row():
    reader = RowReader(SCHEMA, max_rows=10, max_depth=9)
    row = {**example_row(SCHEMA), "when": None, "gap": None, "fuel": "Diesel", "zip": None}

    fast = reader.accept(write_json([row, row]))

    assert fast is not None
    assert np.array(fast).tobytes() == reader.read(write_json([row, row])).X.tobytes()


@properties
@given(st.lists(st.tuples(*[st.sampled_from(TEXTS) for _ in FEATURES]), max_size=5))
def test_a_row_expands_to_its_row_of_the_matrix(rows):
    accepted = []
    for row in rows:
        numbers = [outcome(feature.accept_cell, cell) for feature, cell in zip(FEATURES, row, strict=True)]
        if None not in numbers:
            accepted.append([float.fromhex(str(number)) for number in numbers])

    X = SCHEMA.matrix(accepted)

    assert (len(accepted), len(SCHEMA.columns)) == X.shape
    assert np.array([SCHEMA.expand(row) for row in accepted]).reshape(X.shape).tobytes() == X.tobytes()


def table(tmp_path, text: str, *features: Feature):
    path = tmp_path / "made.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path, Schema(features, Target(name="y")))


def test_words_are_learned_from_the_file_and_rare_ones_joined(tmp_path):
    ward = Feature(name="ward", type="category", values="learn", min_count=2, unknown="other", fold=True)

    read = table(tmp_path, "ward,y\nNorth,1\n north ,2\nsouth,3\nSOUTH,4\neast,5\n", ward)

    assert ("ward=North", "ward=south", "ward=(other)") == read.schema.columns
    assert [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]] == read.X.tolist()


@pytest.mark.parametrize(
    ("rows", "keys", "reason"),
    [
        (
            "".join(f"w{i},1\n" for i in range(5_001)),
            {},
            "5,001 different words, such as 'w0', 'w1', 'w10' and 4,998 more",
        ),
        ("a,1\n", {"min_count": 2, "unknown": "other"}, "no word has 2 rows: lower `min_count`"),
        (",1\n", {"missing": "allow"}, "every cell is empty"),
        ("(other),1\n", {}, "the word '(other)' is taken"),
    ],
)
def test_words_that_cannot_be_learned_are_refused_with_the_key_to_add(tmp_path, rows, keys, reason):
    with pytest.raises(BadTable) as e:
        table(tmp_path, f"ward,y\n{rows}", Feature(name="ward", type="category", values="learn", **keys))

    assert reason in e.value.reason
