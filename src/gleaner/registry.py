"""An MLflow server's aliases -> versions -> files into the store, from inside the serving process.

Three requests do it, so nothing of MLflow is imported. Whatever the server does, it can only fail to bring news:
every wait, every answer and every file has its bound, and the store is touched last.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec

from gleaner import __version__
from gleaner.artifact import (
    LARGEST_MANIFEST,
    LARGEST_MODEL,
    MANIFEST,
    MODEL,
    REASONS,
    Artifact,
    Manifest,
    read_artifact,
    read_manifest,
)
from gleaner.errors import BadArtifact, BadStore, GleanerError
from gleaner.predictor import ENGINE, Retry, retry_of, selftest
from gleaner.schema import Schema
from gleaner.settings import ARTIFACTS, Settings, hide_userinfo, read_authorization
from gleaner.store import Store

log = logging.getLogger(__name__)

# How a poll ended, and why a version was refused, in words fit for a metric's label.
RESULTS = ("success", "unreachable", "error", "invalid", "store", "internal")
REFUSALS = (*REASONS, "location", "model", "columns", "conflict")

FOLDER = "gleaner"  # of an MLflow model: where its artifact is
_API, _ARTIFACTS = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"
_LARGEST_ANSWER = 1 << 20
_MOST_FILES = 16
_CONNECT_SECONDS = 3.0
# A fetch that failed is tried again after 1, 2, 4, 8, 8, ... seconds: within the 10 s in which a move is served.
_LONGEST_PAUSE = 8.0
_STALE_SECONDS = 600.0
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_NOT_THERE = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"})
_LONGEST_REASON = 500
_KEY = "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_START = "start it, or set tracking.uri to where it is"

T = TypeVar("T")


class Trouble(GleanerError):
    """Why a registry cannot be followed for now. `result` is one of RESULTS; `fix` is what may help."""

    def __init__(self, result: str, message: str, fix: str = "") -> None:
        super().__init__(f"{message}; {fix}" if fix else message)
        self.result, self.message, self.fix = result, message, fix


# Of MLflow's answers, what matters here.


class Version(msgspec.Struct, frozen=True):
    """A version as the server names it; `source` tells it from one of the same number in a registry begun anew."""

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


class Server:
    """One registered model of an MLflow server, asked over HTTP. Its methods raise Trouble."""

    def __init__(self, settings: Settings) -> None:
        self.name, self.model = settings.tracking_uri.rstrip("/"), settings.model.name
        self._seconds = settings.tracking.timeout_seconds
        # Where a training without a server leaves its files, and what the server of `gleaner up` hands out.
        self._own_files = (settings.state.absolute() / ARTIFACTS).as_uri() + "/"
        parts = urlsplit(self.name)
        self._host = parts.netloc
        agent = f"gleaner/{__version__}"
        self._headers = [("Host", self._host), ("User-Agent", agent), ("Accept-Encoding", "identity")]
        self._headers.append(("Connection", "close"))
        if authorization := read_authorization(settings):
            self._headers.append(("Authorization", authorization))
        self._waits = _Waits()
        self._pool = httpcore.ConnectionPool(
            # The system's certificates, where a company's own are; SSL_CERT_FILE names others.
            ssl_context=ssl.create_default_context() if parts.scheme == "https" else None,
            # A connection each: one that was kept may have been closed at the other end, which looks like a fault.
            max_keepalive_connections=0,
            network_backend=self._waits,
        )

    def version(self, alias: str) -> Version | None:
        """The version that an alias points at; None if there is no such alias, or no such model."""
        query = urlencode({"name": self.model, "alias": alias})
        found = self._ask("GET", f"{_API}/registered-models/alias?{query}", _Aliased)
        if found is None:
            return None
        version = found.model_version
        if version.name != self.model or not _VERSION.fullmatch(version.version):
            said = f"{version.version[:20]!r} of {version.name[:80]!r}"
            raise self._trouble("invalid", f"said that {alias!r} is version {said}")
        return version

    def location(self, version: int) -> str:
        """Where a version's files are, as a path among the server's artifacts.

        Raises BadArtifact if they are anywhere else.
        """
        query = urlencode({"name": self.model, "version": version})
        found = self._ask("GET", f"{_API}/model-versions/get-download-uri?{query}", _Location)
        if found is None:
            raise self._trouble("invalid", f"knows nothing of version {version}, at which an alias points")
        uri = hide_userinfo(found.artifact_uri)[:200]
        scheme, _, rest = found.artifact_uri.partition(":")
        if found.artifact_uri.startswith(self._own_files):
            scheme, rest = "mlflow-artifacts", "/" + found.artifact_uri.removeprefix(self._own_files)
        host, path = "", rest
        if rest.startswith("//"):
            host, _, path = rest[2:].partition("/")
        if scheme != "mlflow-artifacts" or host not in {"", self._host}:
            reason = f"its files are at {uri!r}; only those that the server itself hands out are fetched"
            raise BadArtifact(self.name, "location", f"{reason} (mlflow server --artifacts-destination)")
        steps = path.strip("/").split("/")
        if len(path) > 2_000 or not all(_is_step(step) for step in steps):
            raise BadArtifact(self.name, "location", f"{uri!r} is no path to files")
        return "/".join(quote(step, safe="") for step in steps)

    def fetch(self, path: str, into: Path, largest: int, until: float) -> None:
        """Write one of the server's artifacts to a file; `until` is a reading of the monotonic clock.

        Raises BadArtifact if there is none, or if it is larger than `largest` bytes.
        """
        with self._send("GET", f"{_ARTIFACTS}/{path}", until, "tracking.fetch_seconds") as response:
            if response.status != 200:
                self._look(response.status, path, _read(response))
                raise BadArtifact(self.name, "missing", f"no {'/'.join(path.split('/')[-2:])} among its files")
            size = 0
            with into.open("wb") as file:
                for piece in response.iter_stream():
                    size += len(piece)
                    if size > largest:
                        raise BadArtifact(self.name, "size", f"{into.name} has more than {largest:,} bytes")
                    file.write(piece)

    def move(self, alias: str, version: int) -> None:
        """Point an alias at a version. Raises Trouble if there is none, too."""
        asked = msgspec.json.encode({"name": self.model, "alias": alias, "version": str(version)})
        if self._ask("POST", f"{_API}/registered-models/alias", _Nothing, asked) is None:
            raise self._trouble("error", f"knows no version {version} of {self.model!r}, or takes no alias {alias!r}")

    def _ask(self, method: str, path: str, kind: type[T], body: bytes = b"") -> T | None:
        """What the server answers; None where it says that there is no such thing."""
        until = time.monotonic() + self._seconds
        with self._send(method, path, until, "tracking.timeout_seconds", body) as response:
            answer, status = _read(response), response.status
        if answer is None:
            raise self._trouble("invalid", f"answered more than {_LARGEST_ANSWER:,} bytes")
        if status != 200:
            self._look(status, path, answer)
            return None
        found = _decode(answer, kind)
        if found is None:
            raise self._trouble("invalid", f"answered something that is not MLflow's: {_cut(answer)}")
        return found

    def _look(self, status: int, path: str, answer: bytes | None) -> None:
        """Return if a status means that there is no such thing, in MLflow's own words; raise Trouble if not."""
        fault = _decode(answer or b"", _Fault)
        if status in {400, 404} and fault and fault.error_code in _NOT_THERE:
            return
        why = fault.message[:200] if fault else _cut(answer or b"")
        said = f"answered {path.partition('?')[0]} with {status}: {why}"
        fix = {401: _KEY, 403: f"start it with --allowed-hosts {self._host}, or {_KEY}"}.get(status, "")
        if 300 <= status < 400:
            said, fix = f"answered with {status}, a redirect", "set tracking.uri to where it leads"
        raise self._trouble("error", said, fix)

    @contextmanager
    def _send(
        self, method: str, path: str, until: float, setting: str, body: bytes = b""
    ) -> Iterator[httpcore.Response]:
        """A response whose head is there; no byte of it is waited for after `until`, which `setting` bounds."""
        self._waits.until, self._waits.ended = until, False
        headers = [*self._headers, *([("Content-Type", "application/json")] if body else [])]
        try:
            with self._pool.stream(method, self.name + path, headers=headers, content=body) as response:
                yield response
        except httpcore.ConnectTimeout as e:
            raise self._trouble("unreachable", "no connection in time", _START) from e
        except httpcore.TimeoutException as e:
            raise self._trouble("unreachable", f"no whole answer within {setting}") from e
        # The second is what a name that is none raises on its way to the resolver.
        except (httpcore.NetworkError, UnicodeError) as e:
            raise self._trouble("unreachable", f"cannot be reached: {e}", _START) from e
        except httpcore.ProtocolError as e:
            result = "unreachable" if self._waits.ended else "invalid"
            raise self._trouble(result, f"did not answer in whole HTTP: {str(e)[:200]}") from e

    def _trouble(self, result: str, detail: str, fix: str = "") -> Trouble:
        # Of what MLflow says of its database, too, a password is nobody's to read.
        return Trouble(result, f"MLflow at {self.name}: {hide_userinfo(detail)[:_LONGEST_REASON]}", fix)


