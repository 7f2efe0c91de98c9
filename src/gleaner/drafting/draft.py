"""The draft: a first `gleaner.toml`, tried on its CSV file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gleaner.drafting.kinds import Ask, Decision, decide, decide_target, settle_notation
from gleaner.drafting.leaks import find_leaks
from gleaner.drafting.notations import settled_decimal
from gleaner.drafting.profile import Profile, profile_columns
from gleaner.drafting.scores import draft_scores
from gleaner.errors import BadTable
from gleaner.table.csv import open_csv, read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.messages import explain_cell, show
from gleaner.table.notation import Notation
from gleaner.table.schema import Schema
from gleaner.table.tables import Table, plain_name
from gleaner.table.totals import rows_of_values
from gleaner.table.words import plain_text

_LONGEST_NAME = 64  # of a model
_NOTATION = ("decimal", "thousands", "strip", "brackets")


@dataclass(frozen=True, slots=True)
class Draft:
    """A first `gleaner.toml`.

    text: the file.
    decisions: every column beside the target, in the order of the file.
    table: the file, as training would read it.
    """

    text: str
    decisions: tuple[Decision, ...]
    table: Table


def no_answer(question: str, answers: Sequence[str]) -> None:
    """Leave every question open."""


def draft_settings(path: Path, target: str, ask: Ask = no_answer, *, encoding: str = "") -> Draft:
    """Return a `gleaner.toml`, guessed from every row of a file.

    The draft is tried on the file.

    path: the CSV file. target: the header of its target.
    ask: called for what the file leaves open; without an answer the column is left out.
    encoding: the encoding of a file that is neither UTF-8 nor has a mark.
    Raises BadTable for a file without rows, without a numeric target, or without a feature.
    """
    with open_csv(path, encoding=encoding, names=[(target,)]) as file:
        at = file.columns.find(target, ())
        profiles = profile_columns(file.header, rows_of_values(file.rows(), file.header))
    if not profiles[at].rows:
        raise BadTable(path, "has a header and no rows below it")
    signs = {sign for profile in profiles if (sign := settled_decimal(profile))}
    if len(signs) == 1:
        (sign,) = signs
        profiles = [replace(profile, decimal=sign) for profile in profiles]
    aim = _decide_target(path, profiles[at], ask, encoding)
    decisions = _decide(profiles, at, aim.name, ask)
    _check_features(path, decisions)
    plain = _common_notation(aim, decisions)
    decisions = [settle_notation(one, profiles[one.at], plain, ask) for one in decisions]
    _check_features(path, decisions)
    table = _read(path, aim, decisions, plain, encoding)
    leaks = dict(find_leaks(table))
    decisions = [_without(decision, leaks) for decision in decisions]
    _check_features(path, decisions)
    names = [decision.feature.name for decision in decisions if decision.feature]
    table = _keep(table, names)
    lowest = _lowest(table)
    decisions = [replace(one, feature=_with_min(one.feature, lowest)) for one in decisions]
    return Draft("\n".join(_text(path, table, aim, decisions, plain)) + "\n", tuple(decisions), table)


def _decide_target(path: Path, profile: Profile, ask: Ask, encoding: str) -> Feature:
    """Return the target as a feature. Raises BadTable."""
    feature, why = decide_target(profile, slug(profile.header), ask)
    if feature is not None:
        return feature
    if why:
        raise BadTable(path, f"the target {profile.header!r}: {why}; `gleaner init --interactive` asks")
    raise _refusal(path, profile, encoding)


def _refusal(path: Path, profile: Profile, encoding: str) -> BadTable:
    """Return the error for a target without numbers."""
    with open_csv(path, encoding=encoding, names=[(profile.header,)]) as file:
        for line, cells in file.rows():
            cell = plain_text(cells[profile.at]) if profile.at < len(cells) else ""
            if cell and not _is_number(cell):
                reason = f"wanted numbers in most rows of the target {profile.header!r}, got {show(cell)}"
                return BadTable(path, f"{reason}{explain_cell(cell)}", line=line)
    return BadTable(path, f"the target {profile.header!r} is empty in every row")


def _is_number(cell: str) -> bool:
    try:
        Notation().read(cell)
    except ValueError:
        return False
    return True


def _decide(profiles: Sequence[Profile], target: int, target_name: str, ask: Ask) -> list[Decision]:
    headers = Counter(plain_name(profile.header) for profile in profiles)
    taken, decisions = {target_name}, []
    for profile in profiles:
        if profile.at == target:
            continue
        if headers[plain_name(profile.header)] > 1:
            decisions.append(Decision(profile.header, profile.at, None, "the file has this header twice"))
            continue
        name = slug(profile.header)
        while name in taken:
            name += "_"
        taken.add(name)
        decisions.append(decide(profile, name, ask))
    return decisions


def _check_features(path: Path, decisions: Sequence[Decision]) -> None:
    if not any(decision.feature for decision in decisions):
        reasons = "".join(f"\n  {decision.header!r}: {decision.why}" for decision in decisions[:40])
        more = f"\n  and {len(decisions) - 40} more columns" if len(decisions) > 40 else ""
        raise BadTable(path, f"no column can be a feature{':' if decisions else ''}{reasons}{more}")


def _common_notation(aim: Feature, decisions: Sequence[Decision]) -> Notation:
    """Return the notation of most columns; the target's, if it has one."""
    if aim.decimal is not None:
        return aim.notation
    found = Counter(one.feature.notation for one in decisions if one.feature and one.feature.decimal is not None)
    return Notation() if not found or aim.type == "float" else found.most_common(1)[0][0]


