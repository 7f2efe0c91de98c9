"""Strict JSON: bodies -> rows, and predictions -> responses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import numpy as np

from gleaner.errors import NAMED_FAULTS, BadBody
from gleaner.serving.formats.predictions import Predictions
from gleaner.table.dates import part_row
from gleaner.table.feature import Feature
from gleaner.table.messages import show
from gleaner.table.numbers import Array
from gleaner.table.rows import Rows, check_count, read_objects
from gleaner.table.schema import Schema

_encode = msgspec.json.encode

JSON = "application/json"

_UNUSUAL = re.compile(r'[:"\\\x00-\x1f]')


class RowReader:
    """The reader of JSON bodies, an object or a list of objects.

    `accept` is fast and may only accept; `read` finds the faults of every other body. Where both accept a body,
    they return the same numbers; a property test checks this.
    """

    def __init__(self, schema: Schema, *, max_rows: int, max_depth: int) -> None:
        self.schema, self.max_rows, self.max_depth = schema, max_rows, max_depth
        fields = [(f"f{i}", _accepted(feature)) for i, feature in enumerate(schema.features)]
        # msgspec silently keeps the last of two equal keys. When every field is there and no other, a repeated key
        # shows as one colon too many, unless a value can contain a colon. And msgspec refuses a field whose name
        # contains a quote. In both cases `read` reads every body.
        self._is_plain = not any(
            _UNUSUAL.search(feature.name) or ":" in "".join(feature.words) for feature in schema.features
        )
        names = {f"f{i}": feature.name for i, feature in enumerate(schema.features)} if self._is_plain else {}
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        self._decode = msgspec.json.Decoder(row | list[row]).decode  # type: ignore[valid-type]
        self._row = row
        self._width, self._k = len(fields), len(schema.columns)
        is_plain = all(feature.is_number and not feature.allows_gaps for feature in schema.features)
        self._columns = msgspec.structs.astuple if is_plain else self._expand
        self._ones = [dict(_ones(feature)) for feature in schema.features]

    def accept(self, body: bytes) -> tuple[tuple[float, ...]] | Array | None:
        """Return the rows of a faultless body; None for any other body.

        One row is a tuple with k numbers in a tuple, several are a matrix (n, k): each in its fastest form.
        """
        try:
            decoded = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        rows = (decoded,) if decoded.__class__ is self._row else decoded
        n = len(rows)
        if body.count(b":") != self._width * n or n > self.max_rows or not self._is_plain:
            return None
        try:
            if n == 1:
                return (self._columns(rows[0]),)
            numbers = itertools.chain.from_iterable(map(self._columns, rows))
            return np.fromiter(numbers, np.float64, n * self._k).reshape(n, self._k)
        except ValueError:  # only `_expand` refuses
            return None

    def read(self, body: bytes, *, named: int = NAMED_FAULTS) -> Rows:
        """Read the rows of a body, and the faults of refused ones.

        named: the number of faults to keep.
        Raises BadBody for a body that is not strict JSON, TooLarge for more rows than one request takes.
        """
        value = read_json(body, max_depth=self.max_depth)
        if not isinstance(value, list):
            return dataclasses.replace(read_objects(self.schema, [value], named=named), is_single=True)
        check_count(len(value), self.max_rows)
        return read_objects(self.schema, value, named=named)

    def _expand(self, row: Any) -> tuple[float, ...]:
        """Return the columns of one row. Raises ValueError."""
        columns: list[float] = []
        values = msgspec.structs.astuple(row)
        for feature, ones, value in zip(self.schema.features, self._ones, values, strict=True):
            if ones:
                columns += ones[value]
            elif feature.is_date:
                columns += part_row(feature.accept(value), feature.parts)
            else:
                columns.append(feature.accept(value))
        return tuple(columns)


def _ones(feature: Feature) -> Iterator[tuple[str | None, list[float]]]:
    """Yield the words of a category and their columns of the matrix.

    None stands for a missing value.
    """
    for word in (*feature.words, *([None] if feature.allows_gaps else [])) if feature.type == "category" else ():
        place = feature.places - 1 if word is None else int(feature.accept(word))
        if word is None or feature.words[place] == word:  # words may be equal when folded
            ones = [0.0] * feature.places
            ones[place] = 1.0
            yield word, [float(place)] if feature.is_coded else ones


def _accepted(feature: Feature) -> Any:
    """Return a msgspec type that accepts only values that the feature accepts.

    A text of a date may still be refused by the feature.
    """
    kind: Any
    if feature.type == "category":
        words = tuple(word for word, _ in _ones(feature) if word is not None)
        kind = Literal[words] if words else None
    elif feature.type == "bool":
        kind = bool
    elif feature.is_date:
        kind = str
    else:
        low, high = feature.lowest, feature.highest
        if feature.type == "int":
            # The column accepts 30.0 and 10**30 too; `read` reads these.
            low, high = max(low, -(2.0**53)), min(high, 2.0**53)
            kind = Annotated[int, msgspec.Meta(ge=-int(-low // 1), le=int(high // 1))]
        else:
            kind = Annotated[float, msgspec.Meta(ge=low, le=high)]
    return kind | None if feature.allows_gaps and kind is not None else kind


def encode_numbers(numbers: Sequence[float]) -> bytes:
    """Write a JSON list of numbers, with the shortest exact digits."""
    return _encode(numbers)


def write_predictions(predictions: Sequence[float]) -> bytes:
    """Write `{"prediction": [...]}`, with the shortest exact digits."""
    return _encode({"prediction": predictions})


def write_table(predictions: Predictions) -> bytes:
    """Write one JSON object with the members that were asked for."""
    if not (predictions.detail or predictions.partial):
        return write_predictions(predictions.numbers.tolist())
    more: dict[str, Sequence[object]] = {}
    if predictions.detail:
        more |= {"prediction_id": predictions.ids, "version": [predictions.version] * predictions.rows.count}
    if predictions.partial:
        more["errors"] = predictions.rows.refusal().entries() if predictions.rows.faults else []
    return write_json({"prediction": [None if p != p else p for p in predictions.spread().tolist()], **more})


def read_length(text: str) -> int | None:
    """Return the number in a header; None for any other text.

    Leading zeros are allowed.

    At most twenty digits are read, because Python refuses thousands of them; such a length is too large anyway.
    """
    return int(text.lstrip("0")[:20] or "0") if text.isascii() and text.isdigit() else None


def write_json(value: object) -> bytes:
    """Write JSON in ASCII. Raises ValueError for NaN and infinity."""
    return json.dumps(value, allow_nan=False).encode("ascii")


def read_json(body: bytes, *, max_depth: int, takes_nan: bool = False) -> object:
    """Read strict JSON: no byte order mark, NaN or repeated key.

    max_depth: the deepest nesting that is read.
    takes_nan: whether the literal NaN is read, as pandas writes a missing value.
    Raises BadBody, with the place of the fault.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadBody(f"byte {e.start} is not UTF-8") from e
    if _depth(text) > max_depth:
        raise BadBody(f"nested deeper than {max_depth} levels")
    try:
        constant = _nan if takes_nan else _constant
        return json.loads(text, object_pairs_hook=_object, parse_constant=constant, parse_int=_integer)
    except json.JSONDecodeError as e:
        raise BadBody(f"not JSON: {e.msg[0].lower()}{e.msg[1:]}, at line {e.lineno}, column {e.colno}") from e


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in map(re.Match.group, _TOKEN.finditer(text)):
        if token in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadBody(f"the key {show(twice)} stands twice in one object")
    return result


def _constant(name: str) -> NoReturn:
    raise BadBody(f"{name} is not a number in JSON")


def _nan(name: str) -> float:
    return math.nan if name == "NaN" else _constant(name)


def _integer(digits: str) -> int | float:
    # Python refuses to read very long integers, and no column accepts one.
    return int(digits) if len(digits) <= 400 else float(digits)
