"""The password of the stack's Alertmanager."""

from __future__ import annotations

import secrets
from pathlib import Path

import bcrypt

from gleaner.machine.files import replace_file
from gleaner.redaction import remember
from gleaner.settings.file import PASSWORD, USER, WEB_CONFIG
from gleaner.settings.services import ALERTMANAGER

_ROUNDS = 5  # of bcrypt; the password has 256 random bits, so a slow hash adds nothing


def write_password(folder: Path) -> Path:
    """Make a password, and the web configuration that asks for it.

    folder: that of the rendered files. Returns the password's file, for this user alone.
    """
    text = secrets.token_urlsafe(32)
    remember(text)
    hashed = bcrypt.hashpw(text.encode(), bcrypt.gensalt(_ROUNDS)).decode()
    own = folder / ALERTMANAGER.name
    replace_file(own / WEB_CONFIG, f"basic_auth_users:\n  {USER}: {hashed}\n".encode(), mode=0o600, durable=False)
    replace_file(own / PASSWORD, text.encode(), mode=0o600, durable=False)
    return own / PASSWORD
