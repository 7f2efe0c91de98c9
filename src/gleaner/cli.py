"""`gleaner`: the commands, each one composed of calls into the library; imports of the library are inside them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from gleaner import __version__
from gleaner.errors import BadTraining, GleanerError, MissingExtra, NoModel, Refused
from gleaner.programs import failing_aloud, run_service, run_trainer, run_training

if TYPE_CHECKING:
    from gleaner.drills import Played
    from gleaner.settings import Settings
    from gleaner.stack import Stack
    from gleaner.store import Store

DONE_IN_PART = 3
_TRAINING_MODULES = ("mlflow", "sklearn", "onnx", "matplotlib", "threadpoolctl", "scipy")
_MONITORING_MODULES = ("grafana_foundation_sdk", "yaml")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gleaner")
@click.option(
    "--config", type=click.Path(path_type=Path), help="The settings file; else GLEANER_CONFIG, ./gleaner.toml."
)
@click.pass_context
def gleaner(context: click.Context, config: Path | None) -> None:
    """Put one tabular regression model into production and keep watch over it."""
    context.obj = config


@gleaner.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The header of the column to be predicted.")
def init(data: Path, target: str) -> None:
    """Write a first gleaner.toml for the table in DATA, a CSV file."""
    from gleaner.draft import draft_settings
    from gleaner.settings import FILE

    text = draft_settings(data, target)
    try:
        with Path(FILE).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as e:
        raise Refused(f"{FILE} is there already, and stays as it is; move it away first") from e
    click.echo(f"wrote {FILE}; read it through, then: gleaner train")


def _of_a_training(command: Callable[..., None]) -> Callable[..., None]:
    """The data and the options that `train` takes, and `up` for its trainer."""
    for decorate in (
        click.option("--seed", type=int, help="The seed of everything random."),
        click.option("--candidates", help="The candidates to try, with commas between them."),
        click.option("--challenger", help="`second`, `none`, or the candidate that is to serve in v2."),
        click.option("--champion", help="`best`, or the candidate that is to serve in v1."),
        click.argument("data", required=False, type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


@gleaner.command()
@_of_a_training
@click.option("--linger", is_flag=True, help="Go on exposing the training metrics until Ctrl-C.")
@click.option("--metrics-port", type=int, help="The port of the training metrics; 0 for any free one.")
@click.option("--if-empty", is_flag=True, help="Do nothing if there is a version already.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option(
    "--resident", is_flag=True, help="Stay, expose the metrics, and train: with no champion, on --every, and on --now."
)
@click.option("--every", help="With --resident: how long after a training the next one begins, such as 24h.")
@click.option("--now", is_flag=True, help="Tell the running resident to train; it has its own data and settings.")
@click.option("--events-fd", type=int, hidden=True, help="In the resident's child: where to tell its events.")
@click.pass_context
def train(
    context: click.Context,
    data: Path | None,
    champion: str | None,
    challenger: str | None,
    candidates: str | None,
    seed: int | None,
    linger: bool,
    metrics_port: int | None,
    if_empty: bool,
    as_json: bool,
    resident: bool,
    every: str | None,
    now: bool,
    events_fd: int | None,
) -> None:
    """Train on DATA, a CSV file, and register the two best candidates."""
    from gleaner.settings import load_settings, prepare_mlflow

    _check_usage(context)
    training = {
        "champion": champion,
        "challenger": challenger,
        "candidates": candidates.split(",") if candidates else None,
        "seed": seed,
        "every": every,
    }
    if now:
        _tell_resident(load_settings(context.obj))
        return
    with failing_aloud(events_fd):
        settings = load_settings(context.obj, _flags(training=training, ports={"train_metrics": metrics_port}))
        if resident:
            _reside(settings, context)
            return
        # Told to stop, be interrupted as by Ctrl-C: then the runs are marked FAILED.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        source = data or settings.data
        if source is None:
            raise BadTraining("no data: name a CSV file, or set training.data in gleaner.toml")
        if if_empty and _has_version(settings, data, {}):
            return
        prepare_mlflow(settings)
        with _extra("train", _TRAINING_MODULES):
            own_port = metrics_port is not None
            run_training(settings, source, linger=linger, own_port=own_port, as_json=as_json, events_fd=events_fd)


def _check_usage(context: click.Context) -> None:
    """Some options of `train` make no sense together."""
    given = {name for name, value in context.params.items() if value is not None and value is not False}
    if "now" in given and given != {"now"}:
        raise click.UsageError("--now goes alone: the running resident has its own data and settings")
    if "every" in given and "resident" not in given:
        raise click.UsageError("--every is for --resident")
    if "resident" in given and given & {"linger", "if_empty", "as_json"}:
        raise click.UsageError("--resident stays by itself, and reports in its log: no --linger, --if-empty or --json")


def _tell_resident(settings: Settings) -> None:
    from gleaner.trainer import ask

    click.echo(f"told the trainer, pid {ask(settings.state)}; a training that is under way is finished first")


def _reside(settings: Settings, context: click.Context) -> None:
    """Stay as the trainer that was asked for until SIGTERM or Ctrl-C."""
    # The child reads the settings anew, so it is given what was given here.
    command = [sys.executable, "-m", "gleaner", "--config", str(settings.file.absolute()), "train", "--json"]
    for name in ("champion", "challenger", "candidates", "seed"):
        if context.params[name] is not None:
            command += [f"--{name}", str(context.params[name])]
    if context.params["data"]:
        command.append(str(context.params["data"].absolute()))
    run_trainer(settings, command)


@gleaner.command()
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=int, help="The API's port; 0 for any free one.")
@click.option("--metrics-port", type=int, help="The port of the metrics alone; 0 for any free one.")
@click.option(
    "--insecure", is_flag=True, default=None, help="Listen beyond loopback, though nobody is asked for a key."
)
@click.option("--log", type=click.Choice(["human", "json"]), help="The form of log lines.")
@click.pass_obj
def serve(
    config: Path | None,
    host: str | None,
    port: int | None,
    metrics_port: int | None,
    insecure: bool | None,
    log: str | None,
) -> None:
    """Serve predictions until Ctrl-C or SIGTERM."""
    from gleaner.settings import load_settings

    serving = {"host": host, "insecure": insecure, "log": log}
    ports = {"ml_app": port, "ml_app_metrics": metrics_port}
    run_service(load_settings(config, _flags(serving=serving, ports=ports)))


@gleaner.command()
@_of_a_training
@click.option("--every", help="How long after a training the next one begins, such as 24h.")
@click.option("--auto-ports", is_flag=True, help="Take the next free port, for this run, where one is taken.")
@click.pass_context
def up(context: click.Context, /, data: Path | None, auto_ports: bool, **flags: str | int | None) -> None:
    """Run everything on this machine until Ctrl-C: the API, the trainer, MLflow, and what watches them.

    Where there is no version yet, the trainer trains one on DATA, a CSV file.
    """
    import asyncio

    from gleaner.lines import Lines
    from gleaner.report import named_line
    from gleaner.running import hold
    from gleaner.server import check_host
    from gleaner.settings import load_settings
    from gleaner.stack import Stack
    from gleaner.store import Store
    from gleaner.supervisor import UP, Supervisor

    # As the trainer will read them, so that what is wrong with them is said now.
    candidates = str(flags["candidates"]).split(",") if flags["candidates"] else None
    settings = load_settings(context.obj, _flags(training={**flags, "candidates": candidates}))
    check_host(settings.serving.host, insecure=settings.serving.insecure)
    run = settings.state.absolute() / "run"
    with hold(run) as lock:
        stack = Stack(settings)
        moved = stack.place(move=auto_ports)
        Store(settings.store).check_model(settings.model.name)
        trained = _has_version(settings, data, {k: v for k, v in flags.items() if v is not None and k != "every"})
        if not trained:
            _check_trainable(stack, data)
        _render_watch(stack, run / "monitoring")
        training = [str(data.absolute())] if data else []
        training += [part for key, value in flags.items() if value is not None for part in (f"--{key}", str(value))]
        programs = stack.programs(run, training=training, trained=trained)
        lines = Lines(run / "logs", named_line([UP, *stack.names]))
        for said in (*moved, stack.explain_missing()):
            if said:
                lines.add(UP, said)
        supervisor, began = Supervisor(programs, run, lines, lock=lock), time.monotonic()

        def on_settled() -> None:
            lines.add(UP, f"ready in {time.monotonic() - began:.1f} s; Ctrl-C or `gleaner down` ends it")
            for program in programs:
                about = program.about if supervisor.entry(program.name).health == "ok" else "given up, see above"
                lines.add(UP, f"  {program.name:13}  {program.address:32}  {about}")

        async def stay() -> list[str]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    loop.add_signal_handler(number, supervisor.stop)
            return await supervisor.run(on_settled)

        given_up = asyncio.run(stay())
        lines.add(UP, "stopped" + (f"; given up before: {', '.join(given_up)}" if given_up else ""))
        lines.close()
    if given_up:
        sys.exit(1 if len(given_up) == len(programs) else DONE_IN_PART)


def _check_trainable(stack: Stack, data: Path | None) -> None:
    """With no version there has to be a training: see now that it can begin."""
    if "mlflow" in stack.missing:
        raise MissingExtra("train", "mlflow")
    source = data or stack.settings.data
    if source is None:
        raise BadTraining("no data: name a CSV file, or set training.data in gleaner.toml")
    if not source.exists():
        raise BadTraining(f"{source}: no such file")


def _render_watch(stack: Stack, folder: Path) -> None:
    """Render what Prometheus, Alertmanager and Grafana read, anew for every run."""
    if not {"prometheus", "alertmanager", "grafana"} & set(stack.names):
        return
    with _extra("monitoring", _MONITORING_MODULES):
        from gleaner.monitoring import render, write_tree
    shutil.rmtree(folder, ignore_errors=True)
    write_tree(folder, render(stack.settings, "local", folder))


@gleaner.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show what `gleaner up` runs here; exits 1 where it does not, and 3 where not all of it is well."""
    from gleaner.report import ago, print_table
    from gleaner.running import read_run
    from gleaner.settings import load_settings

    folder = load_settings(config).state.absolute() / "run"
    run = read_run(folder)
    if as_json:
        click.echo(json.dumps(asdict(run) if run else None, indent=2))
    if run is None:
        if not as_json:
            raise Refused("nothing runs here; `gleaner up` starts it")
        sys.exit(1)
    if not as_json:
        head = ("name", "pid", "state", "health", "restarts", "up", "address")
        now = time.time()
        rows = []
        for e in run.entries:
            age = ago(now - e.since) if e.pid else ""
            rows.append((e.name, str(e.pid or ""), e.state, e.health, str(e.restarts), age, e.address))
        print_table(head, rows)
        if run.alive:
            click.echo(f"kept by pid {run.pid} for {ago(now - run.since)}; logs in {folder / 'logs'}")
        else:
            click.echo(f"their supervisor, pid {run.pid}, was killed; `gleaner down` ends what it has left")
    if not run.alive or any(entry.health != "ok" for entry in run.entries):
        sys.exit(DONE_IN_PART)


