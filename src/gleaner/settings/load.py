"""The loader: `gleaner.toml`, the environment and flags become one Settings.

A flag beats the environment, and the environment beats the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError

from gleaner.errors import BadSetting, environment_name, nearest
from gleaner.redaction import find_secrets, remember
from gleaner.settings.environment import remember_variables
from gleaner.settings.file import FILE, find_settings
from gleaner.settings.messages import explain_invalid, explain_not_json, known_keys, value_at
from gleaner.settings.sections import Settings

# Not sections of the file: the file to read, another name for serving.keys_file, the key that a client sends, and the
# real routes that some tests need.
_OTHER_VARIABLES = frozenset({"GLEANER_CONFIG", "GLEANER_REAL_ROUTES", "GLEANER_API_KEYS_FILE", "GLEANER_API_KEY"})


class _Source(PydanticBaseSettingsSource):
    """Nested values of one source, with `serving.port` read as `ports.ml_app`."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self.values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = dict(self.values)
        serving, ports = values.get("serving"), values.get("ports", {})
        if isinstance(serving, dict) and "port" in serving and isinstance(ports, dict):
            values["serving"] = {key: value for key, value in serving.items() if key != "port"}
            values["ports"] = {**ports, "ml_app": serving["port"]}
        return values


def load_settings(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings from a file, the environment and flags.

    path: the file; None for the one that `find_settings` finds.
    flags: values nested as in the file.
    Raises BadSetting with the source, the key and the values that it takes.
    """
    path = find_settings(path)
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors may write a byte order mark
    except FileNotFoundError as e:
        fix = f"go to the folder of {FILE}, or name a file with --config or GLEANER_CONFIG"
        first = "`gleaner init DATA.csv --target COLUMN` writes a first one"
        raise BadSetting(str(path), "", f"no such file in {path.absolute().parent}; {fix}; {first}") from e
    except UnicodeDecodeError as e:
        raise BadSetting(str(path), "", "is not UTF-8; save it as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise BadSetting(str(path), "", f"is not TOML: {e}") from e
    except OSError as e:
        raise BadSetting(str(path), "", f"cannot be read: {e.strerror}") from e
    if "file" in parsed:
        raise BadSetting(str(path), "file", f"no such setting{nearest('file', known_keys(()))}")
    remember_variables()
    _check_environment()
    layers: dict[str, Mapping[str, Any]] = {}  # the values of each source, the strongest first

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = _with_keys_file(env_settings())
            layers.update({"flag": init_settings(), "environment": environment, str(path): parsed})
            given = list(layers.values())
            _remember(given)
            for i, layer in enumerate(given):
                _outweigh(layer, given[i + 1 :])
            return tuple(_Source(settings_cls, layer) for layer in given)

    try:
        return Sourced(**{"file": path, **(flags or {})})
    except SettingsError as e:
        raise explain_not_json(e) from e
    except ValidationError as e:
        raise explain_invalid(path, layers, e) from e


def _remember(layers: Iterable[Mapping[str, Any]]) -> None:
    """Remember the secrets of settings that are not checked yet."""
    for layer in layers:
        for section, key, whole in (("tracking", "uri", False), ("alerts", "webhook", True)):
            if isinstance(address := value_at(layer, (section, key)), str):
                remember(*find_secrets(address, whole=whole))


def _with_keys_file(values: dict[str, Any]) -> dict[str, Any]:
    """Read GLEANER_API_KEYS_FILE as `serving.keys_file`."""
    path, serving = os.environ.get("GLEANER_API_KEYS_FILE"), values.get("serving", {})
    if path and isinstance(serving, dict):
        values = {**values, "serving": {"keys_file": path, **serving}}
    return values


def _check_environment() -> None:
    for name in os.environ:
        section = name.lower().removeprefix("gleaner_").split("__")[0]
        if name.lower().startswith("gleaner_") and name not in _OTHER_VARIABLES and section not in known_keys(()):
            known = sorted(_OTHER_VARIABLES | {environment_name(key) for key in known_keys(())})
            raise BadSetting("environment", name, f"no such setting{nearest(name, known)}")


def _outweigh(values: Mapping[str, Any], weaker: list[Mapping[str, Any]]) -> None:
    """Delete `scores.accuracy` from weaker sources; merged, its table would have two keys."""
    if value_at(values, ("scores", "accuracy")) is not None:
        for other in weaker:
            if isinstance(scores := other.get("scores"), dict):
                scores.pop("accuracy", None)
