"""Processes with an injected fault, for drills only; serving never imports them.

python -m gleaner.drills.faulty service INJECTED CONFIG PORT METRICS_PORT
python -m gleaner.drills.faulty trainer INJECTED CONFIG METRICS_PORT DATA
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gleaner.errors import Refused
from gleaner.machine.ports import is_loopback
from gleaner.machine.resources import allowed_cpus
from gleaner.model.artifact import Artifact
from gleaner.model.predictor import Predictor
from gleaner.programs.resident import failing_aloud, run_trainer
from gleaner.programs.service import run_service
from gleaner.programs.training import run_training
from gleaner.settings.environment import prepare_mlflow
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.settings.services import ML_APP, TRAIN_METRICS
from gleaner.table.numbers import Array
from gleaner.table.tables import Table

_BURNERS = 6  # per CPU, so that they get most of it beside other processes

# The logarithm of the largest random target: no model fits magnitudes so far apart.
_LARGEST = 12.0


class Raising(Predictor):
    """A predictor that always raises."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.predict_row = self._fail

    def predict(self, X: Array) -> Array:
        return np.array([self._fail(X[0].tolist())])

    def _fail(self, row: Sequence[float]) -> float:
        raise RuntimeError("this is a drill")


def slow(seconds: float) -> Callable[[Artifact], Predictor]:
    """Make a class of predictors that are correct but slow."""

    class Slow(Predictor):
        def __init__(self, artifact: Artifact) -> None:
            super().__init__(artifact)
            predict = self.predict_row

            def predict_row(row: Sequence[float]) -> float:
                time.sleep(seconds)
                return predict(row)

            self.predict_row = predict_row

        def predict(self, X: Array) -> Array:
            time.sleep(seconds)
            return super().predict(X)

    return Slow


def shuffled(table: Table, settings: Settings) -> Table:
    """Shuffle the targets, so that each has another row."""
    return dataclasses.replace(table, y=np.random.default_rng(settings.training.seed).permutation(table.y))


def noise(table: Table, settings: Settings) -> Table:
    """Replace the targets by random numbers."""
    random, least = np.random.default_rng(settings.training.seed), settings.model.min
    if least is None:
        y = random.normal(0.0, 1.0, len(table.y))
    else:
        y = least + np.expm1(random.uniform(0.0, _LARGEST, len(table.y)))
    return dataclasses.replace(table, y=y)


SPOILERS: Mapping[str, Callable[[Table, Settings], Table]] = {"shuffled": shuffled, "noise": noise}


def _service(injected: str, settings: Settings) -> None:
    """Serve with an injected fault."""
    if injected == "raising":
        run_service(settings, Raising)
    elif injected == "slow":
        run_service(settings, slow(2 * settings.objectives.latency_seconds))
    elif injected == "memory":
        held = bytearray(math.ceil(1.2 * settings.alerts.memory_bytes))
        held[::4096] = b"x" * len(held[::4096])  # a page takes memory only once written to
        run_service(settings)
    elif injected == "cpu":
        _burn()
        run_service(settings)
    else:
        sys.exit(f"no such injected fault: {injected}")


def _burn() -> None:
    """Bind this process to one CPU and keep that CPU busy.

    On systems that cannot bind a process to a CPU, keep all of them busy.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(_BURNERS * math.ceil(allowed_cpus())):
        subprocess.Popen([sys.executable, "-SEc", "while True: pass"])  # ends with this process's session


def _training(injected: str, config: Path, data: str, descriptor: int) -> None:
    """Run one training of one candidate on a spoilt table."""
    flags = {"candidates": ["linear"], "champion": "best", "challenger": "none", "repeats": 1}
    with failing_aloud(descriptor):
        settings = load_settings(config, {"training": flags})
        prepare_mlflow(settings)
        run_training(
            settings,
            Path(data),
            as_json=True,
            events_fd=descriptor,
            spoil=lambda table: SPOILERS[injected](table, settings),
        )


def main(arguments: Sequence[str]) -> None:
    """Run the process that the arguments name.

    Raises Refused unless the process listens on loopback.
    """
    role, injected, config, *rest = arguments
    if role == "training":
        _training(injected, Path(config), rest[0], int(rest[-1]))
        return
    names = {"service": ML_APP.ports, "trainer": TRAIN_METRICS.ports}[role]
    settings = load_settings(Path(config), {"ports": dict(zip(names, map(int, rest), strict=False))})
    if not is_loopback(settings.serving.host):
        raise Refused(f"an injected fault is for this machine only: serving.host is {settings.serving.host}")
    if role == "service":
        _service(injected, settings)
    else:
        run_trainer(settings, [sys.executable, "-m", "gleaner.drills.faulty", "training", injected, config, rest[1]])


if __name__ == "__main__":
    main(sys.argv[1:])
