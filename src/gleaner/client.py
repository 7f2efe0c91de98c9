"""Ask a running server: `Client` for a program, numpy in and out; `check` for a person, who sees the wire."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import logging
import math
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, overload

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadValue, GleanerError, Refused, Unreachable
from gleaner.schema import Array

log = logging.getLogger("gleaner.check")

Row = Mapping[str, object]

# "Not now": too many requests, no model yet; and a gateway's words for a server that did not answer it.
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 2.0


class Rejected(GleanerError):
    """A request that the server answered with a problem.

    status: HTTP's. faults: what is wrong with which row (from 0, of all that were asked for) and column, where the
    problem names them. request_id: under which the service's log has it, if a `Client` asked.
    """

    def __init__(self, status: int, message: str, faults: Sequence[BadValue] = (), request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.faults, self.request_id = status, tuple(faults), request_id


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions with what `detail` adds, each for n rows.

    values: shape (n,), in the target's unit. versions: shape (n,), the version that answered; two of them where an
    alias was moved between two parts of a large table. ids: by which to tell later what really happened.
    """

    values: Array
    versions: NDArray[np.int64]
    ids: tuple[str, ...]


class _Answer(msgspec.Struct):
    prediction: list[float]
    version: list[int] = []
    prediction_id: list[str] = []


