"""Checks beyond types and bounds; each raises ValueError."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from gleaner.errors import wanted
from gleaner.table.dates import explain_format, is_zone
from gleaner.table.encodings import find_codec
from gleaner.table.feature import Feature
from gleaner.table.notation import DECIMALS, THOUSANDS, Notation
from gleaner.table.numbers import is_number
from gleaner.table.schema import Schema
from gleaner.table.words import MISSING, OTHER, plain_word


def check_duration(text: str) -> str:
    """Return a duration such as `24h`, or an empty text for none."""
    if text and not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise ValueError("wanted a duration such as 90m, 24h or 7d, or an empty text")
    return text


def check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks such as `10.0.0.0/8`."""
    for network in networks:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError as e:
            raise ValueError(f"wanted an address or a network such as 10.0.0.0/8, got {network!r}") from e
    return networks


def check_encoding(name: str) -> str:
    """Return an encoding's usual name; an empty text stays."""
    found = find_codec(name) if name else ""
    if found is None:
        raise ValueError(wanted("an encoding such as cp1250, iso8859-2 or shift_jis", repr(name)))
    return found


def check_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Return formats of dates."""
    for form in formats:
        if problem := explain_format(form):
            raise ValueError(problem)
    return formats


def check_notations(schema: Schema) -> None:
    """Check each column's notation, with the keys of `[table]`."""
    columns = {"table.": schema.target.notation} | {f"{one.name!r}: ": one.notation for one in schema.features}
    for where, notation in columns.items():
        try:
            _check_notation(notation)
        except ValueError as e:
            raise ValueError(f"{where}{e}") from None


def _check_notation(notation: Notation) -> None:
    """Check that the signs of a notation can be told apart."""
    decimal, thousands = notation.decimal, notation.thousands
    if len(decimal) != 1 or decimal not in DECIMALS:
        raise ValueError(f"decimal: {wanted('a point or a comma', repr(decimal))}")
    if thousands and (len(thousands) != 1 or thousands not in THOUSANDS):
        right = "a point, a comma, a blank, an apostrophe, or an empty text for none"
        raise ValueError(f"thousands: {wanted(right, repr(thousands))}")
    if thousands == decimal:
        right = f"another sign than `decimal`, which is {decimal!r}"
        raise ValueError(f"thousands: {wanted(right, repr(thousands))}")
    for sign in notation.strip.split():
        if re.search(r"[\d()+-]", sign) or not sign.strip(THOUSANDS):
            right = "signs such as `€ $ %`, without digits, brackets, signs of numbers and points alone"
            raise ValueError(f"strip: {wanted(right, repr(sign))}")


def check_features(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """Return features whose names differ, and whose keys fit together."""
    columns: dict[str, str] = {}
    for i, feature in enumerate(features):
        if feature.name in {other.name for other in features[:i]}:
            raise ValueError(f"two features are named {feature.name!r}")
        if not feature.name or ":" in feature.name:
            raise ValueError(f"wanted a feature's name, not empty and without a colon, got {feature.name!r}")
        _check_keys(feature)
        for word in (
            *feature.words,
            *feature.map,
            *feature.missing_values,
            *feature.true_values,
            *feature.false_values,
        ):
            if word != word.strip():  # cells are stripped before they are looked up
                raise ValueError(f"{feature.name!r}: wanted {word.strip()!r} without blanks around it, got {word!r}")
        if feature.type == "category":
            _check_category(feature)
        elif feature.is_date:
            _check_date(feature)
        elif feature.type == "bool":
            _check_bool(feature)
        if not feature.lowest < feature.highest:
            got = f"{feature.lowest:g} and {feature.highest:g}"
            raise ValueError(f"{feature.name!r}: `min` has to be below `max`, got {got}")
        _check_gaps(feature)
        for column in feature.columns:
            if column in columns:
                raise ValueError(f"{feature.name!r} and {columns[column]!r} both make a column {column!r}; rename one")
            columns[column] = feature.name
    return features


_CATEGORY = ("values", "unknown", "min_count")
_BOOL = ("true_values", "false_values")
_DATE = ("formats", "timezone", "parts")
_NUMBER = ("min", "max", "map", "decimal", "thousands", "strip", "brackets")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "float": (*_NUMBER, "monotone", "fold"),
    "int": (*_NUMBER, "monotone", "fold"),
    "bool": (*_BOOL, "monotone"),
    "category": (*_CATEGORY, "fold"),
    "date": _DATE,
    "datetime": _DATE,
}


