"""Responses of endpoints, and the tally of a request."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Response, request

from gleaner.serving.formats.json import JSON, write_json
from gleaner.serving.service import SlotVersion

TALLY = "gleaner.tally"


@dataclass(slots=True)
class Tally:
    """The parts of a request that metrics count.

    route: the route, or "unmatched".
    slot: the slot of a prediction.
    id: the prediction's id.
    request_id: the caller's id for the request, or the prediction's.
    rows: the number of predicted rows.
    """

    route: str
    slot: str | None
    id: str
    request_id: str
    rows: int = 0


def tally() -> Tally:
    """Return the tally of the current request."""
    found: Tally = request.environ[TALLY]
    return found


def json_response(value: object, status: int = 200) -> Response:
    """Return a response of JSON."""
    return Response(write_json(value), status=status, content_type=JSON)


def predicted(content: bytes, kind: str, version: SlotVersion, status: int = 200) -> Response:
    """Return a response with predictions, their version and their id."""
    headers = {"X-Model-Version": version.version, "X-Prediction-Id": tally().id}
    return Response(content, status=status, content_type=kind, headers=headers)
