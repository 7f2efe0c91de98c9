"""Secrets, hidden in every text that leaves a process.

An address is hidden by its form: `hide_userinfo`, `hide_path`. Messages of other libraries have no known form, so
`redact` also hides each secret that this process knows: see `remember`.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from types import TracebackType
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
SHORTEST = 6  # a shorter secret is a part of too many words

# The end of a name of a variable or an option that holds a secret. A name of a file ends with FILE.
_KEYS = r"(API|ACCESS|PRIVATE|SECRET)[_-]?KEY"
SECRET_NAME = re.compile(rf"(PASSWORD|PASSWD|TOKEN|SECRET|CREDENTIALS?|{_KEYS})$", re.IGNORECASE)

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def remember(*secrets: str) -> None:
    """Let `redact` hide these secrets from now on, in every usual spelling."""
    global _pattern
    spellings = {form for secret in secrets for form in _spell(secret)} - _known
    if spellings:
        _known.update(spellings)
        _pattern = re.compile("|".join(map(re.escape, sorted(_known, key=len, reverse=True))))


def redact(text: str) -> str:
    """Return a text without the secrets that this process knows."""
    return _pattern.sub(HIDDEN, text) if _pattern else text


def _spell(secret: str) -> Iterable[str]:
    """Yield the usual spellings of a secret."""
    for plain in {secret, secret.strip(), unquote(secret)}:
        if len(plain) < SHORTEST:
            continue
        encoded = plain.encode("utf-8", "surrogateescape")
        yield from (plain, quote(encoded, safe=""), quote(encoded), quote_plus(encoded))
        yield from (json.dumps(plain)[1:-1], repr(plain)[1:-1])
        yield base64.b64encode(encoded).decode("ascii")


def find_secrets(address: str, *, whole: bool = False) -> list[str]:
    """Return the secrets in an address: passwords and tokens.

    whole: everything after the scheme is a secret, too, as in the address of a webhook.
    """
    rest = address.partition("//")[2]
    found = [rest] if whole and rest.partition("/")[2] else []
    if "@" in rest:
        userinfo = rest.rpartition("@")[0]
        found += [userinfo, userinfo.partition(":")[2], *re.split("[:@/?#]", userinfo)[1:]]
    host = re.split("[/?#]", rest.rpartition("@")[2])[0]
    port = re.sub(r"\[.*\]", "", host).partition(":")[2]
    found += [] if port.isdecimal() else [port]  # a password in the wrong place
    try:
        parts = urlsplit(address)
        found += [parts.password or ""]
        # Not every value: `sslmode=require` would hide a word of many log lines.
        found += [value for name, value in parse_qsl(parts.query) if SECRET_NAME.search(name) or looks_secret(value)]
    except ValueError:  # no address; its form is hidden nevertheless
        pass
    else:
        found += [step for step in parts.path.split("/") if whole and looks_secret(step)]
    return found


def looks_secret(text: str) -> bool:
    """Return whether a text is probably a token, and no path."""
    is_long = len(text) >= 20 and re.search(r"[0-9]", text) and re.search(r"[A-Za-z]", text)
    return bool(is_long) and "/" not in text and "\\" not in text and not re.search(r"\.[A-Za-z]{1,5}$", text)


def hide_userinfo(text: str) -> str:
    """Return a text without the users and passwords in its addresses."""
    return re.sub(r"\S+", lambda found: _cut(found[0]), text) if "@" in text else text


def _cut(word: str) -> str:
    begin, end = word.find("//"), word.rfind("@")
    return word[: begin + 2] + word[end + 1 :] if 0 <= begin < end else word


def hide_login(address: str) -> str:
    """Return one address without user, password and query."""
    address, sign, _ = _cut(address).partition("?")
    return f"{address}?{HIDDEN}" if sign else address


def hide_path(address: str) -> str:
    """Return the scheme and the host of an address.

    The path and the query of a webhook's address are often its only secret.
    """
    found = re.fullmatch(r"([\w+.-]+://[^/?#@\s]*)([/?#].*)?", address, re.DOTALL)
    if not found:
        return HIDDEN if address else ""
    rest = found[2] or ""
    return found[1] + (f"/{HIDDEN}" if rest.strip("/") else rest)


def hide_name(path: str) -> str:
    """Return the path of a file with secrets.

    A bare name is hidden: it may be a secret in the wrong place.
    """
    return path if not path or re.search(r"[/\\.]", path) else HIDDEN


def hide_arguments(command: Sequence[str]) -> list[str]:
    """Return a process's command without the secrets in its arguments."""
    shown, is_secret = [], False
    for part in command:
        name, sign, _ = part.partition("=")
        if is_secret and not part.startswith("-"):
            part = HIDDEN
        elif sign and SECRET_NAME.search(name):
            part = f"{name}={HIDDEN}"
        is_secret = part.startswith("-") and not sign and bool(SECRET_NAME.search(part))
        shown.append(hide_login(part) if "//" in part else part)
    return shown


def guard_output() -> None:
    """Redact the tracebacks of this process, and every library's log lines."""
    sys.excepthook = _show_exception
    threading.excepthook = lambda e: _show_exception(e.exc_type, e.exc_value, e.exc_traceback)
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    """A log record whose text and traceback are redacted."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        if self.exc_info and self.exc_info[0]:
            self.exc_text = redact(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:  # noqa: N802
        return redact(super().getMessage())


def _show_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not SystemExit:  # a thread's; the interpreter keeps silent about it
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
