"""One table, sent to a service in every format."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from gleaner.table.feature import Feature
from gleaner.table.schema import Schema

Row = Mapping[str, Any]
ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Asked:
    """A running service, which gets one table in many formats.

    model: the name of its model.
    """

    client: httpx.Client
    model: str

    def __call__(self, path: str, body: bytes | str, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, content=body, headers=sent)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one table in one format.

    predictions: the bytes of the predictions, None if a row was refused.
    faults: (row, column, the accepted values in words) of every fault.
    """

    predictions: bytes | None
    faults: frozenset[tuple[str, str, str]]


def outcome(response: httpx.Response, predictions: Callable[[httpx.Response], Sequence[float]]) -> Outcome:
    if response.status_code == 200:
        return Outcome(np.array(predictions(response), dtype=np.float64).tobytes(), frozenset())
    assert 422 == response.status_code, response.text
    faults = set()
    for entry in response.json()["errors"]:
        _, row, column = entry["pointer"].split("/")
        faults.add((row, column, entry["detail"].partition(", got ")[0]))
    return Outcome(None, frozenset(faults))


def as_json(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
    return outcome(
        ask("/v1/predict", json.dumps(rows), Content_Type="application/json"), lambda a: a.json()["prediction"]
    )


def as_csv(delimiter: str = ",", encoding: str = "utf-8", path: str = "/v1/predict") -> Callable[..., Outcome]:
    def send(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
        text = io.StringIO()
        names = list(reversed(schema.names))
        csv.writer(text, delimiter=delimiter).writerows([names, *([row[name] for name in names] for row in rows)])
        response = ask(path, text.getvalue().encode(encoding), Content_Type=f"text/csv; charset={encoding}")
        if path == "/invocations":
            return outcome(response, lambda a: a.json()["predictions"])
        return outcome(response, lambda a: [float(line) for line in a.text.split("\r\n")[1:-1]])

    return send


def table_of(schema: Schema, rows: Sequence[Row]) -> pa.Table:
    def column(feature: Feature) -> pa.Array:
        values = [row[feature.name] for row in rows]
        if feature.is_number:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        return pa.array(values, pa.bool_() if feature.type == "bool" else pa.string())

    return pa.table({feature.name: column(feature) for feature in schema.features})


def as_arrow(batch_rows: int = 1000, dictionary: bool = False) -> Callable[..., Outcome]:
    def send(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
        table, sink = table_of(schema, rows), pa.BufferOutputStream()
        for i, feature in enumerate(schema.features if dictionary else ()):
            if feature.type == "category":
                table = table.set_column(i, feature.name, table[feature.name].dictionary_encode())
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch_rows)
        response = ask("/v1/predict", sink.getvalue().to_pybytes(), Content_Type=ARROW)
        return outcome(response, lambda a: pa.ipc.open_stream(a.content).read_all()["prediction"].to_pylist())

    return send


def as_mlflow(form: Callable[[Schema, Sequence[Row]], object]) -> Callable[..., Outcome]:
    def send(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
        body = json.dumps(form(schema, rows))
        return outcome(ask("/invocations", body, Content_Type="application/json"), lambda a: a.json()["predictions"])

    return send


def values(schema: Schema, rows: Sequence[Row]) -> list[list[Any]]:
    return [[row[name] for name in schema.names] for row in rows]


def as_inference_json(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
    tensors = [
        {"name": f.name, "shape": [len(rows)], "datatype": datatype(f), "data": [row[f.name] for row in rows]}
        for f in schema.features
    ]
    response = ask(f"/v2/models/{ask.model}/infer", json.dumps({"inputs": tensors}))
    return outcome(response, lambda a: a.json()["outputs"][0]["data"])


def datatype(feature: Feature) -> str:
    return "FP64" if feature.is_number else "BOOL" if feature.type == "bool" else "BYTES"


def as_inference_bytes(ask: Asked, schema: Schema, rows: Sequence[Row]) -> Outcome:
    tensors, data = [], b""
    for f in schema.features:
        column = [row[f.name] for row in rows]
        if datatype(f) == "BYTES":
            texts = [(text or "").encode() for text in column]
            piece = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        elif datatype(f) == "BOOL":
            piece = bytes(column)
        else:
            piece = np.array([math.nan if value is None else value for value in column], "<f8").tobytes()
        about = {"name": f.name, "shape": [len(rows), 1], "datatype": datatype(f)}
        tensors.append({**about, "parameters": {"binary_data_size": len(piece)}})
        data += piece
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    response = ask(
        f"/v2/models/{ask.model}/versions/1/infer", head + data, Inference_Header_Content_Length=str(len(head))
    )

    def numbers(response: httpx.Response) -> Sequence[float]:
        length = int(response.headers["Inference-Header-Content-Length"])
        [output] = json.loads(response.content[:length])["outputs"]
        assert output["parameters"]["binary_data_size"] == len(response.content) - length
        return np.frombuffer(response.content[length:], "<f8").tolist()

    return outcome(response, numbers)


FORMATS: Mapping[str, Callable[..., Outcome]] = {
    "csv": as_csv(),
    "csv with semicolons": as_csv(";"),
    "csv with tabs, in cp1252": as_csv("\t", "cp1252"),
    "arrow": as_arrow(),
    "arrow in small batches": as_arrow(2),
    "arrow with a dictionary": as_arrow(dictionary=True),
    "dataframe_split": as_mlflow(lambda s, rows: {"dataframe_split": {"columns": s.names, "data": values(s, rows)}}),
    "dataframe_records": as_mlflow(lambda s, rows: {"dataframe_records": rows}),
    "instances, named": as_mlflow(lambda s, rows: {"instances": rows}),
    "instances": as_mlflow(lambda s, rows: {"instances": values(s, rows)}),
    "inputs": as_mlflow(lambda s, rows: {"inputs": {name: [row[name] for row in rows] for name in s.names}}),
    "csv at /invocations": as_csv(path="/invocations"),
    "inference in JSON": as_inference_json,
    "inference in bytes": as_inference_bytes,
}
