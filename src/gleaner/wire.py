"""Bodies <-> values: JSON to accepted rows, predictions to JSON, and the problem document."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import numpy as np

from gleaner.errors import NAMED_FAULTS, BadBody
from gleaner.rows import Rows, check_count, judge_objects
from gleaner.schema import Array, Feature, Schema, show

JSON, PROBLEM = "application/json", "application/problem+json"

_encode = msgspec.json.encode
_UNUSUAL = re.compile(r'[:"\\\x00-\x1f]')


class RowReader:
    """Reads bodies of JSON, an object or a list of objects, as rows of one schema.

    `accept` is fast and may only accept; `read` is the judge of everything else. Where both accept, they give the
    same numbers, which a property test holds them to.
    """

    def __init__(self, schema: Schema, *, max_rows: int, max_depth: int) -> None:
        self.schema, self.max_rows, self.max_depth = schema, max_rows, max_depth
        fields = [(f"f{i}", _accepted(feature)) for i, feature in enumerate(schema.features)]
        # msgspec keeps the last of two equal keys without a word. With every field there and no other, a body
        # with a key too many has a colon too many, as long as no value can hold one. And msgspec takes no field
        # with a quote in its name: where either is so, `read` reads everything.
        self._is_plain = not any(
            _UNUSUAL.search(feature.name) or ":" in "".join(feature.values) for feature in schema.features
        )
        names = {f"f{i}": feature.name for i, feature in enumerate(schema.features)} if self._is_plain else {}
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        self._decode = msgspec.json.Decoder(row | list[row]).decode  # type: ignore[valid-type]
        self._row = row
        self._width, self._k = len(fields), len(schema.columns)
        has_category = any(feature.values for feature in schema.features)
        self._columns = self._expand if has_category else msgspec.structs.astuple

    def accept(self, body: bytes) -> tuple[tuple[float, ...]] | Array | None:
        """The rows of a body that is right in every way, k numbers each; None for one that `read` has to look at.

        One row is a tuple of numbers, more are a matrix (n, k): each as it is quickest predicted.
        """
        try:
            decoded = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        rows = (decoded,) if decoded.__class__ is self._row else decoded
        n = len(rows)
        if body.count(b":") != self._width * n or n > self.max_rows or not self._is_plain:
            return None
        if n == 1:
            return (self._columns(rows[0]),)
        numbers = itertools.chain.from_iterable(map(self._columns, rows))
        return np.fromiter(numbers, np.float64, n * self._k).reshape(n, self._k)

    def read(self, body: bytes, *, named: int = NAMED_FAULTS) -> Rows:
        """The rows of a body, each accepted or with what is wrong with it.

        Raises BadBody where it is not strict JSON, TooLarge for more rows than are taken at once.
        """
        value = read_json(body, max_depth=self.max_depth)
        if not isinstance(value, list):
            return dataclasses.replace(judge_objects(self.schema, [value], named=named), is_single=True)
        check_count(len(value), self.max_rows)
        return judge_objects(self.schema, value, named=named)

    def _expand(self, row: Any) -> tuple[float, ...]:
        """The columns of a row with categories in it."""
        columns: list[float] = []
        for feature, value in zip(self.schema.features, msgspec.structs.astuple(row), strict=True):
            columns += [float(value == word) for word in feature.values] if feature.values else [value]
        return tuple(columns)


def _accepted(feature: Feature) -> Any:
    """The msgspec type that accepts only what the feature does."""
    if feature.type == "category":
        return Literal[feature.values]
    if feature.type == "int":
        # Not every whole number that a column accepts: 30.0 and 10**30 are left to the judge.
        low, high = max(feature.lowest, -(2.0**53)), min(feature.highest, 2.0**53)
        return Annotated[int, msgspec.Meta(ge=-int(-low // 1), le=int(high // 1))]
    return Annotated[float, msgspec.Meta(ge=feature.lowest, le=feature.highest)]


def encode_numbers(numbers: Sequence[float]) -> bytes:
    """A list in JSON, with the shortest digits that read back as the same numbers."""
    return _encode(numbers)


def write_predictions(predictions: Sequence[float]) -> bytes:
    """`{"prediction": [...]}` with the shortest digits that read back as the same numbers."""
    return _encode({"prediction": predictions})


def read_length(text: str) -> int | None:
    """The number of bytes that a header announces, whatever zeros stand in front of it; None if it is no number.

    Of one with more than twenty digits only these are read, since Python refuses thousands: it is too large anyway.
    """
    return int(text.lstrip("0")[:20] or "0") if text.isascii() and text.isdigit() else None


def write_json(value: object) -> bytes:
    """JSON in ASCII, whatever a text in it holds; raises ValueError for a number that JSON has no word for."""
    return json.dumps(value, allow_nan=False).encode("ascii")


def problem(
    status: int,
    title: str,
    detail: str,
    request_id: str,
    errors: Sequence[Mapping[str, object]] = (),
    **more: str,
) -> bytes:
    """A problem document, `application/problem+json`; `errors` as in the example of RFC 9457, section 3.

    more: extension members, for clients of a protocol that has its own word for an error.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:request:{request_id}",
        **more,
    }
    if errors:
        document["errors"] = errors
    return write_json(document)


def read_json(body: bytes, *, max_depth: int) -> object:
    """The value of a body of strict JSON: UTF-8 without a mark, no NaN, no key twice, no deeper than `max_depth`.

    Raises BadBody, saying where.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadBody(f"byte {e.start} is not UTF-8") from e
    if _depth(text) > max_depth:
        raise BadBody(f"nested deeper than {max_depth} levels")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except json.JSONDecodeError as e:
        raise BadBody(f"not JSON: {e.msg[0].lower()}{e.msg[1:]}, at line {e.lineno}, column {e.colno}") from e


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _tokens(text):
        if token in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in "]}":
            depth -= 1
    return deepest


def _tokens(text: str) -> Iterator[str]:
    return (match.group() for match in _TOKEN.finditer(text))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadBody(f"the key {show(twice)} stands twice in one object")
    return result


def _constant(name: str) -> NoReturn:
    raise BadBody(f"{name} is not a number in JSON")


def _integer(digits: str) -> int | float:
    # Python refuses to read very long integers; no column accepts one either.
    return int(digits) if len(digits) <= 400 else float(digits)
