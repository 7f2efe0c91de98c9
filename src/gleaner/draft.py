"""A first `gleaner.toml` for a table that nobody has described yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path

from gleaner.errors import BadTable
from gleaner.schema import LARGEST, read_number
from gleaner.tables import open_csv, plain_name

_ROWS = 10_000
_MOST_VALUES = 12
_LONGEST_NAME = 64  # that a model may have


def draft_settings(path: Path, target: str) -> str:
    """The text of a `gleaner.toml` for a CSV file, guessed from its first 10,000 rows.

    Numbers become float or int columns, a few words a category; a column that is neither stays out, and is named.
    Raises BadTable if the file has no such target, the target is not a number, or nothing else can be a feature.
    """
    with open_csv(path) as file:
        at = file.columns.find(target, ())
        header = [cell.strip() for cell in file.header]
        rows = [cells for _, cells in islice(file.rows(), _ROWS)]
    columns = list(zip(header, zip_longest(*rows, fillvalue=""), strict=False))
    y = _numbers(columns[at][1]) if at < len(columns) else []
    if not y:
        raise BadTable(path, f"the target {target!r} is not a number in most of its rows")
    lines = list(_text(path, header[at], y, columns[:at] + columns[at + 1 :]))
    if "[[features]]" not in lines:
        raise BadTable(path, f"no column beside {target!r} holds numbers, or 2 to {_MOST_VALUES} different words")
    return "\n".join(lines) + "\n"


def _text(path: Path, target: str, y: Sequence[float], columns: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    yield f"# A first draft, guessed from {_quote(path.name)}: check the columns, give them units and bounds."
    yield ""
    yield "[model]"
    yield f"name = {_quote(_slug(path.stem).replace('_', '-')[:_LONGEST_NAME])}"
    yield f"target = {_quote(_slug(target))}"
    yield f"target_sources = [{_quote(target)}]"
    if min(y) >= 0:
        yield "min = 0.0"
    plain, taken = [plain_name(header) for header, _ in columns], {_slug(target)}
    for header, cells in columns:
        yield ""
        if plain.count(plain_name(header)) > 1:
            yield f"# {_quote(header)} is left out: that header stands twice."
            continue
        name = _slug(header)
        while name in taken:
            name += "_"
        taken.add(name)
        yield from _feature(name, header, cells)
    yield ""
    yield "[training]"
    yield f"data = {_quote(str(path))}"
    yield ""
    yield "[scores]"
    if min(y) >= 0:
        yield 'loss = "squared_log_error"'
        yield "accuracy = { within_factor = 2.0 }"
    else:
        mean = sum(y) / len(y)
        spread = (sum((value - mean) ** 2 for value in y) / len(y)) ** 0.5
        yield 'loss = "standardised_squared_error"'
        yield f"accuracy = {{ within = {spread / 2 or 1:.3g} }}  # half a standard deviation; say what is near enough"


def _feature(name: str, header: str, cells: Sequence[str]) -> Iterator[str]:
    numbers, words = _numbers(cells), sorted({cell.strip() for cell in cells} - {""})
    if not numbers and not 2 <= len(words) <= _MOST_VALUES:
        yield f"# {_quote(header)} is left out: it has {len(words)} different words."
        return
    yield "[[features]]"
    yield f"name = {_quote(name)}"
    if numbers:
        yield f'type = "{"int" if all(number.is_integer() for number in numbers) else "float"}"'
        yield from ["min = 0.0"] * (min(numbers) >= 0)
    else:
        yield 'type = "category"'
        yield f"values = [{', '.join(map(_quote, words))}]"
    yield f"sources = [{_quote(header)}]"


def _numbers(cells: Sequence[str]) -> list[float]:
    """The numbers among some cells, if most of those that are filled are numbers; else none."""
    numbers = []
    filled = [cell.strip() for cell in cells if cell.strip()]
    for cell in filled:
        with suppress(ValueError):
            numbers.append(read_number(cell))
    numbers = [number for number in numbers if abs(number) <= LARGEST]
    return numbers if len(numbers) * 2 > len(filled) else []


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "column"


def _quote(text: str) -> str:
    """A text as TOML writes it; JSON's escapes are TOML's too, but for pairs of surrogates and a bare DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
