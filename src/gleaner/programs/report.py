"""Progress bars and summaries of a training and of a scoring."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
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

from gleaner.programs.terminal import print_table
from gleaner.training.events import Chosen, Event, Fitted, Started, Step, Suspect, TableRead

if TYPE_CHECKING:
    from gleaner.scoring.score import Progress as Scored
    from gleaner.table.tables import Table


_TELL_SECONDS = 10.0


class _Bar:
    """A progress bar for one `with` block, on a terminal only."""

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
    """A training's report: a bar on a terminal, else plain lines.

    quiet: print the outcome alone, as JSON.
    """

    def __init__(self, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        super().__init__(*columns, quiet=quiet, total=None)
        self._quiet = quiet
        self._rows: list[tuple[str, ...]] = []
        self._constant_mae = math.inf
        self._suspects: list[str] = []

    def read(self, table: Table) -> None:
        without = f", {table.unlabelled:,} without {table.schema.target.name}" if table.unlabelled else ""
        self._say(f"{table.path}: {len(table.y):,} rows used, {table.refused:,} refused{without}")
        if table.header_line > 1:
            self._say(f"  the header is on line {table.header_line}")
        if table.tally:
            self._say(f"  refused: {table.refusals}")
        missing = table.missing
        for name, header in table.taken.items():
            self._say(f"  {name} from {header!r}" + (f", missing in {missing[name]:.1%}" if name in missing else ""))
        for fault in table.faults[:10]:
            self._say(f"  refused: {fault}")
        if table.refused > 10:
            self._say("  ... more of them, up to 100, are in refused_rows.txt of this training's run in MLflow")

    def show(self, event: Event) -> None:
        match event:
            case TableRead(_, constant, steps):
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
            case Chosen(champion, _) if champion.gaps:
                for rows, named in (("with", champion.gaps.with_gaps), ("without", champion.gaps.without_gaps)):
                    if named:
                        scores = (*_scores(named), "", "")
                        self._rows.append((f"{champion.candidate}, rows {rows} gaps", *scores))
            case _:
                pass

    def done(self, outcome: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        if self._quiet:
            click.echo(json.dumps(outcome, indent=2))
            return
        print_table(("candidate", "mae", "r2", "loss", "accuracy", "training loss", "seconds"), self._rows)
        if self._suspects:
            click.echo("rows to check; the training used them:")
            click.echo("\n".join(self._suspects))
        for alias, about in outcome.items():
            click.echo(f"{alias}: version {about['version']}, {about['candidate']}")
        if outcome["champion"]["mae"] >= self._constant_mae:
            click.echo("the champion is no better than always predicting the median: do not rely on it", err=True)
        click.echo(f"done in {seconds:.1f} s")

    def _say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text)


class Meter(_Bar):
    """The progress of a scoring: a bar, or lines.

    A terminal shows the bar; other outputs get a line every ten seconds.
    """

    def __init__(self, *, quiet: bool) -> None:
        rows = TextColumn("{task.fields[rows]:,} rows, {task.fields[refused]:,} refused")
        columns = (BarColumn(), TaskProgressColumn(), rows, TimeRemainingColumn())
        super().__init__(*columns, quiet=quiet, total=1.0, rows=0, refused=0)
        self._quiet = quiet
        self._line_at = time.monotonic()

    def show(self, progress: Scored) -> None:
        self.update(completed=progress.done, rows=progress.rows, refused=progress.refused)
        if not self.is_shown and not self._quiet and time.monotonic() - self._line_at > _TELL_SECONDS:
            self._line_at = time.monotonic()
            click.echo(f"{progress.rows:,} rows, {progress.refused:,} refused, {progress.done:.0%} read", err=True)


def _scores(scores: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{scores[name]:.3f}" for name in ("mae", "r2", "loss", "accuracy"))
