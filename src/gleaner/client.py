"""The Python client of a running service.

`Client` takes and returns numpy arrays; `check` sends one request and logs all of it for a person.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import logging
import math
import random
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadValue, GleanerError, Refused, Unreachable, wanted
from gleaner.redaction import hide_userinfo
from gleaner.table.numbers import Array

__all__ = ["Client", "Predictions", "Rejected", "check"]

log = logging.getLogger("gleaner.check")

Row = Mapping[str, object]
Rows = Row | Sequence[Row] | NDArray[Any]

# Too many requests, no model yet, and a gateway whose server did not respond: each may pass within seconds.
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 2.0


class Rejected(GleanerError):
    """A refused request, or a response without predictions.

    status: the HTTP status.
    faults: the faults that the response names, each with its row, from 0, in the whole table.
    request_id: the id of the request in the service's log, if a `Client` sent the request.
    """

    def __init__(self, status: int, message: str, faults: Sequence[BadValue] = (), request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.faults, self.request_id = status, tuple(faults), request_id


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions for n rows, with their versions and ids.

    values: (n,) predictions, in the target's unit.
    versions: (n,) the version that predicted each row; an alias may move between two parts of a large table.
    ids: n ids, one per prediction.
    """

    values: Array
    versions: NDArray[np.int64]
    ids: tuple[str, ...]


class _Response(msgspec.Struct):
    prediction: list[float]
    version: list[int] = []
    prediction_id: list[str] = []


