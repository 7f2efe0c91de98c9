"""What the user can fix: one tree of errors, each saying where, what was wrong and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class GleanerError(Exception):
    """Something the user can fix; the message is all they need to read."""


class BadSetting(GleanerError):
    """A key or a value that the settings do not accept."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")
        self.source, self.key, self.reason = source, key, reason


NAMED_FAULTS = 100
"""How many faults of a table are told; the others are counted."""


class Fault(NamedTuple):
    """What is wrong with a cell, or with a member of a JSON object. A table can have a million, so it is small.

    place, number: what counts the rows ("line" of a file from 1, "row" of a body from 0), and which one.
    reason: what would be right, and what was there.
    """

    place: str
    number: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place} {self.number}, column {self.column!r}: {self.reason}"


class BadValue(GleanerError):
    """A fault that ends everything; its parts are those of `Fault`."""

    def __init__(self, place: str, number: int, column: str, reason: str) -> None:
        super().__init__(str(Fault(place, number, column, reason)))
        self.place, self.number, self.column, self.reason = place, number, column, reason


class BadTable(GleanerError):
    """A file that cannot be read as a table with the declared columns."""

    def __init__(self, path: Path | str, reason: str, *, line: int | None = None) -> None:
        where = f"{path}, line {line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {reason}")
        self.path, self.reason, self.line = path, reason, line


class Unwritable(GleanerError):
    """A file that cannot be written."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class BadArtifact(GleanerError):
    """An artifact that must not be served. `reason` is one of `artifact.REASONS`, fit for a metric's label.

    transient: whether a machine with too much to do may be the reason, so that it is worth another try.
    """

    def __init__(self, folder: Path | str, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{folder}: {detail}")
        self.folder, self.reason, self.detail, self.transient = folder, reason, detail, transient


class BadStore(GleanerError):
    """A store that does not hold what was asked of it, or that something else has written into."""


class BadTraining(GleanerError):
    """A training that cannot be run as asked."""


class BadBody(GleanerError):
    """A request's body that is not what it says it is: not JSON, or JSON with a hidden trap."""


class BadRows(GleanerError):
    """A body that can be read, with wrong values; one entry per fault.

    faults: (JSON pointer, what is wrong) pairs. lines: the line of each, where the body has lines.
    """

    def __init__(
        self, faults: Sequence[tuple[str, str]], *, unnamed: int = 0, lines: Sequence[int | None] = ()
    ) -> None:
        more = f", and {unnamed} more" if unnamed else ""
        super().__init__(f"{faults[0][1]}" if len(faults) == 1 and not unnamed else f"{len(faults)} faults{more}")
        self.faults, self.unnamed, self.lines = faults, unnamed, lines or [None] * len(faults)

    def entries(self) -> list[dict[str, object]]:
        """One object per fault, as answers show them."""
        return [
            {"pointer": pointer, "detail": detail, **({} if line is None else {"line": line})}
            for (pointer, detail), line in zip(self.faults, self.lines, strict=True)
        ]


class TooLarge(GleanerError):
    """A body with more bytes or rows than the service takes in one request."""


class WrongType(GleanerError):
    """A body in a media type or an encoding that the route does not read."""


class Overloaded(GleanerError):
    """As much work is in flight as the service takes; the same request may be sent again in a moment."""


class NoModel(GleanerError):
    """Nothing to answer with yet."""


class PortTaken(GleanerError):
    """A port that another process listens on."""

    def __init__(self, host: str, port: int, setting: str, holder: str) -> None:
        super().__init__(
            f"port {port} on {host} is taken by {holder}; stop it, or set {setting} in gleaner.toml "
            f"(or {environment_name(setting)}) to another port"
        )
        self.host, self.port, self.setting, self.holder = host, port, setting, holder


class Refused(GleanerError):
    """An action that is not safe as asked; the message says which way is."""


class Unreachable(GleanerError):
    """A server that did not answer."""


class MissingExtra(GleanerError):
    """An optional part that is not installed."""

    def __init__(self, extra: str, module: str | None) -> None:
        super().__init__(f"{module or 'a part'} is not installed, which this needs: pip install 'gleaner[{extra}]'")
        self.extra, self.module = extra, module


def environment_name(setting: str) -> str:
    """The environment variable of a setting, such as `GLEANER_PORTS__ML_APP` for `ports.ml_app`."""
    return "GLEANER_" + setting.upper().replace(".", "__")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or the known names where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name[:60].lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    for k in known:
        if close and k.lower() == close[0]:
            return f"; did you mean {k!r}?"
    return f"; known: {', '.join(map(repr, sorted(known)[:40]))}{', ...' if len(known) > 40 else ''}"
