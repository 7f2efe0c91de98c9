"""Requests of HTTP/1.1, read from the bytes of a connection.

httptools parses. It is llhttp, the strict parser of Node.js: a broken chunk, an end that comes too early, or a length
beside `Transfer-Encoding` is an error there, so a cut body is never taken for a whole one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

import httptools

from gleaner.errors import BadBody, GleanerError, TooLarge
from gleaner.serving.exchange import Application, Environ, Request

# Half a million chunks of one byte cost more to parse than the largest body costs to predict.
_FREE_CHUNKS, _SMALLEST_CHUNK = 1_000, 64

_ONCE = frozenset({"HTTP_HOST", "CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING"})
_CGI = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})
_USUAL = (
    "Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Content-Type", "Content-Length",
    "X-Api-Key", "Authorization", "X-Request-Id", "X-Forwarded-For",
)  # fmt: skip


class RequestReader:
    """The reader of one connection's requests.

    make_environ: makes the environment of each, before its headers.
    whole: requests that are read to their end, in order.
    request: the request that is being read.
    is_in_body: whether its headers are whole.
    """

    def __init__(self, app: Application, make_environ: Callable[[], Environ]) -> None:
        self._app, self._make_environ = app, make_environ
        self._parser = httptools.HttpRequestParser(self)
        self.whole: deque[Request] = deque()
        self.request: Request | None = None
        self.is_in_body = False
        self._url, self._pieces = b"", bytearray()

    def feed(self, data: bytes) -> None:
        """Read bytes. Raises BadBody for bytes that are not HTTP/1.1."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.whole[-1].closes = True  # no other protocol is spoken here
        except httptools.HttpParserError as e:
            raise BadBody(f"not HTTP/1.1: {e}") from e

    def give_up(self) -> Request:
        """Stop reading the current request, and return it."""
        request, self.request = self.request or Request(self._make_environ()), None
        request.closes = True
        return request

    # The parser calls these.

    def on_message_begin(self) -> None:
        self.request, self._url, self.is_in_body = Request(self._make_environ()), b"", False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if b"_" in name:
            return  # else X_Request_Id would pass for X-Request-Id
        assert self.request
        environ, key = self.request.environ, _KEYS.get(name) or _key(name)
        if key not in environ:
            environ[key] = value.decode("latin-1")
        elif key in _ONCE:
            self.request.error = self.request.error or BadBody(f"the header {name.decode('latin-1')} stands twice")
        else:
            environ[key] += ", " + value.decode("latin-1")

    def on_headers_complete(self) -> None:
        request = self.request
        assert request
        environ = request.environ
        environ["REQUEST_METHOD"] = self._parser.get_method().decode("ascii")
        environ["SERVER_PROTOCOL"] = f"HTTP/{self._parser.get_http_version()}"
        environ["PATH_INFO"], environ["QUERY_STRING"] = _split(self._url)
        request.closes = not self._parser.should_keep_alive()
        request.expects = environ.get("HTTP_EXPECT", "").lower() == "100-continue"
        if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
            request.error = request.error or BadBody("the header Host is missing")
        try:
            request.limit = self._app.admit(request)
        except GleanerError as e:
            request.error = request.error or e
        request.closes |= isinstance(request.error, BadBody)
        self.is_in_body = True

    def on_body(self, body: bytes) -> None:
        request = self.request
        assert request
        if request.error is not None:
            return
        size = request.size + len(body)
        request.chunks += 1
        try:
            if size > request.limit:
                raise TooLarge(f"more than {request.limit:,} bytes; one request takes no more")
            if request.chunks > _FREE_CHUNKS and size < _SMALLEST_CHUNK * request.chunks:
                raise BadBody(f"{request.chunks:,} chunks for {size:,} bytes; send larger chunks")
            self._app.hold(size, len(body))
        except GleanerError as e:
            request.error = e
            return
        request.size = size
        if request.chunks == 1:
            request.body = body
        else:
            if request.chunks == 2:
                self._pieces = bytearray(request.body)
            self._pieces += body

    def on_message_complete(self) -> None:
        request, self.request = self.request, None
        assert request
        if request.chunks > 1:
            request.body, self._pieces = bytes(self._pieces), bytearray()
        self.whole.append(request)


def _key(name: bytes) -> str:
    """Return the WSGI key of a header."""
    text = name.decode("latin-1").upper().replace("-", "_")
    return text if text in _CGI else "HTTP_" + text


_KEYS: Mapping[bytes, str] = {form.encode(): _key(name.encode()) for name in _USUAL for form in (name, name.lower())}


def _split(url: bytes) -> tuple[str, str]:
    """Return (path, query) of a request's target, as WSGI has them."""
    if url.startswith(b"/"):
        path, _, query = url.partition(b"?")
    else:
        try:
            parsed = httptools.parse_url(url)
            path, query = parsed.path or b"/", parsed.query or b""
        except httptools.HttpParserError:
            path, query = url, b""
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query.decode("latin-1")
