"""The three programs, each composed of its parts: one training, the trainer that stays, and the service.

A process is one of them, and loads the parts of no other; so imports are inside.
"""

from __future__ import annotations

import gc
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gleaner.errors import GleanerError

if TYPE_CHECKING:
    from gleaner.artifact import Artifact
    from gleaner.events import Event, Fitted
    from gleaner.predictor import Predictor
    from gleaner.report import TrainingReport
    from gleaner.settings import Settings
    from gleaner.tables import Table


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
    """One training, from the file to the aliases.

    own_port: expose its metrics although the resident of the same state exposes those of the last training.
    spoil: changes the table before it is trained on; None for never.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector

    from gleaner.events import Finished
    from gleaner.metrics import Resources, TrainingMetrics
    from gleaner.report import TrainingReport
    from gleaner.server import serve_metrics
    from gleaner.store import Store
    from gleaner.tables import read_table
    from gleaner.trainer import find_resident, tell, tell_finished, write_last

    began = time.monotonic()
    Store(settings.store).check_model(settings.model.name)
    host, port = settings.serving.host, settings.ports.train_metrics
    resident = find_resident(settings.state) if events_fd is None else None
    hear: Callable[[Event], object]
    if events_fd is not None:
        hear = partial(tell, events_fd)
    elif resident and not own_port:
        hear = _hear_nothing
        click.echo(f"the trainer, pid {resident}, has the metrics, and will show what this training leaves", err=True)
    else:
        registry = CollectorRegistry()
        hear = TrainingMetrics(registry).record
        ProcessCollector(registry=registry)
        Resources([settings.state], registry)
        port = serve_metrics(registry, host, port, "ports.train_metrics")
    report = TrainingReport(quiet=as_json)
    # What trains takes seconds to load; what is wrong with a file is said before.
    table = read_table(source, settings.schema_, max_rows=settings.training.max_rows)
    report.read(table)
    versions, roles = _train(spoil(table) if spoil else table, settings, source, report, hear)
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
    hear(finished)
    if resident:
        tell_finished(settings.state)
    outcome = {
        alias: {"version": version, "candidate": roles[alias].candidate, **roles[alias].scores.named()}
        for alias, version in versions.items()
    }
    report.done(outcome, finished.seconds)
    if linger and hear is not _hear_nothing:
        click.echo(f"training metrics stay on http://{host}:{port}/metrics until Ctrl-C", err=True)
        threading.Event().wait()


def _hear_nothing(event: Event) -> None:
    """Where another process exposes the metrics."""


def _train(
    table: Table, settings: Settings, source: Path, report: TrainingReport, hear: Callable[[Event], object]
) -> tuple[dict[str, int], dict[str, Fitted]]:
    """Train, register the best, point the aliases at them; the versions, and what they are, by alias."""
    from gleaner.events import Chosen, Loaded
    from gleaner.packing import pack
    from gleaner.predictor import ENGINE, selftest
    from gleaner.store import Store
    from gleaner.tracking import Recorder
    from gleaner.training import train

    store = Store(settings.store)
    chosen: Chosen | None = None
    with tempfile.TemporaryDirectory(prefix="gleaner-") as scratch, Recorder(settings, source) as recorder, report:
        for event in train(table, settings):
            recorder.record(event)
            hear(event)
            report.show(event)
            if isinstance(event, Loaded):
                constant = event.constant
            if isinstance(event, Chosen):
                chosen = event
        assert chosen is not None
        roles = {"champion": chosen.champion, **({"challenger": chosen.challenger} if chosen.challenger else {})}
        artifacts: dict[str, tuple[Fitted, Artifact]] = {}
        for alias, fitted in roles.items():
            run_id = recorder.children[fitted.candidate].info.run_id
            artifact = pack(fitted, table, constant, settings, Path(scratch) / alias, run_id=run_id)
            artifacts[alias] = (fitted, artifact)
        versions = recorder.register(artifacts)
        for alias, version in versions.items():
            added = store.add(version, artifacts[alias][1].folder)
            selftest(added.folder)
            store.remember_passed(version, added.digest, ENGINE)
        aliases = {"champion": None, "challenger": None, **versions}
        recorder.point(aliases)
        store.point(aliases)
    return versions, roles


def run_trainer(settings: Settings, command: Sequence[str]) -> None:
    """Stay as the trainer until SIGTERM or Ctrl-C. command: what trains once."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    from gleaner.logs import start_logging
    from gleaner.metrics import Resources, TrainingMetrics
    from gleaner.server import check_host, serve_metrics
    from gleaner.trainer import Trainer

    start_logging(settings.serving.log)
    check_host(settings.serving.host, insecure=settings.serving.insecure)
    registry = CollectorRegistry()
    trainer = Trainer(command, settings, TrainingMetrics(registry))
    ProcessCollector(registry=registry)
    Resources([settings.state], registry)
    port = serve_metrics(registry, settings.serving.host, settings.ports.train_metrics, "ports.train_metrics")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: trainer.stop())

    def on_ready() -> None:
        click.echo(f"trainer of {settings.model.name}, metrics on http://{settings.serving.host}:{port}/metrics")
        sys.stdout.flush()

    trainer.run(on_ready)


