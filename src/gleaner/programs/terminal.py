"""Text for a terminal: tables, counts, ages and named lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of equal width, with numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        numeric = [cell[:1].isdigit() or cell[:1] == "-" for cell in row]
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(cells).rstrip())


def cell(value: object) -> str:
    """Return a value as it stands in a table."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 row`, `1,234 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def ago(seconds: float) -> str:
    """Return an age in its largest whole unit: `42s`, `17m`, `5h`, `3d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def end_of(log: Path, name: str) -> str:
    """Return the last eight lines of a log, each behind a name."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "".join(f"{name}: {line}\n" for line in text.splitlines()[-8:])


def named_line(names: Sequence[str]) -> Callable[[str, str], None]:
    """Return a function that prints a line behind its process's name.

    names: every process; on a terminal the first is bold, and each other has a colour.
    """
    width = max(map(len, names))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names[1:])}

    def show(name: str, text: str) -> None:
        click.secho(f"{name:{width}} | ", fg=colours.get(name), bold=name not in colours or None, nl=False)
        click.echo(text)

    return show
