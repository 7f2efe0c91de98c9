"""The settings file and its state folder, found without building the settings."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

FILE = "gleaner.toml"
STATE = ".gleaner"
_STATE = "GLEANER_PATHS__STATE"

# The stack's Alertmanager asks for this user, whose password is made at each start. Both files are beside its own.
USER, PASSWORD, WEB_CONFIG = "gleaner", "password", "web.yml"


def find_settings(path: Path | None = None) -> Path:
    """Return `path`, else GLEANER_CONFIG, else `gleaner.toml` in this folder."""
    return path or Path(os.environ.get("GLEANER_CONFIG") or FILE)


def stack_folder(state: Path) -> Path:
    """Return the folder of the run file, logs and rendered files."""
    return state.absolute() / "run"


def find_state(path: Path | None = None) -> Path | None:
    """Return the state folder that a file and the environment name.

    Returns None if only the whole settings can find it, or can name the mistake.
    `gleaner status` uses it, because pydantic and numpy take half a second to load.
    """
    path = find_settings(path)
    if any(name.upper().startswith("GLEANER_PATHS") and name != _STATE for name in os.environ):
        return None
    try:
        paths = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("paths", {})
    except (OSError, ValueError):
        return None
    if not isinstance(paths, dict) or paths.keys() - {"state"} or not isinstance(paths.get("state", ""), str):
        return None
    return path.parent / str(os.environ.get(_STATE, paths.get("state", STATE)))


def is_state_in_environment() -> bool:
    """Return whether the environment, not the settings file, names the state folder."""
    return _STATE in os.environ
