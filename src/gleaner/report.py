"""What a person sees of a command: tables, and how far a training or a scoring is."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gleaner.events import Event, Fitted, Loaded, Started, Step, Suspect

if TYPE_CHECKING:
    from gleaner import scoring
    from gleaner.tables import Table

_TELL_SECONDS = 10.0
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan")


class _Bar:
    """One progress bar on a terminal, for as long as the block lasts; nothing elsewhere."""

    def __init__(self, *columns: ProgressColumn, quiet: bool, total: float | None, **about: Any) -> None:
        self.is_shown = not quiet and sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.is_shown)
        self._task = self._bar.add_task("", total=total, **about)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, **changes: Any) -> None:
        self._bar.update(self._task, **changes)


class TrainingReport(_Bar):
    """What a person sees of a training: a progress bar on a terminal, plain lines elsewhere; quiet: JSON alone."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        super().__init__(*columns, quiet=quiet, total=None)
        self._quiet = quiet
        self._rows: list[tuple[str, ...]] = []
        self._constant_mae = math.inf
        self._suspects: list[str] = []

    def read(self, table: Table) -> None:
        self._say(f"{table.path}: {len(table.y):,} rows used, {table.refused:,} refused")
        for name, header in table.taken.items():
            self._say(f"  {name} from {header!r}")
        for fault in table.faults[:10]:
            self._say(f"  refused: {fault}")
        if table.refused > 10:
            self._say("  ... up to 100 of them are in refused_rows.txt of this training's run in MLflow")

    def show(self, event: Event) -> None:
        match event:
            case Loaded(_, constant, steps):
                self._constant_mae = constant.mae
                self._rows.append(("(the median)", *_scores(constant.named()), "", ""))
                self.update(total=steps)
            case Started(candidate):
                self.update(description=candidate)
                if not self.is_shown:
                    self._say(f"training {candidate}")
            case Step():
                self.update(advance=1)
            case Fitted():
                scores = _scores(event.scores.named())
                self._rows.append((event.candidate, *scores, f"{event.training_loss:.3f}", f"{event.seconds:.1f}"))
            case Suspect(line, reason):
                self._suspects.append(f"  line {line}: {reason}")
            case _:
                pass

    def done(self, outcome: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        if self._quiet:
            click.echo(json.dumps(outcome, indent=2))
            return
        print_table(("candidate", "mae", "r2", "loss", "accuracy", "training loss", "seconds"), self._rows)
        if self._suspects:
            click.echo("rows to look at; they were used:")
            click.echo("\n".join(self._suspects))
        for alias, about in outcome.items():
            click.echo(f"{alias}: version {about['version']}, {about['candidate']}")
        if outcome["champion"]["mae"] >= self._constant_mae:
            click.echo("the champion is no better than always saying the median: do not rely on it", err=True)
        click.echo(f"done in {seconds:.1f} s")

    def _say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text)


class Meter(_Bar):
    """How far a scoring is: a progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        rows = TextColumn("{task.fields[rows]:,} rows, {task.fields[refused]:,} refused")
        columns = (BarColumn(), TaskProgressColumn(), rows, TimeRemainingColumn())
        super().__init__(*columns, quiet=quiet, total=1.0, rows=0, refused=0)
        self._quiet = quiet
        self._told = time.monotonic()

    def show(self, progress: scoring.Progress) -> None:
        self.update(completed=progress.done, rows=progress.rows, refused=progress.refused)
        if not self.is_shown and not self._quiet and time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            click.echo(f"{progress.rows:,} rows, {progress.refused:,} refused, {progress.done:.0%} read", err=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of equal width; numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        numeric = [cell[:1].isdigit() or cell[:1] == "-" for cell in row]
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(cells).rstrip())


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def count(number: int, what: str) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def ago(seconds: float) -> str:
    """A time that has passed, to the nearest of what one would say: `42s`, `17m`, `5h`, `3d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def end_of(log: Path, name: str) -> str:
    """The last lines of a log, each behind its name."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "".join(f"{name}: {line}\n" for line in text.splitlines()[-8:])


def named_line(names: Sequence[str]) -> Callable[[str, str], None]:
    """Shows a line behind the name of who printed it, in a colour of its own on a terminal; the first one's is bold."""
    width = max(map(len, names))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names[1:])}

    def show(name: str, text: str) -> None:
        click.secho(f"{name:{width}} | ", fg=colours.get(name), bold=name not in colours or None, nl=False)
        click.echo(text)

    return show


def _scores(scores: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{scores[name]:.3f}" for name in ("mae", "r2", "loss", "accuracy"))
