"""The application, which gives every request its response.

It also gives each its id, and counts and times it. Small faultless predictions are
made at once, on the server's loop. A thread answers every other request, mostly by Flask.
"""

from __future__ import annotations

import gc
import io
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response as FlaskResponse
from prometheus_client import CollectorRegistry

from gleaner.errors import BadBody, GleanerError, Overloaded, TooLarge, Unauthorized
from gleaner.logs import request_id
from gleaner.machine import memory
from gleaner.serving.access import Access
from gleaner.serving.access_log import AccessLog
from gleaner.serving.bodies import Bodies
from gleaner.serving.endpoints.responses import TALLY, Tally
from gleaner.serving.exchange import Environ, Headers, Request, Response, current
from gleaner.serving.formats.json import JSON, read_length
from gleaner.serving.keys import Keys
from gleaner.serving.metrics import UNMATCHED, Models, Traffic
from gleaner.serving.problems import describe_error
from gleaner.serving.routes import make_flask, route_of
from gleaner.serving.service import SMALL_BODY, Service
from gleaner.serving.slots import Slots
from gleaner.settings.sections import Serving
from gleaner.table.arrow.format import ARROW
from gleaner.table.schema import Schema

if TYPE_CHECKING:
    from gleaner.serving.follower import Follower


log = logging.getLogger(__name__)

StartResponse = Callable[[str, Headers], Any]

