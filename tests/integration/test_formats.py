"""The same predictions and refusals in every format of the service."""

from __future__ import annotations

import csv
import io
import json
import math
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pyarrow as pa
import pytest
from formats import ARROW, FORMATS, Asked, Row, as_arrow, as_csv, as_inference_bytes, as_inference_json, as_json
from hypothesis import HealthCheck, event, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from projects import MIXED, NUMBER, ROUTE
from started import serving

from gleaner.settings.load import load_settings
from gleaner.table.feature import Feature
from gleaner.table.schema import Schema

properties = of_hypothesis(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory) -> Schema:
    path = tmp_path_factory.mktemp("schema") / "gleaner.toml"
    path.write_text(MIXED, encoding="utf-8")
    return load_settings(path).schema_


@pytest.fixture(scope="module")
def ask(mixed) -> Iterator[Asked]:
    """Yield a function that posts to a running service."""
    with serving(mixed) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield Asked(client, "mixed")


# One table in every format


def right(feature: Feature) -> st.SearchStrategy[Any]:
    """Values that a feature accepts, within its bounds."""
    if feature.type == "category":
        return st.sampled_from(feature.values)
    low, high = feature.lowest, feature.highest
    if feature.type == "int":
        whole = st.integers(math.ceil(low), math.floor(high))
        return whole | whole.map(float)
    edges = [low, high, 0.0, -0.0, 5e-324, math.nextafter(low, 0), math.nextafter(high, 0)]
    return (
        st.floats(low, high)
        | st.sampled_from([edge for edge in edges if low <= edge <= high])
        | st.integers(max(math.ceil(low), -(2**60)), min(math.floor(high), 2**60))
    )


def wrong(feature: Feature) -> st.SearchStrategy[Any]:
    """Values that a feature refuses, and that every format can carry."""
    if feature.type == "category":
        return st.sampled_from([None, "North", "nort", "x" * 70, "=1+1", "\u00a0"])
    low, high = feature.lowest, feature.highest
    beyond = [None, math.nextafter(low, -math.inf), math.nextafter(high, math.inf), 1e300, -1e300]
    return st.sampled_from([*beyond, 0.5, 12.000001] if feature.type == "int" else beyond)


def tables(schema: Schema) -> st.SearchStrategy[list[Row]]:
    good = st.fixed_dictionaries({f.name: right(f) for f in schema.features})
    mixed = st.fixed_dictionaries({f.name: st.one_of(right(f), right(f), wrong(f)) for f in schema.features})
    nothing = st.just(dict.fromkeys(schema.names))
    return st.lists(good, min_size=1, max_size=8) | st.lists(good | mixed | nothing, min_size=1, max_size=8)


def test_every_format_has_the_same_outcome_for_the_same_rows(ask, schema, figure):
    @properties
    @given(tables(schema))
    def holds(rows: list[Row]) -> None:
        expected = as_json(ask, schema, rows)
        event("refused" if expected.faults else "predicted")
        for name, send in FORMATS.items():
            assert expected == send(ask, schema, rows), name
        tables_.append(len(rows))

    tables_: list[int] = []
    holds()
    figure("J3", f"{len(tables_)} tables in {len(FORMATS) + 1} formats: the same numbers to the bit, the same faults")


def test_a_change_in_the_last_bit_changes_the_prediction(ask, schema):
    row = {"share": 0.25, "balance": 1e5, "people": 3, "zone": "north"}

    one, other = (as_json(ask, schema, [{**row, "share": share}]) for share in (0.25, math.nextafter(0.25, 1)))

    assert one != other


def test_blanks_around_a_cell_of_csv_and_around_a_word_in_every_format_are_ignored(ask, schema):
    row = {"share": 0.25, "balance": 1e5, "people": 3, "zone": "north"}
    cells = {name: f" {value}\t" for name, value in row.items()}
    expected = as_json(ask, schema, [row])

    assert expected == as_csv()(ask, schema, [cells])
    for send in (as_json, as_arrow(), FORMATS["dataframe_split"], as_inference_json, as_inference_bytes):
        assert expected == send(ask, schema, [{**row, "zone": " north"}])
    assert as_json(ask, schema, [{**row, "share": " 0.25"}]).faults