class Client:
    """A client of one service, for any number of threads.

    Use it in a `with` block, or call `close`. The client sends a request again, with the same X-Request-Id, if no
    response comes or its status is 429, 502, 503 or 504: predicting a row twice does no harm. Before each try it
    waits for the time of `Retry-After`, plus a random time whose bound doubles with every try.

    url: the address of the service, such as "http://127.0.0.1:5001".
    key: the API key, for a service that asks for one.
    timeout_seconds: the longest wait for a connection, and for each next piece of a response.
    retry_seconds: the time after the first try in which another try may begin.
    max_rows: the most rows of one request; the client sends a larger table in parts, one after the other.
    max_body_bytes: the most bytes of one request.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 10.0,
        max_rows: int = 10_000,
        max_body_bytes: int = 1_000_000,
    ) -> None:
        self.url, self.retry_seconds = url.rstrip("/"), retry_seconds
        self._shown = hide_userinfo(self.url)
        self.max_rows, self.max_body_bytes = max_rows, max_body_bytes
        self._columns: dict[str, tuple[str, ...]] = {}
        try:
            where = httpx.URL(self.url)
            if where.scheme not in {"http", "https"} or not where.host:
                raise httpx.InvalidURL("wanted http:// or https:// and a host")
        except httpx.InvalidURL as e:
            # The words of httpx may repeat a piece of a password.
            why = "" if "@" in url else f": {e}"
            shown = hide_userinfo(url)
            raise Refused(f"{shown!r} is not the address of a service, such as http://127.0.0.1:5001{why}") from None
        # Not trust_env: a proxy for the internet does not lead to a service of one's own network.
        self._http = httpx.Client(
            headers=_authorize(key),
            timeout=httpx.Timeout(timeout_seconds),
            trust_env=False,
            verify=_verify(self.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def predict(
        self, rows: Rows, *, slot: str = "v1", columns: Sequence[str] | None = None, detail: Literal[False] = False
    ) -> Array: ...

    @overload
    def predict(
        self, rows: Rows, *, slot: str = "v1", columns: Sequence[str] | None = None, detail: Literal[True]
    ) -> Predictions: ...

    def predict(
        self, rows: Rows, *, slot: str = "v1", columns: Sequence[str] | None = None, detail: bool = False
    ) -> Array | Predictions:
        """Return the service's predictions, shape (n,), exact to the last bit.

        rows: a mapping by feature, a sequence of mappings, or an array of numbers, shape (n, k).
        slot: the slot whose version predicts.
        columns: the k features of an array, in its order; by default the service's own order, which the client
        requests once. Rows with a category have to be mappings.
        detail: whether to return Predictions, with a version and an id for each row.
        Raises BadValue for a number that is not finite, before any request; Rejected if the service refuses a
        row, and Unreachable if it does not respond. A table in parts is predicted whole or not at all.
        """
        if isinstance(rows, np.ndarray) and columns is None:
            columns = self.columns(slot)
        parts = list(self._parts(list(_encoded(rows, columns))))
        responses = [self._ask(slot, detail, start, part) for start, part in parts]
        values = np.array([value for response in responses for value in response.prediction], dtype=np.float64)
        if not detail:
            return values
        versions = np.array([version for response in responses for version in response.version], dtype=np.int64)
        return Predictions(values, versions, tuple(id_ for response in responses for id_ in response.prediction_id))

    def columns(self, slot: str = "v1") -> tuple[str, ...]:
        """Return the features of a slot's version, in its order.

        Only the first call sends a request.
        Raises Unreachable if the service does not respond, Rejected for a slot without a version.
        """
        if slot not in self._columns:
            response = self._send("GET", "/openapi.json", secrets.token_hex(8))
            try:
                names = response.json()["components"]["schemas"][f"Row_{slot}"]["required"]
            except (ValueError, LookupError, TypeError) as e:
                raise Rejected(
                    200, f"{_address(response)} does not name the columns of {slot!r}; pass columns=[...]"
                ) from e
            self._columns[slot] = tuple(map(str, names))
        return self._columns[slot]

    def _parts(self, rows: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """Yield (the position of the first row, the rows) of each request."""
        start, size = 0, 1
        for i, row in enumerate(rows):
            if i > start and (i - start == self.max_rows or size + len(row) + 1 > self.max_body_bytes):
                yield start, rows[start:i]
                start, size = i, 1
            size += len(row) + 1
        if rows:
            yield start, rows[start:]

    def _ask(self, slot: str, detail: bool, start: int, rows: list[bytes]) -> _Response:
        path, id_ = f"/{slot}/predict{'?detail=true' * detail}", secrets.token_hex(8)
        response = self._send("POST", path, id_, b"[" + b",".join(rows) + b"]", start)
        return _read_response(response, len(rows), detail, id_)

    def _send(self, method: str, path: str, id_: str, body: bytes = b"", start: int = 0) -> httpx.Response:
        """Send a request, and send it again while that may help.

        Returns a response of status 200, or raises the last error when the time for retries is up.
        start: the position of the first row of the request in the whole table.
        """
        url, shown, headers = f"{self.url}{path}", f"{self._shown}{path}", {"X-Request-Id": id_}
        if body:
            headers["Content-Type"] = "application/json"
        end, tries = time.monotonic() + self.retry_seconds, 0
        while True:
            tries += 1
            wait = random.uniform(0, min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**tries))
            failure: GleanerError
            try:
                response = self._http.request(method, url, content=body, headers=headers)
            except httpx.DecodingError as e:
                raise Rejected(200, f"{shown} sent a response that cannot be decoded: {e}", request_id=id_) from e
            except httpx.HTTPError as e:
                reason = str(e) or type(e).__name__
                failure = Unreachable(
                    f"no response from {shown} (tries: {tries}): {reason}; is `gleaner serve` running?"
                )
                failure.__cause__ = e
            else:
                if response.status_code == 200:
                    return response
                failure = _rejection(response, start, id_)
                if response.status_code not in _AGAIN:
                    raise failure
                wait += _retry_after(response)
            if time.monotonic() + wait > end:
                raise failure
            time.sleep(wait)


def _encoded(rows: Rows, columns: Sequence[str] | None) -> Iterator[bytes]:
    """Yield each row as a JSON object. Raises Refused, BadValue."""
    if isinstance(rows, np.ndarray):
        yield from map(msgspec.json.encode, _named(rows, columns or ()))
        return
    if columns is not None:
        raise Refused("`columns` names the columns of an array; leave it out for mappings")
    for i, row in enumerate([rows] if isinstance(rows, Mapping) else rows):
        if not isinstance(row, Mapping):
            right = "a mapping by feature, or all rows as one numpy array"
            raise Refused(f"row {i}: {wanted(right, type(row).__name__)}")
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        for key, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadValue("row", i, str(key), wanted("a finite number", str(value)))
        try:
            yield msgspec.json.encode(plain)
        except (TypeError, ValueError, OverflowError) as e:  # also for half of a surrogate pair
            raise BadValue("row", i, _unwritable(plain), f"cannot be written as JSON: {e}") from e


def _unwritable(row: Row) -> str:
    """Return the first column of a row that JSON cannot hold."""
    for key, value in row.items():
        try:
            msgspec.json.encode({key: value})
        except (TypeError, ValueError, OverflowError):
            return str(key)
    return ""


def _named(X: NDArray[Any], columns: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the rows of an array as mappings. Raises Refused, BadValue."""
    if X.ndim != 2 or X.shape[1] != len(columns) or len(set(columns)) != len(columns):
        raise Refused(wanted(f"an array of shape (n, {len(columns)}) for {', '.join(columns)}", str(X.shape)))
    if X.dtype.kind not in "iuf":
        raise Refused(wanted("an array of numbers", f"one of {X.dtype}"))
    if X.dtype.kind == "f":  # integers stay integers
        X = X.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(X))
    if len(wrong):
        i, j = map(int, wrong[0])
        raise BadValue("row", i, columns[j], wanted("a finite number", str(X[i, j])))
    return (dict(zip(columns, row, strict=True)) for row in X.tolist())


