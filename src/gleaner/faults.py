"""Processes with a faulty part in them, for drills: nothing that serves imports this, or can be told to become one.

python -m gleaner.faults service FAULT CONFIG PORT METRICS_PORT
python -m gleaner.faults trainer FAULT CONFIG METRICS_PORT DATA
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

from gleaner.artifact import Artifact
from gleaner.errors import Refused
from gleaner.metrics import allowed_cpus
from gleaner.ports import is_loopback
from gleaner.predictor import Predictor
from gleaner.programs import failing_aloud, run_service, run_trainer, run_training
from gleaner.schema import Array
from gleaner.settings import Settings, load_settings, prepare_mlflow
from gleaner.tables import Table

_BURNERS = 6  # a CPU: they get as much more of it than others do
# Of a target with no upper bound: magnitudes so far apart that nothing fits them.
_LARGEST = 12.0


class Raising(Predictor):
    """A predictor that raises, whatever it is asked."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.predict_row = self._fail

    def predict(self, X: Array) -> Array:
        return np.array([self._fail(X[0].tolist())])

    def _fail(self, row: Sequence[float]) -> float:
        raise RuntimeError("this is a drill")


def slow(seconds: float) -> Callable[[Artifact], Predictor]:
    """Makes predictors that answer rightly, and late."""

    class Slow(Predictor):
        def __init__(self, artifact: Artifact) -> None:
            super().__init__(artifact)
            answer = self.predict_row

            def predict_row(row: Sequence[float]) -> float:
                time.sleep(seconds)
                return answer(row)

            self.predict_row = predict_row

        def predict(self, X: Array) -> Array:
            time.sleep(seconds)
            return super().predict(X)

    return Slow


def shuffled(table: Table, settings: Settings) -> Table:
    """The same targets, each beside another row."""
    return dataclasses.replace(table, y=np.random.default_rng(settings.training.seed).permutation(table.y))


def noise(table: Table, settings: Settings) -> Table:
    """Targets that have nothing to do with their rows, nor with each other."""
    random, least = np.random.default_rng(settings.training.seed), settings.model.min
    if least is None:
        y = random.normal(0.0, 1.0, len(table.y))
    else:
        y = least + np.expm1(random.uniform(0.0, _LARGEST, len(table.y)))
    return dataclasses.replace(table, y=y)


SPOILERS: Mapping[str, Callable[[Table, Settings], Table]] = {"shuffled": shuffled, "noise": noise}


def _service(fault: str, settings: Settings) -> None:
    """Serve, with one thing wrong."""
    if fault == "raising":
        run_service(settings, Raising)
    elif fault == "slow":
        run_service(settings, slow(2 * settings.objectives.latency_seconds))
    elif fault == "memory":
        held = bytearray(math.ceil(1.2 * settings.alerts.memory_bytes))
        held[::4096] = b"x" * len(held[::4096])  # a page that was never written to is none
        run_service(settings)
    elif fault == "cpu":
        _burn()
        run_service(settings)
    else:
        sys.exit(f"no such fault: {fault}")


def _burn() -> None:
    """Use up one CPU, the only one that this process may use from now on; on a busy machine, too.

    Where a process cannot be bound to a CPU, use up all.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(_BURNERS * math.ceil(allowed_cpus())):
        subprocess.Popen([sys.executable, "-SEc", "while True: pass"])  # ended with the session of this process


def _training(fault: str, config: Path, data: str, descriptor: int) -> None:
    """One training on a spoilt table, which tells its events as any other does; one candidate is enough."""
    flags = {"candidates": ["linear"], "champion": "best", "challenger": "none", "repeats": 1}
    with failing_aloud(descriptor):
        settings = load_settings(config, {"training": flags})
        prepare_mlflow(settings)
        run_training(
            settings,
            Path(data),
            as_json=True,
            events_fd=descriptor,
            spoil=lambda table: SPOILERS[fault](table, settings),
        )


def main(arguments: Sequence[str]) -> None:
    """Be the process that the arguments say, on loopback."""
    role, fault, config, *rest = arguments
    if role == "training":
        _training(fault, Path(config), rest[0], int(rest[-1]))
        return
    names = {"service": ("ml_app", "ml_app_metrics"), "trainer": ("train_metrics",)}[role]
    settings = load_settings(Path(config), {"ports": dict(zip(names, map(int, rest), strict=False))})
    if not is_loopback(settings.serving.host):
        raise Refused("a process with a fault in it is for this machine only: serving.host is 127.0.0.1 there")
    if role == "service":
        _service(fault, settings)
    else:
        run_trainer(settings, [sys.executable, "-m", "gleaner.faults", "training", fault, config, rest[1]])


if __name__ == "__main__":
    main(sys.argv[1:])