class Client:
    """The predictions of a running service, over kept connections and for any number of threads.

    Used as a context, or ended by `close`.

    url: where the service is, such as "http://127.0.0.1:5001".
    timeout_seconds: the longest wait for a connection, and for each next piece of an answer.
    retry_seconds: how long after a request's first try another may begin. What is not answered, or is answered with
    429, 502, 503 or 504, is sent again under the same X-Request-Id: to ask for a prediction twice does no harm. The
    wait is the answer's `Retry-After`, and some time by chance that doubles with every try.
    max_rows, max_body_bytes: what the service takes in one request; a larger table is sent in parts, one by one.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 10.0,
        max_rows: int = 10_000,
        max_body_bytes: int = 1_000_000,
    ) -> None:
        self.url, self.retry_seconds = url.rstrip("/"), retry_seconds
        self.max_rows, self.max_body_bytes = max_rows, max_body_bytes
        self._columns: dict[str, tuple[str, ...]] = {}
        try:
            where = httpx.URL(self.url)
            if where.scheme not in {"http", "https"} or not where.host:
                raise httpx.InvalidURL("no host, or neither http nor https")
        except httpx.InvalidURL as e:
            raise Refused(f"{url!r} is no address of a service, such as http://127.0.0.1:5001: {e}") from e
        # Not trust_env: a proxy for the internet is not on the way to one's own service.
        self._http = httpx.Client(timeout=httpx.Timeout(timeout_seconds), trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def predict(
        self,
        rows: Row | Sequence[Row] | NDArray[Any],
        *,
        slot: str = "v1",
        columns: Sequence[str] | None = None,
        detail: Literal[False] = False,
    ) -> Array: ...

    @overload
    def predict(
        self,
        rows: Row | Sequence[Row] | NDArray[Any],
        *,
        slot: str = "v1",
        columns: Sequence[str] | None = None,
        detail: Literal[True],
    ) -> Predictions: ...

    def predict(
        self,
        rows: Row | Sequence[Row] | NDArray[Any],
        *,
        slot: str = "v1",
        columns: Sequence[str] | None = None,
        detail: bool = False,
    ) -> Array | Predictions:
        """Predictions, shape (n,), to the very bit that the service computed.

        rows: a mapping by feature, a sequence of them, or an array of numbers, shape (n, k).
        columns: the k features of an array, in the order of its columns; else the order is the service's own, which
        is asked for once. A category needs mappings.
        detail: give Predictions, which has the version and an id for each row, too.
        Raises BadValue for a number that is not finite, before anything is sent; Rejected if the service refuses,
        and Unreachable if it does not answer. A table that is sent in parts is predicted whole or not at all.
        """
        if isinstance(rows, np.ndarray) and columns is None:
            columns = self.columns(slot)
        parts = list(self._parts(list(_encoded(rows, columns))))
        answers = [self._ask(slot, detail, start, part) for start, part in parts]
        values = np.array([value for answer in answers for value in answer.prediction], dtype=np.float64)
        if not detail:
            return values
        versions = np.array([version for answer in answers for version in answer.version], dtype=np.int64)
        return Predictions(values, versions, tuple(id_ for answer in answers for id_ in answer.prediction_id))

    def columns(self, slot: str = "v1") -> tuple[str, ...]:
        """The features of the version in a slot, in its order: what the service says when first asked.

        Raises Unreachable if it does not answer, Rejected if it has no version there.
        """
        if slot not in self._columns:
            response = self._send("GET", "/openapi.json", secrets.token_hex(8))
            try:
                names = response.json()["components"]["schemas"][f"Row_{slot}"]["required"]
            except (ValueError, LookupError, TypeError) as e:
                raise Rejected(200, f"{response.url} does not name the columns of {slot!r}; say columns=[...]") from e
            self._columns[slot] = tuple(map(str, names))
        return self._columns[slot]

    def _parts(self, rows: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """(number of the first row, rows) of each request, within what the service takes in one."""
        start, size = 0, 1
        for i, row in enumerate(rows):
            if i > start and (i - start == self.max_rows or size + len(row) + 1 > self.max_body_bytes):
                yield start, rows[start:i]
                start, size = i, 1
            size += len(row) + 1
        if rows:
            yield start, rows[start:]

    def _ask(self, slot: str, detail: bool, start: int, rows: list[bytes]) -> _Answer:
        """The answer to one request."""
        path, id_ = f"/{slot}/predict{'?detail=true' * detail}", secrets.token_hex(8)
        response = self._send("POST", path, id_, b"[" + b",".join(rows) + b"]", start)
        return _read_answer(response, len(rows), detail, id_)

    def _send(self, method: str, path: str, id_: str, body: bytes = b"", start: int = 0) -> httpx.Response:
        """The response of status 200 to a request, which is sent until there is one or the time is up.

        start: the number of its first row, of all that were asked for.
        """
        url, headers = f"{self.url}{path}", {"X-Request-Id": id_}
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
                raise Rejected(200, f"{url} answered what cannot be decoded: {e}", request_id=id_) from e
            except httpx.HTTPError as e:
                reason = str(e) or type(e).__name__
                failure = Unreachable(f"no answer from {url} (tries: {tries}): {reason}; is `gleaner serve` running?")
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


def _encoded(rows: Row | Sequence[Row] | NDArray[Any], columns: Sequence[str] | None) -> Iterator[bytes]:
    """Each row as a JSON object. Raises BadValue for a number that JSON has no word for."""
    if isinstance(rows, np.ndarray):
        yield from map(msgspec.json.encode, _named(rows, columns or ()))
        return
    if columns is not None:
        raise Refused("columns are the names of an array's columns; a mapping has its own")
    for i, row in enumerate([rows] if isinstance(rows, Mapping) else rows):
        if not isinstance(row, Mapping):
            raise Refused(f"row {i}: wanted a mapping by feature, or all rows as a numpy array; got {type(row)}")
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        for key, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadValue("row", i, str(key), f"wanted a finite number, got {value}")
        try:
            yield msgspec.json.encode(plain)
        except (TypeError, ValueError, OverflowError) as e:  # half a character, too
            raise BadValue("row", i, _unwritable(plain), f"cannot be written as JSON: {e}") from e


def _unwritable(row: Row) -> str:
    """The first column of a row whose value, or name, JSON has no word for."""
    for key, value in row.items():
        try:
            msgspec.json.encode({key: value})
        except (TypeError, ValueError, OverflowError):
            return str(key)
    return ""


def _named(X: NDArray[Any], columns: Sequence[str]) -> Iterator[dict[str, float]]:
    """The rows of an array under the names of their columns."""
    if X.ndim != 2 or X.shape[1] != len(columns) or len(set(columns)) != len(columns):
        raise Refused(f"wanted an array of shape (n, {len(columns)}) for {', '.join(columns)}; got {X.shape}")
    if X.dtype.kind not in "iuf":
        raise Refused(f"wanted an array of numbers, got one of {X.dtype}")
    if X.dtype.kind == "f":  # whole numbers stay whole, as a column of them wants
        X = X.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(X))
    if len(wrong):
        i, j = map(int, wrong[0])
        raise BadValue("row", i, columns[j], f"wanted a finite number, got {X[i, j]}")
    return (dict(zip(columns, row, strict=True)) for row in X.tolist())


def _read_answer(response: httpx.Response, rows: int, detail: bool, id_: str) -> _Answer:
    try:
        answer = msgspec.json.decode(response.content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        reason = f"{response.url} answered something that is no prediction: {e}; is it Gleaner's?"
        raise Rejected(200, reason, request_id=id_) from e
    counts = {len(answer.prediction), *((len(answer.version), len(answer.prediction_id)) if detail else ())}
    if counts != {rows}:
        found = " and ".join(map(str, sorted(counts)))
        raise Rejected(200, f"{response.url} answered {found} numbers to {rows} row{'s' * (rows > 1)}", request_id=id_)
    return answer


def _rejection(response: httpx.Response, start: int, id_: str) -> Rejected:
    """What was answered instead of predictions; `start` is the number of the request's first row."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        answer = None
    faults = []
    for pointer, detail in _errors(answer):
        row, _, column = pointer.removeprefix("/").partition("/")
        if row.isdecimal():
            column = column.replace("~1", "/").replace("~0", "~")
            faults.append(BadValue("row", start + int(row), column, detail))
    more = f"; and {len(faults) - 1} more fault{'s' * (len(faults) > 2)}" if len(faults) > 1 else ""
    reason = f"{faults[0]}{more}" if faults else _reason(answer)
    return Rejected(response.status_code, f"{response.status_code}: {reason}", faults, id_)


