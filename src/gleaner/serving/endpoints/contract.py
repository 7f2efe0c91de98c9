"""The contract at `/openapi.json` and `/docs`, and links at `/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Response, redirect
from flask_swagger_ui import get_swaggerui_blueprint

from gleaner import __version__
from gleaner.serving.access import OPEN
from gleaner.serving.endpoints import health, mlflow, open_inference, predict
from gleaner.serving.endpoints.responses import json_response
from gleaner.serving.openapi import (
    Json,
    describe_access,
    describe_components,
    describe_get,
    describe_keys,
    describe_row,
)
from gleaner.serving.service import Service
from gleaner.settings.sections import Serving
from gleaner.table.schema import Schema

# The page loads everything from this server, so it works offline and tells no other server anything.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
_PAGE_OPTIONS = {"app_name": "Gleaner", "validatorUrl": None, "tryItOutEnabled": True, "defaultModelsExpandDepth": 0}
_TAGS: Mapping[str, str] = {
    "predict": "A table in, and a table of the same format out.",
    mlflow.TAG: "MLflow's scoring protocol, on the champion.",
    open_inference.TAG: "For Triton's client and others; without a version, on the champion.",
    health.TAG: "For people, probes and Prometheus.",
}


def add_contract(flask: Flask, service: Service) -> None:
    """Add the endpoints."""

    @flask.get("/")
    def index() -> Response:
        slots = {slot: f"/{slot}/predict" for slot in service.slots.aliases}
        links = {name: f"/{name}" for name in ("openapi.json", "health_status", "livez", "readyz", "metrics", "v2")}
        links["docs"] = "/docs/"
        return json_response({"service": "gleaner", "version": __version__, "predict": slots, "links": links})

    @flask.get("/openapi.json")
    def document() -> Response:
        current = service.slots.current
        schemas = {slot: loaded.manifest.schema if loaded else service.schema for slot, loaded in current.items()}
        model = next((loaded.manifest.model for loaded in current.values() if loaded), None)
        return json_response(describe(schemas, model, service.loaded_versions(), service.serving))

    @flask.get("/docs")
    def docs() -> Any:
        return redirect("/docs/")

    pages = get_swaggerui_blueprint("/docs", "/openapi.json", config=_PAGE_OPTIONS)

    def add_policy(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    pages.after_request(add_policy)
    flask.register_blueprint(pages)


def describe(
    schemas: Mapping[str, Schema | None], model: str | None, versions: Sequence[int], serving: Serving
) -> Json:
    """Return the contract.

    schemas: the columns of each slot, the first slot first; None for unknown columns.
    model: the name of the loaded model.
    versions: the loaded versions.
    """
    first = next(iter(schemas.values()))
    rows = {f"Row_{slot}": describe_row(schema) for slot, schema in schemas.items()}
    paths: Json = {}
    for slot, schema in schemas.items():
        paths |= predict.describe_predict(slot, schema, serving)
    paths |= mlflow.describe_mlflow(first, serving)
    paths |= open_inference.describe_open_inference(first, model, versions)
    paths["/"] = {"get": describe_get("index", "The name, the version and the links of this server", health.TAG)}
    components = describe_components(rows, {**predict.SCHEMAS, **open_inference.SCHEMAS}, first)
    asks_for_key = bool(serving.keys_file)
    security: Json = {}
    if asks_for_key:
        components["securitySchemes"] = describe_keys()
        security = {"security": [{name: []} for name in describe_keys()]}
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
        "paths": describe_access(paths | health.describe_health(), OPEN, asks_for_key=asks_for_key),
        "components": components,
        **security,
    }
