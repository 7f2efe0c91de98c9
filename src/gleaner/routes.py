"""The Flask app: every route, and what each answers. What one raises travels to the callable in front of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flask import Flask, Response, redirect, request
from flask_swagger_ui import get_swaggerui_blueprint
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from werkzeug.exceptions import NotFound
from werkzeug.routing import Rule

from gleaner import __version__, inference, invocations, openapi
from gleaner.doors import CSV, Answer, Bound, read_rows, write_answer
from gleaner.errors import BadBody, NoModel, WrongType, nearest
from gleaner.rows import Rows
from gleaner.schema import Array, Schema
from gleaner.settings import Serving
from gleaner.slots import Slots
from gleaner.wire import JSON, read_json, write_json

if TYPE_CHECKING:
    from gleaner.registry import Follower

TOLD = "gleaner.told"
_SWITCHES = ("detail", "partial")
# The page shows nothing that is not served from here, so it works offline, and nothing on it is told to anybody.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


@dataclass(slots=True)
class Told:
    """What a route tells the callable in front, which counts: the route, the slot that was asked, the rows predicted.

    id: the prediction's, given by the callable.
    """

    route: str
    slot: str | None
    id: str
    rows: int = 0


class Service(Protocol):
    """What the routes need of the callable in front of them."""

    slots: Slots
    serving: Serving
    registry: CollectorRegistry
    schema: Schema | None
    follower: Follower | None
    draining: threading.Event

    def is_ready(self) -> bool: ...

    def bind(self, slot: str) -> Bound: ...

    def compute(self, bound: Bound, body: bytes, read: Callable[[], Rows], *, partial: bool) -> tuple[Rows, Array]: ...


def route_of(rule: Rule) -> str:
    """A rule as documents and metrics show it: `/v2/models/{name}`."""
    return str(rule).replace("<path:", "{").replace("<", "{").replace(">", "}")


def make_flask(service: Service) -> Flask:
    """Every route of a service."""
    flask = Flask("gleaner", static_folder=None)
    flask.config.update(PROPAGATE_EXCEPTIONS=True, TRAP_HTTP_EXCEPTIONS=True)
    flask.url_map.merge_slashes = False

    @flask.before_request
    def tell_route() -> None:
        # werkzeug passes over slashes in front; the callable, which limits and counts by the path, does not.
        if request.environ["PATH_INFO"].startswith("//"):
            raise NotFound
        if request.url_rule is not None:
            _told().route = route_of(request.url_rule)

    _add_health(flask, service)
    _add_predict(flask, service)
    _add_invocations(flask, service)
    _add_inference(flask, service)
    _add_pages(flask, service)
    return flask


def protocol_error(path: str, status: int, text: str) -> dict[str, str]:
    """The members of a problem in which clients of a protocol look for what went wrong."""
    if path == "/invocations":
        return {"error_code": invocations.ERROR_CODES.get(status, "BAD_REQUEST"), "message": text}
    return {"error": text} if path == "/v2" or path.startswith(("/v2/health/", "/v2/models/")) else {}


def _add_health(flask: Flask, service: Service) -> None:
    started = time.time()

    @flask.get("/health_status")
    def health_status() -> Response:
        slots = {slot: _slot(service, slot) for slot in service.slots.aliases}
        faulty = any(state["fault"] for state in slots.values())
        status = "unavailable" if not service.is_ready() else "degraded" if faulty else "ok"
        body = {"status": status, "slots": slots, "uptime_seconds": round(time.time() - started, 3)}
        if service.follower:
            body["registry"] = service.follower.describe()
        return _json(body, 503 if status == "unavailable" else 200)

    @flask.get("/livez")
    def livez() -> Response:
        return _json({"status": "ok"})

    @flask.get("/readyz")
    def readyz() -> Response:
        _check_ready(service)
        return _json({"status": "ok"})

    @flask.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(service.registry), content_type=CONTENT_TYPE_LATEST)


def _add_predict(flask: Flask, service: Service) -> None:
    def predict(slot: str) -> Response:
        switches = _read_switches()
        kind, body, told = request.mimetype, request.get_data(), _told()
        bound = service.bind(slot)
        max_rows, partial = service.serving.max_table_rows, switches["partial"]

        def read() -> Rows:
            return read_rows(kind, body, bound.reader, max_rows=max_rows, partial=partial)

        rows, predictions = service.compute(bound, body, read, partial=partial)
        told.rows = len(predictions)
        answer = Answer(rows, predictions, bound.loaded.version, told.id, **switches)
        return _predicted(write_answer(kind, answer), kind, bound, 207 if rows.faults else 200)

    for slot in service.slots.aliases:
        flask.post(f"/{slot}/predict", endpoint=f"predict_{slot}", defaults={"slot": slot})(predict)


def _add_invocations(flask: Flask, service: Service) -> None:
    """MLflow's scoring protocol, on the first slot."""

    @flask.post("/invocations")
    def invoke() -> Response:
        kind, body, told = request.mimetype, request.get_data(), _told()
        told.slot = _first(service)
        if kind not in {JSON, CSV}:
            raise WrongType(f"wanted Content-Type: {JSON} or {CSV}, got {kind or 'none'!r}")
        bound, serving = service.bind(told.slot), service.serving

        def read() -> Rows:
            if kind == CSV:
                return read_rows(kind, body, bound.reader, max_rows=serving.max_table_rows)
            schema, max_rows = bound.reader.schema, serving.max_rows
            accepted = invocations.accept_invocation(schema, body, max_rows=max_rows)
            if accepted is not None:
                return accepted
            value = read_json(body, max_depth=serving.max_depth)
            return invocations.read_invocation(schema, value, max_rows=max_rows)

        _, predictions = service.compute(bound, body, read, partial=False)
        told.rows = len(predictions)
        return _predicted(invocations.write_invocation(predictions.tolist()), JSON, bound)

    def ping() -> Response:
        _check_ready(service)
        return Response("\n", content_type="text/plain; charset=utf-8")

    for path in ("/ping", "/health"):
        flask.get(path, endpoint=path[1:])(ping)

    @flask.get("/version")
    def version() -> Response:
        return Response(__version__, content_type="text/plain; charset=utf-8")


