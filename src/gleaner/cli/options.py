"""Options, flags and exit codes that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

DONE_IN_PART = 3

PATH = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the data and the options of a training to a command."""
    for decorate in (
        click.option("--seed", type=int, help="The seed of every random choice."),
        click.option("--candidates", help="The candidates to try, separated by commas."),
        click.option("--challenger", help="The candidate that v2 serves, or `second`, or `none`."),
        click.option("--champion", help="The candidate that v1 serves, or `best`."),
        click.argument("data", required=False, type=PATH),
    ):
        command = decorate(command)
    return command


def training_section(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options of a training as the settings have them."""
    named = options["candidates"]
    return {**options, "candidates": str(named).split(",") if named else None}


def training_arguments(data: Path | None, options: Mapping[str, object]) -> list[str]:
    """Return the arguments of `gleaner train` for its data and options."""
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    return [*([str(data.absolute())] if data else []), *given]


def flags(**sections: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return the flags that were given, nested as the settings are."""
    given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
    return {name: values for name, values in given.items() if values}