@contextmanager
def failing_aloud(events_fd: int | None) -> Iterator[None]:
    """In the resident's child: what the user can fix is told to the resident, which alone logs."""
    try:
        if events_fd is not None:
            from gleaner.trainer import follow_trainer

            follow_trainer(events_fd)
        yield
    except KeyboardInterrupt:
        if events_fd is None:
            raise
        sys.exit(130)
    except GleanerError as e:
        if events_fd is None:
            raise
        from gleaner.events import Failed
        from gleaner.trainer import tell

        tell(events_fd, Failed(type(e).__name__, str(e)))
        sys.exit(1)


def run_service(settings: Settings, make: Callable[[Artifact], Predictor] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM. make: makes the predictors; None for those that are right."""
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

    from gleaner.allocator import limit_arenas
    from gleaner.app import App
    from gleaner.logs import start_logging
    from gleaner.metrics import Resources
    from gleaner.ports import check_port
    from gleaner.server import check_host, serve, serve_metrics
    from gleaner.settings import drop_request_variables
    from gleaner.slots import Slots
    from gleaner.store import Store

    start_logging(settings.serving.log)
    drop_request_variables()
    limit_arenas()
    check_host(settings.serving.host, insecure=settings.serving.insecure)
    check_port(settings.serving.host, settings.ports.ml_app, "ports.ml_app")

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Resources([settings.state], registry)
    store, aliases = Store(settings.store), settings.serving.slots
    store.check_model(settings.model.name)
    slots = Slots(store, aliases, make=make) if make else Slots(store, aliases)
    followed = None
    if settings.tracking.is_server:
        from gleaner.metrics import Following
        from gleaner.registry import Follower

        followed = Follower(settings, slots.store)
        Following(followed, registry)
    app = App(slots, settings.serving, registry, settings.schema_, followed)
    metrics_at = serve_metrics(registry, settings.serving.host, settings.ports.ml_app_metrics, "ports.ml_app_metrics")
    slots.refresh()
    # What is there by now stays: a collection in the middle of a request need not look through all of it again.
    gc.freeze()
    stop = threading.Event()
    follower = threading.Thread(
        target=slots.follow, args=(settings.serving.poll_seconds, stop), name="follower", daemon=True
    )
    follower.start()

    def on_listen(listening: int) -> None:
        at = f"http://{settings.serving.host}"
        click.echo(f"{settings.model.name} on {at}:{listening}, metrics on {at}:{metrics_at}/metrics")
        for slot, alias in settings.serving.slots.items():
            loaded = slots.current[slot]
            what = f"version {loaded.version}, {loaded.manifest.candidate}" if loaded else slots.faults[slot]
            click.echo(f"  POST /{slot}/predict  {alias}: {what}")
        if not app.is_ready():
            click.echo(
                "  nothing to answer with yet: the first version (`gleaner train DATA.csv`) is picked up by itself"
            )
        sys.stdout.flush()
        if followed:  # a thread of its own, from now on: no start ever waits for the server
            threading.Thread(target=followed.follow, args=(stop,), name="registry", daemon=True).start()

    def on_stop() -> None:
        app.draining.set()
        stop.set()

    serve(app, settings.serving, settings.ports.ml_app, on_listen=on_listen, on_stop=on_stop)