@pytest.mark.parametrize(
    ("rows", "pointer", "detail"),
    [
        ([{"share": 0, "balance": 0, "people": 3}], "zone", "is missing; wanted one of"),
        (
            [{"share": 0, "balance": 0, "people": 3, "zone": "north", "zones": "x"}],
            "zones",
            "no such column; did you mean 'zone'?",
        ),
    ],
)
def test_a_missing_or_unknown_column_is_refused_in_every_format_with_names(ask, schema, rows, pointer, detail):
    names = list(rows[0])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, (table := pa.table({name: [row[name] for row in rows] for name in names})).schema
    ) as to:
        to.write_table(table)
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES" if "zone" in name else "FP64", "data": [rows[0][name]]}
        for name in names
    ]
    responses = [
        ask("/v1/predict", json.dumps(rows), Content_Type="application/json"),
        ask("/v1/predict", sink.getvalue().to_pybytes(), Content_Type=ARROW),
        ask("/invocations", json.dumps({"dataframe_records": rows}), Content_Type="application/json"),
        ask("/v2/models/mixed/infer", json.dumps({"inputs": tensors})),
    ]

    for response in responses:
        assert 422 == response.status_code
        [entry] = response.json()["errors"]
        assert pointer == entry["pointer"].split("/")[-1]
        assert entry["detail"].startswith(detail)


# The same format in the response


@pytest.fixture(scope="module")
def routes(trained) -> Iterator[httpx.Client]:
    with serving(trained) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


FILE = (
    '\ufeff"Notes",Assessed_Value,time_spent,doors_in_route\r\n'
    '"two\nlines",200000,30,50\r\n'
    "\r\n"
    "plain,200000,minutes,50\r\n"
    "plain,200000,2000,\r\n"
    "last,200000,30,50"
)


def send_csv(client: httpx.Client, text: str, query: str = "") -> httpx.Response:
    return client.post(
        f"/v1/predict{query}", content=text.encode(), headers={"Content-Type": "text/csv; charset=utf-8"}
    )


def test_a_csv_body_is_refused_with_line_and_reason_of_every_fault(routes):
    response = send_csv(routes, FILE)

    assert 422 == response.status_code
    assert [
        {"pointer": "/1/time_spent", "line": 5, "detail": "wanted a number from 0 to 1,440, got 'minutes'"},
        {"pointer": "/2/time_spent", "line": 6, "detail": "wanted a number from 0 to 1,440, got '2000'"},
        {"pointer": "/2/doors_in_route", "line": 6, "detail": "wanted a number from 0 to 10,000, got an empty cell"},
    ] == response.json()["errors"]


def test_partial_csv_has_the_predictions_and_the_reasons(routes):
    response = send_csv(routes, FILE, "?partial=true")

    assert (207, "text/csv") == (response.status_code, response.headers["Content-Type"])
    assert [
        ["prediction", "problem"],
        [repr(NUMBER), ""],
        ["", "line 5, column 'time_spent': wanted a number from 0 to 1,440, got 'minutes'"],
        [
            "",
            "line 6, column 'time_spent': wanted a number from 0 to 1,440, got '2000'; "
            "line 6, column 'doors_in_route': wanted a number from 0 to 10,000, got an empty cell",
        ],
        [repr(NUMBER), ""],
    ] == list(csv.reader(io.StringIO(response.text, newline="")))