def _read(response: httpcore.Response) -> bytes | None:
    """A response's body; None if it is too large."""
    pieces, size = [], 0
    for piece in response.iter_stream():
        size += len(piece)
        if size > _LARGEST_ANSWER:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _decode(answer: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _cut(answer: bytes) -> str:
    return repr(answer[:80].decode("utf-8", "replace"))


def _is_step(step: str) -> bool:
    return step not in {"", ".", ".."} and step.isprintable() and not set("\\%?#") & set(step)


class _Waits(httpcore.NetworkBackend):
    """Connections on which all waiting ends at `until`, a reading of the monotonic clock.

    A timeout for each wait is not enough: a server that sends a byte a second never lets one run out.
    ended: whether the other end has hung up, as a server does that is being stopped.
    """

    def __init__(self) -> None:
        self.until, self.ended = 0.0, False
        self._sockets = httpcore.SyncBackend()

    def left(self) -> float:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout
        return seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        seconds = min(self.left(), _CONNECT_SECONDS)
        return _Connection(self, self._sockets.connect_tcp(host, port, seconds, local_address, socket_options))


@dataclass(eq=False)
class _Connection(httpcore.NetworkStream):
    waits: _Waits
    stream: httpcore.NetworkStream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        content = self.stream.read(max_bytes, self.waits.left())
        self.waits.ended = not content
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.waits.left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Connection(self.waits, self.stream.start_tls(ssl_context, server_hostname, self.waits.left()))

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Follower:
    """Follows the aliases of one registered model into a store; what is wrong with the server changes nothing there.

    polls, refusals: counts by result and by reason. last_success: when, in seconds since the epoch.
    test: the self-test, replaced in tests. retry_seconds: when it is run again if it did not end, or was ended.
    grace_seconds: how long a server may take to be there that is started with this; it is no warning until then.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        test: Callable[[Path], None] = selftest,
        retry_seconds: float = 30.0,
        grace_seconds: float = 60.0,
    ) -> None:
        self._retry_seconds = retry_seconds
        self._patient_until = time.monotonic() + grace_seconds
        self.server, self.store, self._test = Server(settings), store, test
        self.schema = settings.schema_
        self.aliases = tuple(dict.fromkeys(settings.serving.slots.values()))
        self._every, self._fetch_seconds = settings.tracking.poll_seconds, settings.tracking.fetch_seconds
        self.polls, self.refusals = dict.fromkeys(RESULTS, 0), dict.fromkeys(REFUSALS, 0)
        self.last_success: float | None = None
        self.result, self.detail = "", ""
        self._told = ""
        self._wanted: dict[str, Version | None] = {}
        self._refused: dict[Version, tuple[str, Retry]] = {}
        self._failed: dict[Version, _Failed] = {}
        # Those that the store holds with the registry's own manifest.
        self._same: set[Version] = set()

    def follow(self, stop: threading.Event) -> None:
        """Poll until told to stop."""
        while True:
            self.poll()
            if stop.wait(self._every):
                return

    def poll(self) -> None:
        """Ask where the aliases point, and follow them; count how it ended, and say so if it ended otherwise before."""
        bug, refused = None, list(self._refused)
        try:
            self._poll()
            result, detail = "success", ""
        except Trouble as e:
            result, detail = e.result, str(e)
        except (BadStore, OSError) as e:
            result, detail = "store", str(e)
        except Exception as e:  # the thread must outlive anything that it may meet
            result, detail, bug = "internal", repr(e), e
        self.polls[result] += 1
        self.result, self.detail = result, detail
        facts = {"uri": self.server.name, "model": self.server.model, "result": result}
        if result == "success":
            self.last_success = time.time()
        starts = result == "unreachable" and self.last_success is None and time.monotonic() < self._patient_until
        told = f"{result}, at the start" if starts else result
        if told == self._told:
            return
        self._told = told
        if result == "success":
            # What was refused before something came in the way is looked at once more.
            for version in filter(self._refused.__contains__, refused):
                why, retry = self._refused[version]
                self._refused[version] = why, retry._replace(at=0.0)
            log.info("registry followed", extra=facts)
        else:
            level, what = (
                (logging.INFO, "registry not followed yet") if starts else (logging.WARNING, "registry not followed")
            )
            log.log(level, what, extra={**facts, "detail": detail}, exc_info=bug)

    def fault(self, alias: str) -> str | None:
        """Why the version that an alias points at is not taken up; None if it is."""
        version = self._wanted.get(alias)
        refused = None if version is None else self._refused.get(version)
        return refused and refused[0]

    def describe(self) -> dict[str, object]:
        """How the following goes, for /health_status."""
        since = None if self.last_success is None else round(time.time() - self.last_success, 3)
        facts: dict[str, object] = {"uri": self.server.name, "result": self.result or None}
        return {**facts, "detail": self.detail or None, "seconds_since_success": since}

    def _poll(self) -> None:
        # Looked at first: if the store then differs from what the server says, it is the server that has moved.
        before = self.store.aliases()
        wanted = {alias: self.server.version(alias) for alias in self.aliases}
        self._wanted = wanted
        self._refused = {version: why for version, why in self._refused.items() if version in wanted.values()}
        self._failed = {version: why for version, why in self._failed.items() if version in wanted.values()}
        trouble: Trouble | None = None
        for alias, version in wanted.items():
            # A missing alias ends nothing, as in `slots`.
            if version is not None and (
                version not in self._refused or self._refused[version][1].at < time.monotonic()
            ):
                try:
                    self._follow(alias, version, before.get(alias))
                except Trouble as e:  # one version's files are no reason to let the other alias wait
                    trouble = trouble or e
        if trouble:
            raise trouble

    def _follow(self, alias: str, version: Version, before: int | None) -> None:
        try:
            self._take(version)
        except BadArtifact as e:
            self._refuse(version, e)
            return
        self._refused.pop(version, None)
        # On the machine that trains, or promotes, somebody else may have moved it meanwhile: the next poll sees both.
        if version.number != before and self.store.aliases().get(alias) == before:
            self.store.point({alias: version.number})
            log.info("alias followed", extra={"alias": alias, "version": version.number, "previous": before})

    def _refuse(self, version: Version, error: BadArtifact) -> None:
        detail = error.detail[:_LONGEST_REASON]
        why, before = f"version {version.number} in the registry: {detail}", self._refused.get(version)
        retry = retry_of(error, before and before[1], first_seconds=self._retry_seconds)
        self._refused[version] = why, retry
        if before and before[0] == why:
            return  # it was counted and said
        self.refusals[error.reason] += 1
        facts = {"uri": self.server.name, "model": self.server.model, "version": version.number}
        log.error("version refused", extra={**facts, "reason": error.reason, "detail": detail})

    def _take(self, version: Version) -> None:
        """See that the store holds the registry's version, verified and tested; fetch it if not.

        Raises BadArtifact if it must not be served, Trouble if it cannot be had for now.
        """
        if version in self._same:
            return
        failed = self._failed.get(version)
        if failed and time.monotonic() < failed.until:
            raise failed.trouble
        try:
            self._fetch(version.number)
        except Trouble as e:
            trouble = e
        except OSError as e:
            trouble = Trouble("store", f"version {version.number} cannot be kept: {e}")
        else:
            self._failed.pop(version, None)
            self._same.add(version)
            return
        pause = min(2 * failed.pause, _LONGEST_PAUSE) if failed else 1.0
        self._failed[version] = _Failed(trouble, pause, time.monotonic() + pause)
        raise trouble

    def _fetch(self, version: int) -> None:
        path, until = self.server.location(version), time.monotonic() + self._fetch_seconds
        with self._scratch() as folder:
            self.server.fetch(f"{path}/{FOLDER}/{MANIFEST}", folder / MANIFEST, LARGEST_MANIFEST, until)
            manifest, digest = read_manifest(folder)
            self._check_ours(manifest)
            if version in self.store.versions():
                there = self._read_stored(version)
                if there.digest != digest:
                    reason = f"{there.folder} holds another model of the same number; the registry was begun anew"
                    raise BadArtifact(folder, "conflict", f"{reason}, so move {self.store.root} away")
                folder = there.folder
            else:
                for name, file in manifest.files.items():
                    self.server.fetch(f"{path}/{FOLDER}/{quote(name, safe='')}", folder / name, file.size, until)
                read_artifact(folder)
            # Before anything points at it: a store whose alias leads to a bad version is no store to start from.
            if not self.store.has_passed(version, digest, ENGINE):
                self._test(folder)
            added = self.store.add(version, folder)
        with contextlib.suppress(OSError):
            self.store.remember_passed(version, added.digest, ENGINE)

    def _read_stored(self, version: int) -> Artifact:
        try:
            return self.store.read(version)
        except BadArtifact as e:
            detail = f"the copy in the store is damaged: {e.detail}; move {e.folder} away and start again"
            raise BadArtifact(e.folder, e.reason, detail) from e

    def _check_ours(self, manifest: Manifest) -> None:
        """Raises BadArtifact for another model's version, or one of other columns than this service takes."""
        where, model = self.server.name, self.server.model
        if manifest.model != model:
            raise BadArtifact(where, "model", f"its manifest is of {manifest.model!r}, not of {model!r}")
        theirs, ours = _columns(manifest.schema), _columns(self.schema)
        if theirs != ours:
            raise BadArtifact(where, "columns", f"it has {', '.join(theirs)}; gleaner.toml here has {', '.join(ours)}")
        sizes = [file.size for file in manifest.files.values()]
        if MODEL not in manifest.files or len(sizes) > _MOST_FILES:
            raise BadArtifact(
                where, "files", f"its manifest declares {len(sizes)} files; wanted {MODEL} and few others"
            )
        if min(sizes) < 0 or sum(sizes) > LARGEST_MODEL:
            raise BadArtifact(where, "size", f"its manifest declares {sum(sizes):,} bytes; at most {LARGEST_MODEL:,}")

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the store's versions, gone afterwards; one that a killed process left is swept away."""
        self.store.root.mkdir(parents=True, exist_ok=True)
        for left in self.store.root.glob(".fetch-*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > self._fetch_seconds + _STALE_SECONDS:
                    shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self.store.root) as folder:
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A fetch that failed, and until when it is not tried again."""

    trouble: Trouble
    pause: float
    until: float


def _columns(schema: Schema) -> list[str]:
    """The columns in words, the target last: what must be the same for the same requests to mean the same."""
    features = [f"{f.name} ({', '.join(f.values) or f.type})" for f in schema.features]
    return [*features, f"target {schema.target.name}"]
