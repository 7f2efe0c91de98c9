"""Requests and responses, as the server and the application exchange them."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from gleaner.errors import Abandoned, GleanerError

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class Response(NamedTuple):
    """A response; the server adds its length and its date.

    delay: the seconds before it is sent.
    """

    status: int
    headers: Headers
    content: bytes
    delay: float = 0.0


class Request:
    """One request: its WSGI environment and its body so far.

    began, read: the times of its first and of its last byte, by `time.perf_counter`.
    size: the bytes of the body so far.
    error: the reason to refuse the request, if there is one.
    closes: whether the connection closes after the response.
    is_counted: whether the request counts as in progress.
    is_wanted: False once the client has hung up, so that work for it may stop.
    """

    __slots__ = (
        "began", "body", "chunks", "closes", "environ", "error", "expects", "is_counted", "is_wanted", "limit", "read",
        "size",
    )  # fmt: skip

    def __init__(self, environ: Environ) -> None:
        self.environ, self.body, self.size = environ, b"", 0
        self.began = self.read = time.perf_counter()
        self.chunks = self.limit = 0
        self.error: GleanerError | None = None
        self.closes = self.expects = self.is_counted = False
        self.is_wanted = True


current: ContextVar[Request | None] = ContextVar("request", default=None)
"""The request that this thread answers."""


def check_wanted() -> None:
    """Raise Abandoned if the client of the current request has hung up."""
    request = current.get()
    if request is not None and not request.is_wanted:
        raise Abandoned("the client ended the connection before the table was read")


class Application(Protocol):
    """The part of the service that answers requests.

    The server calls all methods but `respond` on its loop, so they must not wait.
    """

    def admit(self, request: Request) -> int:
        """Return the most bytes that the body may have.

        Raises a GleanerError to refuse the request unread.
        """

    def hold(self, size: int, more: int) -> None:
        """Take the last `more` bytes of a body. Raises Overloaded."""

    def release(self, request: Request) -> None:
        """Let go of a request, after its response."""

    def count(self, request: Request) -> None:
        """Count a request that cannot be answered at once as in progress."""

    def respond_at_once(self, request: Request) -> Response | None:
        """Answer a request that takes only a moment, else return None."""

    def respond(self, request: Request) -> Response:
        """Answer any whole request, on a thread."""

    def refuse(self, request: Request, error: GleanerError) -> Response:
        """Answer a request that is not whole, or not HTTP."""
