"""The environment variables that Gleaner reads and sets, besides its settings."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from gleaner.errors import BadSetting
from gleaner.redaction import SECRET_NAME, find_secrets, remember
from gleaner.settings.sections import Settings
from gleaner.settings.telemetry import disable_telemetry


def prepare_mlflow(settings: Settings) -> None:
    """Set MLflow's variables before its import: no telemetry, bounded waits, few messages."""
    disable_telemetry()
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(settings.tracking.timeout_seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    user, password = _userinfo(settings)
    if settings.tracking.is_server:
        read_authorization(settings)  # a bad token is refused here; MLflow's own error would repeat it
    if user:  # MLflow repeats its address in errors, and these not
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password


def read_authorization(settings: Settings) -> str:
    """Return the header `Authorization` for the MLflow server; empty for none.

    The user and password come from the address, or from the variables of MLflow's own client. Never show the result.
    Raises BadSetting for a token that no header can hold.
    """
    user, password = _userinfo(settings)
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user and password:
        basic = base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")
        remember(password, basic)
        return f"Basic {basic}"
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise BadSetting("environment", "MLFLOW_TRACKING_TOKEN", "wanted a token of ASCII characters without spaces")
    return f"Bearer {token}" if token else ""


def remember_variables() -> None:
    """Remember the secrets in the environment, so that no output shows them."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name):
            remember(value)
        elif "://" in value:  # of a proxy, of an MLflow server, of a database
            remember(*find_secrets(value))


def read_key() -> str | None:
    """Return the API key that clients send; None for none."""
    return os.environ.get("GLEANER_API_KEY") or None


def _userinfo(settings: Settings) -> tuple[str, str]:
    """Return the user and password in the server's address, or empty texts."""
    parts = urlsplit(settings.tracking.uri if settings.tracking.is_server else "")
    return unquote(parts.username or ""), unquote(parts.password or "")


def make_environment(variables: Mapping[str, str], **more: str) -> dict[str, str]:
    """Return this process's environment with some variables changed, for an unbuffered Python."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **variables, **more}