def _address(response: httpx.Response) -> str:
    return hide_userinfo(str(response.url))


def _read_response(response: httpx.Response, rows: int, detail: bool, id_: str) -> _Response:
    try:
        read = msgspec.json.decode(response.content, type=_Response)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        reason = f"{_address(response)} sent a response without predictions: {e}; is Gleaner serving there?"
        raise Rejected(200, reason, request_id=id_) from e
    counts = {len(read.prediction), *((len(read.version), len(read.prediction_id)) if detail else ())}
    if counts != {rows}:
        found = " and ".join(map(str, sorted(counts)))
        reason = f"{_address(response)} sent {found} predictions for {rows} row{'s' * (rows > 1)}"
        raise Rejected(200, reason, request_id=id_)
    return read


def _rejection(response: httpx.Response, start: int, id_: str) -> Rejected:
    """Return the error for a response other than 200.

    start: the position of the first row of the request in the whole table.
    """
    try:
        problem = json.loads(response.content)
    except (ValueError, RecursionError):
        problem = None
    faults = []
    for pointer, detail in _errors(problem):
        row, _, column = pointer.removeprefix("/").partition("/")
        if row.isdecimal():
            column = column.replace("~1", "/").replace("~0", "~")
            faults.append(BadValue("row", start + int(row), column, detail))
    more = f"; and {len(faults) - 1} more fault{'s' * (len(faults) > 2)}" if len(faults) > 1 else ""
    reason = f"{faults[0]}{more}" if faults else _reason(problem)
    return Rejected(response.status_code, f"{response.status_code}: {reason}", faults, id_)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds until the time of `Retry-After`; else 0.

    The header has a number of seconds or a date.
    """
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    # A date without a zone is in UTC. Source: RFC 9110, section 5.6.7.
    when = when.replace(tzinfo=when.tzinfo or dt.UTC)
    return max(0.0, (when - dt.datetime.now(dt.UTC)).total_seconds())


def _verify(url: str) -> ssl.SSLContext | bool:
    """Return the authorities for a URL: the system's, or those in SSL_CERT_FILE."""
    return ssl.create_default_context() if url.startswith("https://") else True


def _authorize(key: str | None) -> dict[str, str]:
    """Return the header with an API key, if there is one.

    Raises Refused for a key that no header can hold.
    """
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise Refused("the API key has other characters than printable ASCII; copy it again")
    return {"Authorization": f"Bearer {key.strip()}"}


def check(
    data: object,
    *,
    host: str,
    port: int,
    slot: str = "v1",
    key: str | None = None,
    tls: bool = False,
    timeout_seconds: float = 10.0,
) -> Mapping[str, object]:
    """Send one object or a list of objects, and log everything.

    The log has the request, the status and the response, and never the key.
    Returns the response. Raises Unreachable if no response comes, Rejected for a problem.
    """
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/{slot}/predict"
    log.info("Sending request to %s with data: %s", url, data)
    try:
        # Not `json=data`, which raises for NaN: the service finds the faults in the data.
        headers = {"Content-Type": "application/json", **_authorize(key)}
        more: dict[str, Any] = {"timeout": timeout_seconds, "trust_env": False, "verify": _verify(url)}
        response = httpx.post(url, content=json.dumps(data), headers=headers, **more)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise Unreachable(f"no response from {url}: {e}; is `gleaner serve` running?") from e
    log.info("Status code: %s", response.status_code)
    try:
        content = response.json()
    except ValueError as e:
        reason = f"{url} sent a response that is not JSON; is Gleaner serving there?"
        raise Rejected(response.status_code, reason) from e
    log.info("Response:\n%s", json.dumps(content, indent=2, ensure_ascii=False))
    if response.status_code != 200 or not isinstance(content, dict):
        raise Rejected(response.status_code, _reason(content))
    return content


def _reason(problem: object) -> str:
    """Return a problem document in one line."""
    if not isinstance(problem, dict):
        return "the response is not a JSON object"
    named = "; ".join(f"{pointer}: {detail}" for pointer, detail in _errors(problem))
    return named or str(problem.get("detail") or problem.get("title") or "refused")


def _errors(problem: object) -> list[tuple[str, str]]:
    """Return the (pointer, detail) pairs of a problem document."""
    errors = problem.get("errors") if isinstance(problem, dict) else None
    faults = errors if isinstance(errors, list) else []
    return [(str(fault.get("pointer")), str(fault.get("detail"))) for fault in faults if isinstance(fault, dict)]
