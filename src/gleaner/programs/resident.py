"""The program of the resident, and the error handling of its children."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from prometheus_client import CollectorRegistry, ProcessCollector

from gleaner.errors import GleanerError
from gleaner.logs import start_logging
from gleaner.machine.exposition import serve_metrics
from gleaner.machine.ports import check_host, show_address
from gleaner.machine.resources import Resources
from gleaner.redaction import redact
from gleaner.settings.sections import Settings
from gleaner.training.events import Failed
from gleaner.training.metrics import TrainingMetrics
from gleaner.training.resident import Trainer, follow_trainer, send_event


def run_trainer(settings: Settings, command: Sequence[str]) -> None:
    """Run the resident until SIGTERM or Ctrl-C. command: trains once."""
    start_logging(settings.serving.log)
    check_host(settings.serving.host, insecure=settings.serving.insecure or settings.keys_file is not None)
    registry = CollectorRegistry()
    trainer = Trainer(command, settings, TrainingMetrics(registry))
    ProcessCollector(registry=registry)
    Resources([settings.state], registry)
    port = serve_metrics(registry, settings.metrics_host, settings.ports.train_metrics, "ports.train_metrics")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: trainer.stop())

    def on_ready() -> None:
        metrics = show_address(settings.metrics_host, port)
        click.echo(f"trainer of {settings.model.name}, metrics on http://{metrics}/metrics")
        sys.stdout.flush()

    trainer.run(on_ready)


@contextmanager
def failing_aloud(events_fd: int | None) -> Iterator[None]:
    """In the resident's child: send errors to the resident.

    The resident logs them.
    events_fd: the descriptor for events; None in every other process.
    """
    try:
        if events_fd is not None:
            follow_trainer(events_fd)
        yield
    except KeyboardInterrupt:
        if events_fd is None:
            raise
        sys.exit(130)
    except GleanerError as e:
        if events_fd is None:
            raise
        send_event(events_fd, Failed(type(e).__name__, redact(str(e))))
        sys.exit(1)
