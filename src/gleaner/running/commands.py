"""The programs of the stack: command, addresses and files of each."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gleaner.errors import environment_name
from gleaner.machine.files import make_private
from gleaner.machine.ports import reachable
from gleaner.redaction import remember
from gleaner.running.program import Program
from gleaner.settings.environment import make_environment
from gleaner.settings.file import PASSWORD, WEB_CONFIG
from gleaner.settings.sections import ARTIFACTS, Settings
from gleaner.settings.services import (
    ALERTMANAGER,
    GRAFANA,
    LOOPBACK,
    ML_APP,
    MLFLOW,
    PROMETHEUS,
    TRAIN_METRICS,
    Service,
)

# MLflow responds 403 under every other host name.
MLFLOW_HOSTS = ("localhost:*", "127.0.0.1:*")


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that the programs are made from.

    settings: with the ports that are free.
    folder: the stack's, with the rendered files in `monitoring`.
    binaries: the paths of the programs of other packages, by service.
    has_mlflow: whether the stack runs an MLflow server.
    variables: of the environment of Gleaner's own programs and of MLflow.
    training: the data and the options of the trainer.
    trained: whether the store has a version.
    """

    settings: Settings
    folder: Path
    binaries: Mapping[str, str]
    has_mlflow: bool
    variables: Mapping[str, str] = field(default_factory=dict)
    training: Sequence[str] = ()
    trained: bool = True

    def url(self, service: Service, *, port: int = -1) -> str:
        """Return the URL of a service, by default on its last port."""
        name = service.ports[port]
        scheme = "https" if name == "ml_app" and self.settings.tls else "http"
        return f"{scheme}://{reachable(service.host(self.settings, name))}:{getattr(self.settings.ports, name)}"

    def program(self, service: Service, command: Sequence[str], **more: Any) -> Program:
        """Return the program of a service.

        By default it starts after the API, and people find it at the service's URL.
        """
        ports = {f"ports.{name}": getattr(self.settings.ports, name) for name in service.ports}
        shown = {"after": (ML_APP.name,), "address": self.url(service), "about": service.about, **more}
        return Program(service.name, command, ports=ports, **shown)

    def environment(self) -> dict[str, str]:
        """Return the environment of a Gleaner program, with the stack's MLflow server."""
        tracking = {environment_name("tracking.uri"): self.url(MLFLOW)} if self.has_mlflow else {}
        return make_environment(self.variables, **tracking)

    def command(self, *arguments: object) -> tuple[str, ...]:
        file = str(self.settings.file.absolute())
        return (sys.executable, "-m", "gleaner", "--config", file, *map(str, arguments))

    def data(self, service: Service) -> Path:
        """Make and return the folder of a service's own data."""
        folder = self.settings.state.absolute() / service.name
        make_private(folder)
        return folder


def _ml_app(setup: Setup) -> Program:
    serving, ports = setup.settings.serving, setup.settings.ports
    url = setup.url(ML_APP, port=0)
    return setup.program(
        ML_APP,
        setup.command("serve", "--port", ports.ml_app, "--metrics-port", ports.ml_app_metrics),
        live=f"{url}/livez",
        ready=f"{url}/readyz",
        after=(),
        environment=setup.environment(),
        address=url,
        stop_seconds=serving.unready_seconds + serving.drain_seconds + 5,
    )


def _trainer(setup: Setup) -> Program:
    url = f"{setup.url(TRAIN_METRICS)}/metrics"
    # Without a version it trains at once, and that needs MLflow.
    first = ML_APP if setup.trained or not setup.has_mlflow else MLFLOW
    command = setup.command("train", "--resident", "--metrics-port", setup.settings.ports.train_metrics)
    return setup.program(
        TRAIN_METRICS,
        (*command, *setup.training),
        live=url,
        after=(first.name,),
        environment=setup.environment(),
        address=url,
    )