def _target(aim: Feature, plain: Notation, low: float | None = None) -> Target:
    signs = {key: getattr(plain, key) for key in _NOTATION} if plain != Notation() else {}
    return Target(name=aim.name, sources=aim.sources, min=low, missing_values=aim.missing_values, **signs)


def _read(path: Path, aim: Feature, decisions: Sequence[Decision], plain: Notation, encoding: str) -> Table:
    """Read the file as training would."""
    signs = {key: getattr(plain, key) for key in _NOTATION}
    features = [one.feature for one in decisions if one.feature]
    merged = [f if f.decimal is not None or not f.is_number else replace(f, **signs) for f in features]
    return read_table(path, Schema(tuple(merged), _target(aim, plain)), encoding=encoding)


def _without(decision: Decision, leaks: dict[str, str]) -> Decision:
    if decision.feature and decision.feature.name in leaks:
        return replace(decision, feature=None, why=leaks[decision.feature.name])
    return decision


def _keep(table: Table, names: Sequence[str]) -> Table:
    """Return the table with some of its features alone."""
    kept = replace(table.schema, features=tuple(f for f in table.schema.features if f.name in names))
    wanted = set(kept.columns)
    at = [i for i, column in enumerate(table.schema.columns) if column in wanted]
    return replace(table, schema=kept, X=np.ascontiguousarray(table.X[:, at]))


def _lowest(table: Table) -> dict[str, float]:
    """Return the least number of each column of the matrix."""
    with np.errstate(all="ignore"):
        lowest = np.nanmin(np.where(np.isnan(table.X), np.inf, table.X), axis=0)
    return dict(zip(table.schema.columns, map(float, lowest), strict=True))


def _with_min(feature: Feature | None, lowest: dict[str, float]) -> Feature | None:
    is_bounded = feature is not None and feature.is_number and 0 <= lowest[feature.name] < np.inf
    return replace(feature, min=0.0) if feature is not None and is_bounded else feature


def _text(path: Path, table: Table, aim: Feature, decisions: Sequence[Decision], plain: Notation) -> Iterator[str]:
    y, header = table.y, aim.sources[0]
    yield f"# A first draft, guessed from {quote(path.name)}: check the columns, and give them units and bounds."
    yield "# Gleaner's docs/tables.md explains every key of a column."
    yield ""
    yield "[model]"
    yield f"name = {quote(_model_name(path))}"
    yield f"target = {quote(aim.name)}"
    yield f"target_sources = [{quote(header)}]"
    if aim.missing_values:
        yield f"target_missing_values = {_toml(aim.missing_values)}"
    if y.min() >= 0:
        yield "min = 0.0"
    is_declared = not table.encoding.startswith("utf-")  # UTF-16 has a mark
    if is_declared or plain != Notation():
        yield ""
        yield "[table]"
        if is_declared:
            yield f"encoding = {quote(table.encoding)}"
        yield from _keys_of(plain, Notation(), _NOTATION)
    for decision in decisions:
        yield ""
        if decision.feature is None:
            yield f"# {quote(decision.header)} is left out: {decision.why}."
        else:
            yield f"# {quote(decision.header)}: {decision.why}."
            yield from _feature(decision.feature, plain)
    yield ""
    yield "[training]"
    yield f"data = {quote(str(path))}"
    yield ""
    yield "[scores]"
    yield from draft_scores(table, log=bool(y.min() >= 0))


def _feature(feature: Feature, plain: Notation) -> Iterator[str]:
    yield "[[features]]"
    yield f"name = {quote(feature.name)}"
    yield f"type = {quote(feature.type)}"
    keys = [field.name for field in fields(Feature) if field.name not in ("name", "type", "sources", *_NOTATION)]
    yield from _keys_of(feature, Feature(name=feature.name), keys)
    if feature.decimal is not None:
        yield from _keys_of(feature.notation, plain, _NOTATION)
    yield f"sources = [{', '.join(map(quote, feature.sources))}]"


def _keys_of(thing: Any, plain: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield the keys that differ from the plain ones, as TOML."""
    for key in keys:
        value = getattr(thing, key)
        if value != getattr(plain, key):
            yield f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(quote, value))}]"
    return str(value).lower() if isinstance(value, bool) else quote(value) if isinstance(value, str) else repr(value)


def slug(name: str) -> str:
    """Return a header as a name of letters, digits and `_`."""
    return re.sub(r"[\W_]+", "_", plain_text(name).lower()).strip("_") or "column"


def _model_name(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:_LONGEST_NAME] or "model"


def quote(text: str) -> str:
    """Return a text in TOML's quotes.

    JSON escapes as TOML does, except for pairs of surrogates and a bare DEL.
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
