"""Triton's and MLflow's clients and OpenAPI's readers, against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from jsonschema import Draft202012Validator
from mlflow.models import convert_input_example_to_serving_input
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from projects import NUMBER, ROUTE, ZONES
from started import serving
from tritonclient.utils import InferenceServerException

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def service(trained):
    with serving(trained) as running:
        yield running


@pytest.fixture(scope="module")
def mixed_service(mixed):
    with serving(mixed) as running:
        yield running


# Triton's client


@pytest.fixture(scope="module")
def inference(service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


def tensors(binary: bool, datatype: str = "FP64") -> list[triton.InferInput]:
    kind = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "UINT32": np.uint32}[datatype]
    inputs = []
    for name, value in ROUTE.items():
        inputs.append(triton.InferInput(name, [2], datatype))
        inputs[-1].set_data_from_numpy(np.array([value, value], dtype=kind), binary_data=binary)
    return inputs


def test_triton_finds_the_server_live_and_ready(inference):
    assert inference.is_server_live()
    assert inference.is_server_ready()
    assert inference.is_model_ready("made")
    assert inference.is_model_ready("made", "2")
    assert not inference.is_model_ready("made", "3")
    assert not inference.is_model_ready("other")


def test_triton_reads_the_metadata_of_the_server_and_the_model(inference):
    assert "gleaner" == inference.get_server_metadata()["name"]
    assert {
        "name": "made",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": name, "datatype": "FP64", "shape": [-1]} for name in ROUTE],
        "outputs": [{"name": "prediction", "datatype": "FP64", "shape": [-1]}],
    } == inference.get_model_metadata("made")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP64", "FP32", "INT64", "UINT32"])
def test_triton_gets_the_number_from_a_tensor_per_feature(inference, binary, datatype):
    result = inference.infer("made", tensors(binary, datatype), request_id="mine")

    assert [NUMBER, NUMBER] == result.as_numpy("prediction").tolist()
    assert ("made", "1", "mine") == tuple(result.get_response()[key] for key in ("model_name", "model_version", "id"))


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_the_number_from_one_tensor(inference, binary):
    rows = np.array([list(ROUTE.values())] * 3, dtype=np.float64)
    tensor = triton.InferInput("rows", [3, 3], "FP64")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    outputs = [triton.InferRequestedOutput("prediction", binary_data=binary)]

    assert [NUMBER] * 3 == inference.infer("made", [tensor], outputs=outputs).as_numpy("prediction").tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_no_numbers_for_no_rows(inference, binary):
    tensor = triton.InferInput("rows", [0, 3], "FP64")
    tensor.set_data_from_numpy(np.empty((0, 3)), binary_data=binary)
    outputs = [triton.InferRequestedOutput("prediction", binary_data=binary)]

    assert [] == inference.infer("made", [tensor], outputs=outputs).as_numpy("prediction").tolist()


def test_triton_asks_a_loaded_version(inference):
    champion = inference.infer("made", tensors(True), model_version="1").as_numpy("prediction")
    challenger = inference.infer("made", tensors(True), model_version="2").as_numpy("prediction")

    assert [NUMBER, NUMBER] == champion.tolist() != challenger.tolist()


@pytest.mark.parametrize(
    ("name", "version", "status", "message"),
    [
        ("made", "9", "404", "version 9 is not loaded; loaded: 1, 2"),
        ("mad", "", "404", "no model 'mad'; did you mean 'made'?"),
    ],
)
def test_triton_reads_the_error_of_a_missing_model(inference, name, version, status, message):
    with pytest.raises(InferenceServerException) as caught:
        inference.infer(name, tensors(True), model_version=version)

    assert (status, message) == (caught.value.status(), caught.value.message())


def test_triton_reads_the_faults_of_a_row(inference):
    tensor = triton.InferInput("rows", [2, 3], "FP64")
    tensor.set_data_from_numpy(np.array([[30, 50, 200000], [30, -1, np.nan]]))

    with pytest.raises(InferenceServerException) as caught:
        inference.infer("made", [tensor])

    assert "422" == caught.value.status()
    assert caught.value.message() == (
        "/1/doors_in_route: wanted a number from 0 to 10,000, got -1.0; "
        "/1/assessed_value: wanted a number from 0 to 1,000,000,000, got NaN"
    )


@pytest.mark.parametrize("binary", [True, False])
def test_triton_sends_a_category_as_bytes(mixed_service, binary):
    rows = {"share": [0.5, -0.5], "balance": [1e5, 2.0], "people": [3, 4]}
    inputs = []
    for name, values in rows.items():
        kind, datatype = (np.int64, "INT64") if name == "people" else (np.float64, "FP64")
        inputs.append(triton.InferInput(name, [2], datatype))
        inputs[-1].set_data_from_numpy(np.array(values, dtype=kind), binary_data=binary)
    inputs.append(triton.InferInput("zone", [2], "BYTES"))
    inputs[-1].set_data_from_numpy(np.array(ZONES[1:], dtype=object), binary_data=binary)
    plain = [dict(zip((*rows, "zone"), row, strict=True)) for row in zip(*rows.values(), ZONES[1:], strict=True)]
    wanted = httpx.post(f"{mixed_service.url}/v1/predict", json=plain).json()["prediction"]

    with triton.InferenceServerClient(f"127.0.0.1:{mixed_service.port}") as client:
        assert wanted == client.infer("mixed", inputs).as_numpy("prediction").tolist()
    assert min(wanted) < 0


def test_a_compressed_request_of_triton_is_415(inference):
    with pytest.raises(InferenceServerException) as caught:
        inference.infer("made", tensors(True), request_compression_algorithm="gzip")

    assert "415" == caught.value.status()


# MLflow's own writers


@pytest.fixture(scope="module")
def scoring(service) -> ScoringServerClient:
    return ScoringServerClient("127.0.0.1", service.port)


def test_mlflow_waits_until_the_server_is_ready(scoring):
    scoring.wait_server_ready(timeout=60)

    assert re.fullmatch(r"\d+\.\d+\.\d+", scoring.get_version())


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame([ROUTE, ROUTE]),
        pd.DataFrame([ROUTE, ROUTE])[["assessed_value", "time_spent", "doors_in_route"]],
        np.array([list(ROUTE.values())] * 2, dtype=np.float64),
        [list(ROUTE.values())] * 2,
        {"dataframe_records": [ROUTE, ROUTE]},
        {"inputs": {name: [value, value] for name, value in ROUTE.items()}},
        {"instances": [ROUTE, ROUTE], "params": {}},
    ],
    ids=["DataFrame", "DataFrame in another order", "array", "list", "records", "inputs", "instances"],
)
def test_mlflow_gets_the_number_for_each_of_its_bodies(scoring, data):
    sent = json.dumps(data) if isinstance(data, dict) else data

    assert [NUMBER, NUMBER] == scoring.invoke(sent).get_predictions()[0].tolist()


def test_mlflows_own_example_of_a_request_is_predicted(service):
    body = convert_input_example_to_serving_input(pd.DataFrame([ROUTE]))

    answer = httpx.post(f"{service.url}/invocations", content=body, headers={"Content-Type": "application/json"})

    assert {"predictions": [NUMBER]} == answer.json()


def test_mlflows_csv_is_predicted(service):
    body = pd.DataFrame([ROUTE, ROUTE]).to_csv(index=False)

    answer = httpx.post(f"{service.url}/invocations", content=body, headers={"Content-Type": "text/csv"})

    assert {"predictions": [NUMBER, NUMBER]} == answer.json()


def test_a_problem_has_the_members_that_mlflow_reads(service):
    answer = httpx.post(f"{service.url}/invocations", json={"dataframe_records": [{**ROUTE, "time_spent": -1}]})

    assert 422 == answer.status_code
    assert "BAD_REQUEST" == answer.json()["error_code"]
    assert "/0/time_spent: wanted a number from 0 to 1,440, got -1" == answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({}, ""),
        ({"instances": [], "inputs": []}, ""),
        ({"instances": [ROUTE], "signature_name": "x"}, "/signature_name"),
        ({"instances": [ROUTE], "params": {"temperature": 1}}, "/params"),
        ({"dataframe_records": {}}, "/dataframe_records"),
        ({"dataframe_records": [[1, 2, 3]]}, "/dataframe_records"),
        ({"dataframe_split": {"columns": list(ROUTE), "data": [[1, 2]]}}, "/0"),
        ({"dataframe_split": {"columns": ["time_spent"] * 3, "data": []}}, "/dataframe_split/columns"),
        ({"dataframe_split": {"columns": 3, "data": []}}, "/dataframe_split/columns"),
        ({"dataframe_split": {"data": [], "dtype": 1}}, "/dataframe_split/dtype"),
        ({"dataframe_split": 1}, "/dataframe_split"),
        ({"dataframe_split": {"columns": [], "data": []}}, "/time_spent"),
        ({"inputs": {**ROUTE, "time_spent": [1, 2], "doors_in_route": [1], "assessed_value": [1]}}, "/inputs"),
        ({"inputs": ROUTE}, "/inputs/time_spent"),
        ({"inputs": {}}, "/time_spent"),
        ({"inputs": [[1, 2]]}, "/0"),
        ({"inputs": [1]}, "/0"),
    ],
)
def test_a_body_that_is_not_mlflows_is_refused_with_a_pointer(service, body, pointer):
    answer = httpx.post(f"{service.url}/invocations", json=body)

    assert 422 == answer.status_code
    assert pointer in {entry["pointer"] for entry in answer.json()["errors"]}


# OpenAPI


def test_the_contract_is_valid_openapi(service, mixed_service):
    for running in (service, mixed_service):
        document = httpx.get(f"{running.url}/openapi.json").json()

        OpenAPIV31SpecValidator(document).validate()


def test_every_example_of_the_contract_fits_its_own_schema(service, mixed_service):
    checked = 0
    for running in (service, mixed_service):
        document = httpx.get(f"{running.url}/openapi.json").json()
        for pointer, example in examples(document, "#"):
            errors = Draft202012Validator({**document, "$ref": pointer}).iter_errors(example)
            checked += 1

            assert [] == [error.message for error in errors], (pointer, example)
    assert checked > 2 * 20


def examples(node: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    """Yield every example below a node, with its schema's pointer."""
    if isinstance(node, list):
        for i, member in enumerate(node):
            yield from examples(member, f"{pointer}/{i}")
    if isinstance(node, dict):
        some = [each["value"] for each in node.get("examples", {}).values()]
        some += [node["example"]] if "example" in node else []
        yield from ((f"{pointer}/schema" if "schema" in node else pointer, example) for example in some)
        for name, member in node.items():
            if name not in {"example", "examples"}:
                part = quote(name.replace("~", "~0").replace("/", "~1"))
                yield from examples(member, f"{pointer}/{part}")


