"""API keys: the file of their hashes, and their checks.

A key is `gleaner_<id>_<secret>`. The file has the SHA-256 of each key, never a key itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec

from gleaner.errors import BadKeys, wanted
from gleaner.machine.files import locked, mark_of, replace_file

log = logging.getLogger(__name__)

SCOPES = ("predict", "actuals", "admin")
FORMAT = 1
LIVE_KEYS = 2  # of one name, so that a caller can change to the new one

_SECRET_BYTES = 32
_KEY = re.compile(r"gleaner_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_USED_SECONDS = 60.0
_REMEMBERED = 1_024
_LARGEST_FILE = 1 << 20

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Refusal(Enum):
    """The reason to refuse a key; the value is a metric's label."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SCOPE = "scope"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key, without its secret.

    sha256: of the whole key, in hexadecimal.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created: Moment
    expires: Moment | None = None
    revoked: Moment | None = None

    def refusal(self, now: datetime) -> Refusal | None:
        """Return why the key is refused, whatever it is used for."""
        if self.revoked is not None:
            return Refusal.REVOKED
        return Refusal.EXPIRED if self.expires is not None and self.expires <= now else None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    keys: tuple[Key, ...]


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the file of keys. Raises BadKeys."""
    fix = "name the right file in serving.keys_file, or move it away and run `gleaner keys add NAME`"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as e:
        raise BadKeys(f"{path}: no such file; `gleaner keys add NAME` makes the first key") from e
    except OSError as e:
        raise BadKeys(f"{path}: cannot be read: {e.strerror}") from e
    if len(content) > _LARGEST_FILE:
        raise BadKeys(f"{path}: {wanted(f'at most {_LARGEST_FILE:,} bytes', 'more')}; {fix}")
    try:
        found = msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadKeys(f"{path}: is no file of keys: {e}; {fix}") from e
    if found.format != FORMAT:
        raise BadKeys(f"{path}: {wanted(f'format {FORMAT}', str(found.format))}; another version of Gleaner wrote it")
    return found.keys


def add_key(path: Path, name: str, scopes: Collection[str], lifetime: timedelta | None = None) -> tuple[Key, str]:
    """Add a key to the file; return it and its text.

    The caller sends the text, which is nowhere else. Raises BadKeys if the name has two live keys, or if the file
    cannot be written.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    id_ = secrets.token_hex(4)
    text = f"gleaner_{id_}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    key = Key(
        id_, name, _hash(text), tuple(s for s in SCOPES if s in scopes), now, now + lifetime if lifetime else None
    )
    with _changing(path):
        keys = read_keys(path) if path.exists() else ()
        live = [other.id for other in keys if other.name == name and other.refusal(now) is None]
        if len(live) >= LIVE_KEYS:
            fix = f"revoke one with `gleaner keys revoke {live[0]}`"
            raise BadKeys(f"{name} has {len(live)} keys, {' and '.join(live)}, which is enough to replace one; {fix}")
        _write(path, (*keys, key))
    return key, text


def revoke_keys(path: Path, which: str) -> list[Key]:
    """Revoke the key of an id, or all keys of a name.

    Returns them. Raises BadKeys if no live key has this id or name.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    with _changing(path):
        keys = read_keys(path)
        chosen = [k for k in keys if which in (k.id, k.name) and k.revoked is None]
        if not chosen:
            known = ", ".join(sorted({k.name for k in keys if k.revoked is None})) or "none"
            raise BadKeys(f"{path}: no key has the id or the name {which!r}; there is {known}")
        _write(path, [msgspec.structs.replace(k, revoked=now) if k in chosen else k for k in keys])
    return chosen


def read_last_use(path: Path) -> dict[str, str]:
    """Return the time of each key's last use, by id."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


class Keys:
    """The keys that a running service accepts.

    It reads the file again when that changes.

    A file that becomes unreadable changes nothing, except that the log says so.

    path: the file of keys.
    used: the file for the time of each key's last use.
    Raises BadKeys if the file cannot be read, or has no live key.
    """

    def __init__(self, path: Path, used: Path) -> None:
        self._path, self._used_path = path, used
        self._mark = mark_of(self._path)
        self._take(read_keys(path))
        if all(key.refusal(datetime.now(UTC)) for key in self._by_id.values()):
            raise BadKeys(f"{path}: no key in it is live; `gleaner keys add NAME` adds one")
        self._used: dict[str, float] = {}
        self._written = 0.0

    def check(self, text: str | None, scope: str | None) -> Refusal | None:
        """Return why a caller's key is refused, or None.

        text: the key, or None.
        scope: the scope that the key must have; None for any.
        """
        if text is None:
            return Refusal.MISSING
        known = self._verified.get(text)
        if known is None:
            known = self._verify(text)
            if known is None:
                return Refusal.UNKNOWN
            if len(self._verified) < _REMEMBERED:
                self._verified[text] = known
        now = time.time()
        key, expires = known
        if key.revoked is not None or now >= expires:
            return key.refusal(datetime.now(UTC)) or Refusal.EXPIRED
        if scope is not None and scope not in key.scopes:
            return Refusal.SCOPE
        self._used[key.id] = now
        return None

    def _verify(self, text: str) -> tuple[Key, float] | None:
        found = _KEY.fullmatch(text)
        key = self._by_id.get(found[1]) if found else None
        # A hash is compared even for an unknown id, so that the time tells nothing about ids.
        is_right = hmac.compare_digest(_hash(text), key.sha256 if key else _NO_HASH)
        if key is None or not is_right:
            return None
        return key, key.expires.timestamp() if key.expires else float("inf")

    def follow(self, seconds: float, stop: threading.Event) -> None:
        """Follow the file, and note the last uses, until `stop` is set."""
        while not stop.wait(seconds):
            self.refresh()
            self.note_uses()

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        mark = mark_of(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._take(read_keys(self._path))
        except BadKeys as e:
            log.error("keys not read", extra={"reason": str(e)})
        else:
            log.info("keys read again", extra={"keys": len(self._by_id)})

    def note_uses(self, *, at_once: bool = False) -> None:
        """Write the times of the last uses, at most once a minute."""
        if not self._used or (not at_once and time.monotonic() < self._written + _USED_SECONDS):
            return
        self._written = time.monotonic()
        used, self._used = self._used, {}
        times = {id_: datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for id_, at in used.items()}
        try:
            content = json.dumps({**read_last_use(self._used_path), **times}, indent=1).encode()
            replace_file(self._used_path, content, mode=0o600, durable=False)
        except OSError as e:
            log.warning("last uses of keys not written", extra={"reason": str(e)})

    def _take(self, keys: Sequence[Key]) -> None:
        self._by_id: Mapping[str, Key] = {key.id: key for key in keys}
        # Texts that were verified against these keys; a plain look-up of a hash table tells nothing about its keys.
        self._verified: dict[str, tuple[Key, float]] = {}


def _write(path: Path, keys: Sequence[Key]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_File(FORMAT, tuple(keys))), indent=1)
    replace_file(path, content + b"\n", mode=0o600)


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Hold the lock of the file while it changes.

    Raises BadKeys if the file cannot be written.
    """
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            yield
    except OSError as e:
        fix = "name another file in serving.keys_file, or run this as the user of its folder"
        raise BadKeys(f"{path}: cannot be written: {e.strerror or e}; {fix}") from e


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


_NO_HASH = _hash("")