def test_csv_comes_back_with_its_columns_and_refused_rows_in_their_place(routes):
    text = (
        'assessed_value;time_spent;doors_in_route;note\n200000;30;50;"gate;\ncode"\n200000;soon;50;=1+1\n200000;30;50\n'
    )

    response = send_csv(routes, text, "?partial=true&detail=true&columns=all")

    assert (207, "text/csv; charset=utf-8") == (response.status_code, response.headers["Content-Type"])
    id_ = response.headers["X-Prediction-Id"]
    reason = "line 4, column 'time_spent': wanted a number from 0 to 1,440, got 'soon'"
    assert [
        ["assessed_value", "time_spent", "doors_in_route", "note", "prediction", "prediction_id", "version", "problem"],
        ["200000", "30", "50", "gate;\ncode", repr(NUMBER), f"{id_}-0", "1", ""],
        ["200000", "soon", "50", "'=1+1", "", f"{id_}-1", "1", reason],
        ["200000", "30", "50", "", repr(NUMBER), f"{id_}-2", "1", ""],
    ] == list(csv.reader(io.StringIO(response.text, newline=""), delimiter=";"))


def test_csv_comes_back_with_the_titles_above_its_header(routes):
    text = 'Drive of May\n\n=1+1;"a\nb"\ntime_spent;doors_in_route;assessed_value\n30;50;200000\n'

    response = send_csv(routes, text, "?columns=all")

    header = "time_spent;doors_in_route;assessed_value;prediction"
    expected = ["Drive of May", "", '\'=1+1;"a\nb"', header, f"30;50;200000;{NUMBER!r}", ""]
    assert "\r\n".join(expected) == response.text


def test_all_columns_are_refused_where_they_cannot_come_back(routes):
    taken = send_csv(routes, "time_spent,doors_in_route,assessed_value,Prediction\n30,50,200000,1\n", "?columns=all")
    json_body = routes.post("/v1/predict?columns=all", json=[ROUTE])
    unknown = send_csv(routes, FILE, "?columns=some")

    said = "the table has a column 'prediction' already; rename it, or leave out columns=all"
    assert (422, said) == (taken.status_code, taken.json()["errors"][0]["detail"])
    said = "columns=all is for a body of text/csv, got 'application/json'"
    assert (400, said) == (json_body.status_code, json_body.json()["detail"])
    assert (400, "columns is new or all, got 'some'") == (unknown.status_code, unknown.json()["detail"])


def test_partial_of_a_table_without_faults_is_200(routes):
    response = routes.post("/v1/predict?partial=true&detail=true", json=[ROUTE])

    assert 200 == response.status_code
    id_ = response.headers["X-Prediction-Id"]
    assert {"prediction": [NUMBER], "prediction_id": [f"{id_}-0"], "version": [1], "errors": []} == response.json()


def test_partial_json_has_null_for_a_refused_row(routes):
    response = routes.post("/v1/predict?partial=true", json=[ROUTE, {**ROUTE, "time_spent": "30"}, 7, ROUTE])

    assert 207 == response.status_code
    assert [NUMBER, None, None, NUMBER] == response.json()["prediction"]
    assert ["/1/time_spent", "/2"] == [entry["pointer"] for entry in response.json()["errors"]]


def test_partial_of_a_table_without_an_accepted_row_is_422(routes):
    assert 422 == routes.post("/v1/predict?partial=true", json=[{}, {}]).status_code


def test_partial_of_a_table_with_too_many_faults_is_422_with_the_bound(routes):
    text = "time_spent,doors_in_route,assessed_value\n30,50,200000\n" + "30,,200000\n" * 10_001

    response = send_csv(routes, text, "?partial=true")

    said = "10,001 faults, and a partial response names at most 10,000; use `gleaner score` for such a table"
    assert (422, said) == (response.status_code, response.json()["detail"])
    assert 10_001 == len(send_csv(routes, text.removesuffix("30,,200000\n"), "?partial=true").text.split("\r\n")) - 2
    assert "100 faults, and 9901 more" == send_csv(routes, text).json()["detail"]


