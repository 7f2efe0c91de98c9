"""The Open Inference Protocol, under `/v2`.

A path without a version means the first slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from gleaner.errors import WrongType, nearest, wanted
from gleaner.serving.endpoints.responses import json_response, predicted, tally
from gleaner.serving.formats.json import JSON, read_json, write_json
from gleaner.serving.formats.open_inference import (
    BYTES,
    DATATYPES,
    HEADER_LENGTH,
    OUTPUT,
    TYPES,
    Options,
    datatype_of,
    model_metadata,
    read_inference,
    server_metadata,
    split_body,
    write_inference,
)
from gleaner.serving.openapi import (
    BYTES_SCHEMA,
    NUMBERS,
    OPEN,
    TEXT,
    Json,
    closed_object,
    describe_get,
    describe_post,
    describe_problems,
    describe_response,
)
from gleaner.serving.service import Service, SlotVersion
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema, example_row

TAG = "Open Inference Protocol"


def add_open_inference(flask: Flask, service: Service) -> None:
    """Add the protocol's endpoints."""

    @flask.get("/v2")
    def server() -> Response:
        return json_response(server_metadata())

    @flask.get("/v2/health/live")
    def live() -> Response:
        return json_response({"live": True})

    @flask.get("/v2/health/ready")
    def ready() -> Response:
        service.check_ready()
        return json_response({"ready": True})

    def model(name: str, version: str | None = None) -> Response:
        _, found = _find(service, name, version)
        return json_response(model_metadata(name, service.loaded_versions(), found.reader.schema))

    def model_ready(name: str, version: str | None = None) -> Response:
        _find(service, name, version)
        return json_response({"name": name, "ready": True})

    def infer(name: str, version: str | None = None) -> Response:
        tally().slot, found = _find(service, name, version)
        return _infer(service, name, found)

    for start in ("/v2/models/<name>", "/v2/models/<name>/versions/<version>"):
        flask.get(start, endpoint=start)(model)
        flask.get(f"{start}/ready", endpoint=f"{start}/ready")(model_ready)
        flask.post(f"{start}/infer", endpoint=f"{start}/infer")(infer)


def _find(service: Service, name: str, version: str | None) -> tuple[str, SlotVersion]:
    """Return (slot, its version) for a loaded model. Raises NotFound, NoModel."""
    slots = [service.first_slot] if version is None else list(service.slots.aliases)
    found = {slot: service.version_in(slot) for slot in slots if version is None or service.slots.current[slot]}
    names = {each.loaded.manifest.model for each in found.values()}
    for slot, each in found.items():
        if name == each.loaded.manifest.model and version in {None, each.version}:
            return slot, each
    if found and name not in names:
        raise NotFound(f"no model {name[:64]!r}{nearest(name[:64], names)}")
    loaded = ", ".join(map(str, service.loaded_versions()))
    raise NotFound(f"version {version!s:.20} is not loaded; loaded: {loaded}")


def _infer(service: Service, name: str, version: SlotVersion) -> Response:
    body, serving, options = request.get_data(), service.serving, Options()
    # Triton's client sends no Content-Type, neither with JSON nor with tensors in bytes.
    if request.mimetype not in {"", *TYPES}:
        raise WrongType(wanted(f"Content-Type: {' or '.join(TYPES)}", repr(request.mimetype)))
    length = request.headers.get(HEADER_LENGTH)
    limits = {"max_rows": serving.max_rows, "max_table_rows": serving.max_table_rows}

    def read() -> Rows:
        nonlocal options
        head, data = split_body(body, length, max_bytes=serving.max_body_bytes)
        value = read_json(head, max_depth=serving.max_depth)
        rows, options = read_inference(version.reader.schema, value, data, **limits)
        return rows

    _, numbers = service.compute(version, body, read, partial=False)
    tally().rows = len(numbers)
    value, data = write_inference(options, name, version.loaded.version, numbers)
    head = write_json(value)
    if not options.is_binary:
        return predicted(head, JSON, version)
    response = predicted(head + data, BYTES, version)
    response.headers[HEADER_LENGTH] = str(len(head))
    return response


def describe_open_inference(schema: Schema | None, model: str | None, versions: Sequence[int]) -> Json:
    """Return the endpoints' paths in the contract."""
    name: Json = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    version: Json = {**name, "name": "version"}
    if model:
        name["schema"] = {"enum": [model]}
        version["schema"] = {"enum": [str(version) for version in versions]}
    paths: Json = {
        "/v2": {"get": describe_get("server_metadata", "The name and version of this server", TAG)},
        "/v2/health/live": {"get": describe_get("server_live", "Whether the process responds", TAG)},
        "/v2/health/ready": {"get": describe_get("server_ready", "Whether requests should come here", TAG, 503)},
    }
    for start, suffix, parameters in (
        ("/v2/models/{name}", "", [name]),
        ("/v2/models/{name}/versions/{version}", "_version", [name, version]),
    ):
        about = describe_get(f"model{suffix}", "A model's inputs and output", TAG, 404, 503)
        ready = describe_get(f"model{suffix}_ready", "Whether a model is loaded", TAG, 404, 503)
        paths[start] = {"get": {**about, "parameters": parameters}}
        paths[f"{start}/ready"] = {"get": {**ready, "parameters": parameters}}
        paths[f"{start}/infer"] = {"post": _describe_infer(f"infer{suffix}", schema, parameters)}
    return paths


def _describe_infer(operation: str, schema: Schema | None, parameters: list[Json]) -> Json:
    values = example_row(schema) if schema else {}
    inputs = [
        {"name": f.name, "shape": [1], "datatype": datatype_of(f), "data": [values[f.name]]}
        for f in (schema.features if schema else ())
    ]
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "The length of the JSON, if tensors follow it as bytes.",
        "schema": TEXT,
    }
    content = {
        JSON: {"schema": {"$ref": "#/components/schemas/InferenceResponse"}},
        BYTES: {"schema": BYTES_SCHEMA},
    }
    body = {
        JSON: {
            "schema": {"$ref": "#/components/schemas/InferenceRequest"},
            "examples": {"one row": {"value": {"inputs": inputs}}},
        },
        BYTES: {"schema": BYTES_SCHEMA},
    }
    success = describe_response("The predictions.", content)
    responses = {"200": success, **describe_problems(400, 404, 413, 415, 422, 503)}
    summary = "Predict, with one tensor per feature or one [rows, features] for all of them"
    return describe_post(operation, summary, TAG, [*parameters, length], body, responses)


_OUTPUT: Json = closed_object(
    {
        "name": {"const": OUTPUT},
        "datatype": {"const": "FP64"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": NUMBERS,
    },
    ["name", "datatype", "shape", "data"],
)
SCHEMAS: Json = {
    "InferenceRequest": {
        "type": "object",
        "properties": {
            "id": TEXT,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}, "minItems": 1},
            "outputs": {
                "type": "array",
                "items": closed_object({"name": {"const": OUTPUT}, "parameters": OPEN}, ["name"]),
            },
            "parameters": OPEN,
        },
        "required": ["inputs"],
    },
    "Tensor": {
        "type": "object",
        "properties": {
            "name": TEXT,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
            "datatype": {"enum": list(DATATYPES)},
            "data": {"type": "array"},
            "parameters": OPEN,
        },
        "required": ["name", "shape", "datatype"],
    },
    "InferenceResponse": {
        "type": "object",
        "properties": {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT,
            "outputs": {"type": "array", "items": _OUTPUT},
        },
        "required": ["model_name", "model_version", "outputs"],
    },
}
