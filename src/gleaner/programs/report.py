"""Progress bars and summaries of a training and of a scoring."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
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

from gleaner.model.scores import Scores
from gleaner.programs.terminal import print_table
from gleaner.training.events import Chosen, Event, Fitted, Started, Step, Suspect, TableRead

if TYPE_CHECKING:
    from gleaner.scoring.score import Progress as Scored
    from gleaner.settings.sections import Alerts
    from gleaner.table.tables import Table


_TELL_SECONDS = 10.0
_MOST_ROWS = 10


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

    def __init__(self, alerts: Alerts, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        super().__init__(*columns, quiet=quiet, total=None)
        self._quiet = quiet
        self._rows: list[tuple[str, ...]] = []
        self._alerts = alerts
        self._constant: Scores | None = None
        self._bounds: list[str] = []
        self._suspects: list[str] = []

    def read(self, table: Table) -> None:
        without = f", {table.unlabelled:,} without {table.schema.target.name}" if table.unlabelled else ""
        self._say(f"{table.path}: {len(table.y):,} rows used, {table.refused:,} refused{without}")
        if table.header_line > 1:
            self._say(f"  the header is on line {table.header_line}")
        if table.group_count:
            self._say(f"  {table.group_count:,} groups, each in one fold")
        if table.undated:
            form = 'write their format into model.date_formats, such as "%d.%m.%Y"'
            self._say(f"  {table.undated:,} rows have an entry for their day that is no date; {form}")
        if table.tally:
            self._say(f"  refused: {table.refusals}")
        missing = table.missing
        taken = list(table.taken.items())
        for name, header in taken[:_MOST_ROWS]:
            self._say(f"  {name} from {header!r}" + (f", missing in {missing[name]:.1%}" if name in missing else ""))
        if (more := len(taken) - _MOST_ROWS) > 0:
            self._say(f"  ... and {more:,} more columns")
        for fault in table.faults[:_MOST_ROWS]:
            self._say(f"  refused: {fault}")
        if table.refused > _MOST_ROWS:
            self._say("  ... more of them, up to 100, are in refused_rows.txt of this training's run in MLflow")

    def show(self, event: Event) -> None:
        match event:
            case TableRead(_, constant, steps, forward):
                self._constant = constant
                self._add("(the median)", constant, forward, "", "")
                self.update(total=steps)
            case Started(candidate):
                self.update(description=candidate)
                if not self.is_shown:
                    self._say(f"training {candidate}")
            case Step():
                self.update(advance=1)
            case Fitted():
                loss, seconds = f"{event.training_loss:.3f}", f"{event.seconds:.1f}"
                self._add(event.candidate, event.scores, event.forward, loss, seconds)
            case Suspect(line, reason):
                self._suspects.append(f"  line {line}: {reason}")
            case Chosen(champion, _):
                if self._constant:
                    self._bounds = list(check_bounds(self._alerts, self._constant, champion))
                gaps = champion.gaps
                for rows, named in (("with", gaps.with_gaps), ("without", gaps.without_gaps)) if gaps else ():
                    if named:
                        self._add(f"{champion.candidate}, rows {rows} gaps", Scores(**named), None, "", "")
            case _:
                pass

    def done(self, outcome: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        if self._quiet:
            click.echo(json.dumps(outcome, indent=2))
            return
        self._print_scores()
        if self._suspects:
            click.echo("rows to check; the training used them:")
            click.echo("\n".join(self._suspects[:_MOST_ROWS]))
            if (more := len(self._suspects) - _MOST_ROWS) > 0:
                click.echo(f"  ... {more:,} more are in suspect_rows.txt of this training's run in MLflow")
        for alias, about in outcome.items():
            click.echo(f"{alias}: version {about['version']}, {about['candidate']}")
        if self._constant and outcome["champion"]["mae"] >= self._constant.mae:
            click.echo("the champion is no better than always predicting the median: do not rely on it", err=True)
        for bound in self._bounds:
            click.echo(bound, err=True)
        click.echo(f"done in {seconds:.1f} s")

    def _add(self, name: str, scores: Scores, forward: Scores | None, loss: str, seconds: str) -> None:
        """Add a row to the table of scores."""
        later = f"{forward.mae:.3f}" if forward else ""
        self._rows.append((name, *_scores(scores.named()), later, loss, seconds))

    def _print_scores(self) -> None:
        """Print the table of scores, without columns that are empty."""
        heads = ("candidate", "mae", "r2", "loss", "accuracy", "forward mae", "training loss", "seconds")
        filled = [j for j in range(len(heads)) if any(row[j] for row in self._rows)]
        print_table([heads[j] for j in filled], [[row[j] for j in filled] for row in self._rows])
        if "forward mae" in [heads[j] for j in filled]:
            click.echo("forward mae: each later part of the table, predicted from the rows before it")

    def _say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text)


def check_bounds(alerts: Alerts, constant: Scores, champion: Fitted) -> Iterator[str]:
    """Yield a sentence for each alert whose outcome is already decided.

    constant: the scores of always predicting the median. LowValidationAccuracy sees no bad model if those
    meet its bound; an alert whose bound the champion misses fires until another model is trained.
    """
    least, accuracy = alerts.validation_accuracy, champion.scores.accuracy
    if constant.accuracy >= least:
        yield (
            "LowValidationAccuracy cannot fire: always predicting the median has an accuracy of "
            f"{constant.accuracy:.3f}, and the bound is {least:g}; raise alerts.validation_accuracy, or make [scores] "
            "stricter"
        )
    elif accuracy < least:
        yield (
            f"LowValidationAccuracy will fire: the champion's accuracy is {accuracy:.3f}, and the bound is {least:g}; "
            "if this model is good enough, lower alerts.validation_accuracy or widen [scores]"
        )
    most, loss = alerts.training_loss, champion.training_loss
    if loss > most:
        yield (
            f"HighTrainingLoss will fire: the champion's training loss is {loss:.3g}, and the bound is {most:g}; "
            "if this model is good enough, raise alerts.training_loss"
        )


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
