"""One registered model of an MLflow server, over HTTP.

Three kinds of request are enough, so nothing of MLflow is imported. Every wait, response and file has a limit: a
broken server delays new versions, and never affects the versions in service.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec

from gleaner import __version__
from gleaner.errors import BadArtifact, GleanerError
from gleaner.redaction import hide_userinfo, redact
from gleaner.serving.deadline import DeadlineBackend
from gleaner.settings.environment import read_authorization
from gleaner.settings.sections import ARTIFACTS, Settings

T = TypeVar("T")

# The results of a poll, which are values of a metric's label.
RESULTS = ("success", "unreachable", "error", "invalid", "store", "internal")

_API, _ARTIFACTS = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"
_LARGEST_RESPONSE, _LARGEST_MESSAGE = 1 << 20, 1 << 16

_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_NOT_THERE = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"})
LONGEST_REASON = 500
_KEY = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_CALL = "tracking.timeout_seconds"  # the limit of each call but a fetch, and of a silence in a fetch
_START = "start the server, or set tracking.uri to its address"


class Trouble(GleanerError):
    """A reason why a registry cannot be followed for now.

    result: one of RESULTS.
    fix: what may help, or nothing.
    """

    def __init__(self, result: str, message: str, fix: str = "") -> None:
        super().__init__(f"{message}; {fix}" if fix else message)
        self.result, self.message, self.fix = result, message, fix


# The parts of MLflow's responses that are read here.


class Version(msgspec.Struct, frozen=True):
    """A version as the server describes it.

    source: tells versions of the same number apart if the registry was replaced.
    """

    name: str
    version: str
    source: str = ""

    @property
    def number(self) -> int:
        return int(self.version)


class _Aliased(msgspec.Struct):
    model_version: Version


class _Location(msgspec.Struct):
    artifact_uri: str


class _Fault(msgspec.Struct):
    error_code: str
    message: str = ""


class _Nothing(msgspec.Struct):
    pass


class MlflowServer:
    """One registered model of an MLflow server. Its methods raise Trouble."""

    def __init__(self, settings: Settings) -> None:
        self.name, self.model = settings.tracking_uri.rstrip("/"), settings.model.name
        self._seconds = settings.tracking.timeout_seconds
        # A training without a server leaves its files here, and the server of `gleaner up` serves them.
        self._own_files = (settings.state.absolute() / ARTIFACTS).as_uri() + "/"
        parts = urlsplit(self.name)
        self._host = parts.netloc
        agent = f"gleaner/{__version__}"
        self._headers = [("Host", self._host), ("User-Agent", agent), ("Accept-Encoding", "identity")]
        self._headers.append(("Connection", "close"))
        if authorization := read_authorization(settings):
            self._headers.append(("Authorization", authorization))
        self._backend = DeadlineBackend(self._seconds)
        self._pool = httpcore.ConnectionPool(
            # The system's certificates, which include a company's own; SSL_CERT_FILE names others.
            ssl_context=ssl.create_default_context() if parts.scheme == "https" else None,
            # One connection per request: a connection that the server has closed meanwhile would look like a fault.
            max_keepalive_connections=0,
            network_backend=self._backend,
        )

    def version(self, alias: str) -> Version | None:
        """Return an alias's version; None for a missing alias or model."""
        query = urlencode({"name": self.model, "alias": alias})
        found = self._ask("GET", f"{_API}/registered-models/alias?{query}", _Aliased)
        if found is None:
            return None
        version = found.model_version
        if version.name != self.model or not _VERSION.fullmatch(version.version):
            what = f"version {version.version[:20]!r} of {version.name[:80]!r}"
            raise self._trouble("invalid", f"says that {alias!r} is {what}")
        return version

    def location(self, version: int) -> str:
        """Return the path of a version's files among the server's artifacts.

        Raises BadArtifact for files anywhere else.
        """
        query = urlencode({"name": self.model, "version": version})
        found = self._ask("GET", f"{_API}/model-versions/get-download-uri?{query}", _Location)
        if found is None:
            raise self._trouble("invalid", f"knows no version {version}, although an alias points at it")
        uri = hide_userinfo(found.artifact_uri)[:200]
        scheme, _, rest = found.artifact_uri.partition(":")
        if found.artifact_uri.startswith(self._own_files):
            scheme, rest = "mlflow-artifacts", "/" + found.artifact_uri.removeprefix(self._own_files)
        host, path = "", rest
        if rest.startswith("//"):
            host, _, path = rest[2:].partition("/")
        if scheme != "mlflow-artifacts" or host not in {"", self._host}:
            reason = f"its files are at {uri!r}, and only files that the MLflow server itself serves are fetched"
            fix = "start MLflow with --artifacts-destination and train again"
            raise BadArtifact(self.name, "location", f"{reason}; {fix}")
        steps = path.strip("/").split("/")
        if len(path) > 2_000 or not all(_is_step(step) for step in steps):
            raise BadArtifact(self.name, "location", f"{uri!r} is no path to its files")
        return "/".join(quote(step, safe="") for step in steps)

    def fetch(self, path: str, into: Path, largest: int, until: float) -> None:
        """Write one of the server's artifacts to a file.

        largest: the most bytes that the file may have.
        until: the end of all waiting, as a reading of the monotonic clock.
        Raises BadArtifact for a missing or larger file.
        """
        with self._send("GET", f"{_ARTIFACTS}/{path}", until, "tracking.fetch_seconds") as response:
            if response.status != 200:
                self._check_missing(response.status, path, _read(response))
                raise BadArtifact(self.name, "missing", f"no {'/'.join(path.split('/')[-2:])} among its files")
            size = 0
            with into.open("wb") as file:
                for piece in response.iter_stream():
                    size += len(piece)
                    if size > largest:
                        raise BadArtifact(self.name, "size", f"{into.name} has more than {largest:,} bytes")
                    file.write(piece)

    def move(self, alias: str, version: int) -> None:
        """Point an alias at a version. Raises Trouble for a missing version."""
        body = msgspec.json.encode({"name": self.model, "alias": alias, "version": str(version)})
        if self._ask("POST", f"{_API}/registered-models/alias", _Nothing, body) is None:
            what = f"version {version} of {self.model!r}"
            raise self._trouble("error", f"knows no {what}, or refuses the alias {alias!r}")

    def _ask(self, method: str, path: str, kind: type[T], body: bytes = b"") -> T | None:
        """Return the server's response; None for something that is missing there."""
        until = time.monotonic() + self._seconds
        with self._send(method, path, until, _CALL, body) as response:
            content, status = _read(response), response.status
        if content is None:
            raise self._trouble("invalid", f"sent more than {_LARGEST_RESPONSE:,} bytes")
        if status != 200:
            self._check_missing(status, path, content)
            return None
        found = _decode(content, kind)
        if found is None:
            raise self._trouble("invalid", f"sent something that is not MLflow's: {_cut(content)!r}")
        return found

    def _check_missing(self, status: int, path: str, content: bytes | None) -> None:
        """Raise Trouble unless MLflow itself reports something missing."""
        fault = _decode(content or b"", _Fault)
        if status in {400, 404} and fault and fault.error_code in _NOT_THERE:
            return
        why = _cut(fault.message, 200) if fault else repr(_cut(content or b""))
        detail = f"responded to {path.partition('?')[0]} with {status}: {why}"
        fix = {401: _KEY, 403: f"start the server with --allowed-hosts {self._host}, or {_KEY}"}.get(status, "")
        if 300 <= status < 400:
            detail, fix = f"responded with {status}, a redirect", "set tracking.uri to the address that it leads to"
        raise self._trouble("error", detail, fix)

    @contextmanager
    def _send(
        self, method: str, path: str, until: float, setting: str, body: bytes = b""
    ) -> Iterator[httpcore.Response]:
        """Yield a response once its head is there.

        until: the end of all waiting, as a reading of the monotonic clock.
        setting: the setting that this limit comes from.
        """
        self._backend.until, self._backend.ended = until, False
        headers = [*self._headers, *([("Content-Type", "application/json")] if body else [])]
        try:
            with self._pool.stream(method, self.name + path, headers=headers, content=body) as response:
                yield response
        except httpcore.ConnectTimeout as e:
            raise self._trouble("unreachable", "no connection in time", _START) from e
        except httpcore.TimeoutException as e:
            is_silent = setting != _CALL and time.monotonic() < until
            detail = f"sent nothing for {self._seconds:g} s" if is_silent else f"no complete response within {setting}"
            raise self._trouble("unreachable", detail) from e
        # A malformed host name raises UnicodeError before it is looked up.
        except (httpcore.NetworkError, UnicodeError) as e:
            raise self._trouble("unreachable", f"cannot be reached: {e}", _START) from e
        except httpcore.ProtocolError as e:
            result = "unreachable" if self._backend.ended else "invalid"
            raise self._trouble(result, f"did not send a complete HTTP response: {redact(str(e))[:200]}") from e

    def _trouble(self, result: str, detail: str, fix: str = "") -> Trouble:
        return Trouble(result, f"MLflow at {self.name}: {hide_userinfo(detail)[:LONGEST_REASON]}", fix)


def _read(response: httpcore.Response) -> bytes | None:
    """Read a response's body; None if it is too large."""
    pieces, size = [], 0
    for piece in response.iter_stream():
        size += len(piece)
        if size > _LARGEST_RESPONSE:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _decode(content: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _cut(content: bytes | str, most: int = 80) -> str:
    """Return the start of a response.

    MLflow's messages may contain its database's address. Passwords are hidden first: a cut one has lost its `@`.
    """
    text = content if isinstance(content, str) else content[:_LARGEST_MESSAGE].decode("utf-8", "replace")
    return hide_userinfo(redact(text[:_LARGEST_MESSAGE]))[:most]


def _is_step(step: str) -> bool:
    return step not in {"", ".", ".."} and step.isprintable() and not set("\\%?#") & set(step)
