"""One HTTP/1.1 connection, with a time limit on every wait."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Protocol

from gleaner.errors import BadBody, GleanerError, HeadTooLarge, Overloaded, TooSlow
from gleaner.serving.exchange import Application, Environ, Request, Response
from gleaner.serving.reading import RequestReader

_HEAD_BYTES = 1 << 16
_HEAD_SECONDS, _IDLE_SECONDS, _WRITE_SECONDS = 10.0, 75.0, 60.0

# A body may take 60 s, and one second for each 16 kB. After 10 s, 1 kB/s on average is the least.
_BODY_SECONDS, _BYTES_A_SECOND = 60.0, 16_000
_SLOW_AFTER_SECONDS, _SLOWEST_BYTES_A_SECOND = 10.0, 1_000

# A refused client is still sending. Its bytes are dropped for a while: closing at once would reset the connection,
# and the client would never see the response.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 4 << 20

# Bytes that pipelined requests may wait with, and requests answered before other connections have their turn.
_LATER_BYTES, _IN_A_ROW = 1 << 16, 16

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class Host(Protocol):
    """The server, as its connections need it.

    environ: the part that all WSGI environments share.
    now: `time.monotonic`, within a second.
    date: the value of the header Date.
    """

    app: Application
    loop: asyncio.AbstractEventLoop
    connections: set[Connection]
    max_connections: int
    is_stopping: bool
    environ: Environ
    now: float
    date: str

    def submit(self, connection: Connection, request: Request) -> None:
        """Have a thread answer a request."""

    def notice_end(self) -> None:
        """Note that a connection has ended."""


class State(Enum):
    """The state of a connection."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    WORK = auto()
    LINGER = auto()


