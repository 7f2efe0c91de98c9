"""The processes of `gleaner up`: how each is started, where it answers, and on which ports."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from gleaner.errors import PortTaken, Refused, environment_name
from gleaner.ports import check_port, reachable
from gleaner.settings import ARTIFACTS, Settings, make_environment
from gleaner.supervisor import Program

LOOPBACK = "127.0.0.1"
OURS = ("ml_app", "ml_app_metrics", "train_metrics")  # the ports that listen on `serving.host`
# Where nothing is done about it, MLflow's page answers 403 to every name but these.
MLFLOW_HOSTS = ("localhost:*", "127.0.0.1:*")
# The names by which programs of other packages go, on Debian first.
_BINARIES = {
    "prometheus": ("prometheus",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "grafana": ("grafana-server", "grafana"),
}
# There where systemd runs.
SYSTEMD = Path("/run/systemd/system")
PORTS = {
    "ml-app": ("ml_app", "ml_app_metrics"),
    "train-metrics": ("train_metrics",),
    "mlflow": ("mlflow",),
    "prometheus": ("prometheus",),
    "alertmanager": ("alertmanager",),
    "grafana": ("grafana",),
}


class Stack:
    """What `up` runs on this machine. names: the processes, in the order of their start. missing: what is not here.

    only: the names to choose among. variables: of the environment of our own processes.
    find: finds a program by its name; replaced in tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        only: Collection[str] = (),
        variables: Mapping[str, str] | None = None,
        find: Callable[[str], str | None] | None = None,
    ) -> None:
        self.settings, self._variables = settings, dict(variables or {})
        self._find = find = find or shutil.which
        only = only or PORTS
        can_train = find_spec("mlflow") is not None
        self._binaries = {
            name: path
            for name, known in _BINARIES.items()
            if name in only and (path := next((path for other in known if (path := find(other))), None))
        }
        has_own_mlflow = can_train and not settings.tracking.uri
        here = {"ml-app", *(["train-metrics"] if can_train else []), *(["mlflow"] if has_own_mlflow else [])}
        self.names = [name for name in PORTS if name in only and (name in here or name in self._binaries)]
        absent = [name for name in _BINARIES if name in only and name not in self._binaries]
        self.missing = [*([] if can_train else ["mlflow"]), *absent]

    def explain_missing(self) -> str:
        """One line on what is not here and how to get it; empty where nothing is missing."""
        if not self.missing:
            return ""
        apt, brew = self._find("apt-get"), self._find("brew")
        ways = ["pip install 'gleaner[train]'"] if "mlflow" in self.missing else []
        others = [name for name in self.missing if name != "mlflow"]
        if brew and others:
            ways.append(f"brew install {' '.join(others)}")
        elif others:
            packages = [_BINARIES[name][0] for name in others if name != "grafana"]
            if packages:
                install = f"apt-get install --no-install-recommends {' '.join(packages)}"
                if SYSTEMD.is_dir():  # where packages start their services at once, on the very ports
                    install += f" && systemctl disable --now {' '.join(packages)}"
                ways.append(install if apt else "https://prometheus.io/download")
            ways += ["https://grafana.com/grafana/download"] if "grafana" in others else []
        return f"not here, and predictions do without: {', '.join(self.missing)}; to have them: {', '.join(ways)}"

    def place(self, *, move: bool) -> list[str]:
        """See that every port can be had, before anything is started; what was moved, and where to.

        move: take the next free port instead of one that is taken, for this run. A port 0 is any free one.
        Raises PortTaken, or Refused for several of them or for two settings that name one port.
        """
        ports: dict[str, int] = self.settings.ports.model_dump()
        used = [name for service in self.names for name in PORTS[service]]
        moved, faults = [], []
        for i, name in enumerate(used):
            setting, host, port = f"ports.{name}", self._host(name), ports[name]
            others = {ports[other] for other in used if other != name}
            twin = next((f"ports.{other}" for other in used[:i] if ports[other] == port), None)
            if port == 0:
                ports[name] = _find_free(host, port, others)
                continue
            if twin:
                who = twin
                fault = f"{twin} and {setting} are both {port}; {_change(setting)}"
            else:
                try:
                    check_port(host, port, setting)
                except PortTaken as e:
                    who, fault = e.holder, str(e)
                else:
                    continue
            if move:
                ports[name] = _find_free(host, port, others)
                moved.append(f"{setting} is {ports[name]} for this run, since {port} is taken by {who}")
            faults.append(fault)
        for name, port in ports.items():
            if port == 0:  # of what is not started; the watch's files have an address for it all the same
                ports[name] = _find_free(LOOPBACK, 0, ports.values())
        if faults and not move:
            raise Refused("\nerror: ".join(faults) + "; or for one run: gleaner up --auto-ports")
        self.settings = self.settings.model_copy(update={"ports": self.settings.ports.model_copy(update=ports)})
        return moved

    def programs(self, folder: Path, *, training: Sequence[str] = (), trained: bool = True) -> list[Program]:
        """What to run. folder: of the run, where the watch's files were rendered into `monitoring`.

        training: the data and the flags of the trainer. trained: whether there is a version already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        made: dict[str, Callable[[], Program]] = {
            "ml-app": self._ml_app,
            "mlflow": lambda: self._mlflow(folder),
            "train-metrics": lambda: self._trainer(training, waits=not trained),
            "alertmanager": lambda: self._alertmanager(folder),
            "prometheus": lambda: self._prometheus(folder),
            "grafana": lambda: self._grafana(folder),
        }
        # Callers first; and the others the other way round, at the end.
        return [make() for name, make in made.items() if name in self.names]

    @property
    def mlflow_uri(self) -> str:
        return f"http://{LOOPBACK}:{self.settings.ports.mlflow}"

    def _ports(self, service: str) -> dict[str, int]:
        """The ports of a process, by their settings."""
        return {f"ports.{name}": getattr(self.settings.ports, name) for name in PORTS[service]}

    def _host(self, name: str) -> str:
        # What is not ours asks nobody who they are, so it is never seen from outside.
        return self.settings.serving.host if name in OURS else LOOPBACK

    def _gleaner(self, *arguments: object) -> tuple[str, ...]:
        file = str(self.settings.file.absolute())
        return (sys.executable, "-m", "gleaner", "--config", file, *map(str, arguments))

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process of our own."""
        return make_environment(**{"PYTHONUNBUFFERED": "1", **self._variables, **more})

    def _tracking(self) -> dict[str, str]:
        """Where the trainer records, and whose aliases the API follows: the server that runs here, if one does."""
        return {environment_name("tracking.uri"): self.mlflow_uri} if "mlflow" in self.names else {}

    def _ml_app(self) -> Program:
        serving, ports = self.settings.serving, self.settings.ports
        url = f"http://{reachable(serving.host)}:{ports.ml_app}"
        return Program(
            "ml-app",
            self._gleaner("serve", "--port", ports.ml_app, "--metrics-port", ports.ml_app_metrics),
            live=f"{url}/livez",
            ready=f"{url}/readyz",
            environment=self.environment(**self._tracking()),
            address=url,
            about="predictions; /docs shows them",
            ports=self._ports("ml-app"),
            stop_seconds=serving.unready_seconds + serving.drain_seconds + 5,
        )

    def _trainer(self, training: Sequence[str], *, waits: bool) -> Program:
        port = self.settings.ports.train_metrics
        url = f"http://{reachable(self.settings.serving.host)}:{port}/metrics"
        return Program(
            "train-metrics",
            self._gleaner("train", "--resident", "--metrics-port", port, *training),
            live=url,
            # It trains at once where there is no version, and MLflow has to be there for that.
            after=("mlflow",) if waits and "mlflow" in self.names else ("ml-app",),
            environment=self.environment(**self._tracking()),
            address=url,
            about="what the trainer measures; `gleaner train --now` tells it to train",
            ports=self._ports("train-metrics"),
        )

    def _mlflow(self, folder: Path) -> Program:
        state = self.settings.state.absolute()
        options = {
            "host": LOOPBACK,
            "port": self.settings.ports.mlflow,
            "workers": 1,
            "backend-store-uri": self.settings.tracking_uri,
            "registry-store-uri": self.settings.tracking_uri,
            "artifacts-destination": (state / ARTIFACTS).as_uri(),
            "allowed-hosts": ",".join(MLFLOW_HOSTS),
            "expose-prometheus": folder / "mlflow-metrics",
            "uvicorn-opts": "--no-access-log",
        }
        return Program(
            "mlflow",
            (sys.executable, "-m", "mlflow", "server", *(f"--{key}={value}" for key, value in options.items())),
            live=f"{self.mlflow_uri}/health",
            after=("ml-app",),
            environment=self.environment(
                # Fifteen processes and 1.4 GB otherwise.
                MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
                MLFLOW_DISABLE_TELEMETRY="true",
                PYTHONWARNINGS="ignore",
            ),
            address=self.mlflow_uri,
            about="runs and versions",
            ports=self._ports("mlflow"),
            start_seconds=90.0,
        )

    def _watcher(self, name: str, about: str, command: tuple[str, ...]) -> Program:
        """Prometheus or Alertmanager."""
        url = f"http://{LOOPBACK}:{getattr(self.settings.ports, name)}"
        return Program(
            name,
            command,
            live=f"{url}/-/healthy",
            # Not while Prometheus reads its own log, which takes minutes where that is long: it is then left in peace.
            ready=f"{url}/-/ready",
            after=("ml-app",),
            address=url,
            about=about,
            ports=self._ports(name),
        )

    def _alertmanager(self, folder: Path) -> Program:
        return self._watcher(
            "alertmanager",
            "alerts",
            (
                self._binaries["alertmanager"],
                f"--config.file={folder / 'monitoring/alertmanager/alertmanager.yml'}",
                f"--storage.path={self._data('alertmanager')}",
                f"--web.listen-address={LOOPBACK}:{self.settings.ports.alertmanager}",
                "--cluster.listen-address=",
                "--log.level=warn",
            ),
        )

    def _prometheus(self, folder: Path) -> Program:
        return self._watcher(
            "prometheus",
            "metrics and rules",
            (
                self._binaries["prometheus"],
                f"--config.file={folder / 'monitoring/prometheus/prometheus.yml'}",
                f"--storage.tsdb.path={self._data('prometheus')}",
                "--storage.tsdb.retention.size=1GB",
                f"--web.listen-address={LOOPBACK}:{self.settings.ports.prometheus}",
                "--log.level=warn",
            ),
        )

    def _grafana(self, folder: Path) -> Program:
        port, binary = self.settings.ports.grafana, Path(self._binaries["grafana"])
        password = self._data("grafana") / "password"
        if not password.exists() or not password.stat().st_size:
            password.touch(0o600)
            password.write_text(secrets.token_urlsafe(24))
        ini = folder / "grafana.ini"
        ini.write_text(
            _GRAFANA.format(
                host=LOOPBACK,
                port=port,
                data=password.parent,
                provisioning=folder / "monitoring/grafana/provisioning",
                password=password,
            )
        )
        # `grafana server`, or the older `grafana-server` that some packages still have alone.
        server = ("server",) if binary.name == "grafana" else ()
        home = _grafana_home(binary)
        return Program(
            "grafana",
            (str(binary), *server, f"--config={ini}", *([f"--homepath={home}"] if home else [])),
            live=f"http://{LOOPBACK}:{port}/api/health",
            after=("ml-app",),
            address=f"http://{LOOPBACK}:{port}",
            about=f"dashboards; to change them sign in as admin, {password} has the password",
            ports=self._ports("grafana"),
        )

    def _data(self, name: str) -> Path:
        folder = self.settings.state.absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


# On loopback everybody may look; a password that nobody knows by heart keeps changes to its owner.
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
    """The folder of Grafana's own files, where a package keeps it apart from its binary."""
    above = [*binary.parents[:2], *binary.resolve().parents[:3]]
    folders = [*above, *(folder / "share/grafana" for folder in above), Path("/usr/share/grafana")]
    return next((folder for folder in folders if (folder / "conf/defaults.ini").exists()), None)


def _find_free(host: str, after: int, others: Collection[int]) -> int:
    """A free port that is none of some others: the next one behind a port, or any behind 0."""
    for port in range(after + 1, min(after + 1_000, 65_536)) if after else ():
        with contextlib.suppress(PortTaken):
            if port not in others:
                check_port(host, port, "")
                return port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.create_server((host, 0), family=family) as server:
            free: int = server.getsockname()[1]
        if free not in others:
            return free


def _change(setting: str) -> str:
    return f"set {setting} in gleaner.toml (or {environment_name(setting)}) to another port"