def test_partial_arrow_has_a_null_and_a_reason(routes):
    table = pa.table({name: [value, value] for name, value in ROUTE.items()})
    table = table.set_column(0, "time_spent", pa.array([30, None]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    response = routes.post(
        "/v1/predict?partial=true&detail=true", content=sink.getvalue().to_pybytes(), headers={"Content-Type": ARROW}
    )

    assert (207, ARROW) == (response.status_code, response.headers["Content-Type"])
    id_ = response.headers["X-Prediction-Id"]
    assert {
        "prediction": [NUMBER, None],
        "prediction_id": [f"{id_}-0", f"{id_}-1"],
        "version": [1, 1],
        "problem": [None, "row 1, column 'time_spent': wanted a number from 0 to 1,440, got null"],
    } == pa.ipc.open_stream(response.content).read_all().to_pydict()


def test_a_row_of_empty_cells_in_csv_keeps_its_position(routes):
    text = "time_spent,doors_in_route,assessed_value\n30,50,200000\n,,\n\n30,50,200000\n"

    response = send_csv(routes, text, "?partial=true")

    assert 207 == response.status_code
    assert [repr(NUMBER), "", repr(NUMBER)] == [line.partition(",")[0] for line in response.text.split("\r\n")[1:-1]]
    assert ["/1/time_spent", "/1/doors_in_route", "/1/assessed_value"] == [
        entry["pointer"] for entry in send_csv(routes, text).json()["errors"]
    ]
    assert 422 == send_csv(routes, "time_spent,doors_in_route,assessed_value\n,,\n").status_code


def test_a_column_of_nulls_is_refused_in_arrow_as_in_json(routes):
    rows = [{**ROUTE, "time_spent": None}] * 2
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    in_json = routes.post("/v1/predict", json=rows)
    in_arrow = routes.post("/v1/predict", content=sink.getvalue().to_pybytes(), headers={"Content-Type": ARROW})

    assert pa.null() == table.schema.field("time_spent").type
    assert (422, 422) == (in_json.status_code, in_arrow.status_code)
    assert ["/0/time_spent", "/1/time_spent"] == [entry["pointer"] for entry in in_arrow.json()["errors"]]
    assert in_json.json()["errors"] == in_arrow.json()["errors"]


def test_details_of_csv_are_columns_beside_the_prediction(routes):
    response = send_csv(routes, "time_spent,doors_in_route,assessed_value\n30,50,200000\n", "?detail=true")

    id_ = response.headers["X-Prediction-Id"]
    assert f'prediction,prediction_id,version\r\n{NUMBER!r},"{id_}-0",1\r\n' == response.text


@pytest.mark.parametrize(
    ("text", "status", "detail"),
    [
        ("", 400, "the body: is empty"),
        ("time_spent,doors_in_route\n1,2\n", 422, "no column for 'assessed_value'"),
        ("time_spent,doors_in_route,asessed_value\n1,2,3\n", 422, "did you mean 'asessed_value'?"),
        ('time_spent,doors_in_route,assessed_value\n1,2,"3\n', 400, "is not CSV"),
        ("time_spent,doors_in_route,assessed_value\n1,2,\0\n", 400, "holds NUL bytes"),
        ("time_spent,time_spent,doors_in_route,assessed_value\n1,1,2,3\n", 422, "stands twice"),
    ],
)
def test_a_csv_body_of_another_table_is_refused(routes, text, status, detail):
    response = send_csv(routes, text)

    assert status == response.status_code
    assert detail in response.text.replace('\\"', '"')


def test_a_csv_body_may_be_larger_than_a_json_body(routes):
    rows = 60_000
    text = "time_spent,doors_in_route,assessed_value\n" + "30.000000,50.000000,200000.000000\n" * rows

    response = send_csv(routes, text)

    assert len(text) > 1_000_000
    assert [repr(NUMBER)] * rows == response.text.split("\r\n")[1:-1]


def test_a_csv_body_beyond_its_own_limit_is_413(routes):
    head = {"Content-Type": "text/csv", "Content-Length": "64000001"}

    assert 413 == _announced(routes, head)
    assert 413 == _announced(routes, {**head, "Content-Type": "application/json", "Content-Length": "1000001"})


def _announced(client: httpx.Client, head: Mapping[str, str]) -> int:
    """Return the status for a body that is announced and never sent."""
    lines = ["POST /v1/predict HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(4096).split()[1])