class Connection(asyncio.Protocol):
    """One connection, from its first byte to its last.

    It answers requests one at a time, in their order.

    client: the other end's address, if a proxy tells another than the connection's own.
    """

    _transport: Any
    client = ""

    def __init__(self, server: Host) -> None:
        self._server = server
        self._reader = RequestReader(server.app, self._environ)
        self._work: Request | None = None
        self._base: Environ | None = None
        self._later, self._unsent, self._size = b"", 0, 0
        self.state, self._since = State.IDLE, server.now

    # The loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.connections.add(self)
        if len(self._server.connections) > self._server.max_connections:
            self._refuse(Overloaded("too many connections are open"))

    def data_received(self, data: bytes) -> None:
        if self.state is State.LINGER:
            self._size += len(data)
            if self._size > _LINGER_BYTES:
                self._transport.abort()
        elif self._work is not None or self._reader.whole:
            self._later += data
            if len(self._later) > _LATER_BYTES:
                self._transport.pause_reading()
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        """Return whether a response is still to come on the connection."""
        if self._work is not None:
            self._work.is_wanted = False  # almost every client that ends its side has hung up
        if request := self._reader.request:
            got = f"{request.size:,} bytes of its body" if self._reader.is_in_body else "a part of its headers"
            self._refuse(BadBody(f"the request ended too early, after {got}"))
        return self._work is not None or bool(self._reader.whole)

    def connection_lost(self, exc: Exception | None) -> None:
        app, request = self._server.app, self._reader.request
        if self._work is not None:
            self._work.is_wanted = False
        if request is not None and self._reader.is_in_body:
            app.refuse(request, BadBody("the client hung up before the end of the body"))
            app.release(request)
        for whole in self._reader.whole:
            app.release(whole)
        self._reader.request = None
        self._reader.whole.clear()
        self._server.connections.discard(self)
        self._server.notice_end()

    def _feed(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
        except BadBody as e:
            request = reader.give_up()
            request.error = e
            reader.whole.append(request)
        if reader.whole:
            self._answer()
        else:
            self._wait_for_more(len(data))

    def _wait_for_more(self, size: int) -> None:
        """Go on with an incomplete request, or refuse it.

        size: the bytes of it that have just come.
        """
        request = self._reader.request
        if request is None:
            self._enter(State.IDLE)
        elif not self._reader.is_in_body:
            if self.state is not State.HEAD:
                self._enter(State.HEAD)
            self._size += size
            if self._size > _HEAD_BYTES:
                self._refuse(HeadTooLarge(f"more than {_HEAD_BYTES:,} bytes of headers"))
        elif request.error is not None:
            self._refuse(request.error)
        elif self.state is not State.BODY:
            self._enter(State.BODY)
            if request.expects:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._server.app.count(request)

    def _answer(self) -> None:
        """Answer whole requests until one of them needs a thread."""
        app, whole = self._server.app, self._reader.whole
        for _ in range(_IN_A_ROW):
            if not whole or self._work is not None or self.state is State.LINGER:
                break
            request = whole.popleft()
            if request.error is not None:
                self._write(request, app.refuse(request, request.error))
                continue
            request.read = time.perf_counter()
            response = app.respond_at_once(request)
            if response is not None:
                self._write(request, response)
            else:
                self._work = request
                self._enter(State.WORK)
                if not request.is_counted:
                    app.count(request)
                self._server.submit(self, request)
        else:
            self._server.loop.call_soon(self._answer)
            return
        if not whole and self._work is None and self.state is not State.LINGER:
            self._wait_for_more(0)
            if self._later:
                later, self._later = self._later, b""
                self._transport.resume_reading()
                self._feed(later)

    def finish(self, request: Request, response: Response) -> None:
        """Write the response that a thread has made."""
        self._work = None
        if self._transport.is_closing():
            self._server.app.release(request)
            return
        self._write(request, response)
        if self.state is not State.LINGER:
            self._answer()

    def _write(self, request: Request, response: Response) -> None:
        if response.delay:
            self._work = request
            self._enter(State.WORK)
            self._server.loop.call_later(response.delay, self.finish, request, response._replace(delay=0.0))
            return
        closes = request.closes or self._server.is_stopping
        self._transport.write(_encode(response, self._server.date, closes=closes))
        self._server.app.release(request)
        if closes:
            self._linger()

    def _refuse(self, error: GleanerError) -> None:
        """Respond to an incomplete request, and close."""
        request = self._reader.give_up()
        self._write(request, self._server.app.refuse(request, error))

    def _linger(self) -> None:
        """Close, once the client has had the time to read the response."""
        for request in self._reader.whole:
            self._server.app.release(request)
        self._reader.whole.clear()
        self._later = b""
        self._enter(State.LINGER)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _enter(self, state: State) -> None:
        self.state, self._since, self._size = state, self._server.now, 0

    def _environ(self) -> Environ:
        if self._base is None:
            self._base = {**self._server.environ, **_describe_peer(self._transport, self.client)}
        return self._base.copy()

    def check_time(self, now: float) -> None:
        """Close if the client has kept the server waiting for too long."""
        waited, request, unsent = now - self._since, self._reader.request, self._transport.get_write_buffer_size()
        if unsent and unsent == self._unsent and waited > _WRITE_SECONDS:
            self._transport.abort()
        elif self.state is State.IDLE and not unsent and waited > _IDLE_SECONDS:
            self._transport.close()
        elif self.state is State.LINGER and not unsent and waited > _LINGER_SECONDS:
            self._transport.abort()
        elif error := _find_delay(self.state, request, waited):
            self._refuse(error)
        self._unsent = unsent

    def close_if_idle(self) -> None:
        """Close, unless a request has been sent, in part or whole."""
        if self.state is State.IDLE and not self._later and not _is_readable(self._transport):
            self._transport.close()

    @property
    def is_unanswered(self) -> bool:
        """Whether a request, in part or whole, has no response yet."""
        return self._work is not None or bool(self._reader.whole) or self._reader.request is not None

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def _encode(response: Response, date: str, *, closes: bool) -> bytes:
    """Write a response as HTTP/1.1."""
    lines, length = [_STATUS_LINES[response.status]], len(response.content)
    for name, value in response.headers:
        if name == "Content-Length":
            length = int(value)  # of a response to HEAD, which has no content
        else:
            lines.append(f"{name}: {value}\r\n")
    lines.append(f"Content-Length: {length}\r\nDate: {date}\r\n")
    lines.append("Connection: close\r\n\r\n" if closes else "\r\n")
    return "".join(lines).encode("latin-1") + response.content


def _describe_peer(transport: Any, client: str) -> Environ:
    """Return the part of the WSGI environment about the other end."""
    peer = transport.get_extra_info("peername") or ("", 0)
    return {"REMOTE_ADDR": client or str(peer[0]), "REMOTE_PORT": str(peer[1])}


def _find_delay(state: State, request: Request | None, seconds: float) -> TooSlow | None:
    """Return the error of a request that takes too long."""
    if state is State.HEAD and seconds > _HEAD_SECONDS:
        return TooSlow(f"the headers took more than {_HEAD_SECONDS:g} s")
    if state is State.BODY and request and _is_too_slow(request.size, seconds):
        return TooSlow(f"{request.size:,} bytes of the body in {seconds:.0f} s are too few")
    return None


def _is_too_slow(size: int, seconds: float) -> bool:
    """Return whether a body of `size` bytes so far takes too long."""
    is_slow = seconds > _SLOW_AFTER_SECONDS and size < _SLOWEST_BYTES_A_SECOND * seconds
    return is_slow or seconds > _BODY_SECONDS + size / _BYTES_A_SECOND


def _is_readable(transport: Any) -> bool:
    """Return whether the kernel holds bytes that are not read yet."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return False
