"""`gleaner score`."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

from gleaner.cli.extras import extra
from gleaner.cli.options import DONE_IN_PART, PATH, json_option
from gleaner.cli.versions import choose_version
from gleaner.model.loading import load_version
from gleaner.model.store import open_store
from gleaner.programs.report import Meter
from gleaner.programs.terminal import count
from gleaner.scoring.csv import CsvSource, CsvWriter, FaultsFile, open_csv_source
from gleaner.scoring.output import Output, Writer, check_paths
from gleaner.scoring.score import score as score_table
from gleaner.scoring.source import PIPE, Source, new_columns, open_source
from gleaner.settings.load import load_settings
from gleaner.table.tables import Tally, names_of, tally_text

_FORMAT = click.Choice(["csv", "parquet"])


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--alias", default="champion", show_default=True, help="The alias whose version predicts.")
@click.option("--version", type=int, help="The version that predicts; overrides --alias.")
@click.option("--column", default="prediction", show_default=True, help="The name of the column of predictions.")
@click.option("--drop-refused", "drops_refused", is_flag=True, help="Leave refused rows out of OUT.")
@click.option("--faults", type=PATH, help="The file of refused rows; default: OUT.faults.csv.")
@click.option("--format", "piped", type=_FORMAT, default="csv", show_default=True, help="The format of `-`.")
@json_option
@click.pass_obj
def score(
    config: Path | None,
    source: Path,
    out: Path,
    alias: str,
    version: int | None,
    column: str,
    drops_refused: bool,
    faults: Path | None,
    piped: str,
    as_json: bool,
) -> None:
    """Predict every row of a CSV or Parquet file.

    Reads the table IN, and writes every row to OUT with its prediction. A refused row has no prediction, and the
    column `problem` says why. A name that ends in .parquet is Parquet, any other is CSV, and `-` is a pipe.
    OUT.faults.csv gets every fault with its line; the exit code is then 3.
    """
    began = time.monotonic()
    settings = load_settings(config)
    store = open_store(settings)
    loaded = load_version(store, choose_version(store, alias, version))
    is_named = faults is not None
    if faults is None and out != PIPE:
        faults = out.with_name(f"{out.name}.faults.csv")
    check_paths(source, out, faults)
    formats = {path: piped if path == PIPE else path.suffix.lower().lstrip(".") for path in (source, out)}
    is_parquet = {path: name in {"parquet", "pq"} for path, name in formats.items()}
    _exit_on_signals()
    name_columns = partial(new_columns, column=column, drops_refused=drops_refused)
    with ExitStack() as stack:
        names = names_of(loaded.manifest.schema.features)
        open_csv = partial(open_csv_source, encoding=settings.table.encoding, names=names)
        table, writer, output = _open_tables(stack, source, out, is_parquet, open_csv, name_columns)
        refused = stack.enter_context(FaultsFile(faults, table.place))
        if is_named:
            refused.begin()
        meter = stack.enter_context(Meter(quiet=as_json))
        for progress in score_table(table, loaded, writer, output, refused):
            meter.show(progress)
    outcome = {
        "in": str(source),
        "out": str(out),
        "rows": progress.rows,
        "refused": progress.refused,
        "faults_by_column": [
            {"column": name, "kind": kind, "count": number} for (name, kind), number in progress.tally.items()
        ],
        "faults": str(faults) if faults and (is_named or progress.refused) else None,
        "version": loaded.version,
        "candidate": loaded.manifest.candidate,
        "seconds": round(time.monotonic() - began, 3),
    }
    # With OUT a pipe, standard output belongs to its rows.
    echo = partial(click.echo, err=out == PIPE)
    echo(json.dumps(outcome, indent=2) if as_json else _summary(outcome, progress.tally))
    if progress.refused:
        sys.exit(DONE_IN_PART)


def _open_tables(
    stack: ExitStack,
    source: Path,
    out: Path,
    is_parquet: Mapping[Path, bool],
    open_csv: Callable[[BinaryIO, Path | str], AbstractContextManager[CsvSource]],
    name_columns: Callable[[Source], list[str]],
) -> tuple[Source, Writer, Output]:
    """Open the source and the output; the stack closes both."""
    if any(is_parquet.values()):
        with extra("parquet"):
            from gleaner.scoring.parquet import ParquetSource, ParquetWriter
    output = stack.enter_context(Output(out))
    output.open()
    file, name = stack.enter_context(open_source(source))
    table: Source
    if is_parquet[source]:
        table, like = ParquetSource(file, name, to_csv=not is_parquet[out]), None
    else:
        table = plain = stack.enter_context(open_csv(file, name))
        like = plain.file
    columns = name_columns(table)
    if is_parquet[out]:
        return table, ParquetWriter(output, table, columns), output
    return table, CsvWriter(output, table.header, columns, like), output


def _summary(outcome: Mapping[str, Any], tally: Tally) -> str:
    by = f"version {outcome['version']}, {outcome['candidate']}"
    text = f"{outcome['out']}: {count(outcome['rows'], 'row')} predicted by {by}, in {outcome['seconds']:.1f} s"
    if outcome["refused"]:
        reasons = f"{outcome['faults']} says why" if outcome["faults"] else "--faults PATH would say why"
        text += f"\n{count(outcome['refused'], 'row')} refused: {tally_text(tally)}\n{reasons}"
    return text


def _exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into an exit that deletes half-written files."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
