"""`POST /v{n}/predict`: a table, and the predictions in the same format."""

from __future__ import annotations

from flask import Flask, Response, request

from gleaner.errors import BadBody, nearest
from gleaner.serving.endpoints.responses import predicted, tally
from gleaner.serving.formats.csv import CSV, Text, check_added, write_whole_csv
from gleaner.serving.formats.json import JSON
from gleaner.serving.formats.predictions import Predictions
from gleaner.serving.formats.tables import read_rows, write_response
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

# A parameter of the contract would be one for each format, so this one stands in the text of CSV.
_COLUMNS = "columns"
_CSV_TEXT = (
    "A header, with the columns in any order, and rows. With ?columns=all the response has all columns of the request "
    "before the prediction."
)

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
        kind, body = request.mimetype, request.get_data()
        switches, is_whole = _read_query(kind)
        version = service.version_in(slot)
        text = Text(service.encoding, request.mimetype_params.get("charset", ""))
        max_rows, partial = service.serving.max_table_rows, switches["partial"]

        def read() -> Rows:
            if is_whole:
                check_added(body, version.reader.schema, text, **switches)
            return read_rows(kind, body, version.reader, max_rows=max_rows, partial=partial, text=text)

        rows, numbers = service.compute(version, body, read, partial=partial)
        tally().rows = len(numbers)
        predictions = Predictions(rows, numbers, version.loaded.version, tally().id, **switches)
        status = 207 if rows.faults else 200
        if is_whole:
            content = write_whole_csv(body, version.reader.schema, text, predictions)
            return predicted(content, f"{CSV}; charset=utf-8", version, status)
        return predicted(write_response(kind, predictions), kind, version, status)

    for slot in service.slots.aliases:
        flask.post(f"/{slot}/predict", endpoint=f"predict_{slot}", defaults={"slot": slot})(predict)


def _read_query(kind: str) -> tuple[dict[str, bool], bool]:
    """Return (the switches, whether a response has all columns of the request).

    kind: the media type of the body.
    Raises BadBody for an unknown parameter or value.
    """
    known = [*_SWITCHES, _COLUMNS]
    for name in request.args:
        if name not in known:
            raise BadBody(f"no such query parameter: {name[:60]!r}{nearest(name[:60], known)}")
    values = {name: request.args.get(name, "false") for name in _SWITCHES}
    for name, value in values.items():
        if value not in {"true", "false"}:
            raise BadBody(f"{name} is true or false, got {value[:60]!r}")
    columns = request.args.get(_COLUMNS, "new")
    if columns not in {"new", "all"}:
        raise BadBody(f"{_COLUMNS} is new or all, got {columns[:60]!r}")
    if columns == "all" and kind != CSV:
        raise BadBody(f"{_COLUMNS}=all is for a body of {CSV}, got {kind[:60]!r}")
    return {name: value == "true" for name, value in values.items()}, columns == "all"


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
            "schema": {**TEXT, "description": _CSV_TEXT},
            "example": csv,
        },
        ARROW: {"schema": {**BYTES_SCHEMA, "description": "One column for each feature, under its name."}},
    }
    responses = {
        "200": describe_response("One number for each row, in the order of the rows.", content),
        "207": describe_response("Some rows are refused; the accepted rows are predicted.", content),
        **describe_problems(400, 413, 415, 422, 503),
    }
    switches = [_choice(name, text, "false", "true") for name, text in _SWITCHES.items()]
    summary = f"Predict with the version in slot {slot}"
    operation = describe_post(f"predict_{slot}", summary, "predict", switches, body, responses)
    return {f"/{slot}/predict": {"post": operation}}


def _choice(name: str, text: str, default: str, other: str) -> Json:
    schema = {**TEXT, "enum": [default, other], "default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema}
