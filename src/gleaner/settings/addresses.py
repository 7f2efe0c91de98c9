"""Checks of settings that can hold a secret: addresses and paths.

No error repeats the value.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gleaner.redaction import looks_secret


def is_server(uri: str) -> bool:
    """Return whether an address names an HTTP server."""
    return uri.lower().startswith(("http://", "https://"))


def check_server(uri: str) -> str:
    """Return an address of MLflow; one of a server is whole.

    Raises ValueError without the address in it, since it may hold a password.
    """
    if is_server(uri):
        wanted = "wanted http://host:port, with user:password@ before the host or without it"
        try:
            parts = urlsplit(uri)
            is_whole = bool(parts.hostname) and parts.port != 0 and bool(parts.username) == bool(parts.password)
        except ValueError:  # its own text may hold a piece of a password
            raise ValueError(wanted) from None
        if not is_whole or parts.query or parts.fragment or "@" in parts.path or not re.fullmatch(r"[!-~]+", uri):
            raise ValueError(wanted)
    return uri


def check_webhook(address: str) -> str:
    """Return an address without a password, or an empty text."""
    if address and not re.fullmatch(r"https?://[^@\s]+", address):
        raise ValueError("wanted an address such as https://example.org/alerts, without a user or password in it")
    return address


def check_link(address: str) -> str:
    """Return an address for readers of alerts, which holds no password."""
    if re.match(r"\w+://[^/?#]*@", address):
        raise ValueError("wanted an address without a user or password in it, because every alert shows it")
    return address


def check_secret_path(path: str) -> str:
    """Return the path of a file; refuse a secret in its place."""
    if "-----" in path or "\n" in path:
        raise ValueError("wanted the path of a file, not the key itself")
    if looks_secret(path):
        raise ValueError("wanted the path of a file, and this looks like a secret; write a file of that name as ./NAME")
    return path
