"""`gleaner init`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from gleaner.cli.extras import extra
from gleaner.cli.options import PATH
from gleaner.drafting.draft import draft_settings, no_answer
from gleaner.errors import BadEncoding, BadTable, Refused
from gleaner.programs.likely import find_likely
from gleaner.settings.file import FILE
from gleaner.table.csv import open_csv

_SHOWN = 10


@click.command()
@click.argument("data", type=PATH)
@click.option("--target", help="The header of the column to predict.")
@click.option("--interactive", is_flag=True, help="Ask what the file leaves open, such as the order of day and month.")
def init(data: Path, target: str | None, interactive: bool) -> None:
    """Write a first gleaner.toml for a CSV file.

    DATA is the CSV file. Every row is read, and the draft is tried on the file.
    """
    if Path(FILE).exists():
        raise Refused(f"{FILE} exists and was not changed; move it away first")
    encoding = _encoding(data)
    ask = _ask if interactive else no_answer
    draft = draft_settings(data, target or _target(data, interactive, encoding), ask, encoding=encoding)
    try:
        with Path(FILE).open("x", encoding="utf-8") as file:
            file.write(draft.text)
    except FileExistsError as e:
        raise Refused(f"{FILE} exists and was not changed; move it away first") from e
    features = [decision for decision in draft.decisions if decision.feature]
    left = [decision for decision in draft.decisions if not decision.feature]
    for noun, after, decisions in (("feature", "", features), ("column", " left out", left)):
        if decisions:
            click.echo(f"{len(decisions)} {noun}{'s' if len(decisions) > 1 else ''}{after}:")
        for decision in decisions[:_SHOWN]:
            click.echo(f"  {decision.header!r}: {decision.why}")
        if len(decisions) > _SHOWN:
            click.echo(f"  ... {len(decisions) - _SHOWN} more in {FILE}")
    table = draft.table
    if table.header_line > 1:
        click.echo(f"the header is on line {table.header_line}")
    click.echo(f"{len(table.y):,} rows used, {table.refused:,} refused")
    if table.tally:
        click.echo(f"  refused: {table.refusals}")
    for fault in table.faults[:_SHOWN]:
        click.echo(f"  refused: {fault}")
    click.echo(f"wrote {FILE}; check it, then run: gleaner train")


def _encoding(data: Path) -> str:
    """Return the likely encoding, "" for UTF-8.

    Raises BadTable.
    """
    try:
        with open_csv(data):
            return ""
    except BadEncoding:
        with extra("train"):
            encoding = find_likely(data)
        if not encoding:
            raise
        click.echo(f"the file is not UTF-8, and likely {encoding}: check some words")
        return encoding


def _target(data: Path, interactive: bool, encoding: str) -> str:
    with open_csv(data, encoding=encoding) as file:
        header = [cell.strip() for cell in file.header]
    if not interactive:
        names = ", ".join(map(repr, header[:40]))
        raise BadTable(data, f"name the column to predict with --target: {names}", line=1)
    answer = _ask("which column is to be predicted?", header)
    if answer is None:
        raise BadTable(data, "no column to predict was chosen")
    return header[answer]


def _ask(question: str, answers: Sequence[str]) -> int | None:
    """Ask a person to choose one of some answers, or none."""
    click.echo(question)
    for i, answer in enumerate(answers, 1):
        click.echo(f"  {i}. {answer}")
    chosen = click.prompt("number, or 0 for none", type=click.IntRange(0, len(answers)), default=0)
    return chosen - 1 if chosen else None
