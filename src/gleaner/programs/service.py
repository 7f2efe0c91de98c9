"""The program of the service."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable

import click
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from gleaner.logs import start_logging
from gleaner.machine.exposition import serve_metrics
from gleaner.machine.memory import limit_arenas
from gleaner.machine.ports import check_host, check_port, show_address
from gleaner.machine.resources import Resources
from gleaner.model.artifact import Artifact
from gleaner.model.predictor import Predictor
from gleaner.model.store import open_store
from gleaner.serving.app import App
from gleaner.serving.follower import Follower
from gleaner.serving.keys import Keys
from gleaner.serving.metrics import Following
from gleaner.serving.server import serve
from gleaner.serving.slots import Slots
from gleaner.serving.tls import Tls
from gleaner.settings.sections import Settings


def run_service(settings: Settings, make: Callable[[Artifact], Predictor] = Predictor) -> None:
    """Serve until Ctrl-C or SIGTERM. make: another predictor class, for drills."""
    start_logging(settings.serving.log)
    limit_arenas()
    check_host(settings.serving.host, insecure=settings.serving.insecure or settings.keys_file is not None)
    check_port(settings.serving.host, settings.ports.ml_app, "ports.ml_app")
    registry = CollectorRegistry()
    tls = Tls(*settings.tls) if settings.tls else None
    keys = Keys(settings.keys_file, settings.keys_used) if settings.keys_file else None
    slots, follower, app = _compose(settings, registry, make, keys)
    metrics_port = serve_metrics(registry, settings.metrics_host, settings.ports.ml_app_metrics, "ports.ml_app_metrics")
    slots.refresh()
    # Everything up to here stays, so that no collection in the middle of a request looks through it again.
    gc.freeze()
    stop = threading.Event()
    polling = (settings.serving.poll_seconds, stop)
    threading.Thread(target=slots.follow, args=polling, name="follower", daemon=True).start()
    app.log.start()
    if keys:
        threading.Thread(target=keys.follow, args=polling, name="keys", daemon=True).start()

    def on_listen(port: int) -> None:
        _announce(settings, slots, app, port, metrics_port)
        if follower:  # only now, so that no start waits for the MLflow server
            threading.Thread(target=follower.follow, args=(stop,), name="registry", daemon=True).start()

    def on_stop() -> None:
        app.draining.set()
        stop.set()

    serve(app, settings.serving, settings.ports.ml_app, tls=tls, on_listen=on_listen, on_stop=on_stop)
    app.log.stop()
    if keys:
        keys.note_uses(at_once=True)


def _compose(
    settings: Settings, registry: CollectorRegistry, make: Callable[[Artifact], Predictor], keys: Keys | None
) -> tuple[Slots, Follower | None, App]:
    """Put the parts of the service together; none of them works yet."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Resources([settings.state], registry)
    store = open_store(settings)
    store.check_model(settings.model.name)
    slots = Slots(store, settings.serving.slots, make=make)
    follower = Follower(settings, slots.store) if settings.tracking.is_server else None
    if follower:
        Following(follower, registry)
    return (
        slots,
        follower,
        App(slots, settings.serving, registry, settings.schema_, follower, keys, settings.table.encoding),
    )


def _announce(settings: Settings, slots: Slots, app: App, port: int, metrics_port: int) -> None:
    """Print the addresses, and the version or the fault of each slot."""
    api, metrics = show_address(settings.serving.host, port), show_address(settings.metrics_host, metrics_port)
    scheme = "https" if settings.tls else "http"
    click.echo(f"{settings.model.name} on {scheme}://{api}, metrics on http://{metrics}/metrics")
    for slot, alias in settings.serving.slots.items():
        loaded = slots.current[slot]
        about = f"version {loaded.version}, {loaded.manifest.candidate}" if loaded else slots.faults[slot]
        click.echo(f"  POST /{slot}/predict  {alias}: {about}")
    if settings.keys_file:
        click.echo(f"  every caller needs a key of {settings.keys_file}; `gleaner keys add NAME` adds one")
    if not app.is_ready():
        # With an MLflow server, training is the work of another process, often in another container.
        train = (
            "`gleaner train --now` beside the trainer" if settings.tracking.is_server else "`gleaner train DATA.csv`"
        )
        click.echo(f"  no version to serve yet; {train} trains one, which is served within seconds")
    sys.stdout.flush()
