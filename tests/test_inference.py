"""The Open Inference Protocol at its edges: lengths that lie, tensors that are not of their datatype, limits."""

from __future__ import annotations

import json
from typing import Any

import made
import pytest
from prometheus_client import CollectorRegistry
from werkzeug.test import Client

from gleaner.app import App
from gleaner.inference import HEADER_LENGTH
from gleaner.settings import Serving
from gleaner.slots import Slots

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
    """One for each feature, with the same row `count` times; those in `changed` in another way."""
    every = {name: tensor(name, [value] * count, datatype) for name, value in made.ROUTE.items()}
    return list((every | changed).values())


def ask(app: App, inputs: object, data: bytes = b"", length: str | None = None, **headers: str) -> Any:
    """What is answered to a request with these inputs; with bytes behind the JSON, its true length or another one."""
    head = json.dumps({"inputs": inputs}).encode()
    if data or length:
        headers[HEADER_LENGTH] = length or str(len(head))
    return Client(app).post(INFER, data=head + data, headers=headers)


def faults(answer: Any) -> list[tuple[str, str]]:
    assert 422 == answer.status_code, answer.text
    return [(entry["pointer"], entry["detail"]) for entry in answer.json["errors"]]


# The length in front


@pytest.mark.parametrize("zeros", [0, 1, 30, 5_000])
def test_a_length_may_have_zeros_in_front(app, zeros):
    head = json.dumps({"inputs": tensors()})

    answer = ask(app, tensors(), length="0" * zeros + str(len(head)))

    assert [made.NUMBER] == answer.json["outputs"][0]["data"]


@pytest.mark.parametrize(
    "length",
    ["0" * 20 + "1" * 4_400, "1" * 4_400, "0" * 20 + "99999999", "99999999", "", "-1", "1.0", "1_0", " 5", "\u0663"],
)
def test_a_length_that_is_none_or_beyond_the_body_is_400(app, length):
    environ = {"HTTP_" + HEADER_LENGTH.upper().replace("-", "_"): length}

    answer = Client(app).post(INFER, json={"inputs": tensors()}, environ_overrides=environ)

    assert 400 == answer.status_code
    assert answer.json["detail"].startswith("Inference-Header-Content-Length is the length of the JSON in front")
