"""Settings as text, for docs/settings.md and `gleaner config show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from gleaner.settings.sections import Settings

_FEATURE_KEYS = {
    "name": "The column's name in requests.",
    "type": "`float`, `int`, `bool`, `category`, `date` or `datetime`.",
    "unit": "The column's unit, for readers.",
    "min": "The least value; a row with less is refused.",
    "max": "The greatest value; a row with more is refused.",
    "missing": "`allow` takes rows without a value; by default (`refuse`) they are refused.",
    "missing_values": 'Entries that stand for a missing value, such as `["n/a", "-200"]`; an empty cell always does.',
    "monotone": "`up` or `down`: the direction of predictions along the column, for `gradient_boosting`.",
    "sources": "Headers of the column in files; the first one found counts, and `name` comes last.",
    "map": 'Words in a file, without blanks around them, and their numbers; `""` is an empty cell.',
    "values": 'The words of a category, or `"learn"` for those of the training data.',
    "unknown": "`other` takes words beyond `values` as one; by default (`refuse`) their rows are refused.",
    "min_count": "The rows that a learned word needs; rarer words count as `other`.",
    "fold": "Whether case and repeated blanks of words do not matter.",
    "true_values": 'The words of a bool that mean true, in any case; by default `["true", "yes", "y", "1"]`.',
    "false_values": 'The words of a bool that mean false, in any case; by default `["false", "no", "n", "0"]`.',
    "formats": 'Formats of dates beside 2024-01-31, such as `["%d.%m.%Y"]`; [tables](tables.md) has the signs.',
    "timezone": "The time zone of times that name none, and of `parts`; by default UTC.",
    "parts": "The columns of a date: `weekday`, `month`, `day_of_year`, `hour`, `days_since`.",
    "decimal": "The sign before the decimals, in place of `table.decimal`.",
    "thousands": "The sign between groups of three digits, in place of `table.thousands`.",
    "strip": "Signs beside a number that mean nothing, in place of `table.strip`.",
    "brackets": "Whether a number in brackets is negative, in place of `table.brackets`.",
    "description": "The column's meaning, for readers.",
}


def describe_settings() -> str:
    """Return docs/settings.md: every setting with its type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "`gleaner config describe` writes this page. Settings stand in one file, `gleaner.toml` in the current folder;",
        "`GLEANER_CONFIG` or `--config` names another file. A flag beats the environment, the environment beats the",
        "file, and the file beats the default. In the environment, `serving.host` is `GLEANER_SERVING__HOST`. An",
        "unknown key is an error that names the nearest known one. `gleaner config show` prints what is in effect.",
    ]
    for section, info in Settings.model_fields.items():
        model = info.annotation
        if section == "features":
            lines += ["", "## `[[features]]`", ""]
            lines += [
                "One table for each input column, in the order of the model's matrix. Training and serving refuse a"
            ]
            lines += ["row with an empty cell; [tables](tables.md) has the remedies.", ""]
            lines += ["| key | meaning |", "| --- | --- |"]
            lines += [f"| `{key}` | {meaning} |" for key, meaning in _FEATURE_KEYS.items()]
        elif isinstance(model, type) and issubclass(model, BaseModel):
            lines += ["", f"## `[{section}]`", "", (model.__doc__ or "").strip(), ""]
            lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
            for name, setting in model.model_fields.items():
                default = "required" if setting.is_required() else f"`{_toml(setting.default)}`"
                lines.append(f"| `{name}` | {_kind(setting.annotation)} | {default} | {setting.description} |")
    return "\n".join(lines) + "\n"


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f'"{value}"' for value in arguments)
    if origin is UnionType or str(origin) == "typing.Union":
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    names = {float: "number", int: "whole number", str: "text", bool: "true or false", Path: "path", tuple: "list"}
    return names.get(origin or annotation, "table")


def _toml(value: object) -> str:
    if isinstance(value, BaseModel | Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in dict(value).items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, int) and abs(value) >= 10_000:  # 5_001 would not look like a port
        return f"{value:_}"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def show_settings(settings: Settings) -> str:
    """Return every setting in effect, one a line."""
    lines = []
    for section, values in settings.model_dump().items():
        if section == "features":
            names = ", ".join(feature.name for feature in settings.features)
            lines.append(f"features = {names}")
            continue
        lines += [f"{section}.{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join(lines)
