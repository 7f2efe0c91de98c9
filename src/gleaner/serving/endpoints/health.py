"""Health and metrics, for people, probes and Prometheus."""

from __future__ import annotations

import time

from flask import Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gleaner.serving.endpoints.responses import json_response
from gleaner.serving.formats.json import JSON
from gleaner.serving.openapi import OPEN, Json, describe_get, describe_problems, describe_response, describe_text
from gleaner.serving.service import Service

TAG = "health"


def add_health(flask: Flask, service: Service) -> None:
    """Add the endpoints."""
    started = time.time()

    @flask.get("/health_status")
    def health_status() -> Response:
        slots = {slot: _describe_slot(service, slot) for slot in service.slots.aliases}
        faulty = any(state["fault"] for state in slots.values())
        status = "unavailable" if not service.is_ready() else "degraded" if faulty else "ok"
        body = {"status": status, "slots": slots, "uptime_seconds": round(time.time() - started, 3)}
        if service.follower:
            body["registry"] = service.follower.describe()
        return json_response(body, 503 if status == "unavailable" else 200)

    @flask.get("/livez")
    def livez() -> Response:
        return json_response({"status": "ok"})

    @flask.get("/readyz")
    def readyz() -> Response:
        service.check_ready()
        return json_response({"status": "ok"})

    @flask.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(service.registry), content_type=CONTENT_TYPE_LATEST)


def _describe_slot(service: Service, slot: str) -> dict[str, object]:
    loaded, alias = service.slots.current[slot], service.slots.aliases[slot]
    facts: dict[str, object] = {"alias": alias, "version": None, "candidate": None}
    if loaded:
        facts |= {"version": loaded.version, "candidate": loaded.manifest.candidate, "run_id": loaded.manifest.run_id}
    refused = service.follower.fault(alias) if service.follower else None
    return {**facts, "fault": refused or service.slots.faults.get(slot)}


def describe_health() -> Json:
    """Return the endpoints' paths in the contract."""
    content = {JSON: {"schema": OPEN}}
    status = {
        **describe_get("health_status", "The version in each slot, and its fault", TAG),
        "responses": {
            "200": describe_response("ok, or degraded: a slot has a fault.", content),
            **describe_problems(),
            "503": describe_response("unavailable: the first slot has no model.", content),
        },
    }
    return {
        "/health_status": {"get": status},
        "/livez": {"get": describe_get("livez", "Whether the process responds", TAG)},
        "/readyz": {"get": describe_get("readyz", "Whether requests should come here", TAG, 503)},
        "/metrics": {"get": describe_text("metrics", "Metrics in Prometheus's text format", TAG)},
    }