def _retry_after(response: httpx.Response) -> float:
    """The seconds to wait before the next try, if the answer says so: a number of them, or a date."""
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


def check(
    data: object, *, host: str, port: int, slot: str = "v1", timeout_seconds: float = 10.0
) -> Mapping[str, object]:
    """Send one object, or a list of them, and log the request, the status and the answer; gives the answer.

    Raises Unreachable if nothing answers, Rejected if the answer is a problem.
    """
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/{slot}/predict"
    log.info("Sending request to %s with data: %s", url, data)
    try:
        # Not `json=data`, which raises for NaN: what is wrong with the data is the server's to say.
        headers = {"Content-Type": "application/json"}
        response = httpx.post(url, content=json.dumps(data), headers=headers, timeout=timeout_seconds, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise Unreachable(f"nothing answers at {url}: {e}; is `gleaner serve` running?") from e
    log.info("Status code: %s", response.status_code)
    try:
        answer = response.json()
    except ValueError as e:
        raise Rejected(response.status_code, f"{url} answered something that is not JSON; is it Gleaner's?") from e
    log.info("Response:\n%s", json.dumps(answer, indent=2, ensure_ascii=False))
    if response.status_code != 200 or not isinstance(answer, dict):
        raise Rejected(response.status_code, _reason(answer))
    return answer


def _reason(answer: object) -> str:
    """A problem document in one line."""
    if not isinstance(answer, dict):
        return "the answer is not an object"
    named = "; ".join(f"{pointer}: {detail}" for pointer, detail in _errors(answer))
    return named or str(answer.get("detail") or answer.get("title") or "refused")


def _errors(answer: object) -> list[tuple[str, str]]:
    """The (pointer, detail) pairs of a problem document."""
    errors = answer.get("errors") if isinstance(answer, dict) else None
    faults = errors if isinstance(errors, list) else []
    return [(str(fault.get("pointer")), str(fault.get("detail"))) for fault in faults if isinstance(fault, dict)]
