"""`POST /v{n}/predict`: a table, and the predictions in the same format."""

from __future__ import annotations

from flask import Flask, Response, request

from gleaner.errors import BadBody, nearest
from gleaner.serving.endpoints.responses import predicted, tally
from gleaner.serving.formats.csv import CSV
from gleaner.serving.formats.json import JSON
from gleaner.serving.formats.predictions import Predictions
from gleaner.serving.formats.tables import Text, read_rows, write_response
from gleaner.serving.openapi import (
    BYTES_SCHEMA,
    FAULT,
    TEXT,
    Json,
    closed_object,
    describe_post,
    describe_problems,
    describe_response,
)
from gleaner.serving.service import Service
from gleaner.settings.sections import Serving
from gleaner.table.arrow.format import ARROW
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema, example_row

_SWITCHES = {
    "detail": "Add the version and an id for each row.",
    "partial": "Predict the accepted rows although others are refused, with the reasons; status 207.",
}

SCHEMAS: Json = {
    "Predictions": closed_object(
        {
            "prediction": {"type": "array", "items": {"type": ["number", "null"]}},
            "prediction_id": {"type": "array", "items": TEXT},
            "version": {"type": "array", "items": {"type": "integer"}},
            "errors": {"type": "array", "items": FAULT},
        },
        ["prediction"],
        example={"prediction": [22.068840579710145]},
    )
}


def add_predict(flask: Flask, service: Service) -> None:
    """Add one endpoint per slot."""

    def predict(slot: str) -> Response:
        switches = _read_switches()
        kind, body = request.mimetype, request.get_data()
        version = service.version_in(slot)
        text = Text(service.encoding, request.mimetype_params.get("charset", ""))
        max_rows, partial = service.serving.max_table_rows, switches["partial"]

        def read() -> Rows:
            return read_rows(kind, body, version.reader, max_rows=max_rows, partial=partial, text=text)

        rows, numbers = service.compute(version, body, read, partial=partial)
        tally().rows = len(numbers)
        predictions = Predictions(rows, numbers, version.loaded.version, tally().id, **switches)
        return predicted(write_response(kind, predictions), kind, version, 207 if rows.faults else 200)

    for slot in service.slots.aliases:
        flask.post(f"/{slot}/predict", endpoint=f"predict_{slot}", defaults={"slot": slot})(predict)


def _read_switches() -> dict[str, bool]:
    """Read the query. Raises BadBody for an unknown parameter or value."""
    for name in request.args:
        if name not in _SWITCHES:
            raise BadBody(f"no such query parameter: {name[:60]!r}{nearest(name[:60], _SWITCHES)}")
    values = {name: request.args.get(name, "false") for name in _SWITCHES}
    for name, value in values.items():
        if value not in {"true", "false"}:
            raise BadBody(f"{name} is true or false, got {value[:60]!r}")
    return {name: value == "true" for name, value in values.items()}


def describe_predict(slot: str, schema: Schema | None, serving: Serving) -> Json:
    """Return the endpoint's path in the contract."""
    row = {"$ref": f"#/components/schemas/Row_{slot}"}
    example = example_row(schema) if schema else {}
    csv = ",".join(example) + "\n" + ",".join(map(str, example.values())) + "\n"
    content = {
        JSON: {"schema": {"$ref": "#/components/schemas/Predictions"}},
        CSV: {"schema": TEXT, "example": "prediction\r\n22.068840579710145\r\n"},
        ARROW: {"schema": BYTES_SCHEMA},
    }
    body = {
        JSON: {
            "schema": {"anyOf": [row, {"type": "array", "items": row, "maxItems": serving.max_rows}]},
            "examples": {"one row": {"value": example}, "two rows": {"value": [example, example]}},
        },
        CSV: {
            "schema": {**TEXT, "description": "A header, with the columns in any order, and rows."},
            "example": csv,
        },
        ARROW: {"schema": {**BYTES_SCHEMA, "description": "One column for each feature, under its name."}},
    }
    responses = {
        "200": describe_response("One number for each row, in the order of the rows.", content),
        "207": describe_response("Some rows are refused; the accepted rows are predicted.", content),
        **describe_problems(400, 413, 415, 422, 503),
    }
    summary, switches = f"Predict with the version in slot {slot}", [_switch(*switch) for switch in _SWITCHES.items()]
    operation = describe_post(f"predict_{slot}", summary, "predict", switches, body, responses)
    return {f"/{slot}/predict": {"post": operation}}


def _switch(name: str, text: str) -> Json:
    schema = {**TEXT, "enum": ["true", "false"], "default": "false"}
    return {"name": name, "in": "query", "description": text, "schema": schema}