def _check_keys(feature: Feature) -> None:
    """Check that a feature has only keys of its type."""
    plain = Feature(name=feature.name)
    for key in dict.fromkeys(key for keys in _KEYS.values() for key in keys):
        if key in _KEYS[feature.type] or getattr(feature, key) == getattr(plain, key):
            continue
        if key == "values":
            fix = 'add `type = "category"`, or delete `values`'
            raise ValueError(f"{feature.name!r}: only a category has `values`: {fix}")
        fitting = " or ".join(kind for kind, keys in _KEYS.items() if key in keys)
        raise ValueError(f"{feature.name!r}: type {feature.type!r} has no `{key}`; a column of {fitting} has it")


def _words(feature: Feature) -> tuple[str, ...]:
    return (*feature.words, *feature.true_values, *feature.false_values)


def _check_gaps(feature: Feature) -> None:
    gaps = feature.gaps
    for word in feature.map:
        if plain_word(word, fold=feature.fold) in gaps.words - {""} or (
            is_number(word) and float(word) in gaps.numbers
        ):
            raise ValueError(f"{feature.name!r}: {word!r} stands in `map` and in `missing_values`; delete one")
    for word in _words(feature):
        if plain_word(word, fold=feature.folds) in gaps.words - {""}:
            raise ValueError(f"{feature.name!r}: {word!r} is a value and in `missing_values`; delete one")


def _check_category(feature: Feature) -> None:
    if not feature.values:
        raise ValueError(f'{feature.name!r}: a category needs its words: add `values = ["...", ...]`, or "learn"')
    plain = [plain_word(word, fold=feature.fold) for word in feature.words]
    for word, same in zip(feature.words, plain, strict=True):
        if plain.count(same) > 1:
            raise ValueError(f"{feature.name!r}: `values` has {word!r} twice")
    if taken := {OTHER, MISSING} & set(feature.words):
        raise ValueError(f"{feature.name!r}: the word {min(taken)!r} is taken; rename it in the table")
    if feature.min_count < 1:
        raise ValueError(f"{feature.name!r}: wanted `min_count` of 1 or more, got {feature.min_count}")
    if feature.min_count > 1 and (feature.values != "learn" or feature.unknown != "other"):
        raise ValueError(f'{feature.name!r}: `min_count` needs `values = "learn"` and `unknown = "other"`')


def _check_bool(feature: Feature) -> None:
    yes, no = ({plain_word(word, fold=True) for word in words} for words in feature.yes_no)
    if both := yes & no:
        raise ValueError(f"{feature.name!r}: {min(both)!r} stands for true and for false; delete one")


def _check_date(feature: Feature) -> None:
    if not feature.parts:
        raise ValueError(f'{feature.name!r}: a date needs its parts: add `parts = ["month", "days_since"]`')
    if len(set(feature.parts)) != len(feature.parts):
        raise ValueError(f"{feature.name!r}: `parts` has a part twice")
    if feature.type == "date" and "hour" in feature.parts:
        raise ValueError(f'{feature.name!r}: a date has no `hour`; use `type = "datetime"`')
    if feature.timezone and not is_zone(feature.timezone):
        right = "a time zone such as Europe/Berlin"
        raise ValueError(f"{feature.name!r}: `timezone`: {wanted(right, repr(feature.timezone))}")
    try:
        check_formats(feature.formats)
    except ValueError as e:
        raise ValueError(f"{feature.name!r}: `formats`: {e}") from None


def check_scores(loss: str, *, by_factor: bool, least: float | None) -> None:
    """Check that the scores take every value of the target.

    by_factor: whether accuracy is `within_factor`. least: `model.min`.
    """
    if least is not None and least > -1:
        return
    if loss == "squared_log_error":
        raise ValueError(
            "scores.loss: squared_log_error needs model.min above -1; "
            "for a target that can be negative use standardised_squared_error and accuracy = { within = ... }"
        )
    if by_factor:
        raise ValueError("scores.accuracy: within_factor needs model.min above -1; use { within = ... }")