def _add_inference(flask: Flask, service: Service) -> None:
    """The Open Inference Protocol; without a version, on the first slot."""

    def find(name: str, version: str | None) -> tuple[str, Bound]:
        """(slot, what is bound to it) for a model that is loaded."""
        slots = [_first(service)] if version is None else list(service.slots.aliases)
        found = {slot: service.bind(slot) for slot in slots if version is None or service.slots.current[slot]}
        names = {bound.loaded.manifest.model for bound in found.values()}
        for slot, bound in found.items():
            if name == bound.loaded.manifest.model and version in {None, bound.version}:
                return slot, bound
        if found and name not in names:
            raise NotFound(f"no model {name[:64]!r}{nearest(name[:64], names)}")
        raise NotFound(f"version {version!s:.20} is not loaded; loaded: {', '.join(map(str, _versions(service)))}")

    @flask.get("/v2")
    def server() -> Response:
        return _json(inference.server_metadata())

    @flask.get("/v2/health/live")
    def live() -> Response:
        return _json({"live": True})

    @flask.get("/v2/health/ready")
    def ready() -> Response:
        _check_ready(service)
        return _json({"ready": True})

    def model(name: str, version: str | None = None) -> Response:
        _, bound = find(name, version)
        return _json(inference.model_metadata(name, _versions(service), bound.reader.schema))

    def model_ready(name: str, version: str | None = None) -> Response:
        find(name, version)
        return _json({"name": name, "ready": True})

    def infer(name: str, version: str | None = None) -> Response:
        told, body = _told(), request.get_data()
        told.slot, bound = find(name, version)
        # Triton's client names no type, with tensors in bytes and without.
        if request.mimetype not in {"", *inference.TYPES}:
            raise WrongType(f"wanted Content-Type: {' or '.join(inference.TYPES)}, got {request.mimetype!r}")
        length = request.headers.get(inference.HEADER_LENGTH)
        serving, asked = service.serving, inference.Asked()
        limits = {"max_rows": serving.max_rows, "max_table_rows": serving.max_table_rows}

        def read() -> Rows:
            nonlocal asked
            head, data = inference.split_body(body, length, max_bytes=serving.max_body_bytes)
            value = read_json(head, max_depth=serving.max_depth)
            rows, asked = inference.read_inference(bound.reader.schema, value, data, **limits)
            return rows

        _, predictions = service.compute(bound, body, read, partial=False)
        told.rows = len(predictions)
        value, data = inference.answer(asked, name, bound.loaded.version, predictions)
        head = write_json(value)
        if not asked.is_binary:
            return _predicted(head, JSON, bound)
        response = _predicted(head + data, inference.BYTES, bound)
        response.headers[inference.HEADER_LENGTH] = str(len(head))
        return response

    for start in ("/v2/models/<name>", "/v2/models/<name>/versions/<version>"):
        flask.get(start, endpoint=start)(model)
        flask.get(f"{start}/ready", endpoint=f"{start}/ready")(model_ready)
        flask.post(f"{start}/infer", endpoint=f"{start}/infer")(infer)


