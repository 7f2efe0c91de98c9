"""The two readers of JSON: the fast one only accepts.

The other names every fault, and both return the same numbers.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from gleaner.errors import NAMED_FAULTS, BadBody, BadRows, TooLarge
from gleaner.serving.formats.json import RowReader, read_json, write_json, write_predictions
from gleaner.serving.problems import problem
from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema

properties = of_hypothesis(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def reader_of(*features: Feature, max_rows: int = 5) -> RowReader:
    return RowReader(Schema(features, Target(name="y")), max_rows=max_rows, max_depth=32)


def read_all(reader: RowReader, body: bytes) -> Array:
    """Read the matrix of a body; raise for a refused row."""
    rows = reader.read(body)
    rows.check()
    return rows.X


ROUTES = reader_of(
    Feature(name="time_spent", unit="minutes", min=0.0, max=1440.0),
    Feature(name="doors_in_route", min=0.0, max=10_000.0),
    Feature(name="assessed_value", min=0.0, max=1e9),
)
READERS = {
    "bounded": ROUTES,
    "unbounded": reader_of(Feature(name="a"), Feature(name="b", min=-5.0)),
    "whole": reader_of(Feature(name="n", type="int"), Feature(name="m", type="int", min=0.5, max=1e6)),
    "category": reader_of(Feature(name="x"), Feature(name="kind", type="category", values=("a", "é", 'q"\\\t', "ab"))),
    "colon": reader_of(Feature(name="x"), Feature(name="at", type="category", values=("12:30", ":"))),
    "quotes": reader_of(Feature(name='size 2"/~\\b'), Feature(name="größe"), Feature(name="a\n")),
    "accents": reader_of(Feature(name="größe"), Feature(name="\U0001f600"), Feature(name="/")),
    "one": reader_of(Feature(name="x", type="int", min=-3.0, max=3.0)),
}
GOOD = b'{"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}'

# Bodies around a schema: right ones, nearly right ones, and their neighbours

EDGES = """
0 -0 0.0 -0.0 -0e0 1 -1 0.5 30 30.0 3e1 3E+1 300e-1 1440 1440.0000000000001 1440.0000000000002 10000 1e9 1e16 1e22 1e23
1e400 -1e400 1e308 1.7976931348623157e308 1.7976931348623159e308 3.4028234663852886e38 3.4028235e38
1e-400 -1e-400 5e-324 2.2250738585072011e-308 0.1 0.30000000000000004 1.00000000000000011102230246251565
9007199254740992 9007199254740993 -9007199254740993 9223372036854775808 18446744073709551615 18446744073709551616
123456789012345678901234567890 NaN Infinity -Infinity nan +1 .5 1. 01 -01 0x10 1_0 1e 1e+ - 1,5 \u0663
true false null "" "30" "\\u0030" [] {} [1] {"a":1}
""".split()  # noqa: SIM905
EDGES += ["9" * 400, "9" * 401, "9" * 5_000, "0." + "1" * 500, "[" * 40 + "]" * 40, '"\\ud800"', '"12:30"', '"\\u003a"']

numbers = st.one_of(
    st.sampled_from(EDGES),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 1000).map(repr),
    st.integers(-10, 2000).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r\n", "\f", "\u00a0", "\ufeff", "\0", "/**/"])
likely_spaces = st.sampled_from(["", " ", "\n", "\t\r\n"])


def escaped(text: str, how: int) -> str:
    """Write a text as a JSON string, in one of three forms.

    Plain, in ASCII, or with every character escaped.
    """
    if how == 2:
        return '"' + "".join(f"\\u{unit:04X}" for unit in np.frombuffer(text.encode("utf-16-le"), "<u2")) + '"'
    return json.dumps(text, ensure_ascii=how == 1)


@st.composite
def bodies(draw: st.DrawFn, reader: RowReader) -> bytes:
    """Draw a body that is valid JSON, nearly valid, or neither."""
    is_tidy = draw(st.booleans())
    space = likely_spaces if is_tidy or draw(st.booleans()) else spaces

    def value(feature: Feature) -> str:
        if feature.type == "category" and (is_tidy or draw(st.integers(0, 5))):
            return escaped(draw(st.sampled_from(feature.values)), draw(st.integers(0, 2)))
        if is_tidy:
            low, high = max(feature.lowest, -1e6), min(feature.highest, 1e6)
            right = st.integers(math.ceil(low), math.floor(high)).map(str)
            return draw(right if feature.type == "int" else st.one_of(right, st.floats(low, high).map(repr)))
        return draw(numbers)

    def row() -> str:
        features = draw(st.permutations(reader.schema.features))
        pairs = [(escaped(feature.name, draw(st.integers(0, 2))), value(feature)) for feature in features]
        if not is_tidy and draw(st.integers(0, 3)) == 0:
            mishap = draw(st.sampled_from(["twice", "missing", "unknown", "both"]))
            if mishap in {"twice", "both"}:
                pairs.append((pairs[0][0], value(features[0])))
            if mishap in {"missing", "both"}:
                pairs.pop(draw(st.integers(0, len(pairs) - 1)))
            if mishap == "unknown":
                pairs.append((draw(st.sampled_from(['"f0"', '"X"', '""', '"a:b"', '"\\ud800"', "a", "1"])), "1"))
        comma = f"{draw(space)},{draw(space)}"
        return "{" + draw(space) + comma.join(f"{k}{draw(space)}:{draw(space)}{v}" for k, v in pairs) + "}"

    shape = draw(st.sampled_from(["row", "row", "rows", "rows", "nested", "bare"]))
    if shape == "row":
        text = row()
    elif shape == "rows":
        text = "[" + ",".join(row() for _ in range(draw(st.integers(0, reader.max_rows + 1)))) + "]"
    else:
        text = f"[[{row()}]]" if shape == "nested" else draw(numbers)
    body = f"{draw(space)}{text}{draw(space)}".encode("utf-8", "surrogatepass")
    if not is_tidy and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        piece = draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b",", b"}", b"]", b'"', b":", b"\\", b"\xed\xa0\x80"]))
        )
        body = body[:at] + piece + body[at + draw(st.integers(0, 2)) :]
    return body


@pytest.mark.parametrize("kind", READERS)
def test_the_fast_reader_accepts_only_what_the_other_accepts_with_the_same_numbers(kind):
    reader = READERS[kind]

    @properties
    @given(bodies(reader))
    def holds(body: bytes) -> None:
        accepted = reader.accept(body)
        try:
            wanted = read_all(reader, body)
        except (BadBody, BadRows, TooLarge) as e:
            event(type(e).__name__)
            assert accepted is None
            return
        assert np.isfinite(wanted).all()
        assert (len(wanted), len(reader.schema.columns)) == wanted.shape
        if accepted is not None:
            event("accepted by both")
            assert len(wanted) == len(accepted)
            assert wanted.tobytes() == np.array(accepted, dtype=np.float64).tobytes()

    holds()


@pytest.mark.parametrize("kind", ["colon", "quotes"])
def test_the_fast_reader_leaves_an_unusual_schema_to_the_other(kind):
    reader = READERS[kind]
    row = {f.name: f.values[-1] if f.values else 1 for f in reader.schema.features}

    assert reader.accept(json.dumps(row).encode()) is None
    assert (1, len(reader.schema.columns)) == read_all(reader, json.dumps(row).encode()).shape


@pytest.mark.parametrize("kind", sorted(READERS.keys() - {"colon", "quotes"}))
def test_the_fast_reader_accepts_what_a_client_sends(kind):
    reader = READERS[kind]
    row = {f.name: f.values[-1] if f.values else 1 for f in reader.schema.features}

    for body in (json.dumps(row), json.dumps(row, indent=2), json.dumps(row, ensure_ascii=False)):
        assert reader.accept(body.encode()) is not None
    assert [len(reader.schema.columns)] * 5 == [
        len(numbers) for numbers in reader.accept(json.dumps([row] * 5).encode())
    ]


def test_numbers_have_the_order_of_the_columns_for_any_order_of_keys():
    body = b'{"assessed_value": 3, "time_spent": 1, "doors_in_route": 2}'

    assert ((1.0, 2.0, 3.0),) == ROUTES.accept(body)
    assert [[1.0, 2.0, 3.0]] * 2 == ROUTES.accept(b"[" + body + b"," + body + b"]").tolist()
    assert [[1.0, 2.0, 3.0]] == read_all(ROUTES, body).tolist()


def test_a_category_becomes_a_column_for_each_of_its_values():
    body = '{"x": 2, "kind": "é"}'.encode()

    assert ((2.0, 0.0, 1.0, 0.0, 0.0),) == READERS["category"].accept(body)
    assert [[2.0, 0.0, 1.0, 0.0, 0.0]] * 2 == READERS["category"].accept(b"[" + body + b"," + body + b"]").tolist()
    assert [[2.0, 0.0, 1.0, 0.0, 0.0]] == read_all(READERS["category"], body).tolist()


def test_an_empty_list_has_no_rows():
    assert (0, 3) == ROUTES.accept(b"[]").shape
    assert (0, 3) == read_all(ROUTES, b"[]").shape


def test_the_most_rows_are_read_and_one_more_is_too_large():
    assert 5 == len(ROUTES.accept(b"[" + b",".join([GOOD] * 5) + b"]"))
    assert 5 == len(read_all(ROUTES, b"[" + b",".join([GOOD] * 5) + b"]"))

    one_more = b"[" + b",".join([GOOD] * 6) + b"]"

    assert ROUTES.accept(one_more) is None
    with pytest.raises(TooLarge, match="6 rows; one request takes 5"):
        read_all(ROUTES, one_more)


# Not JSON


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON: expecting value, at line 1, column 1"),
        (b"{", "not JSON"),
        (b'{"time_spent": 30,}', "not JSON"),
        (GOOD + b"x", "not JSON: extra data"),
        (GOOD + GOOD, "not JSON: extra data"),
        (GOOD.replace(b"30", b"NaN"), "NaN is not a number in JSON"),
        (GOOD.replace(b"30", b"Infinity"), "Infinity is not a number in JSON"),
        (GOOD.replace(b"30", b"-Infinity"), "-Infinity is not a number in JSON"),
        (GOOD[:-1] + b', "time_spent": 30}', "the key 'time_spent' stands twice in one object"),
        (GOOD[:-1] + b', "time\\u005fspent": 30}', "the key 'time_spent' stands twice in one object"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice in one object"),
        (b'{"time_spent": "\xff"}', "byte 16 is not UTF-8"),
        (b'{"\xed\xa0\x80": 1}', "byte 2 is not UTF-8"),
        (b"\xef\xbb\xbf" + GOOD, "not JSON: unexpected UTF-8 BOM"),
        (GOOD.decode().encode("utf-16"), "byte 0 is not UTF-8"),
        (GOOD.decode().encode("utf-16-be"), "not JSON"),
        (GOOD.decode().encode("utf-32"), "byte 0 is not UTF-8"),
        (b'{"a": "tab\t"}', "not JSON: invalid control character"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32 levels"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b'{"a":' * 100_000, "nested deeper than 32 levels"),
    ],
    ids=lambda case: repr(case[:24]),
)
def test_a_body_that_is_not_strict_json_is_refused_with_the_place(body, said):
    assert ROUTES.accept(body) is None
    with pytest.raises(BadBody) as caught:
        read_all(ROUTES, body)
    assert said in str(caught.value)
    assert str(caught.value).isascii()


def test_brackets_inside_texts_do_not_count_as_nesting():
    body = json.dumps(["[{" * 100, '\\"[' * 100, "]" * 100])

    assert json.loads(body) == read_json(body.encode(), max_depth=1)


def test_json_at_the_greatest_depth_is_read():
    assert 32 == str(read_json(b"[" * 32 + b"]" * 32, max_depth=32)).count("[")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values: st.SearchStrategy[object] = st.deferred(
    lambda: scalars | st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3)
)


@properties
@given(values)
def test_strict_json_is_read_as_python_reads_it(value):
    assert value == read_json(json.dumps(value).encode(), max_depth=100)


# JSON with wrong values


def faults(body: object) -> list[tuple[str, str]]:
    with pytest.raises(BadRows) as caught:
        read_all(ROUTES, body if isinstance(body, bytes) else json.dumps(body).encode())
    return list(caught.value.faults)


ROUTE = json.loads(GOOD)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"true", "got true"),
        (b"null", "got null"),
        (b'"30"', "got '30'"),
        (b"[30]", "got a list"),
        (b"{}", "got an object"),
        (b"-1", "got -1"),
        (b"1440.0000000000002", "got 1440.0000000000002"),
        (b"1e400", "got a number too large for any column"),
        (b"-1e400", "got a number too large for any column"),
        (b"1e308", "got 1e+308"),
        (b"9" * 400, "got 9"),
        (b"9" * 5_000, "got a number too large for any column"),
        (b'"\\ud800"', r"got '\ud800'"),
        (b'"' + b"x" * 10_000 + b'"', "got 'xxx"),
    ],
    ids=lambda case: repr(case[:20]),
)
def test_a_value_that_its_column_does_not_accept_is_named_and_shown(value, shown):
    [(pointer, detail)] = faults(GOOD.replace(b"30", value))

    assert "/time_spent" == pointer
    assert detail.startswith("wanted a number of minutes from 0 to 1,440, got ")
    assert shown in detail
    assert len(detail) < 200
    assert ROUTES.accept(GOOD.replace(b"30", value)) is None


def test_every_fault_of_every_row_has_a_pointer():
    found = faults([ROUTE, {"time_spent": True, "doors_on_route": 1}, 7, {**ROUTE, "assessed_value": None}])

    assert [
        "/1/doors_on_route",
        "/1/time_spent",
        "/1/doors_in_route",
        "/1/assessed_value",
        "/2",
        "/3/assessed_value",
    ] == [pointer for pointer, _ in found]
    assert "no such column; did you mean 'doors_in_route'?" in dict(found)["/1/doors_on_route"]
    assert "is missing" in dict(found)["/1/doors_in_route"]


def test_pointers_are_escaped_as_rfc_6901_says():
    with pytest.raises(BadRows) as caught:
        read_all(READERS["quotes"], b"{}")

    assert ['/size 2"~1~0\\b', "/größe", "/a\n"] == [pointer for pointer, _ in caught.value.faults]


@pytest.mark.parametrize("body", [b"1", b"null", b'"text"', b"true"])
def test_json_that_is_no_row_is_refused_with_the_form_of_a_row(body):
    [(pointer, detail)] = faults(body)

    assert "" == pointer
    assert detail.startswith("wanted an object with 'time_spent', 'doors_in_route', 'assessed_value', got ")


def test_the_first_hundred_faults_are_named_and_the_rest_counted():
    reader = reader_of(*ROUTES.schema.features, max_rows=1000)

    with pytest.raises(BadRows) as caught:
        read_all(reader, b"[" + b",".join([b"{}"] * 67) + b"]")

    assert NAMED_FAULTS == len(caught.value.faults)
    assert 3 * 67 - NAMED_FAULTS == caught.value.unnamed
    assert "100 faults, and 101 more" == str(caught.value)
    assert "/33/time_spent" == caught.value.faults[-1][0]


# Values to bodies


def test_written_predictions_read_back_as_the_same_numbers():
    numbers = [22.068840579710145, 0.1 + 0.2, 5e-324, 1e16, 1e22, 1.7976931348623157e308, -0.0, 3.0]

    written = write_predictions(numbers)

    assert b'{"prediction":[22.068840579710145,' == written[:34]
    assert np.array(numbers).tobytes() == np.array(json.loads(written)["prediction"], dtype=np.float64).tobytes()


@properties
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_every_finite_prediction_survives_being_written(numbers):
    read = json.loads(write_predictions(numbers))["prediction"]

    assert np.array(numbers).tobytes() == np.array(read, dtype=np.float64).tobytes()


def test_nan_is_never_written_as_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": math.nan})


def test_a_problem_is_ascii_for_any_input():
    document = problem(422, "Unprocessable Content", "1 fault", "id", [{"pointer": "/\ud800", "detail": "é\n\0"}])

    assert document.isascii()
    assert {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "1 fault",
        "instance": "urn:request:id",
        "errors": [{"pointer": "/\ud800", "detail": "é\n\0"}],
    } == json.loads(document)
