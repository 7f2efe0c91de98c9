"""The program of one training, from the file to the aliases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
from prometheus_client import CollectorRegistry, ProcessCollector

from gleaner.errors import BadEncoding
from gleaner.machine.exposition import serve_metrics
from gleaner.machine.ports import show_address
from gleaner.machine.resources import Resources
from gleaner.model.store import open_store
from gleaner.programs.likely import name_likely
from gleaner.programs.report import TrainingReport
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.tables import Table
from gleaner.training.events import Event, Finished, Fitted
from gleaner.training.metrics import TrainingMetrics
from gleaner.training.resident import find_resident, report_finished, send_event, write_last


class _Metrics(NamedTuple):
    """The listener that exposes a training's metrics.

    listen: called with every event.
    resident: the process id of the resident, which exposes the metrics instead; None if none runs.
    address: where this process exposes the metrics; empty if another process does.
    """

    listen: Callable[[Event], object]
    resident: int | None = None
    address: str = ""


def _read(settings: Settings, source: Path) -> Table:
    """Read the training data. Raises BadTable."""
    try:
        encoding, most = settings.table.encoding, settings.training.max_rows
        return read_table(source, settings.schema_, encoding=encoding, max_rows=most)
    except BadEncoding as e:
        raise name_likely(source, e) from e


def run_training(
    settings: Settings,
    source: Path,
    *,
    linger: bool = False,
    own_port: bool = False,
    as_json: bool = False,
    events_fd: int | None = None,
    spoil: Callable[[Table], Table] | None = None,
) -> None:
    """Train on a file, register the best candidates and report them.

    linger: expose the metrics until Ctrl-C.
    own_port: expose the metrics although the resident of the same state exposes those of the last training.
    as_json: print the outcome as JSON, and nothing else.
    events_fd: in the resident's child, the descriptor for its events.
    spoil: a change of the table before the training, for drills.
    """
    began = time.monotonic()
    open_store(settings).check_model(settings.model.name)
    metrics = _expose(settings, own_port, events_fd)
    report = TrainingReport(settings.alerts, quiet=as_json)
    table = _read(settings, source)
    report.read(table)
    # The libraries take seconds to load, so they are loaded after the errors in the file are reported.
    from gleaner.programs.pipeline import train_and_register

    with report:
        listeners = [metrics.listen, report.show]
        versions, roles = train_and_register(spoil(table) if spoil else table, settings, source, listeners)
    champion = roles["champion"]
    finished = Finished(
        versions=versions,
        candidate=champion.candidate,
        scores=champion.scores,
        training_loss=champion.training_loss,
        rows=len(table.y),
        refused=table.refused,
        seconds=time.monotonic() - began,
        at=time.time(),
    )
    write_last(settings.state, finished)
    metrics.listen(finished)
    if metrics.resident:
        report_finished(settings.state)
    outcome = {
        alias: {"version": version, "candidate": roles[alias].candidate, **_outcome(roles[alias])}
        for alias, version in versions.items()
    }
    report.done(outcome, finished.seconds)
    if linger and metrics.address:
        click.echo(f"training metrics stay on {metrics.address} until Ctrl-C", err=True)
        threading.Event().wait()


def _outcome(fitted: Fitted) -> dict[str, float]:
    """Return a candidate's scores by name."""
    return fitted.scores.named() | (fitted.forward.named("forward_") if fitted.forward else {})


def _expose(settings: Settings, own_port: bool, events_fd: int | None) -> _Metrics:
    """Expose the metrics, here or in another process."""
    if events_fd is not None:
        return _Metrics(partial(send_event, events_fd))
    resident = find_resident(settings.state)
    if resident and not own_port:
        click.echo(f"the resident trainer, pid {resident}, exposes the metrics once this training is done", err=True)
        return _Metrics(lambda _: None, resident)
    registry = CollectorRegistry()
    metrics = TrainingMetrics(registry)
    ProcessCollector(registry=registry)
    Resources([settings.state], registry)
    host = settings.metrics_host
    port = serve_metrics(registry, host, settings.ports.train_metrics, "ports.train_metrics")
    return _Metrics(metrics.record, resident, f"http://{show_address(host, port)}/metrics")
