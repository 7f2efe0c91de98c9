"""The compared services: their commands, with one worker, and their request formats."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rig import NAMES, ROOT, free_port, objects

from gleaner.table.numbers import Array

FILES = ROOT / "bench" / "peers"
JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Format:
    """A format of request bodies and responses."""

    name: str
    type: str
    write: Callable[[Array], bytes]
    read: Callable[[bytes], Sequence[float]]


@dataclass(frozen=True)
class Place:
    """A server's slot, port and folder, and the slot's estimator.

    plain, named: files with the same fitted trees; `named` also has column names, for services that use data frames.
    """

    slot: str
    port: int
    folder: Path
    plain: Path
    named: Path


@dataclass(frozen=True)
class Service:
    """A peer, or Gleaner. The first format is that of single rows."""

    name: str
    how: str
    packages: tuple[str, ...]
    path: str
    formats: tuple[Format, ...]
    command: Callable[[Path, Place], list[str]]
    environment: Callable[[Place], dict[str, str]] = lambda place: {"MODEL": str(place.plain)}


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def lists(X: Array) -> list[list[int]]:
    return [list(row.values()) for row in objects(X)]


def write_objects(X: Array) -> bytes:
    rows = objects(X)
    return encode(rows[0] if len(rows) == 1 else rows)


def write_inputs(X: Array) -> bytes:
    return encode({"inputs": dict(zip(NAMES, X.T.astype(int).tolist(), strict=True))})


def write_records(X: Array) -> bytes:
    return encode({"dataframe_records": objects(X)})


def write_split(X: Array) -> bytes:
    return encode({"dataframe_split": {"columns": NAMES, "data": lists(X)}})


def write_tensor(X: Array) -> bytes:
    tensor = {"name": "rows", "shape": X.shape, "datatype": "FP64", "data": X.ravel().astype(int).tolist()}
    return encode({"inputs": [tensor]})


def write_csv(X: Array) -> bytes:
    return "\n".join([",".join(NAMES), *(",".join(map(str, row)) for row in lists(X)), ""]).encode()


def read_csv(content: bytes) -> list[float]:
    return [float(row["prediction"]) for row in csv.DictReader(io.StringIO(content.decode()))]


def write_arrow(X: Array) -> bytes:
    table = pa.table(dict(zip(NAMES, X.T, strict=True)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def read_arrow(content: bytes) -> list[float]:
    return pa.ipc.open_stream(content).read_all()["prediction"].to_pylist()


def under(key: str) -> Callable[[bytes], Sequence[float]]:
    return lambda content: json.loads(content)[key]


def mlflow_command(bin_: Path, place: Place) -> list[str]:
    model = place.folder / "model"
    make = [bin_ / "python", FILES / "mlflow_model.py", place.named, model]
    done = subprocess.run(make, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        sys.exit(f"mlflow_model.py failed:\n{done.stderr[-3000:]}")
    where = ["-h", "127.0.0.1", "-p", str(place.port)]
    return [str(bin_ / "mlflow"), "models", "serve", "-m", str(model), "--env-manager", "local", "-w", "1", *where]


def mlserver_command(bin_: Path, place: Place) -> list[str]:
    implementation = {"implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": str(place.plain)}}
    # Batches make the forest many times faster and the tree slower.
    batches = {"max_batch_size": 16, "max_batch_time": 0.002} if place.slot == "v2" else {}
    # The pool of workers does not start with the newest uvloop (github.com/SeldonIO/MLServer/issues/2286).
    server = {"debug": False, "host": "127.0.0.1", "parallel_workers": 0}
    ports = {"http_port": place.port, "grpc_port": free_port(), "metrics_port": free_port()}
    (place.folder / "model-settings.json").write_text(json.dumps({"name": "model", **implementation, **batches}))
    (place.folder / "settings.json").write_text(json.dumps({**server, **ports}))
    return [str(bin_ / "mlserver"), "start", str(place.folder)]


def bentoml_command(bin_: Path, place: Place) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    return [str(bin_ / "bentoml"), "serve", "bentoml_service:Service", "--working-dir", str(FILES), *where]


def litserve_command(bin_: Path, place: Place) -> list[str]:
    return [str(bin_ / "python"), str(FILES / "litserve_server.py"), str(place.port)]


def script_command(bin_: Path, place: Place) -> list[str]:
    where = ["-b", f"127.0.0.1:{place.port}", "--chdir", str(FILES)]
    return [str(bin_ / "gunicorn"), "-w", "1", *where, "flask_script:app"]


def gleaner_command(_: Path, place: Place) -> list[str]:
    return [sys.executable, "-m", "gleaner", "serve", "--port", str(place.port), "--metrics-port", "0"]


OBJECTS = Format("JSON objects", JSON, write_objects, under("prediction"))
ARROW_STREAM = Format("Arrow", ARROW, write_arrow, read_arrow)

OURS = Service(
    name="Gleaner",
    how="`gleaner serve` as shipped, with both models",
    packages=(),
    path="/{slot}/predict",
    formats=(OBJECTS, Format("CSV", CSV, write_csv, read_csv), ARROW_STREAM),
    command=gleaner_command,
)

PEERS = {
    "mlflow": Service(
        name="MLflow",
        how="`mlflow models serve --env-manager local -w 1` (uvicorn); the model has a signature",
        packages=("mlflow",),
        path="/invocations",
        formats=(
            Format("JSON `inputs`", JSON, write_inputs, under("predictions")),
            Format("JSON `dataframe_split`", JSON, write_split, under("predictions")),
            Format("JSON `dataframe_records`", JSON, write_records, under("predictions")),
            Format("CSV", CSV, write_csv, under("predictions")),
        ),
        command=mlflow_command,
        environment=lambda place: {"MLFLOW_DISABLE_TELEMETRY": "true"},
    ),
    "mlserver": Service(
        name="MLServer",
        how="`mlserver start`, the runtime for scikit-learn, `debug` off, `parallel_workers` 0, v2 in adaptive batches",
        packages=("mlserver", "mlserver-sklearn"),
        path="/v2/models/model/infer",
        formats=(Format("JSON tensor", JSON, write_tensor, lambda content: json.loads(content)["outputs"][0]["data"]),),
        command=mlserver_command,
    ),
    "bentoml": Service(
        name="BentoML",
        how="`bentoml serve`, `workers=1`, adaptive batches",
        packages=("bentoml",),
        path="/predict",
        formats=(Format("JSON lists", JSON, lambda X: encode({"rows": lists(X)}), json.loads),),
        command=bentoml_command,
        environment=lambda place: {
            "MODEL": str(place.plain),
            "BENTOML_HOME": str(place.folder),
            "BENTOML_DO_NOT_TRACK": "true",
        },
    ),
    "litserve": Service(
        name="LitServe",
        how="`LitServer(workers_per_device=1)`, batches of up to 16 requests",
        packages=("litserve",),
        path="/predict",
        formats=(Format("JSON lists", JSON, lambda X: encode({"input": lists(X)}), under("output")),),
        command=litserve_command,
    ),
    "script": Service(
        name="the script",
        how="Flask, pandas and joblib behind `gunicorn -w 1`",
        packages=("flask", "pandas", "gunicorn"),
        path="/predict",
        formats=(OBJECTS,),
        command=script_command,
        environment=lambda place: {"MODEL": str(place.named)},
    ),
}
