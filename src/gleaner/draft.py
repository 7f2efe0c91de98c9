"""A first `gleaner.toml` for a table that nobody has described yet."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path
from typing import NoReturn

from gleaner.errors import BadTable
from gleaner.schema import LARGEST, explain_cell, read_number, show
from gleaner.tables import open_csv, plain_name, read_day

_ROWS = 10_000
_MOST_VALUES = 12
_LONGEST_NAME = 64  # that a model may have
# Days and months in other spellings than `read_day` reads: 31.01.2024, 1/31/24, 2024/01/31, 2024-01.
_DATE = re.compile(
    r"(\d{1,2}([./-])\d{1,2}\2(\d{4}|\d{2})|(19|20)\d\d([./-])(0?[1-9]|1[0-2])(\5\d{1,2})?)([ T].*)?", re.ASCII
)


def draft_settings(path: Path, target: str) -> str:
    """The text of a `gleaner.toml` for a CSV file, guessed from its first 10,000 rows.

    Numbers become float or int columns, a few words a category; a column that is neither stays out, and is named.
    The first column of dates becomes `date_sources`.
    Raises BadTable if the file has no rows or no such target, the target is not a number, or nothing else can be a
    feature.
    """
    with open_csv(path) as file:
        at = file.columns.find(target, ())
        header = [cell.strip() for cell in file.header]
        numbered = list(islice(file.rows(), _ROWS))
    if not numbered:
        raise BadTable(path, "has a header and no rows below it")
    lines_of, rows = zip(*numbered, strict=True)
    columns = list(zip(header, zip_longest(*rows, fillvalue=""), strict=False))
    y = _numbers(columns[at][1]) if at < len(columns) else []
    if not y:
        _refuse_target(path, target, lines_of, columns[at][1] if at < len(columns) else ())
    lines = list(_text(path, header[at], y, columns[:at] + columns[at + 1 :]))
    if "[[features]]" not in lines:
        raise BadTable(path, f"no column beside {target!r} holds numbers, or 2 to {_MOST_VALUES} different words")
    return "\n".join(lines) + "\n"


def _refuse_target(path: Path, target: str, lines: Sequence[int], cells: Sequence[str]) -> NoReturn:
    for line, cell in zip(lines, cells, strict=False):
        if cell.strip() and not _numbers([cell]):
            reason = f"the target {target!r} is not a number in most of its rows; the first that is none"
            raise BadTable(path, f"{reason}, in line {line}, is {show(cell)}{explain_cell(cell)}")
    raise BadTable(path, f"the target {target!r} is empty in every row")


def _text(path: Path, target: str, y: Sequence[float], columns: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    yield f"# A first draft, guessed from {_quote(path.name)}: check the columns, give them units and bounds."
    yield '# An empty cell refuses its row: fill it in before, say what it stands for with map = { "" = 0 }, or delete'
    yield "# the [[features]] of a column that is often empty. More: Gleaner's docs/tables.md"
    yield ""
    yield "[model]"
    yield f"name = {_quote(_slug(path.stem).replace('_', '-')[:_LONGEST_NAME])}"
    yield f"target = {_quote(_slug(target))}"
    yield f"target_sources = [{_quote(target)}]"
    if min(y) >= 0:
        yield "min = 0.0"
    plain, taken = [plain_name(header) for header, _ in columns], {_slug(target)}
    days = [header for header, cells in columns if plain.count(plain_name(header)) == 1 and _are_most(cells, _is_day)]
    if days:
        yield f"date_sources = [{_quote(days[0])}]"
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
    if not numbers and (why := _why_not(words, cells)):
        yield f"# {_quote(header)} is left out: {why}."
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


def _why_not(words: Sequence[str], cells: Sequence[str]) -> str:
    """Why a column whose cells are no numbers is no category either; empty if it is one."""
    if not words:
        return "it is empty"
    if _are_most(cells, _is_day):
        return "dates are no feature; training looks at those of date_sources for rows far from all others"
    if _are_most(cells, _DATE.fullmatch):
        cell = _first(cells, _DATE.fullmatch)
        return f"dates are no feature, and {_quote(cell)} is none that date_sources reads: wanted 2024-01-31"
    if _are_most(cells, explain_cell):
        cell = _first(cells, explain_cell)
        return f"its cells are no numbers here, such as {_quote(cell)}{explain_cell(cell)}"
    if len(words) == 1:
        return f"its only word is {_quote(words[0])}" if len(words[0]) <= _LONGEST_NAME else "it has only one word"
    return f"it has {len(words)} different words" if len(words) > _MOST_VALUES else ""


def _are_most(cells: Sequence[str], is_one: Callable[[str], object]) -> bool:
    """Whether something holds for most of the cells that are filled."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    return sum(bool(is_one(cell)) for cell in filled) * 2 > len(filled)


def _first(cells: Sequence[str], is_one: Callable[[str], object]) -> str:
    return next(filter(is_one, map(str.strip, cells)))


def _is_day(cell: str) -> bool:
    return not math.isnan(read_day(cell))


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