def _mlflow(setup: Setup) -> Program:
    options = {
        "host": LOOPBACK,
        "port": setup.settings.ports.mlflow,
        "workers": 1,
        "backend-store-uri": setup.settings.tracking_uri,
        "registry-store-uri": setup.settings.tracking_uri,
        "artifacts-destination": (setup.settings.state.absolute() / ARTIFACTS).as_uri(),
        "allowed-hosts": ",".join(MLFLOW_HOSTS),
        "expose-prometheus": setup.folder / "mlflow-metrics",
        "uvicorn-opts": "--no-access-log",
    }
    return setup.program(
        MLFLOW,
        (sys.executable, "-m", "mlflow", "server", *(f"--{key}={value}" for key, value in options.items())),
        live=f"{setup.url(MLFLOW)}/health",
        environment=make_environment(
            setup.variables,
            # Otherwise MLflow starts fifteen processes with 1.4 GB.
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
            PYTHONWARNINGS="ignore",
        ),
        start_seconds=90.0,
    )


def _watcher(setup: Setup, service: Service, *options: str) -> Program:
    """Return the program of Prometheus or Alertmanager, with their shared options."""
    url = setup.url(service)
    file = setup.folder / f"monitoring/{service.name}/{service.name}.yml"
    shared = (f"--config.file={file}", f"--web.listen-address={url.removeprefix('http://')}", "--log.level=warn")
    # Prometheus is not ready while it reads its log, which can take minutes; that must not restart it.
    live, ready = f"{url}/-/healthy", f"{url}/-/ready"
    return setup.program(service, (setup.binaries[service.name], *shared, *options), live=live, ready=ready)


def _alertmanager(setup: Setup) -> Program:
    data = f"--storage.path={setup.data(ALERTMANAGER)}"
    password = setup.folder / "monitoring" / ALERTMANAGER.name / PASSWORD
    web = f"--web.config.file={password.with_name(WEB_CONFIG)}"
    program = _watcher(setup, ALERTMANAGER, data, web, "--cluster.listen-address=")
    return replace(program, password_file=str(password))


def _prometheus(setup: Setup) -> Program:
    data = f"--storage.tsdb.path={setup.data(PROMETHEUS)}"
    return _watcher(setup, PROMETHEUS, data, "--storage.tsdb.retention.size=1GB")


def _grafana(setup: Setup) -> Program:
    binary, password = Path(setup.binaries[GRAFANA.name]), setup.data(GRAFANA) / "password"
    if not password.exists() or not password.stat().st_size:
        password.touch(0o600)
        password.write_text(secrets.token_urlsafe(24))
    remember(password.read_text())
    ini, provisioning = setup.folder / "grafana.ini", setup.folder / "monitoring/grafana/provisioning"
    port, data = setup.settings.ports.grafana, password.parent
    ini.write_text(_GRAFANA.format(host=LOOPBACK, port=port, data=data, provisioning=provisioning, password=password))
    # `grafana server`, or the older `grafana-server`, which is all that some packages have.
    server = ("server",) if binary.name == "grafana" else ()
    home = _grafana_home(binary)
    command = (str(binary), *server, f"--config={ini}", *([f"--homepath={home}"] if home else []))
    about = f"{GRAFANA.about}; to change one, sign in as admin with the password in {password}"
    return setup.program(GRAFANA, command, live=f"{setup.url(GRAFANA)}/api/health", about=about)


# Everybody on this machine may look. Only the owner of the password file can make changes.
_GRAFANA = """[paths]
data = {data}
logs = {data}/log
plugins = {data}/plugins
provisioning = {provisioning}
[server]
http_addr = {host}
http_port = {port}
[security]
admin_password = $__file{{{password}}}
[users]
allow_sign_up = false
[auth.anonymous]
enabled = true
org_role = Viewer
[analytics]
reporting_enabled = false
check_for_updates = false
check_for_plugin_updates = false
[log]
mode = console
level = warn
"""


def _grafana_home(binary: Path) -> Path | None:
    """Find the folder of Grafana's own files, often apart from its binary."""
    above = [*binary.parents[:2], *binary.resolve().parents[:3]]
    folders = [*above, *(folder / "share/grafana" for folder in above), Path("/usr/share/grafana")]
    return next((folder for folder in folders if (folder / "conf/defaults.ini").exists()), None)


# In the order of their start: the API, which waits for nothing, first. They end in the opposite order.
MAKERS: Mapping[Service, Callable[[Setup], Program]] = {
    ML_APP: _ml_app,
    MLFLOW: _mlflow,
    TRAIN_METRICS: _trainer,
    ALERTMANAGER: _alertmanager,
    PROMETHEUS: _prometheus,
    GRAFANA: _grafana,
}
