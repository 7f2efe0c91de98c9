"""Validation errors of pydantic, in the words of gleaner.toml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PlainSerializer, ValidationError
from pydantic_settings import SettingsError

from gleaner.errors import BadSetting, environment_name, nearest
from gleaner.redaction import hide_login
from gleaner.settings.modelling import NAME_PATTERN, Within, WithinFactor
from gleaner.settings.sections import SLOT_PATTERN, Settings
from gleaner.table.feature import Feature


def known_keys(location: tuple[object, ...]) -> list[str]:
    """Return the keys at a location; the empty one is the file."""
    names = {
        "": [name for name in Settings.model_fields if name != "file"],
        "features": list(Feature.__dataclass_fields__),
        "scores.accuracy": [*WithinFactor.model_fields, *Within.model_fields],
    }
    section = str(location[0]) if location else ""
    for name in (".".join(map(str, location)), section):
        if name in names:
            return names[name]
    model = Settings.model_fields[section].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [*model.model_fields, *(["port"] if section == "serving" else [])]


def explain_not_json(error: SettingsError) -> BadSetting:
    """Explain a variable that should hold a list or a table."""
    text = getattr(error.__cause__, "doc", None)
    found = [name for name, value in os.environ.items() if name.lower().startswith("gleaner_") and value == text]
    if not found:
        return BadSetting("environment", "", str(error))
    name = found[0]
    # The table of a whole section may hold a secret, and broken JSON does not tell where.
    location = tuple(name.lower().removeprefix("gleaner_").split("__"))
    got = "" if _is_secret(location) else f", got {hide_login(repr(text))}"
    return BadSetting("environment", name, f"wanted a list or a table as JSON{got}")


def explain_invalid(path: Path, layers: Mapping[str, Mapping[str, Any]], error: ValidationError) -> BadSetting:
    """Explain the most telling fault of a validation.

    The key stands as its source spells it.
    path: the settings file. layers: the values of each source, the strongest first.
    """
    # One mistake makes several faults: a misspelt key is also a missing key, a bad value in one branch of a union is
    # an unknown key in the other, and a list whose only item is bad is also an empty list.
    rank = {"too_short": 3, "missing": 2, "extra_forbidden": 1, "unexpected_keyword_argument": 1}
    fault = min(error.errors(), key=lambda fault: rank.get(fault["type"], 0))
    location = tuple(part for part in fault["loc"] if not _is_branch(part))
    if fault["type"] == "missing" and location[:2] == ("scores", "accuracy"):
        location = location[:2]  # the key is missing in both branches of the union
    source, values, given = _origin(layers, location) or (str(path), layers[str(path)], location)
    key = _key(source, values, given)
    if fault["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = known_keys(location[:-1])
        if location[-1] in known:
            return BadSetting(source, key, f"wanted only one of {', '.join(map(repr, known))}")
        return BadSetting(source, key, f"no such setting{nearest(str(location[-1]), known)}")
    wanted = _wanted(fault, location)
    if fault["type"] == "missing" and not wanted:
        return BadSetting(source, key, "is missing")
    message = wanted or fault["msg"].removeprefix("Value error, ")
    if not location:
        return BadSetting(source, "", message)
    is_long = isinstance(fault["input"], list | tuple) or (fault["input"] and isinstance(fault["input"], dict))
    is_secret = _is_secret(location) and (len(location) > 1 or isinstance(fault["input"], str))
    is_hidden = is_long or is_secret or message.startswith("wanted at least")
    got = "" if is_hidden else f", got {hide_login(repr(fault['input']))}"
    return BadSetting(source, key, f"{message[0].lower()}{message[1:]}{got}")


def _is_secret(location: tuple[object, ...]) -> bool:
    """Return whether a setting, or its whole section, can hold a secret."""
    model = Settings.model_fields[str(location[0])].annotation if location[0] in Settings.model_fields else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    fields = [field for name, field in model.model_fields.items() if location[1:2] in {(), (name,)}]
    return any(isinstance(part, PlainSerializer) for field in fields for part in field.metadata)


def _wanted(fault: Mapping[str, Any], location: tuple[Any, ...]) -> str:
    """Return the values that a key takes, or nothing for pydantic's words."""
    if location == ("scores", "accuracy"):
        return "wanted { within_factor = 2.0 }, or { within = 10.0 } in the target's unit"
    if location[:1] == ("features",) and len(location) <= 2 and fault["type"] not in {"missing", "value_error"}:
        return "wanted one or more [[features]], a table for each column"
    if fault["type"] == "string_pattern_mismatch":
        return {
            NAME_PATTERN: "wanted 1 to 64 letters, digits, `.`, `-` and `_`, the first a letter or a digit",
            SLOT_PATTERN: "wanted a slot such as v1 or v2",
        }[fault["ctx"]["pattern"]]
    wanted = {
        **dict.fromkeys(("dataclass", "dict", "model"), "a table of `key = value`"),
        "bool": "true or false",
        "float": "a number",
        "int": "a whole number",
        "finite": "a finite number",
        "path": "a path in quotes",
        "string": "a text in quotes",
        "tuple": 'a list, such as ["..."]',
        "literal": "{expected}",
        "greater_than": "more than {gt}",
        "greater_than_equal": "{ge} or more",
        "less_than": "less than {lt}",
        "less_than_equal": "{le} or less",
        "too": "at least one",
    }
    kind = fault["type"]  # such as int_parsing, int_type, int_from_float
    text = wanted.get(kind) or wanted.get(kind.split("_")[0], "")
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in fault.get("ctx", {}).items()}
    return text and f"wanted {text.format(**limits)}"


def _origin(
    layers: Mapping[str, Mapping[str, Any]], location: tuple[Any, ...]
) -> tuple[str, Mapping[str, Any], tuple[Any, ...]] | None:
    """Find the strongest source of a value.

    Returns its name, all of its values, and the location of the value in them; None if no source has the value.
    """
    for source, values in layers.items():
        # As in the loader: within one source, `serving.port` beats `ports.ml_app`.
        other = [("serving", "port")] if location == ("ports", "ml_app") else []
        for given in (*other, location):
            if given and value_at(values, given) is not None:
                return source, values, given
    return None


def _key(source: str, values: Mapping[str, Any], location: tuple[Any, ...]) -> str:
    """Return a key as its source spells it, without positions in lists."""
    feature = []
    if len(location) > 1 and location[0] == "features":
        name = value_at(values, (*location[:2], "name"))
        feature = [f"feature {name!r}" if name and isinstance(name, str) else f"feature {location[1] + 1}"]
        feature += [".".join(str(part) for part in location[2:] if not isinstance(part, int))]
        location = location[:1]
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    if source == "environment":
        key = environment_name(key)
    elif feature:
        key = ""
    return ": ".join(filter(None, [key, *feature]))


def _is_branch(part: object) -> bool:
    """Tell whether a part of a location names a union's branch."""
    return isinstance(part, str) and ("[" in part or part in {"WithinFactor", "Within"})


def value_at(values: Any, location: tuple[Any, ...]) -> object:
    """Return the value at a location of nested values; None for none."""
    for part in location:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return None
    return values