def test_every_operation_of_the_contract_lists_405_and_500(service):
    for path, operations in httpx.get(f"{service.url}/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert {"405", "500"} <= set(operation["responses"]), (method, path)


def test_the_contract_and_the_service_have_the_same_routes(service):
    document = httpx.get(f"{service.url}/openapi.json").json()
    text = httpx.get(f"{service.url}/metrics").text
    served = set(re.findall(r'http_requests_total\{method="\w+",route="([^"]+)"', text))

    assert set(document["paths"]) == served - {"unmatched", "/docs", "/docs/", "/docs/{path}", "/openapi.json"}


def test_every_example_of_the_contract_is_predicted(service, mixed_service):
    asked = 0
    for running, name in ((service, "made"), (mixed_service, "mixed")):
        for path, operations in httpx.get(f"{running.url}/openapi.json").json()["paths"].items():
            for media, content in operations.get("post", {}).get("requestBody", {}).get("content", {}).items():
                examples = [example["value"] for example in content.get("examples", {}).values()]
                examples += [content["example"]] if "example" in content else []
                for example in examples:
                    url = running.url + path.replace("{name}", name).replace("{version}", "1")
                    body = example if isinstance(example, str) else json.dumps(example)
                    answer = httpx.post(url, content=body, headers={"Content-Type": media})
                    asked += 1

                    assert 200 == answer.status_code, (path, media, answer.text)
    assert 2 * (2 * 3 + 5 + 2) == asked


def test_schemathesis_finds_nothing(service, tmp_path, figure):
    tool = Path(sys.executable).with_name("schemathesis")
    command = [tool, "--config-file", HERE / "schemathesis.toml", "run", f"{service.url}/openapi.json"]
    # Without the phase of examples, which cannot send those of CSV and Arrow: the test above sends all examples.
    command += ["--phases", "coverage,fuzzing,stateful", "--seed", "1", "--no-color"]
    command += ["--max-examples", os.environ.get("CONTRACT_EXAMPLES", "40")]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "contract_bodies", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout[-5_000:]
    generated = int(re.search(r"(\d+) generated, \1 passed", done.stdout)[1])
    assert 1_000 < generated
    figure("J2", f"{generated:,} requests generated: 0 failures")