_OUTCOME: Mapping[type[BaseException], str] = {Overloaded: "overloaded"}
_STATUS_LINE = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_JSON_TYPES = frozenset({JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=utf-8", f"{JSON}; charset=UTF-8"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class App:
    """The application that the server, or any WSGI server, calls.

    schema: the columns to describe while there is no version.
    follower: the follower of an MLflow server's aliases, if there is one.
    keys: the keys that callers need, if they need any.
    encoding: the encoding of CSV bodies in the settings, empty for none.
    draining: set when the process has to stop.
    """

    def __init__(
        self,
        slots: Slots,
        serving: Serving,
        registry: CollectorRegistry,
        schema: Schema | None = None,
        follower: Follower | None = None,
        keys: Keys | None = None,
        encoding: str = "",
    ) -> None:
        self.service = Service(slots, serving, registry, schema, follower, encoding)
        self.slots, self.serving, self.registry = slots, serving, registry
        self.draining, self.is_ready = self.service.draining, self.service.is_ready
        self.flask = make_flask(self.service)
        self._paths = {f"/{slot}/predict": slot for slot in slots.aliases}
        self.traffic = Traffic(slots.aliases, {route_of(rule) for rule in self.flask.url_map.iter_rules()}, registry)
        Models(slots, registry)
        self.bodies = Bodies(serving, {*self._paths, "/invocations"})
        self.access = Access(serving, keys, {*self._paths, "/invocations"}, registry)
        self.log = AccessLog(serving, self.access.find_client)
        self._slow_seconds = -1.0 if serving.access_log else serving.slow_seconds
        self._predict_at_once = self.service.predict_at_once  # one look-up instead of two
        self._prefix, self._ids = secrets.token_hex(5), itertools.count(1)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Respond as a WSGI callable. Source: PEP 3333."""
        request = Request(environ)
        self.count(request)
        try:
            if limit := self.admit(request):
                length = read_length(environ.get("CONTENT_LENGTH", ""))
                request.body = environ["wsgi.input"].read(limit + 1 if length is None else length)
                size = len(request.body)
                if size > limit:
                    raise TooLarge(f"more than {limit:,} bytes; one request takes no more")
                if length not in {None, size}:
                    raise BadBody(f"the body ended after {size:,} of {length:,} bytes")
                self.hold(size, size)
                request.size, request.read = size, time.perf_counter()
            response = self.respond_at_once(request) or self.respond(request)
        except GleanerError as e:
            response = self.refuse(request, e)
        finally:
            self.release(request)
        start_response(_STATUS_LINE[response.status], response.headers)
        return [response.content]

    def admit(self, request: Request) -> int:
        """Return the most bytes that the body may have.

        Raises Unauthorized, Forbidden, Misdirected, TooLarge, WrongType, BadBody.
        """
        self.access.check(request.environ)
        return self.bodies.limit(request.environ)

    def hold(self, size: int, more: int) -> None:
        """Take the last `more` bytes of a body. Raises Overloaded."""
        self.bodies.hold(size, more)

    def release(self, request: Request) -> None:
        """Let go of a request, after its response."""
        self.bodies.release(request.size)
        request.body = b""
        if request.size > self.serving.max_body_bytes:
            gc.collect(1)  # the traceback of a refused table holds its body
            memory.release()  # else the allocator keeps the memory of the largest table
        if request.is_counted:
            self.traffic.ended()

    def count(self, request: Request) -> None:
        """Count a request as in progress, until its release."""
        request.is_counted = True
        self.traffic.began()

    def respond_at_once(self, request: Request) -> Response | None:
        """Predict a small faultless body of JSON; return None otherwise."""
        environ = request.environ
        path = environ["PATH_INFO"]
        slot = self._paths.get(path)
        if (
            slot is None
            or request.size > SMALL_BODY
            or environ["REQUEST_METHOD"] != "POST"
            or environ["QUERY_STRING"]
            or environ.get("CONTENT_TYPE") not in _JSON_TYPES
        ):
            return None
        predicted = self._predict_at_once(slot, request.body)
        if predicted is None:
            return None
        content, version, rows = predicted
        own_id = f"{self._prefix}-{next(self._ids):x}"
        asked_id = environ.get("HTTP_X_REQUEST_ID")
        id_ = asked_id if asked_id is not None and _ID.fullmatch(asked_id) else own_id
        headers = [
            ("Content-Type", JSON),
            ("X-Request-Id", id_),
            ("X-Model-Version", version),
            ("X-Prediction-Id", own_id),
        ]
        now = time.perf_counter()
        seconds, response = now - request.began, Response(200, headers, content)
        self.traffic.count_prediction(slot, path, rows, seconds, now - request.read)
        if seconds > self._slow_seconds:
            self.log.note(request, Tally(path, slot, own_id, id_, rows), response, seconds)
        return response

    def respond(self, request: Request) -> Response:
        """Respond to any whole request, whatever happens."""
        tally, token = self._tally(request), current.set(request)
        try:
            response = self._predict(request, tally) or self._ask_flask(request, tally)
        except BaseException as e:  # a library may raise more than an Exception, and the client waits for a response
            return self._fail(request, tally, e)
        finally:
            current.reset(token)
        return self._finish(request, tally, "success", response)

    def refuse(self, request: Request, error: GleanerError) -> Response:
        """Respond to a request that is not whole, or not HTTP."""
        request.read = time.perf_counter()
        return self._fail(request, self._tally(request), error)

    def _tally(self, request: Request) -> Tally:
        environ = request.environ
        path, own_id = environ.get("PATH_INFO", ""), f"{self._prefix}-{next(self._ids):x}"
        asked_id = environ.get("HTTP_X_REQUEST_ID")
        id_ = asked_id if asked_id is not None and _ID.fullmatch(asked_id) else own_id
        slot = self._paths.get(path) if environ.get("REQUEST_METHOD") == "POST" else None
        return Tally(path if path in self.traffic.routes else UNMATCHED, slot, own_id, id_)

    def _predict(self, request: Request, tally: Tally) -> Response | None:
        """Predict a faultless body of JSON or Arrow without Flask.

        Returns None for every other request.
        """
        environ, slot = request.environ, tally.slot
        if slot is None or environ["QUERY_STRING"]:
            return None
        kind = environ.get("CONTENT_TYPE")
        if kind == ARROW:
            content, version, tally.rows = self.service.predict_arrow(slot, request.body, tally.id)
        elif kind in _JSON_TYPES and (predicted := self.service.predict_json(slot, request.body)):
            kind, (content, version, tally.rows) = JSON, predicted
        else:
            return None
        headers = [("Content-Type", kind), ("X-Model-Version", version), ("X-Prediction-Id", tally.id)]
        return Response(200, headers, content)

    def _ask_flask(self, request: Request, tally: Tally) -> Response:
        # werkzeug copies the environment, so a route can report back only through an object in it.
        more = {"wsgi.input": io.BytesIO(request.body), "CONTENT_LENGTH": str(len(request.body)), TALLY: tally}
        environ = {**request.environ, **more}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        token = request_id.set(tally.request_id)
        try:
            response = FlaskResponse.from_app(self.flask.wsgi_app, environ, buffered=True)
            return Response(response.status_code, list(response.headers), response.get_data())
        finally:
            request_id.reset(token)

    def _fail(self, request: Request, tally: Tally, error: BaseException) -> Response:
        path = request.environ.get("PATH_INFO", "")
        status, headers, content = describe_error(error, tally.request_id, path, self._paths)
        if status == 500:
            log.error("request failed", exc_info=error, extra={"request_id": tally.request_id})
        tally.rows = 0
        outcome = _OUTCOME.get(type(error), "invalid" if status < 500 else "error")
        delay = error.delay if isinstance(error, Unauthorized) else 0.0
        return self._finish(request, tally, outcome, Response(status, headers, content, delay), type(error).__name__)

    def _finish(self, request: Request, tally: Tally, outcome: str, response: Response, error: str = "") -> Response:
        response.headers.append(("X-Request-Id", tally.request_id))
        now, method = time.perf_counter(), request.environ.get("REQUEST_METHOD", "")
        self.traffic.count_response(method, tally.route, str(response.status), now - request.began)
        if tally.slot is not None:
            self.traffic.predicted(tally.slot, outcome, tally.rows, now - request.read)
        self.log.note(request, tally, response, now - request.began, error)
        return response
