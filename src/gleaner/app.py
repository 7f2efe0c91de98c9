"""The service's HTTP: a plain WSGI callable in front of a Flask app.

The callable alone gives the id, limits the body and the work in flight, counts and times, and writes problem
documents. Its fast branch answers a prediction that is right in every way; everything else goes through Flask.
"""

from __future__ import annotations

import collections
import io
import itertools
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response
from prometheus_client import CollectorRegistry
from werkzeug.exceptions import HTTPException, NotFound

from gleaner.arrow import ARROW
from gleaner.doors import TABLES, Answer, Bound, read_rows, write_answer
from gleaner.errors import BadBody, BadRows, BadTable, NoModel, Overloaded, TooLarge, WrongType
from gleaner.inference import HEADER_LENGTH
from gleaner.logs import request_id
from gleaner.metrics import UNMATCHED, Models, Traffic
from gleaner.routes import TOLD, Told, make_flask, protocol_error, route_of
from gleaner.rows import Rows
from gleaner.schema import Array, Schema
from gleaner.settings import Serving
from gleaner.slots import Slots
from gleaner.wire import JSON, PROBLEM, RowReader, problem, read_length, write_predictions

if TYPE_CHECKING:
    from gleaner.registry import Follower

log = logging.getLogger(__name__)

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[[str, Headers], Any]