@gleaner.command()
@click.pass_obj
def down(config: Path | None) -> None:
    """End what `gleaner up` runs here, in order, and wait for it."""
    from gleaner.running import end_run
    from gleaner.settings import load_settings

    settings = load_settings(config)
    # The API answers what is in flight, and the trainer marks its runs.
    seconds = 60 + settings.serving.unready_seconds + settings.serving.drain_seconds
    ended = end_run(settings.state.absolute() / "run", seconds=seconds)
    click.echo(f"stopped {', '.join(reversed(ended))}" if ended else "nothing runs here")


@gleaner.command()
@click.argument("alert", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="The CSV file that a training spoils.")
@click.option("--limit", default=180.0, show_default=True, help="Seconds that an alert may take to come, and to go.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_obj
def drill(config: Path | None, alert: str | None, data: Path | None, limit: float, as_json: bool) -> None:
    """See ALERT fire on its fault and end with it, in a small stack of its own; without ALERT, list the drills."""
    import asyncio

    from gleaner.drills import DRILLS, PROGRAMS, Failed, play, prepare
    from gleaner.errors import nearest
    from gleaner.lines import Lines
    from gleaner.report import end_of, print_table
    from gleaner.running import hold
    from gleaner.settings import load_settings

    if alert is None:
        print_table(("alert", "fault"), [(name, drill.fault) for name, drill in DRILLS.items()])
        return
    if alert not in DRILLS:
        raise Refused(f"there is no drill for {alert!r}{nearest(alert, DRILLS)}")
    settings = load_settings(config)
    with _extra("monitoring", _MONITORING_MODULES):
        from gleaner.monitoring import render, write_tree
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    with tempfile.TemporaryDirectory(prefix="gleaner-drill-", ignore_cleanup_errors=True) as scratch:
        stage = prepare(settings, Path(scratch), data)
        watch = stage.run / "monitoring"
        write_tree(watch, render(stage.settings, "local", watch, stage.hurry, PROGRAMS))
        lines = Lines(stage.run / "logs", lambda *_: None)

        async def run() -> Played:
            task = asyncio.current_task()
            assert task
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            with hold(stage.run) as lock:
                return await play(alert, stage, lines, lock, say=say, limit_seconds=limit)

        say(f"a stack of its own, with every window, wait and interval divided by {stage.hurry:g}, is started")
        try:
            played = asyncio.run(run())
        except asyncio.CancelledError as e:
            raise click.Abort from e
        except Failed:
            for name in ("up", *stage.programs):
                click.echo(end_of(lines.file(name), name), err=True, nl=False)
            raise
        finally:
            lines.close()
    if as_json:
        click.echo(json.dumps(asdict(played), indent=2))


@gleaner.command()
@click.option("--data", required=True, help="One object, or a list of them, as JSON; `-` reads standard input.")
@click.option("--host", default="localhost", show_default=True, help="Where the service runs.")
@click.option("--port", type=int, help="The API's port; else the running one's, or the settings'.")
@click.option("--slot", default="v1", show_default=True, help="Which slot is asked.")
@click.pass_obj
def check(config: Path | None, data: str, host: str, port: int | None, slot: str) -> None:
    """Ask a running service for a prediction, and show what went over the wire."""
    from gleaner.client import check
    from gleaner.logs import start_logging
    from gleaner.running import read_run
    from gleaner.settings import load_settings

    try:
        value = json.loads(sys.stdin.read() if data == "-" else data)
    except ValueError as e:
        raise click.BadParameter(f"not JSON: {e}", param_hint="--data") from e
    start_logging()
    if port is None:
        settings = load_settings(config)
        run = read_run(settings.state.absolute() / "run")
        here = {name: number for entry in (run.entries if run else ()) for name, number in entry.ports.items()}
        port = here.get("ports.ml_app", settings.ports.ml_app)
    check(value, host=host, port=port, slot=slot)


@gleaner.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--alias", default="champion", show_default=True, help="Which alias's version predicts.")
@click.option("--version", type=int, help="Which version predicts, whatever the aliases say.")
@click.option("--column", default="prediction", show_default=True, help="The name of the predictions' column.")
@click.option("--faults", type=click.Path(path_type=Path), help="Where the refused rows go; else OUT.faults.csv.")
@click.option(
    "--format", "piped", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True, help="What `-` is."
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_obj
def score(
    config: Path | None,
    source: Path,
    out: Path,
    alias: str,
    version: int | None,
    column: str,
    faults: Path | None,
    piped: str,
    as_json: bool,
) -> None:
    """Predict every row of the table IN, and write it to OUT with a column more.

    CSV, or Parquet where a name ends in .parquet; `-` is a pipe. Rows that a column refuses are not in OUT but, with
    line and reason, in OUT.faults.csv; then the exit code is 3.
    """
    from gleaner import scoring
    from gleaner.report import Meter, count
    from gleaner.settings import load_settings
    from gleaner.slots import load_version
    from gleaner.store import Store

    began = time.monotonic()
    store = Store(load_settings(config).store)
    loaded = load_version(store, _chosen(store, alias, version))
    is_named = faults is not None
    if faults is None and out != scoring.PIPE:
        faults = out.with_name(f"{out.name}.faults.csv")
    scoring.check_paths(source, out, faults)
    is_parquet = {path: piped == "parquet" if path == scoring.PIPE else _is_parquet(path) for path in (source, out)}
    if any(is_parquet.values()):
        with _extra("parquet", ("pyarrow",)):
            from gleaner.parquet import ParquetSource, ParquetWriter
    _exit_on_signals()
    with ExitStack() as stack:
        output = stack.enter_context(scoring.Output(out))
        file, name = stack.enter_context(scoring.open_source(source))
        table: scoring.Source
        writer: scoring.Writer
        if is_parquet[source]:
            table, like = ParquetSource(file, name, to_csv=not is_parquet[out]), None
        else:
            table = plain = stack.enter_context(scoring.open_csv_source(file, name))
            like = plain.file
        scoring.check_column(table, column)
        if is_parquet[out]:
            writer = ParquetWriter(output, table, column)
        else:
            writer = scoring.CsvWriter(output, table.header, column, like)
        refused = stack.enter_context(scoring.Faults(faults, table.place, is_named=is_named))
        meter = stack.enter_context(Meter(quiet=as_json))
        for progress in scoring.score(table, loaded, writer, output, refused):
            meter.show(progress)
    outcome = {
        "in": str(source),
        "out": str(out),
        "rows": progress.rows,
        "refused": progress.refused,
        "faults": str(faults) if faults and (is_named or progress.refused) else None,
        "version": loaded.version,
        "candidate": loaded.manifest.candidate,
        "seconds": round(time.monotonic() - began, 3),
    }
    # Where OUT is a pipe, what is said must not fall among its rows.
    say = partial(click.echo, err=out == scoring.PIPE)
    if as_json:
        say(json.dumps(outcome, indent=2))
    else:
        by = f"version {loaded.version}, {loaded.manifest.candidate}"
        say(f"{out}: {count(progress.rows, 'row')} predicted by {by}, in {outcome['seconds']:.1f} s")
        if progress.refused:
            where = f"; {faults} says why" if faults else "; --faults PATH would say why"
            say(f"{count(progress.refused, 'row')} refused{where}")
    if progress.refused:
        sys.exit(DONE_IN_PART)


@gleaner.group()
def models() -> None:
    """The versions there are, and which of them serve."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def list_models(config: Path | None, as_json: bool) -> None:
    """List the versions in the store."""
    from gleaner.report import cell, print_table
    from gleaner.settings import load_settings
    from gleaner.store import Store

    store = Store(load_settings(config).store)
    aliases = store.aliases()
    rows = []
    for version in store.versions():
        row: dict[str, Any] = {"version": version, "aliases": [a for a, v in aliases.items() if v == version]}
        try:
            manifest = store.read(version).manifest
        except GleanerError as e:
            rows.append({**row, "fault": str(e)})
            continue
        about = {"candidate": manifest.candidate, "created": manifest.created, "data": manifest.data.name}
        rows.append({**row, **about, "mae": manifest.scores["mae"], "constant_mae": manifest.constant["mae"]})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        raise NoModel(f"{store.root} holds no version; run `gleaner train DATA.csv`")
    head = ("version", "aliases", "candidate", "mae", "constant's", "created", "data")
    keys = ("version", "aliases", "candidate", "mae", "constant_mae", "created", "data")
    print_table(head, [[cell(row.get(key, row.get("fault", ""))) for key in keys] for row in rows])


@models.command()
@click.argument("version", type=int)
@click.option("--alias", default="champion", show_default=True, help="The alias to be moved.")
@click.pass_obj
def promote(config: Path | None, version: int, alias: str) -> None:
    """Point an alias at VERSION, in the registry and in the store; a running service follows within seconds."""
    from gleaner.settings import load_settings, prepare_mlflow
    from gleaner.store import Store

    settings = load_settings(config)
    store = Store(settings.store)
    before = store.aliases().get(alias)
    store.read(_chosen(store, alias, version))
    recorded = True
    if settings.tracking.is_server:
        # By one request, for which nothing of MLflow need be installed where a service runs.
        from gleaner.registry import Server

        Server(settings).move(alias, version)
    else:
        prepare_mlflow(settings)
        try:
            from gleaner.tracking import move_alias
        except ImportError:
            recorded = False
        else:
            move_alias(settings, alias, version)
    store.point({alias: version})
    click.echo(f"{alias} is version {version}" + (f", it was {before}" if before else ""))
    if not recorded:
        click.echo("MLflow is not installed here, so its registry still has the old alias", err=True)
        sys.exit(DONE_IN_PART)


@gleaner.group("config")
def config_group() -> None:
    """The settings."""


@config_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def show(config: Path | None, as_json: bool) -> None:
    """Show every setting as it holds now: flags, environment, file and defaults together."""
    from gleaner.settings import load_settings, show_settings

    settings = load_settings(config)
    click.echo(json.dumps(settings.model_dump(mode="json"), indent=2) if as_json else show_settings(settings))


@config_group.command()
def describe() -> None:
    """Describe every setting there is, in Markdown; docs/settings.md is made of it."""
    from gleaner.settings import describe_settings

    click.echo(describe_settings(), nl=False)


@config_group.command("render")
@click.option("--for", "where", type=click.Choice(["compose", "local"]), required=True, help="Where the services run.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder; else deploy/, or for local .gleaner/monitoring."
)
@click.pass_obj
def render_config(config: Path | None, where: Literal["compose", "local"], out: Path | None) -> None:
    """Write what Prometheus, Alertmanager and Grafana read, made of the settings."""
    from gleaner.settings import load_settings

    settings = load_settings(config)
    with _extra("monitoring", _MONITORING_MODULES):
        from gleaner.monitoring import render, write_tree
    folder = out or (settings.file.parent / "deploy" if where == "compose" else settings.state / "monitoring")
    files = render(settings, where, folder)
    others = write_tree(folder, files)
    click.echo(f"wrote {len(files)} files under {folder}")
    for name in others:
        click.echo(f"  {folder / name} is none of them, and Prometheus or Grafana will read it, too", err=True)


@gleaner.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def doctor(config: Path | None, as_json: bool) -> None:
    """Look for what is wrong on this machine, and say how to mend it."""
    from gleaner.doctor import examine
    from gleaner.settings import load_settings

    findings = list(examine(load_settings(config)))
    if as_json:
        fields = ("verdict", "what", "detail", "fix")
        click.echo(json.dumps([{name: getattr(finding, name) for name in fields} for finding in findings], indent=2))
    else:
        colours = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
        for finding in findings:
            click.secho(f"{finding.verdict:4}", fg=colours[finding.verdict], nl=False)
            click.echo(f" {finding.what}: {finding.detail}")
            if finding.fix:
                click.echo(f"     fix: {finding.fix}")
    if any(finding.verdict == "FAIL" for finding in findings):
        sys.exit(1)


def _flags(**sections: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The flags that were given, nested as the settings are."""
    given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
    return {name: values for name, values in given.items() if values}


def _has_version(settings: Settings, data: Path | None, flags: Mapping[str, object]) -> bool:
    """Whether the store is filled; says so, what with, and what of the data and the flags is not in it."""
    from gleaner.store import Store

    if data and not data.exists():
        raise BadTraining(f"{data}: no such file")
    store, source = Store(settings.store), data or settings.data
    version = store.aliases().get("champion")
    if version is None:
        return False
    about = store.read(version).manifest.data
    click.echo(f"not training: version {version}, trained on {about.name}, is there; `gleaner train` trains a new one")
    if source and source.is_file() and _sha256(source) != about.sha256:
        click.echo(f"  it was NOT trained on {source} as it is now; for that: gleaner train {source}")
    if flags:
        given = " ".join(f"--{name} {value}" for name, value in flags.items())
        click.echo(f"  {given} is for a training: gleaner train {source or 'DATA.csv'} {given}")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chosen(store: Store, alias: str, version: int | None) -> int:
    """The version that was named, or the one that an alias points at."""
    from gleaner.report import cell

    if version is None:
        version = store.aliases().get(alias)
        if version is None:
            raise NoModel(f"no version has the alias {alias!r}; run `gleaner train DATA.csv`, or promote one")
    elif version not in store.versions():
        raise NoModel(f"no version {version} in {store.root}; there is {cell(store.versions()) or 'none'}")
    return version


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in {".parquet", ".pq"}


def _exit_on_signals() -> None:
    """Have what would end the process on the spot end it in order, so that half-written files are taken away."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextmanager
def _extra(name: str, modules: Sequence[str]) -> Iterator[None]:
    """A missing part of an extra is said to be one."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] in modules:
            raise MissingExtra(name, e.name) from e
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command: exit 0 done, 1 the user can fix it, 2 usage, 3 done in part, 130 interrupted."""
    command: Callable[..., Any] = gleaner.main
    try:
        command(args=list(arguments) if arguments is not None else None, prog_name="gleaner", standalone_mode=False)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.UsageError as e:
        e.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except GleanerError as e:
        click.secho("error: ", fg="red", nl=False, err=True)
        click.echo(str(e), err=True)
        sys.exit(1)
    finally:
        logging.shutdown()
    sys.exit(0)
