"""Parts of the contract that several endpoints share.

Source: OpenAPI Specification 3.1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from gleaner.errors import wanted
from gleaner.serving.formats.json import JSON
from gleaner.serving.problems import PROBLEM
from gleaner.table.feature import Feature
from gleaner.table.rows import escape
from gleaner.table.schema import Schema, example_row

Json = dict[str, Any]

OPEN: Json = {"type": "object"}
BYTES_SCHEMA: Json = {"type": "string", "format": "binary"}
TEXT: Json = {"type": "string"}
NUMBERS: Json = {"type": "array", "items": {"type": "number"}}
REQUEST_ID: Json = {"$ref": "#/components/parameters/requestId"}

_PROBLEMS: Mapping[int, str] = {
    400: "An unreadable body: not strict JSON, not CSV, not an Arrow stream, or shorter than announced.",
    401: "No key that is accepted: send one as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`.",
    403: "Not allowed by the key, or sent by a browser from a page of another site.",
    404: "No such model, or a version that is not loaded.",
    405: "A method that this route does not have.",
    413: "More bytes or rows than one request takes.",
    415: "A media type that this route does not read, or a compressed body.",
    421: "The header Host names another server.",
    422: "A readable body with wrong values: one entry in `errors` for each of the first hundred faults.",
    500: "An error of the service; its log has the error under the request's id.",
    503: "No model yet, too many requests, or stopping. Send the same request again after `Retry-After` seconds.",
}


def describe_row(schema: Schema | None) -> Json:
    """Return the schema of one row as JSON."""
    if schema is None:
        return {"type": "object", "description": "There is no version yet, so the columns are not known."}
    return {
        "type": "object",
        "properties": {feature.name: describe_value(feature) for feature in schema.features},
        "required": [feature.name for feature in schema.features if not feature.allows_gaps],
        "additionalProperties": False,
        "example": example_row(schema),
    }


def describe_value(feature: Feature) -> Json:
    """Return the schema of one value."""
    return {**feature.json_schema, "description": feature.description or feature.wanted}


def describe_get(operation: str, summary: str, tag: str, *problems: int, kind: str = JSON, schema: Json = OPEN) -> Json:
    """Return an operation that takes no body."""
    responses = {"200": describe_response(summary + ".", {kind: {"schema": schema}}), **describe_problems(*problems)}
    return {"tags": [tag], "operationId": operation, "summary": summary, "responses": responses}


def describe_post(
    operation: str, summary: str, tag: str, parameters: Sequence[Json], body: Json, responses: Json
) -> Json:
    """Return an operation that takes a body.

    body: the schema and the examples of each media type.
    """
    return {
        "tags": [tag],
        "operationId": operation,
        "summary": summary,
        "parameters": [*parameters, REQUEST_ID],
        "requestBody": {"required": True, "content": body},
        "responses": responses,
    }


def describe_text(operation: str, summary: str, tag: str, *problems: int) -> Json:
    """Return an operation that takes no body and responds with plain text."""
    return describe_get(operation, summary, tag, *problems, kind="text/plain", schema=TEXT)


def describe_response(description: str, content: Json) -> Json:
    """Return a response other than a problem."""
    return {"description": description, "headers": _ID_HEADER, "content": content}


def describe_problems(*statuses: int) -> Json:
    """Return the responses for these statuses, and for those of every route."""
    return {str(status): _ref("responses", f"Problem{status}") for status in sorted({*statuses, 405, 500})}


def describe_access(paths: Json, open_paths: Collection[str], *, asks_for_key: bool) -> Json:
    """Return the paths with the responses to requests without access.

    open_paths: paths that need no key.
    """
    described: Json = {}
    for path, operations in paths.items():
        is_open = path in open_paths or not asks_for_key
        for method, operation in operations.items():
            statuses = ([] if is_open else [401, 403]) + ([403, 421] if method == "post" else [])
            refused = {str(status): _ref("responses", f"Problem{status}") for status in statuses}
            more: Json = {"security": []} if is_open and asks_for_key else {}
            changed = {**operation, **more, "responses": {**operation["responses"], **refused}}
            described.setdefault(path, {})[method] = changed
    return described


def describe_keys() -> Json:
    """Return the ways to send a key: {name: security scheme}."""
    return {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }


def closed_object(properties: Json, required: list[str], **more: Any) -> Json:
    """Return the schema of an object that has no other members."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def describe_components(rows: Json, schemas: Json, first: Schema | None) -> Json:
    """Return the components of the document.

    rows: the schema of each slot's row.
    schemas: the schemas of all endpoints.
    first: the columns of the first slot.
    """
    problems = {f"Problem{status}": _problem(status, text, first) for status, text in _PROBLEMS.items()}
    return {
        "schemas": {**rows, **schemas, "Problem": _PROBLEM},
        "responses": problems,
        "headers": _HEADERS,
        "parameters": {
            "requestId": {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Your own id, which the response repeats; an id of any other form is replaced.",
                "schema": TEXT,
                "example": "route-17",
            }
        },
    }


def _problem(status: int, text: str, schema: Schema | None) -> Json:
    names = ["X-Request-Id", *{405: ["Allow"], 503: ["Retry-After"]}.get(status, [])]
    example: Json = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": text,
        "instance": "urn:request:5f0c9a71d2-3",
    }
    if status == 422 and schema:
        feature = schema.features[0]
        fault = {"pointer": f"/0/{escape(feature.name)}", "detail": wanted(feature.wanted, "true")}
        example |= {"detail": fault["detail"], "errors": [fault]}
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    return {"description": text, "headers": {name: _ref("headers", name) for name in names}, "content": content}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


_ID_HEADER: Json = {"X-Request-Id": _ref("headers", "X-Request-Id")}
_HEADERS: Json = {
    "X-Request-Id": {"description": "The request's id.", "schema": TEXT, "required": True},
    "Allow": {"description": "The methods that the route has.", "schema": TEXT, "required": True},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "required": True},
}
FAULT: Json = closed_object(
    {
        "pointer": {**TEXT, "description": "The row, from 0, and the column; for JSON a JSON pointer (RFC 6901)."},
        "detail": {**TEXT, "description": "What is wrong, and what would be right."},
        "line": {"type": "integer", "description": "The line of a CSV body, from 1."},
    },
    ["pointer", "detail"],
)
_PROBLEM: Json = closed_object(
    {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "instance": TEXT,
        "errors": {"type": "array", "items": FAULT},
        "error": {**TEXT, "description": "The error, for clients of the Open Inference Protocol."},
        "error_code": {**TEXT, "description": "MLflow's word for the status."},
        "message": {**TEXT, "description": "The error, for clients of MLflow."},
    },
    ["type", "title", "status", "detail", "instance"],
    description="The reason for an error status (RFC 9457).",
)