# The one table from what went wrong to what HTTP calls it.
_STATUS: Mapping[type[Exception], int] = {
    BadBody: 400,
    BadTable: 400,
    TooLarge: 413,
    WrongType: 415,
    BadRows: 422,
    Overloaded: 503,
    NoModel: 503,
}
_OUTCOME: Mapping[type[Exception], str] = {Overloaded: "overloaded"}
_STATUS_LINE = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_JSON_TYPES = frozenset({JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=utf-8", f"{JSON}; charset=UTF-8"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A body of known length is read in large pieces: 630 KB take 0.2 ms in one, 0.7 ms in ten.
_PIECE, _AT_ONCE = 1 << 16, 1 << 20
# Large requests have turns of their own, so that a few of them do not keep everybody else waiting.
_SMALL_BODY = 4_096
# Tables of many megabytes: how many of the largest are held, and how many computed, at once; so memory is bounded.
_HELD_AT_ONCE, _TABLES_AT_ONCE = 4, 2
_HEADER_LENGTH = "HTTP_" + HEADER_LENGTH.upper().replace("-", "_")
_RETRY_SECONDS: Mapping[type[Exception], str] = {Overloaded: "1", NoModel: "10"}


class Turns:
    """A bounded number of turns, in the order of asking; who waits for one too long is turned away.

    In order, since a thread that gave its turn back would else take it again before one that waits is awake.
    Measured with 256 threads, two turns, 50 ms and 0.1 ms of work: of what is asked, 16 to 25 in 100 are turned away
    by a `SimpleQueue` of turns, 32 to 36 by a `Semaphore`, 0.1 to 1 by this. A turn that nobody else wants costs 0.07
    microseconds, of which a lock around a count made 0.3: to append to a deque and to pop from one are atomic.
    """

    def __init__(self, turns: int, wait_seconds: float, reason: str) -> None:
        self._wait, self._reason = wait_seconds, reason
        self._free = collections.deque([None] * turns)
        self._lock, self._waiting = threading.Lock(), collections.deque[threading.Lock]()

    def take(self) -> None:
        """Raises Overloaded if no turn comes free in time; after success, call `give`."""
        if not self._waiting:
            try:
                self._free.pop()
                return
            except IndexError:
                pass
        gate = threading.Lock()
        gate.acquire()
        self._waiting.append(gate)
        self._hand_over()  # one that was given back before its giver could see us waiting
        if gate.acquire(timeout=self._wait):
            return
        with self._lock:
            if gate in self._waiting:  # else it was handed over at the last moment
                self._waiting.remove(gate)
                raise Overloaded(self._reason)

    def give(self) -> None:
        """Hand the turn to who has waited longest."""
        self._free.append(None)
        if self._waiting:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            while self._waiting:
                try:
                    self._free.pop()
                except IndexError:
                    return
                self._waiting.popleft().release()


class Room:
    """A bounded number of bytes, for what large bodies hold. One that is sent slowly holds only what has come of it."""

    def __init__(self, size: int) -> None:
        self._lock, self._left = threading.Lock(), size

    def take(self, size: int) -> None:
        """Raises Overloaded if there is no room for so many bytes; after success, call `give`."""
        with self._lock:
            if size > self._left:
                raise Overloaded("too many large bodies are being held at once")
            self._left -= size

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


class App:
    """The outer WSGI callable. `draining` is set when the service is told to stop.

    schema: the columns that are described before there is a version; each version brings its own.
    follower: who follows an MLflow server's aliases, where one keeps them; asked only for what it knows.
    """

    def __init__(
        self,
        slots: Slots,
        serving: Serving,
        registry: CollectorRegistry,
        schema: Schema | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.slots, self.serving, self.registry = slots, serving, registry
        self.schema, self.follower = schema, follower
        self.draining = threading.Event()
        self.flask = make_flask(self)
        self._paths = {f"/{slot}/predict": slot for slot in slots.aliases}
        self.traffic = Traffic(slots.aliases, {route_of(rule) for rule in self.flask.url_map.iter_rules()}, registry)
        Models(slots, registry)
        self._bound: dict[str, Bound] = {}
        busy = "too many requests are in flight"
        self._small = Turns(serving.max_in_flight, serving.queue_seconds, busy)
        self._large = Turns(serving.max_in_flight, serving.queue_seconds, busy)
        # Some threads stay free of slow bodies, so that health, metrics and refusals always find one.
        self._reading = Turns(serving.threads - 100, 0, "too many bodies are being sent at once")
        self._tables = Turns(_TABLES_AT_ONCE, serving.queue_seconds, busy)
        self._room = Room(_HELD_AT_ONCE * serving.max_table_bytes)
        self._prefix, self._ids = secrets.token_hex(5), itertools.count(1)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; whatever happens in here is answered, counted and timed."""
        began = time.perf_counter()
        own_id = f"{self._prefix}-{next(self._ids):x}"
        asked_id = environ.get("HTTP_X_REQUEST_ID")
        id_ = asked_id if asked_id is not None and _ID.fullmatch(asked_id) else own_id
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        slot = self._paths.get(path) if method == "POST" else None
        told = Told(path if path in self.traffic.routes else UNMATCHED, slot, own_id)
        self.traffic.began()
        body, read = b"", 0.0
        try:
            body = self._read_body(environ)
            read = time.perf_counter()
            if slot is not None and not environ["QUERY_STRING"]:
                kind, answer = environ.get("CONTENT_TYPE", ""), None
                if kind in _JSON_TYPES:
                    kind, answer = JSON, self._answer_fast(slot, body)
                elif kind == ARROW:
                    answer = self._answer_arrow(slot, body, own_id)
                if answer is not None:
                    content, version, rows = answer
                    start_response(
                        "200 OK",
                        [
                            ("Content-Type", kind),
                            ("X-Request-Id", id_),
                            ("X-Model-Version", version),
                            ("X-Prediction-Id", own_id),
                        ],
                    )
                    now = time.perf_counter()
                    self.traffic.answered_prediction(slot, path, rows, now - began, now - read)
                    return [content]
            status, headers, content = self._answer(environ, body, id_, told)
            outcome = "success"
        except Exception as e:
            status, headers, content = self._problem(e, id_, path)
            outcome, told.rows = _OUTCOME.get(type(e), "invalid" if status < 500 else "error"), 0
        finally:
            if len(body) > self.serving.max_body_bytes:
                self._room.give(len(body) - self.serving.max_body_bytes)
        headers.append(("X-Request-Id", id_))
        now = time.perf_counter()
        self.traffic.answered(method, told.route, str(status), now - began)
        if told.slot is not None:
            self.traffic.predicted(told.slot, outcome, told.rows, now - read)
        start_response(_STATUS_LINE[status], headers)
        return [content]

    def compute(self, bound: Bound, body: bytes, read: Callable[[], Rows], *, partial: bool) -> tuple[Rows, Array]:
        """(the rows that `read` finds in a body, the predictions for the accepted ones), in turn with other requests.

        Raises Overloaded, what `read` does, and BadRows for a refused row unless the rest is asked for.
        """
        lane = self._lane(body)
        lane.take()
        try:
            rows = read()
            if not (partial and len(rows.X)):
                rows.check()
            return rows, bound.loaded.predictor.predict(rows.X)
        finally:
            lane.give()

    def _lane(self, body: bytes) -> Turns:
        if len(body) <= _SMALL_BODY:
            return self._small
        return self._large if len(body) <= self.serving.max_body_bytes else self._tables

    def is_ready(self) -> bool:
        """Whether requests should be sent here: the first slot answers, and the service is not stopping."""
        return self.slots.current[next(iter(self.slots.aliases))] is not None and not self.draining.is_set()

    def _answer_fast(self, slot: str, body: bytes) -> tuple[bytes, str, int] | None:
        """(answer, version, rows) of a body that is right in every way; None for one to be diagnosed."""
        bound, lane = self.bind(slot), self._lane(body)
        lane.take()
        try:
            rows = bound.reader.accept(body)
            if rows is None:
                return None
            predictor = bound.loaded.predictor
            if isinstance(rows, tuple):
                return write_predictions([predictor.predict_row(rows[0])]), bound.version, 1
            return write_predictions(predictor.predict(rows).tolist()), bound.version, len(rows)
        finally:
            lane.give()

    def _answer_arrow(self, slot: str, body: bytes, own_id: str) -> tuple[bytes, str, int]:
        """(answer, version, rows) by the very door that Flask would have gone through, a third of the time sooner.

        Raises what the door does; there is nothing else to ask.
        """
        bound, max_rows = self.bind(slot), self.serving.max_table_rows
        rows, predictions = self.compute(
            bound, body, lambda: read_rows(ARROW, body, bound.reader, max_rows=max_rows), partial=False
        )
        answer = Answer(rows, predictions, bound.loaded.version, own_id, detail=False, partial=False)
        return write_answer(ARROW, answer), bound.version, len(predictions)

    def _answer(self, environ: Environ, body: bytes, id_: str, told: Told) -> tuple[int, Headers, bytes]:
        """(status, headers, content) by Flask."""
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        # werkzeug hands on a copy of the environment, so what comes back does so in an object of its own.
        environ[TOLD] = told
        token = request_id.set(id_)
        try:
            response = Response.from_app(self.flask.wsgi_app, environ, buffered=True)
            return response.status_code, list(response.headers), response.get_data()
        finally:
            request_id.reset(token)

    def bind(self, slot: str) -> Bound:
        """The slot's version at this moment, with its reader. Raises NoModel."""
        loaded, bound = self.slots.current[slot], self._bound.get(slot)
        if bound is not None and bound.loaded is loaded:
            return bound
        if loaded is None:
            fault = self.slots.faults.get(slot, "no version yet")
            # Why one was refused is for the operator, with paths of this machine in it.
            known = f"{fault}; run `gleaner train DATA.csv`" if "no version" in fault else "GET /health_status says why"
            raise NoModel(f"slot {slot} has no model: {known}")
        serving = self.serving
        reader = RowReader(loaded.manifest.schema, max_rows=serving.max_rows, max_depth=serving.max_depth)
        bound = self._bound[slot] = Bound(loaded, reader, str(loaded.version))
        return bound

    def _read_body(self, environ: Environ) -> bytes:
        """The whole body, of bounded length; for what it has beyond `max_body_bytes`, room is taken.

        Raises TooLarge, WrongType, BadBody, Overloaded.
        """
        length, encoding = environ.get("CONTENT_LENGTH", ""), environ.get("HTTP_TRANSFER_ENCODING")
        if not length and encoding is None:
            return b""
        if environ.get("HTTP_CONTENT_ENCODING") is not None:
            raise WrongType("a compressed body is not read; send it as it is, without Content-Encoding")
        if encoding is not None and (length or encoding.strip().lower() != "chunked"):
            raise BadBody("wanted either Content-Length or Transfer-Encoding: chunked")
        limit, expected = self._limit(environ), None
        if encoding is None:
            expected = read_length(length)
            if expected is None:
                raise BadBody("Content-Length is not a number")
            if expected > limit:
                raise TooLarge(f"{expected:,} bytes; one request takes {limit:,}")
        self._reading.take()
        try:
            return self._read_pieces(environ["wsgi.input"], expected, limit)
        finally:
            self._reading.give()

    def _read_pieces(self, stream: Any, expected: int | None, limit: int) -> bytes:
        if expected is not None and expected <= min(_AT_ONCE, self.serving.max_body_bytes):
            body: bytes = stream.read(expected)
            if len(body) == expected:
                return body
        else:
            body = b""
        pieces, read, held = [body], len(body), 0
        try:
            while expected is None or read < expected:
                piece = stream.read(_PIECE if expected is None else min(_AT_ONCE, expected - read))
                if not piece:
                    break
                pieces.append(piece)
                read += len(piece)
                if read > limit:
                    raise TooLarge(f"more than {limit:,} bytes; one request takes no more")
                if (more := read - self.serving.max_body_bytes - held) > 0:
                    self._room.take(more)
                    held += more
            if expected is not None and read != expected:
                raise BadBody(f"the body ended after {read:,} of {expected:,} bytes")
            return b"".join(pieces)
        except BaseException:
            self._room.give(held)
            raise

    def _limit(self, environ: Environ) -> int:
        """The most bytes that a body may have: tables have more of them than JSON."""
        path = environ["PATH_INFO"]
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        is_table = kind in TABLES and (path in self._paths or path == "/invocations")
        if is_table or (_HEADER_LENGTH in environ and path.endswith("/infer")):
            return self.serving.max_table_bytes
        return self.serving.max_body_bytes

    def _problem(self, error: Exception, id_: str, path: str) -> tuple[int, Headers, bytes]:
        """(status, headers, content) of what went wrong; nothing of our inside is shown."""
        headers: Headers = [("Content-Type", PROBLEM)]
        if isinstance(error, HTTPException):
            status, detail = error.code or 500, error.description or ""
            if error.description == NotFound.description:  # a route's own says more
                detail = f"no such route; predictions are at POST {', '.join(self._paths)}, and /docs shows every other"
            headers += [(k, v) for k, v in error.get_headers() if k in {"Allow", "Location"}]
        else:
            status, detail = _STATUS.get(type(error), 500), str(error)
        if status == 500:
            log.error("request failed", exc_info=error, extra={"request_id": id_})
            detail = f"an error of the service; its log has it under {id_}"
        if type(error) in _RETRY_SECONDS:
            headers.append(("Retry-After", _RETRY_SECONDS[type(error)]))
        errors = error.entries() if isinstance(error, BadRows) else []
        more = protocol_error(path, status, "; ".join(_in_a_line(e) for e in errors[:3]) or detail)
        return status, headers, problem(status, HTTPStatus(status).phrase, detail, id_, errors, **more)


def _in_a_line(entry: Mapping[str, object]) -> str:
    return f"{entry['pointer']}: {entry['detail']}" if entry["pointer"] else str(entry["detail"])
