"""MLflow's scoring protocol, on the first slot: `/invocations`, `/ping`, `/health`, `/version`."""

from __future__ import annotations

from flask import Flask, Response, request

from gleaner import __version__
from gleaner.errors import WrongType, wanted
from gleaner.serving.endpoints.responses import predicted, tally
from gleaner.serving.formats.csv import CSV, Text
from gleaner.serving.formats.json import JSON, read_json
from gleaner.serving.formats.mlflow import accept_invocation, read_invocation, write_invocation
from gleaner.serving.formats.tables import read_rows
from gleaner.serving.openapi import (
    NUMBERS,
    TEXT,
    Json,
    closed_object,
    describe_post,
    describe_problems,
    describe_response,
    describe_row,
    describe_text,
    describe_value,
)
from gleaner.serving.service import Service
from gleaner.settings.sections import Serving
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema, example_row

TAG = "MLflow"
_PLAIN = "text/plain; charset=utf-8"


def add_mlflow(flask: Flask, service: Service) -> None:
    """Add the protocol's endpoints."""

    @flask.post("/invocations")
    def invoke() -> Response:
        kind, body = request.mimetype, request.get_data()
        slot = tally().slot = service.first_slot
        if kind not in {JSON, CSV}:
            raise WrongType(wanted(f"Content-Type: {JSON} or {CSV}", repr(kind or "none")))
        version, serving = service.version_in(slot), service.serving

        def read() -> Rows:
            if kind == CSV:
                text = Text(service.encoding, request.mimetype_params.get("charset", ""))
                return read_rows(kind, body, version.reader, max_rows=serving.max_table_rows, text=text)
            schema, max_rows = version.reader.schema, serving.max_rows
            accepted = accept_invocation(schema, body, max_rows=max_rows)
            if accepted is not None:
                return accepted
            return read_invocation(
                schema, read_json(body, max_depth=serving.max_depth, takes_nan=True), max_rows=max_rows
            )

        _, numbers = service.compute(version, body, read, partial=False)
        tally().rows = len(numbers)
        return predicted(write_invocation(numbers.tolist()), JSON, version)

    def ping() -> Response:
        service.check_ready()
        return Response("\n", content_type=_PLAIN)

    for path in ("/ping", "/health"):
        flask.get(path, endpoint=path[1:])(ping)

    @flask.get("/version")
    def version() -> Response:
        return Response(__version__, content_type=_PLAIN)


def describe_mlflow(schema: Schema | None, serving: Serving) -> Json:
    """Return the endpoints' paths in the contract."""
    names = list(schema.names) if schema else []
    values = list(example_row(schema).values()) if schema else []
    examples = {
        "dataframe_split": {"columns": names, "data": [values]},
        "dataframe_records": [dict(zip(names, values, strict=True))],
        "instances": [values],
        "inputs": {name: [value] for name, value in zip(names, values, strict=True)},
    }
    forms = _describe_forms(schema, names, serving.max_rows)
    response = {JSON: {"schema": closed_object({"predictions": NUMBERS}, ["predictions"])}}
    body = {
        JSON: {
            "schema": {"anyOf": [closed_object({name: form}, [name]) for name, form in forms.items()]},
            "examples": {name: {"value": {name: value}} for name, value in examples.items()},
        },
        CSV: {"schema": TEXT, "example": ",".join(names) + "\n" + ",".join(map(str, values)) + "\n"},
    }
    success = describe_response("The predictions.", response)
    responses = {"200": success, **describe_problems(400, 413, 415, 422, 503)}
    summary = "Predict, with the bodies of MLflow's own server"
    operation = describe_post("invocations", summary, TAG, [], body, responses)
    return {
        "/invocations": {"post": operation},
        "/ping": {"get": describe_text("ping", "Whether requests should come here", TAG, 503)},
        "/health": {"get": describe_text("health", "The same as /ping", TAG, 503)},
        "/version": {"get": describe_text("version", "The version of Gleaner", TAG)},
    }


def _describe_forms(schema: Schema | None, names: list[str], max_rows: int) -> Json:
    """Return the schemas of the four bodies of JSON."""
    row = describe_row(schema)
    row.pop("example", None)
    cells = {feature.name: describe_value(feature) for feature in schema.features} if schema else {}
    values: Json = {"type": "array", "prefixItems": [*cells.values()], "minItems": len(names), "maxItems": len(names)}
    columns: Json = {"type": "array", "const": names}
    lists = {"type": "array", "items": values, "maxItems": max_rows}
    objects = {"type": "array", "items": row, "maxItems": max_rows}
    long = {name: {"type": "array", "items": cell, "maxItems": max_rows} for name, cell in cells.items()}
    named = closed_object(long, names, description="Columns of one length.")
    return {
        "dataframe_split": closed_object({"columns": columns, "data": lists, "index": {"type": "array"}}, ["data"]),
        "dataframe_records": objects,
        "instances": {"anyOf": [objects, lists]},
        "inputs": {"anyOf": [objects, lists, named]},
    }
