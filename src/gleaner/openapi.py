"""`/openapi.json`: the contract, made from the columns that are served, with examples and every problem of a route.

Source: OpenAPI Specification 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from gleaner import __version__
from gleaner.arrow import ARROW
from gleaner.doors import CSV
from gleaner.inference import BYTES, DATATYPES, HEADER_LENGTH, OUTPUT
from gleaner.rows import escape
from gleaner.schema import Feature, Schema
from gleaner.settings import Serving
from gleaner.wire import JSON, PROBLEM

Json = dict[str, Any]

_PROBLEMS: Mapping[int, str] = {
    400: "A body that cannot be read: not strict JSON, not CSV, not an Arrow stream, or shorter than announced.",
    404: "No such model, or a version that is not loaded.",
    405: "A method that this route does not have.",
    413: "More bytes or rows than one request takes.",
    415: "A media type that this route does not read, or a compressed body.",
    422: "A body that can be read, with wrong values: one entry in `errors` for each of the first hundred faults.",
    500: "An error of ours; the log has it under the request's id.",
    503: "No model yet, too much in flight, or stopping. Send the same request again after `Retry-After` seconds.",
}
_NUMBER: Json = {"type": "number"}
_NUMBERS: Json = {"type": "array", "items": _NUMBER}


def describe(
    schemas: Mapping[str, Schema | None], model: str | None, versions: Sequence[int], serving: Serving
) -> Json:
    """The document.

    schemas: the columns of each slot, the first slot first; None where nothing is known yet.
    model, versions: what is loaded.
    """
    first = next(iter(schemas.values()))
    rows = {f"Row_{slot}": _row(schema) for slot, schema in schemas.items()}
    paths = {f"/{slot}/predict": {"post": _predict(slot, schema, serving)} for slot, schema in schemas.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Gleaner: {model}" if model else "Gleaner",
            "version": __version__,
            "summary": "One tabular regression model, two versions side by side.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": {
            **paths,
            "/invocations": {"post": _invocations(first, serving)},
            **_inference(first, model, versions),
            **_health(),
        },
        "components": {
            "schemas": {**rows, **_SCHEMAS},
            "responses": {f"Problem{status}": _problem(status, text, first) for status, text in _PROBLEMS.items()},
            "headers": _HEADERS,
            "parameters": {
                "requestId": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": "An id of your own, which comes back; another form than this one is replaced.",
                    "schema": {"type": "string"},
                    "example": "route-17",
                }
            },
        },
    }


_TAGS: Mapping[str, str] = {
    "predict": "A table in, the same kind of table out.",
    "MLflow": "MLflow's scoring protocol, on the champion.",
    "Open Inference Protocol": "For its clients, Triton's among them; without a version, on the champion.",
    "health": "For people, probes and Prometheus.",
}


def _row(schema: Schema | None) -> Json:
    """One row as JSON."""
    if schema is None:
        return {"type": "object", "description": "There is no version yet, so its columns are not known."}
    return {
        "type": "object",
        "properties": {feature.name: _value(feature) for feature in schema.features},
        "required": list(schema.names),
        "additionalProperties": False,
        "example": example_row(schema),
    }


def _value(feature: Feature) -> Json:
    about: Json = {"description": feature.description or feature.wanted}
    if feature.type == "category":
        return {"type": "string", "enum": list(feature.values), **about}
    kind = "integer" if feature.type == "int" else "number"
    return {"type": kind, "minimum": feature.lowest, "maximum": feature.highest, **about}


def example_row(schema: Schema) -> Json:
    """A row that is accepted: a number of few digits a little above the lowest, where there is a lowest."""
    row: Json = {}
    for feature in schema.features:
        if feature.type == "category":
            row[feature.name] = feature.values[0]
            continue
        low, high = feature.min, feature.max
        if low is not None and high is not None:
            middle = low + (high - low) / 4
            row[feature.name] = int(middle) if low <= int(middle) else middle
        else:
            row[feature.name] = int(low) + 1 if low is not None else int(high) - 1 if high is not None else 1
        if feature.type != "int":
            row[feature.name] = float(row[feature.name])
    return row


def _predict(slot: str, schema: Schema | None, serving: Serving) -> Json:
    row = {"$ref": f"#/components/schemas/Row_{slot}"}
    example = example_row(schema) if schema else {}
    csv = ",".join(example) + "\n" + ",".join(map(str, example.values())) + "\n"
    answers = {
        JSON: {"schema": {"$ref": "#/components/schemas/Predictions"}},
        CSV: {"schema": {"type": "string"}, "example": "prediction\r\n22.068840579710145\r\n"},
        ARROW: {"schema": _BYTES},
    }
    switches = {
        "detail": "Tell the version and an id for each row, too.",
        "partial": "Answer the rows that are right although others are wrong, which carry their reason; status 207.",
    }
    return {
        "tags": ["predict"],
        "operationId": f"predict_{slot}",
        "summary": f"Predict with the version in slot {slot}",
        "parameters": [
            *(_switch(name, text) for name, text in switches.items()),
            {"$ref": "#/components/parameters/requestId"},
        ],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"anyOf": [row, {"type": "array", "items": row, "maxItems": serving.max_rows}]},
                    "examples": {"one row": {"value": example}, "two rows": {"value": [example, example]}},
                },
                CSV: {
                    "schema": {"type": "string", "description": "A header, in any order and as a file may have it."},
                    "example": csv,
                },
                ARROW: {"schema": {**_BYTES, "description": "One column for each feature, under its name."}},
            },
        },
        "responses": {
            "200": _answer("One number for each row, in the order of the rows.", answers),
            "207": _answer("Some rows are refused, and the others are answered.", answers),
            **_problems(400, 413, 415, 422, 503),
        },
    }


def _switch(name: str, text: str) -> Json:
    schema = {"type": "string", "enum": ["true", "false"], "default": "false"}
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _invocations(schema: Schema | None, serving: Serving) -> Json:
    slot_row = _row(schema)
    slot_row.pop("example", None)
    names = list(schema.names) if schema else []
    values = list(example_row(schema).values()) if schema else []
    cells = {feature.name: _value(feature) for feature in schema.features} if schema else {}
    row: Json = {"type": "array", "prefixItems": [*cells.values()], "minItems": len(names), "maxItems": len(names)}
    columns: Json = {"type": "array", "const": names}
    lists = {"type": "array", "items": row, "maxItems": serving.max_rows}
    objects = {"type": "array", "items": slot_row, "maxItems": serving.max_rows}
    long = {name: {"type": "array", "items": cell, "maxItems": serving.max_rows} for name, cell in cells.items()}
    named = _object(long, names, description="Columns of one length.")
    split = _object({"columns": columns, "data": lists, "index": {"type": "array"}}, ["data"])
    forms = {
        "dataframe_split": split,
        "dataframe_records": objects,
        "instances": {"anyOf": [objects, lists]},
        "inputs": {"anyOf": [objects, lists, named]},
    }
    examples = {
        "dataframe_split": {"columns": names, "data": [values]},
        "dataframe_records": [dict(zip(names, values, strict=True))],
        "instances": [values],
        "inputs": {name: [value] for name, value in zip(names, values, strict=True)},
    }
    return {
        "tags": ["MLflow"],
        "operationId": "invocations",
        "summary": "Predict, in the bodies of MLflow's own server",
        "parameters": [{"$ref": "#/components/parameters/requestId"}],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"anyOf": [_object({name: form}, [name]) for name, form in forms.items()]},
                    "examples": {name: {"value": {name: value}} for name, value in examples.items()},
                },
                CSV: {
                    "schema": {"type": "string"},
                    "example": ",".join(names) + "\n" + ",".join(map(str, values)) + "\n",
                },
            },
        },
        "responses": {
            "200": _answer("The predictions.", {JSON: {"schema": _object({"predictions": _NUMBERS}, ["predictions"])}}),
            **_problems(400, 413, 415, 422, 503),
        },
    }


def _inference(schema: Schema | None, model: str | None, versions: Sequence[int]) -> Json:
    name: Json = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version: Json = {**name, "name": "version", "schema": {"type": "string"}}
    if model:
        name["schema"] = {"enum": [model]}
        version["schema"] = {"enum": [str(version) for version in versions]}
    paths: Json = {
        "/v2": {"get": _get("server_metadata", "What this server is", _OPEN, "Open Inference Protocol")},
        "/v2/health/live": {
            "get": _get("server_live", "Whether the process answers", _OPEN, "Open Inference Protocol")
        },
        "/v2/health/ready": {
            "get": _get("server_ready", "Whether requests should come", _OPEN, "Open Inference Protocol", 503)
        },
    }
    for start, suffix, parameters in (
        ("/v2/models/{name}", "", [name]),
        ("/v2/models/{name}/versions/{version}", "_version", [name, version]),
    ):
        about = _get(f"model{suffix}", "A model's inputs and output", _OPEN, "Open Inference Protocol", 404, 503)
        ready = _get(f"model{suffix}_ready", "Whether a model is loaded", _OPEN, "Open Inference Protocol", 404, 503)
        paths[start] = {"get": {**about, "parameters": parameters}}
        paths[f"{start}/ready"] = {"get": {**ready, "parameters": parameters}}
        paths[f"{start}/infer"] = {"post": _infer(f"infer{suffix}", schema, parameters)}
    return paths


def _infer(name: str, schema: Schema | None, parameters: list[Json]) -> Json:
    example = {"inputs": [_tensor(feature, value) for feature, value in _pairs(schema)]}
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "The length of the JSON, where tensors follow it as bytes.",
        "schema": {"type": "string"},
    }
    answers = {
        JSON: {"schema": {"$ref": "#/components/schemas/InferenceResponse"}},
        BYTES: {"schema": _BYTES},
    }
    return {
        "tags": ["Open Inference Protocol"],
        "operationId": name,
        "summary": "Predict, with one tensor per feature or one [rows, features] for all of them",
        "parameters": [*parameters, length, {"$ref": "#/components/parameters/requestId"}],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"$ref": "#/components/schemas/InferenceRequest"},
                    "examples": {"one row": {"value": example}},
                },
                BYTES: {"schema": _BYTES},
            },
        },
        "responses": {"200": _answer("The predictions.", answers), **_problems(400, 404, 413, 415, 422, 503)},
    }


def _pairs(schema: Schema | None) -> Sequence[tuple[Feature, Any]]:
    return list(zip(schema.features, example_row(schema).values(), strict=True)) if schema else []


def _tensor(feature: Feature, value: object) -> Json:
    datatype = "BYTES" if feature.type == "category" else "INT64" if feature.type == "int" else "FP64"
    return {"name": feature.name, "shape": [1], "datatype": datatype, "data": [value]}


def _health() -> Json:
    return {
        "/": {"get": _get("index", "What this is, and where things are", _OPEN, "health")},
        "/health_status": {
            "get": {
                **_get("health_status", "Which version is in which slot, and what is wrong", _OPEN, "health"),
                "responses": {
                    "200": _answer("ok, or degraded: a slot has a fault.", {JSON: {"schema": _OPEN}}),
                    **_problems(),
                    "503": _answer("unavailable: the first slot has no model.", {JSON: {"schema": _OPEN}}),
                },
            }
        },
        "/livez": {"get": _get("livez", "Whether the process answers", _OPEN, "health")},
        "/readyz": {"get": _get("readyz", "Whether requests should come", _OPEN, "health", 503)},
        "/metrics": {"get": _text("metrics", "Prometheus's text", "health")},
        "/ping": {"get": _text("ping", "Whether requests should come", "MLflow", 503)},
        "/health": {"get": _text("health", "The same as /ping", "MLflow", 503)},
        "/version": {"get": _text("version", "The version of Gleaner", "MLflow")},
    }


def _get(operation: str, summary: str, schema: Json, tag: str, *problems: int) -> Json:
    responses = {"200": _answer(summary + ".", {JSON: {"schema": schema}}), **_problems(*problems)}
    return {"tags": [tag], "operationId": operation, "summary": summary, "responses": responses}


def _text(operation: str, summary: str, tag: str, *problems: int) -> Json:
    responses = {"200": _answer(summary + ".", {"text/plain": {"schema": _TEXT}}), **_problems(*problems)}
    return {"tags": [tag], "operationId": operation, "summary": summary, "responses": responses}


def _answer(description: str, content: Json) -> Json:
    return {
        "description": description,
        "headers": {"X-Request-Id": _ref("headers", "X-Request-Id")},
        "content": content,
    }


def _problems(*statuses: int) -> Json:
    """These, and those that every route has."""
    return {str(status): _ref("responses", f"Problem{status}") for status in sorted({*statuses, 405, 500})}


def _problem(status: int, text: str, schema: Schema | None) -> Json:
    headers = {"X-Request-Id": _ref("headers", "X-Request-Id")}
    if status == 503:
        headers["Retry-After"] = _ref("headers", "Retry-After")
    if status == 405:
        headers["Allow"] = _ref("headers", "Allow")
    example: Json = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": text,
        "instance": "urn:request:5f0c9a71d2-3",
    }
    if status == 422 and schema:
        feature = schema.features[0]
        fault = {"pointer": f"/0/{escape(feature.name)}", "detail": f"wanted {feature.wanted}, got true"}
        example |= {"detail": fault["detail"], "errors": [fault]}
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    return {"description": text, "headers": headers, "content": content}


def _object(properties: Json, required: list[str], **more: Any) -> Json:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


_OPEN: Json = {"type": "object"}
_BYTES: Json = {"type": "string", "format": "binary"}
_TEXT: Json = {"type": "string"}
_HEADERS: Json = {
    "X-Request-Id": {"description": "The request's id, yours or ours.", "schema": _TEXT, "required": True},
    "Allow": {"description": "The methods that it has.", "schema": _TEXT, "required": True},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "required": True},
}
_FAULT: Json = _object(
    {
        "pointer": {
            **_TEXT,
            "description": "Where: the row, from 0, and the column; in JSON a JSON pointer (RFC 6901).",
        },
        "detail": {**_TEXT, "description": "What is wrong, and what would be right."},
        "line": {"type": "integer", "description": "The line of a CSV body, from 1."},
    },
    ["pointer", "detail"],
)
_SCHEMAS: Json = {
    "Predictions": _object(
        {
            "prediction": {"type": "array", "items": {"type": ["number", "null"]}},
            "prediction_id": {"type": "array", "items": _TEXT},
            "version": {"type": "array", "items": {"type": "integer"}},
            "errors": {"type": "array", "items": _FAULT},
        },
        ["prediction"],
        example={"prediction": [22.068840579710145]},
    ),
    "Problem": _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": _TEXT,
            "instance": _TEXT,
            "errors": {"type": "array", "items": _FAULT},
            "error": {**_TEXT, "description": "What went wrong, where the Open Inference Protocol looks for it."},
            "error_code": {**_TEXT, "description": "MLflow's word for the status."},
            "message": {**_TEXT, "description": "What went wrong, where MLflow looks for it."},
        },
        ["type", "title", "status", "detail", "instance"],
        description="What went wrong (RFC 9457).",
    ),
    "InferenceRequest": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}, "minItems": 1},
            "outputs": {"type": "array", "items": _object({"name": {"const": OUTPUT}, "parameters": _OPEN}, ["name"])},
            "parameters": _OPEN,
        },
        "required": ["inputs"],
    },
    "Tensor": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
            "datatype": {"enum": list(DATATYPES)},
            "data": {"type": "array"},
            "parameters": _OPEN,
        },
        "required": ["name", "shape", "datatype"],
    },
    "InferenceResponse": {
        "type": "object",
        "properties": {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "outputs": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"const": OUTPUT},
                        "datatype": {"const": "FP64"},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": _NUMBERS,
                    },
                    ["name", "datatype", "shape", "data"],
                ),
            },
        },
        "required": ["model_name", "model_version", "outputs"],
    },
}
