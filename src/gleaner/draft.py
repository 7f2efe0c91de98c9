"""A first `gleaner.toml` for a table that nobody has described yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from gleaner.errors import BadTable, nearest
from gleaner.schema import read_number
from gleaner.tables import open_csv

_ROWS = 10_000
_MOST_VALUES = 12


def draft_settings(path: Path, target: str) -> str:
    """The text of a `gleaner.toml` for a CSV file, guessed from its first 10,000 rows.

    Numbers become float or int columns, a few words a category; a column that is neither stays out, and is named.
    Raises BadTable if the file has no such target, or the target is not a number.
    """
    with open_csv(path) as file:
        header = [cell.strip() for cell in file.header]
        if target not in header:
            raise BadTable(path, f"no column {target!r}{nearest(target, header)}", line=1)
        rows = [cells for _, cells in islice(file.rows(), _ROWS)]
    columns = dict(zip(header, zip_longest(*rows, fillvalue=""), strict=False))
    y = _numbers(columns.get(target, ()))
    if not y:
        raise BadTable(path, f"the target {target!r} is not a number in most of its rows")
    return "\n".join(_text(path, target, y, columns)) + "\n"


def _text(path: Path, target: str, y: Sequence[float], columns: dict[str, tuple[str, ...]]) -> Iterator[str]:
    yield f"# A first draft, guessed from {path.name}: check the columns, give them units and bounds."
    yield ""
    yield "[model]"
    yield f"name = {json.dumps(_slug(path.stem).replace('_', '-'))}"
    yield f"target = {json.dumps(_slug(target))}"
    yield f"target_sources = [{json.dumps(target)}]"
    if min(y) >= 0:
        yield "min = 0.0"
    for name, cells in columns.items():
        if name != target:
            yield ""
            yield from _feature(name, cells)
    yield ""
    yield "[training]"
    yield f"data = {json.dumps(str(path))}"
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


def _feature(name: str, cells: Sequence[str]) -> Iterator[str]:
    numbers, words = _numbers(cells), sorted({cell.strip() for cell in cells} - {""})
    if not numbers and not 2 <= len(words) <= _MOST_VALUES:
        yield f"# {name!r} is left out: it has {len(words)} different words."
        return
    yield "[[features]]"
    yield f"name = {json.dumps(_slug(name))}"
    if numbers:
        yield f'type = "{"int" if all(number.is_integer() for number in numbers) else "float"}"'
        yield from ["min = 0.0"] * (min(numbers) >= 0)
    else:
        yield 'type = "category"'
        yield f"values = {json.dumps(words)}"
    yield f"sources = [{json.dumps(name)}]"


def _numbers(cells: Sequence[str]) -> list[float]:
    """The numbers among some cells, if most of those that are filled are numbers; else none."""
    numbers = []
    filled = [cell.strip() for cell in cells if cell.strip()]
    for cell in filled:
        try:
            numbers.append(read_number(cell))
        except ValueError:
            continue
    return numbers if len(numbers) * 2 > len(filled) else []


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "column"
