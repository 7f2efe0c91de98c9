"""The stack: the services that `gleaner up` runs on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from gleaner.errors import explain_install
from gleaner.machine.files import make_private
from gleaner.running.commands import MAKERS, Setup
from gleaner.running.ports import place_ports
from gleaner.running.program import Program
from gleaner.settings.environment import make_environment
from gleaner.settings.sections import Settings
from gleaner.settings.services import ML_APP, MLFLOW, SERVICES, TRAIN_METRICS

# This folder exists where systemd runs.
SYSTEMD = Path("/run/systemd/system")


class Stack:
    """The services to run, as far as their programs are installed.

    names: the services that can run.
    missing: the services and packages that are not installed.
    only: the services to choose from; empty for all.
    variables: of the environment of Gleaner's own programs.
    find: finds a program by its name; another function in tests.
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
        wanted = [service for service in SERVICES if not only or service.name in only]
        can_train = find_spec("mlflow") is not None
        self._binaries = {
            service.name: path
            for service in wanted
            if (path := next((path for name in service.binaries if (path := find(name))), None))
        }
        here = {ML_APP, *([TRAIN_METRICS] if can_train else [])}
        here |= {MLFLOW} if can_train and not settings.tracking.uri else set()
        self._services = [service for service in wanted if service in here or service.name in self._binaries]
        self.names = [service.name for service in self._services]
        self._absent = [service for service in wanted if service.binaries and service.name not in self._binaries]
        self.missing = [*([] if can_train else ["mlflow"]), *(service.name for service in self._absent)]

    def explain_missing(self) -> str:
        """Return one line on what is missing and how to install it."""
        if not self.missing:
            return ""
        names, them = ", ".join(self.missing), "them" if self.missing[1:] else "it"
        return f"not installed: {names} (predictions work without {them}). To install: {self.install_hint()}"

    def install_hint(self) -> str:
        """Return the commands and pages that install the missing programs."""
        apt, brew = self._find("apt-get"), self._find("brew")
        ways = [explain_install("train")] if "mlflow" in self.missing else []
        others = [service.name for service in self._absent]
        if brew and others:
            ways.append(f"brew install {' '.join(others)}")
        elif others:
            packages = [service.binaries[0] for service in self._absent if service.name != "grafana"]
            if packages:
                install = f"apt-get install --no-install-recommends {' '.join(packages)}"
                if SYSTEMD.is_dir():  # there these packages start services, which take the stack's ports
                    install += f" && systemctl disable --now {' '.join(packages)}"
                ways.append(install if apt else "https://prometheus.io/download")
            ways += ["https://grafana.com/grafana/download"] if "grafana" in others else []
        return ", ".join(ways)

    def place(self, *, move: bool) -> list[str]:
        """Check every port; return a line for each moved port.

        move: use the next free port instead of a taken one. Raises Refused, CannotListen.
        """
        self.settings, moved = place_ports(self.settings, self._services, move=move)
        return moved

    def programs(self, folder: Path, *, training: Sequence[str] = (), trained: bool = True) -> list[Program]:
        """Return the programs to run, in the order of their start.

        folder: the stack's, with the rendered files in `monitoring`.
        training: the data and the options of the trainer.
        trained: whether the store has a version.
        """
        make_private(folder)
        has_mlflow = MLFLOW in self._services
        setup = Setup(self.settings, folder, self._binaries, has_mlflow, self._variables, training, trained)
        return [make(setup) for service, make in MAKERS.items() if service in self._services]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a Gleaner program, without the MLflow server."""
        return make_environment(self._variables, **more)