def _add_pages(flask: Flask, service: Service) -> None:
    @flask.get("/")
    def index() -> Response:
        slots = {slot: f"/{slot}/predict" for slot in service.slots.aliases}
        links = {name: f"/{name}" for name in ("openapi.json", "health_status", "livez", "readyz", "metrics", "v2")}
        links["docs"] = "/docs/"
        return _json({"service": "gleaner", "version": __version__, "predict": slots, "links": links})

    @flask.get("/openapi.json")
    def document() -> Response:
        return _json(openapi.describe(_schemas(service), _model_name(service), _versions(service), service.serving))

    @flask.get("/docs")
    def docs() -> Any:
        return redirect("/docs/")

    options = {"app_name": "Gleaner", "validatorUrl": None, "tryItOutEnabled": True, "defaultModelsExpandDepth": 0}
    pages = get_swaggerui_blueprint("/docs", "/openapi.json", config=options)

    def keep_in(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    pages.after_request(keep_in)
    flask.register_blueprint(pages)


def _read_switches() -> dict[str, bool]:
    """Whether `detail` and `partial` are asked for. Raises BadBody for a parameter that there is not."""
    for name in request.args:
        if name not in _SWITCHES:
            raise BadBody(f"no such query parameter: {name[:60]!r}{nearest(name[:60], _SWITCHES)}")
    values = {name: request.args.get(name, "false") for name in _SWITCHES}
    for name, value in values.items():
        if value not in {"true", "false"}:
            raise BadBody(f"{name} is true or false, got {value[:60]!r}")
    return {name: value == "true" for name, value in values.items()}


def _predicted(content: bytes, kind: str, bound: Bound, status: int = 200) -> Response:
    headers = {"X-Model-Version": bound.version, "X-Prediction-Id": _told().id}
    return Response(content, status=status, content_type=kind, headers=headers)


def _told() -> Told:
    told: Told = request.environ[TOLD]
    return told


def _first(service: Service) -> str:
    return next(iter(service.slots.aliases))


def _check_ready(service: Service) -> None:
    """Raises NoModel, saying why."""
    if service.draining.is_set():
        raise NoModel("the service is stopping")
    if not service.is_ready():
        service.bind(_first(service))


def _versions(service: Service) -> list[int]:
    return sorted({loaded.version for loaded in service.slots.current.values() if loaded})


def _schemas(service: Service) -> Mapping[str, Schema | None]:
    """The columns of each slot: its version's own, or those that are expected."""
    current = service.slots.current
    return {slot: loaded.manifest.schema if loaded else service.schema for slot, loaded in current.items()}


def _model_name(service: Service) -> str | None:
    return next((loaded.manifest.model for loaded in service.slots.current.values() if loaded), None)


def _slot(service: Service, slot: str) -> dict[str, object]:
    loaded = service.slots.current[slot]
    facts: dict[str, object] = {"alias": service.slots.aliases[slot], "version": None, "candidate": None}
    if loaded:
        facts |= {"version": loaded.version, "candidate": loaded.manifest.candidate, "run_id": loaded.manifest.run_id}
    refused = service.follower.fault(service.slots.aliases[slot]) if service.follower else None
    return {**facts, "fault": refused or service.slots.faults.get(slot)}


def _json(value: object, status: int = 200) -> Response:
    return Response(write_json(value), status=status, content_type=JSON)
