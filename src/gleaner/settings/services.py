"""The services of the system: names, ports, scrape jobs and programs."""

from __future__ import annotations

from dataclasses import dataclass

from gleaner.settings.sections import Settings

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as `gleaner up`, compose, Prometheus and the doctor know it.

    name: its name in commands, labels and compose.
    about: one line for people.
    ports: its keys in `[ports]`; other services reach it on the last one.
    job: its scrape job; empty if Prometheus does not scrape it.
    inside: the last port, inside compose's network; 0 if no other service needs it.
    is_own: it listens on `serving.host`, and with its metrics on `Settings.metrics_host`. Other services listen on
        loopback only.
    binaries: names of its program in packages, Debian's (also the name of its package and systemd unit) first.
    """

    name: str
    about: str
    ports: tuple[str, ...]
    job: str = ""
    inside: int = 0
    is_own: bool = False
    binaries: tuple[str, ...] = ()

    def host(self, settings: Settings, port: str) -> str:
        """Return the address on which one of its ports listens."""
        if not self.is_own:
            return LOOPBACK
        return settings.serving.host if port == "ml_app" else settings.metrics_host


ML_APP = Service(
    "ml-app", "predictions; /docs shows them", ("ml_app", "ml_app_metrics"), "ml-api", inside=8010, is_own=True
)
TRAIN_METRICS = Service(
    "train-metrics",
    "training metrics; `gleaner train --now` starts a training",
    ("train_metrics",),
    "train-metrics",
    inside=8003,
    is_own=True,
)
MLFLOW = Service("mlflow", "runs and versions", ("mlflow",), "mlflow", inside=5000)
PROMETHEUS = Service(
    "prometheus", "metrics and rules", ("prometheus",), "prometheus", inside=9090, binaries=("prometheus",)
)
ALERTMANAGER = Service(
    "alertmanager", "alerts", ("alertmanager",), inside=9093, binaries=("prometheus-alertmanager", "alertmanager")
)
GRAFANA = Service("grafana", "dashboards", ("grafana",), binaries=("grafana-server", "grafana"))

SERVICES = (ML_APP, TRAIN_METRICS, MLFLOW, PROMETHEUS, ALERTMANAGER, GRAFANA)


def service_of(port: str) -> Service:
    """Return the service that a key of `[ports]` belongs to."""
    return next(service for service in SERVICES if port in service.ports)


def scraped(settings: Settings) -> list[Service]:
    """Return the services that Prometheus scrapes.

    MLflow is one only if `tracking.uri` names no other server.
    """
    return [service for service in SERVICES if service.job and not (service is MLFLOW and settings.tracking.uri)]
