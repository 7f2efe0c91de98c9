"""The Open Inference Protocol at its edges: wrong lengths, wrong datatypes, limits."""

from __future__ import annotations

import json
import struct
from typing import Any

import made
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from werkzeug.test import Client

from gleaner.serving.app import App
from gleaner.serving.formats.open_inference import HEADER_LENGTH
from gleaner.serving.slots import Slots
from gleaner.settings.sections import Serving

INFER = "/v2/models/made/infer"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    store = made.fill(tmp_path_factory.mktemp("infer") / "store", made.artifact("decision_tree"))
    slots = Slots(store, Serving().slots)
    slots.refresh()
    return App(slots, Serving(), CollectorRegistry())


def tensor(name: str, data: list[Any], datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data, **more}


def tensors(count: int = 1, datatype: str = "FP64", **changed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one tensor per feature, with one row `count` times.

    `changed` replaces some of the tensors.
    """
    every = {name: tensor(name, [value] * count, datatype) for name, value in made.ROUTE.items()}
    return list((every | changed).values())


def ask(app: App, inputs: object, data: bytes = b"", length: str | None = None, **headers: str) -> Any:
    """Post inputs as JSON, with bytes after it.

    length: replaces the true length of the JSON.
    """
    head = json.dumps({"inputs": inputs}).encode()
    if data or length:
        headers[HEADER_LENGTH] = length or str(len(head))
    return Client(app).post(INFER, data=head + data, headers=headers)


def faults(answer: Any) -> list[tuple[str, str]]:
    assert 422 == answer.status_code, answer.text
    return [(entry["pointer"], entry["detail"]) for entry in answer.json["errors"]]


# Values and datatypes


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("number", ["1" + "0" * 399, "-1" + "0" * 399, "1e999"])
def test_a_number_beyond_all_floats_is_refused_with_its_row(app, datatype, number):
    body = json.dumps({"inputs": tensors(time_spent=tensor("time_spent", [0], datatype))}).replace("[0]", f"[{number}]")

    [(pointer, detail)] = faults(Client(app).post(INFER, data=body))

    assert "/0/time_spent" == pointer
    assert detail.startswith("wanted a number from 0 to 1,440, got ")


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", 1440.00001, None),  # which FP32 holds as 1440
        ("FP64", 1440.00001, ("/0/time_spent", "got 1440.00001")),
        ("FP64", -5, ("/0/time_spent", "got -5")),
        ("FP16", 70_000, ("/0/time_spent", "got a number too large for any column")),
        ("FP64", True, ("/0/time_spent", "got true")),
        ("FP32", "30", ("/0/time_spent", "got '30'")),
        ("INT8", None, ("/0/time_spent", "got null")),
        ("UINT8", {}, ("/0/time_spent", "got an object")),
        ("INT8", 128, ("/inputs/0/data/0", "wanted a value of INT8, got 128")),
        ("UINT64", -1, ("/inputs/0/data/0", "wanted a value of UINT64, got -1")),
        ("INT64", 30.0, ("/inputs/0/data/0", "wanted a value of INT64, got 30.0")),
        ("BOOL", True, ("/time_spent", "got a column of BOOL")),
        ("BOOL", 30, ("/time_spent", "got a column of BOOL")),
        ("BYTES", "30", ("/time_spent", "got a column of text")),
        ("BYTES", 30, ("/time_spent", "got a column of text")),
    ],
)
def test_a_value_is_what_its_datatype_holds(app, datatype, value, expected):
    answer = ask(app, tensors(time_spent=tensor("time_spent", [value], datatype)))

    if expected is None:
        assert 200 == answer.status_code
    else:
        [(pointer, detail)] = faults(answer)
        assert (expected[0], True) == (pointer, detail.endswith(expected[1])), detail


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
@pytest.mark.parametrize("binary", [True, False])
def test_one_tensor_of_a_datatype_that_no_feature_takes_is_refused_in_json_as_in_bytes(app, datatype, binary):
    kind = {"BOOL": "BOOL", "BYTES": "text"}[datatype]
    data = b"\1\1\1" if datatype == "BOOL" else b"".join(struct.pack("<I", 2) + b"30" for _ in made.ROUTE)
    about = {"name": "rows", "shape": [1, 3], "datatype": datatype}
    more = {"parameters": {"binary_data_size": len(data)}} if binary else {"data": [30, 50, 200_000]}

    found = faults(ask(app, [{**about, **more}], data if binary else b""))

    assert [f"/{name}" for name in made.ROUTE] == [pointer for pointer, _ in found]
    assert all(detail.endswith(f"got a column of {kind}") for _, detail in found)


@pytest.mark.parametrize("is_nested", [True, False])
def test_one_tensor_is_read_row_by_row_and_each_fault_has_its_row(app, is_nested):
    rows = [[30, 50, 200_000], [30, -1, None], ["30", 50, 2e9]]
    data = rows if is_nested else [value for row in rows for value in row]

    found = faults(ask(app, [{"name": "rows", "shape": [3, 3], "datatype": "FP64", "data": data}]))

    assert [
        ("/1/doors_in_route", "wanted a number from 0 to 10,000, got -1"),
        ("/1/assessed_value", "wanted a number from 0 to 1,000,000,000, got null"),
        ("/2/time_spent", "wanted a number from 0 to 1,440, got '30'"),
        ("/2/assessed_value", "wanted a number from 0 to 1,000,000,000, got 2000000000.0"),
    ] == found


@pytest.mark.parametrize(
    ("shape", "data", "pointer"),
    [
        ([2, 3], [[1, 2], [3, 4, 5, 6]], "/inputs/0/data/0"),
        ([2, 3], [[1, 2, 3], 4, 5, 6], "/inputs/0/data/1"),
        ([2, 3], [[1, 2, 3], [4, 5, 6], []], "/inputs/0/data/2"),
        ([2, 3], [[1, 2, 3]], "/inputs/0/data"),
        ([2, 3], [1, 2, 3, 4, 5], "/inputs/0/data"),
        ([2, 3], None, "/inputs/0/data"),
        ([2, 2], [1, 2, 3, 4], "/inputs/0/shape"),
    ],
)
def test_values_that_do_not_fit_the_shape_are_pointed_at(app, shape, data, pointer):
    found = faults(ask(app, [{"name": "rows", "shape": shape, "datatype": "FP64", "data": data}]))

    assert [pointer] == [at for at, _ in found]


def test_a_tensor_in_bytes_may_stand_beside_one_in_json(app):
    piece = np.array([30, 30], "<f4").tobytes()
    first = {"name": "time_spent", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": len(piece)}}

    answer = ask(app, tensors(2, time_spent=first), piece)

    assert [made.NUMBER] * 2 == answer.json["outputs"][0]["data"]


def test_a_name_that_stands_twice_is_pointed_at(app):
    found = faults(ask(app, [*tensors(), tensor("time_spent", [30])]))

    assert [("/inputs/3/name", "'time_spent' stands twice")] == found


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("count", [0, 2])
def test_a_response_has_the_form_that_was_asked_for_also_without_rows(app, is_binary, count):
    body = {"inputs": tensors(count), "parameters": {"binary_data_output": is_binary}}

    answer = Client(app).post(INFER, json=body)

    head = answer.data[: int(answer.headers[HEADER_LENGTH])] if is_binary else answer.data
    [output] = json.loads(head)["outputs"]
    told = {"parameters": {"binary_data_size": 8 * count}} if is_binary else {"data": [made.NUMBER] * count}
    assert {"name": "prediction", "datatype": "FP64", "shape": [count], **told} == output
    if is_binary:
        assert [made.NUMBER] * count == np.frombuffer(answer.data[len(head) :], "<f8").tolist()


# Media types


@pytest.mark.parametrize(
    "type_", [None, "application/json", "Application/JSON; charset=utf-8", "application/octet-stream"]
)
def test_json_and_bytes_are_read_with_and_without_their_media_type(app, type_):
    headers = {"Content-Type": type_} if type_ else {}

    assert [made.NUMBER] == ask(app, tensors(), **headers).json["outputs"][0]["data"]
    assert [made.NUMBER] == ask(app, *as_bytes(1), **headers).json["outputs"][0]["data"]


@pytest.mark.parametrize("type_", ["image/png", "text/csv", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_media_type_is_415_and_counted(app, type_):
    counted = {"model_version": "v1", "status": "invalid"}
    before = app.registry.get_sample_value("model_prediction_requests_total", counted) or 0
    wanted = f"wanted Content-Type: application/json or application/octet-stream, got {type_!r}"

    assert (415, wanted) == status_and_detail(ask(app, tensors(), **{"Content-Type": type_}))
    assert before + 1 == app.registry.get_sample_value("model_prediction_requests_total", counted)


# Limits


def as_bytes(count: int) -> tuple[list[dict[str, Any]], bytes]:
    """Return the tensors of `count` rows, and the bytes after the JSON."""
    pieces = {name: np.full(count, value).tobytes() for name, value in made.ROUTE.items()}
    abouts = [
        {"name": name, "shape": [count], "datatype": "FP64", "parameters": {"binary_data_size": len(piece)}}
        for name, piece in pieces.items()
    ]
    return abouts, b"".join(pieces.values())


@pytest.mark.parametrize("length", [None, "true"])
def test_the_limits_of_json_hold_with_and_without_its_length(app, length):
    def post(head: bytes) -> Any:
        return Client(app).post(INFER, data=head, headers={HEADER_LENGTH: str(len(head))} if length else {})

    most, more = (json.dumps({"inputs": tensors(count)}).encode() for count in (10_000, 10_001))
    wide = most + b" " * (1_000_001 - len(most))

    assert [made.NUMBER] * 10_000 == post(most).json["outputs"][0]["data"]
    assert (413, "10,001 rows; one request takes 10,000, so send several") == status_and_detail(post(more))
    assert (413, True) == (post(wide).status_code, "bytes" in post(wide).json["detail"])
    assert 200 == post(wide[:-1]).status_code


def status_and_detail(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["detail"]


def test_tensors_in_bytes_have_the_limits_of_tables(app):
    assert [made.NUMBER] * 50_000 == ask(app, *as_bytes(50_000)).json["outputs"][0]["data"]
    answer = ask(app, *as_bytes(1_000_001))
    assert (413, "1,000,001 rows; one request takes 1,000,000, so send several") == status_and_detail(answer)


def test_one_tensor_in_json_beside_others_in_bytes_has_the_limit_of_json(app):
    (_, *abouts), data = as_bytes(10_001)
    data = data[8 * 10_001 :]

    answer = ask(app, [tensor("time_spent", [30] * 10_001), *abouts], data)

    assert (413, "10,001 rows; one request takes 10,000, so send several") == status_and_detail(answer)


# The length of the JSON


@pytest.mark.parametrize("zeros", [0, 1, 30, 5_000])
def test_a_length_may_have_leading_zeros(app, zeros):
    head = json.dumps({"inputs": tensors()})

    answer = ask(app, tensors(), length="0" * zeros + str(len(head)))

    assert [made.NUMBER] == answer.json["outputs"][0]["data"]


@pytest.mark.parametrize(
    "length",
    ["0" * 20 + "1" * 4_400, "1" * 4_400, "0" * 20 + "99999999", "99999999", "", "-1", "1.0", "1_0", " 5", "\u0663"],
)
def test_a_length_that_is_no_number_or_beyond_the_body_is_400(app, length):
    environ = {"HTTP_" + HEADER_LENGTH.upper().replace("-", "_"): length}

    answer = Client(app).post(INFER, json={"inputs": tensors()}, environ_overrides=environ)

    assert 400 == answer.status_code
    assert answer.json["detail"].startswith("Inference-Header-Content-Length is the length of the JSON at the start")
