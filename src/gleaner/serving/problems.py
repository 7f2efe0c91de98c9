"""Problem documents (RFC 9457), with the members that each protocol adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

from werkzeug.exceptions import HTTPException, NotFound

from gleaner.errors import (
    Abandoned,
    BadBody,
    BadEncoding,
    BadRows,
    BadTable,
    Forbidden,
    HeadTooLarge,
    Misdirected,
    NoModel,
    Overloaded,
    TooLarge,
    TooSlow,
    Unauthorized,
    WrongType,
)
from gleaner.serving.formats import mlflow
from gleaner.serving.formats.json import write_json

PROBLEM = "application/problem+json"

Headers = list[tuple[str, str]]

# The one table of errors and their statuses; every other error is a 500.
_STATUS: Mapping[type[BaseException], int] = {
    Abandoned: 400,
    BadBody: 400,
    BadEncoding: 400,
    BadTable: 400,
    Unauthorized: 401,
    Forbidden: 403,
    TooSlow: 408,
    TooLarge: 413,
    WrongType: 415,
    Misdirected: 421,
    BadRows: 422,
    HeadTooLarge: 431,
    Overloaded: 503,
    NoModel: 503,
}
_RETRY_SECONDS: Mapping[type[BaseException], str] = {Overloaded: "1", NoModel: "10"}


def describe_error(
    error: BaseException, request_id: str, path: str, predicting: Iterable[str]
) -> tuple[int, Headers, bytes]:
    """Return (status, headers, problem document) for an error.

    A 500 shows nothing of the error itself.
    path: the path of the request, which tells its protocol.
    predicting: the paths that predict.
    """
    headers: Headers = [("Content-Type", PROBLEM)]
    if isinstance(error, HTTPException):
        status, detail = error.code or 500, error.description or ""
        if error.description == NotFound.description:  # a description of our own says more
            detail = f"no such route; predictions are at POST {', '.join(predicting)}, and /docs shows every route"
        headers += [(k, v) for k, v in error.get_headers() if k in {"Allow", "Location"}]
    else:
        status, detail = _STATUS.get(type(error), 500), str(error)
    if status == 500:
        detail = f"an error of the service; its log has the error under {request_id}"
    if type(error) in _RETRY_SECONDS:
        headers.append(("Retry-After", _RETRY_SECONDS[type(error)]))
    if status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    errors = error.entries() if isinstance(error, BadRows) else []
    more = _protocol_members(path, status, "; ".join(_in_a_line(e) for e in errors[:3]) or detail)
    return status, headers, problem(status, HTTPStatus(status).phrase, detail, request_id, errors, **more)


def problem(
    status: int, title: str, detail: str, request_id: str, errors: Sequence[Mapping[str, object]] = (), **more: str
) -> bytes:
    """Write a problem document, `application/problem+json`.

    errors: one object per fault, as in the example of RFC 9457, section 3.
    more: extension members, for clients of a protocol that has its own member for an error.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:request:{request_id}",
        **more,
    }
    if errors:
        document["errors"] = errors
    return write_json(document)


def _protocol_members(path: str, status: int, text: str) -> dict[str, str]:
    """Return a protocol's own members for the error."""
    if path == "/invocations":
        return {"error_code": mlflow.ERROR_CODES.get(status, "BAD_REQUEST"), "message": text}
    return {"error": text} if path == "/v2" or path.startswith(("/v2/health/", "/v2/models/")) else {}


def _in_a_line(entry: Mapping[str, object]) -> str:
    return f"{entry['pointer']}: {entry['detail']}" if entry["pointer"] else str(entry["detail"])
