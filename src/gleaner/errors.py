"""Errors that the user can fix, in one tree rooted in `GleanerError`.

Each message says where, what was wrong and what would be right; the parts are attributes of the exception.
"""

from __future__ import annotations

import difflib
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "gleaner-tabular"  # `gleaner` on PyPI is another project, a web scraper


class GleanerError(Exception):
    """An error that the user can fix with the message alone."""


class BadSetting(GleanerError):
    """A key or a value that the settings do not accept."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")
        self.source, self.key, self.reason = source, key, reason


# The number of faults of a table that are named; the others are only counted.
NAMED_FAULTS = 100


class Fault(NamedTuple):
    """A wrong cell of a table, or a wrong JSON member.

    A table can have a million faults, so each is a small tuple.
    place: "line" (of a file) or "row" (of a body).
    number: which line, from 1, or which row, from 0.
    column: the feature's name, or the name that was sent.
    reason: what would be right, and what was there; `wanted` puts both together.
    """

    place: str
    number: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place} {self.number}, column {self.column!r}: {self.reason}"


class BadValue(GleanerError):
    """A fault that ends the whole request, with its parts."""

    def __init__(self, place: str, number: int, column: str, reason: str) -> None:
        super().__init__(str(Fault(place, number, column, reason)))
        self.place, self.number, self.column, self.reason = place, number, column, reason


class BadTable(GleanerError):
    """A file that is not a table with the declared columns."""

    def __init__(self, path: Path | str, reason: str, *, line: int | None = None) -> None:
        super().__init__(f"{path}{'' if line is None else f', line {line}'}: {reason}")
        self.path, self.reason, self.line = path, reason, line


class BadEncoding(BadTable):
    """A file with a byte that is not of its encoding.

    fault: the place of the byte.
    """

    def __init__(self, path: Path | str, fault: str, fix: str, *, line: int) -> None:
        super().__init__(path, f"{fault}; {fix}", line=line)
        self.fault = fault


class Unwritable(GleanerError):
    """A file that cannot be written."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class BadArtifact(GleanerError):
    """An artifact that must not be served.

    reason: one of `manifest.REASONS`, and the value of a metric's label.
    detail: what is wrong, in words.
    transient: whether an overloaded machine or a damaged transfer may be the cause, so that another try makes sense.
    """

    def __init__(self, folder: Path | str, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{folder}: {detail}")
        self.folder, self.reason, self.detail, self.transient = folder, reason, detail, transient


class BadStore(GleanerError):
    """A store without the requested version, or changed by another program."""


class BadBackup(GleanerError):
    """A backup that cannot be restored."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class BadTraining(GleanerError):
    """A training that is impossible with these settings or this table."""


class BadBody(GleanerError):
    """A body that cannot be read in its own format."""


class BadRows(GleanerError):
    """A body that can be read, but has wrong values.

    faults: (JSON pointer, reason) pairs, one per fault.
    unnamed: the number of faults beyond these.
    lines: the line of each fault in the body, None for a body without lines.
    """

    def __init__(
        self, faults: Sequence[tuple[str, str]], *, unnamed: int = 0, lines: Sequence[int | None] = ()
    ) -> None:
        more = f", and {unnamed} more" if unnamed else ""
        super().__init__(f"{faults[0][1]}" if len(faults) == 1 and not unnamed else f"{len(faults)} faults{more}")
        self.faults, self.unnamed, self.lines = faults, unnamed, lines or [None] * len(faults)

    def entries(self) -> list[dict[str, object]]:
        """Return one JSON object per fault, as responses show them."""
        return [
            {"pointer": pointer, "detail": detail, **({} if line is None else {"line": line})}
            for (pointer, detail), line in zip(self.faults, self.lines, strict=True)
        ]


class TooLarge(GleanerError):
    """A body with more bytes or rows than one request may have."""


class HeadTooLarge(GleanerError):
    """A request with more bytes of headers than the server reads."""


class Abandoned(GleanerError):
    """A request whose client has hung up."""


class TooSlow(GleanerError):
    """A request whose bytes came too slowly."""


class Unauthorized(GleanerError):
    """A request without a key that is accepted.

    delay: the seconds that its response waits.
    """

    def __init__(self, detail: str, delay: float = 0.0) -> None:
        super().__init__(detail)
        self.delay = delay


class Forbidden(Unauthorized):
    """A request that its key or its origin does not allow."""


class Misdirected(GleanerError):
    """A request that names another server."""


class BadCertificate(GleanerError):
    """Files of a certificate and its key that cannot be used."""


class BadKeys(GleanerError):
    """A file of API keys that cannot be used or changed."""


class WrongType(GleanerError):
    """A body in a media type or encoding that is not read."""


class Overloaded(GleanerError):
    """A request beyond the service's limits, to be sent again later."""


class NoModel(GleanerError):
    """A request for a prediction before any model is loaded."""


# The command of one of Gleaner's own processes, or of a program with files in the folder of its state.
_OWN = re.compile(r"-m gleaner |/bin/gleaner |/\.gleaner/")


class PortTaken(GleanerError):
    """A port on which another process listens already."""

    def __init__(self, host: str, port: int, setting: str, holder: str) -> None:
        # A killed service of `gleaner up` restarts.
        stop = "stop it (with `gleaner down`, if `gleaner up` runs it)" if _OWN.search(holder) else "stop it"
        move = f"set {setting} in gleaner.toml (or {environment_name(setting)}) to another port"
        super().__init__(f"port {port} on {host} is taken by {holder}; {stop}, or {move}")
        self.host, self.port, self.setting, self.holder = host, port, setting, holder


class CannotListen(GleanerError):
    """An address or port that this process cannot listen on.

    No other process holds it.

    at: the address and port.
    reason: the system's own words.
    fix: the change that helps.
    """

    def __init__(self, at: str, reason: str, fix: str) -> None:
        super().__init__(f"cannot listen on {at}: {reason}; {fix}")
        self.at, self.reason, self.fix = at, reason, fix


class Refused(GleanerError):
    """An unsafe action; the message names a safe one."""


class Unreachable(GleanerError):
    """A server that does not respond."""


class MissingExtra(GleanerError):
    """An optional part that is not installed."""

    def __init__(self, extra: str, module: str | None) -> None:
        fix = f"to install the extra {extra!r}: {explain_install(extra)}"
        super().__init__(f"{module or 'a part'} is not installed; {fix}")
        self.extra, self.module = extra, module


def explain_install(extra: str) -> str:
    """Return the command that installs an extra's requirements for the running Python.

    The requirements are named, not the extra: that works in a clone, from a wheel file, and before a release.
    """
    try:
        lines = (line.replace('"', "'").partition(";") for line in requires(DISTRIBUTION) or ())
    except PackageNotFoundError:  # run from src/ alone
        return f"install {DISTRIBUTION} first, from a clone: make venv"
    wanted = [requirement.strip() for requirement, _, marker in lines if f"extra == {extra!r}" in marker]
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    if find_spec("pip"):
        command = [python, "-m", "pip", "install"]
    elif shutil.which("uv"):
        command = ["uv", "pip", "install", "--python", python]
    else:
        # The images: an extra is chosen when one is built.
        part = "serve" if extra == "signing" else extra  # every image has `signing`
        return f"docker build --build-arg PART={part} --file deploy/Dockerfile . (in a clone; no pip or uv here)"
    return shlex.join([*command, *wanted])


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting: `GLEANER_PORTS__ML_APP` for `ports.ml_app`."""
    return "GLEANER_" + setting.upper().replace(".", "__")


def wanted(right: str, got: str) -> str:
    """Return `wanted X, got Y`, the reason of a refusal.

    right: what would be right, in words.
    got: what was there, as `schema.show` writes a value.
    """
    return f"wanted {right}, got {got}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the known names."""
    known = list(known)
    close = difflib.get_close_matches(name[:60].lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    for k in known:
        if close and k.lower() == close[0]:
            return f"; did you mean {k!r}?"
    return f"; known: {', '.join(map(repr, sorted(known)[:40]))}{', ...' if len(known) > 40 else ''}"
