"""Hostile models, each promoted in a running `gleaner serve`.

The version in service answers every request meanwhile, and the service keeps its memory. The reason is in the log
and in a metric. All of it fits into 1 GB.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import httpx
import made
import psutil
import pytest
from clients import Background
from projects import NUMBER, ROUTE, SETTINGS
from started import Service, serving, wait_for

from gleaner.model.predictor import ENGINE
from gleaner.model.store import Store

MB = 1 << 20
GROWTH, WHOLE = 10 * MB, 1_024 * MB

Case = tuple[str, str, Callable[[Path], object]]


def of(make: Callable[[], bytes], *, golden: bool = True) -> Callable[[Path], object]:
    return lambda folder: hostile.pack(folder, make, golden=golden)


def damaged(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: damage(made.copy(made.constant(7.0), folder))


# The reason, a part of the log's detail, and how to write the artifact.
CASES: dict[str, Case] = {
    "no manifest": ("missing", "cannot read manifest.json", damaged(hostile.without_manifest)),
    "no model": ("files", "differ: model.onnx", damaged(hostile.without_model)),
    "a truncated model": ("size", "wanted", damaged(hostile.truncated)),
    "a wrong hash": ("hash", "does not match the sha256", damaged(hostile.with_another_byte)),
    "a file too many": ("files", "differ: extra.py", damaged(hostile.with_another_file)),
    "a doc string of 900 MB": ("size", "wanted at most 67,108,864", hostile.with_a_huge_doc_string),
    "other golden rows": ("selftest", "golden row 0: wanted", damaged(hostile.with_other_golden_rows)),
    "a tree of 100,000 levels": ("selftest", "ended by signal 11", of(made.killing, golden=False)),
    "a model that takes hours": ("selftest", "took more than 30 s of CPU", of(hostile.slow)),
    "400,000 nodes": ("operator", "more than 1,000 times", of(hostile.of_many_nodes, golden=False)),
    "8 MB for a row": ("operator", "one row needs more than 131,072 numbers", of(hostile.wide)),
    "no number for other rows": ("selftest", "not finite", of(hostile.not_finite_elsewhere)),
    "no number at one leaf": ("operator", "a leaf that is not finite", of(hostile.not_finite_at_one_leaf)),
    "a place beyond a table": ("operator", "a place that is not there", of(hostile.beyond_a_table)),
    **{name: ("operator", "", of(make)) for name, make in hostile.MIXING.items()},
}

# Half a minute of CPU is for `make reliability`.
SLOW = "a model that takes hours"
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == SLOW else name for name in CASES]


class Watch(Background):
    """A client that never stops asking, and the service's memory meanwhile."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.wrong: list[str] = []
        self.answers = self.own = self.whole = 0
        super().__init__(self._ask, self._weigh)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._service.url, timeout=60) as client:
            while not self._stop.is_set():
                answer = client.post("/v1/predict", json=ROUTE)
                if (answer.status_code, answer.json().get("prediction")) != (200, [NUMBER]):
                    self.wrong.append(f"{answer.status_code} {answer.text[:200]}")
                self.answers += 1

    def _weigh(self) -> None:
        process = psutil.Process(self._service.process.pid)
        while not self._stop.wait(0.01):
            own, others = process.memory_info().rss, 0
            for child in process.children(recursive=True):
                try:
                    others += child.memory_info().rss
                except psutil.Error:
                    continue
            self.own, self.whole = max(self.own, own), max(self.whole, own + others)


class Stage:
    """A running service of version 1, and its store."""

    def __init__(self, service: Service, store: Store) -> None:
        self.service, self.store = service, store
        self.process = psutil.Process(service.process.pid)

    def failures(self) -> dict[str, float]:
        """Return the refused versions by reason."""
        lines = httpx.get(f"http://127.0.0.1:{self.service.metrics_port}/metrics", timeout=60).text.splitlines()
        start = 'model_load_failures_total{reason="'
        pairs = (line.removeprefix(start).split('"} ') for line in lines if line.startswith(start))
        return {reason: float(count) for reason, count in pairs}

    def settle(self) -> None:
        """Put version 1 back, and wait until the service serves it alone."""
        self.store.point({"champion": 1})
        assert wait_for(lambda: self.slot()["fault"] is None)

    def slot(self) -> dict[str, object]:
        found: dict[str, object] = httpx.get(f"{self.service.url}/health_status", timeout=60).json()["slots"]["v1"]
        return found

    def put(self, write: Callable[[Path], object]) -> int:
        """Write an artifact into the store's folder, past its checks."""
        version = max(self.store.versions()) + 1
        write(self.store.folder(version))
        return version


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "gleaner.toml").write_text(SETTINGS + '\n[serving]\nlog = "json"\npoll_seconds = 0.2\n')
    store = made.fill(folder / ".gleaner" / "store", made.artifact("decision_tree"))
    with serving(folder) as service:
        stage = Stage(service, store)
        with Watch(service) as watch:  # so that what the first requests take is not counted as growth
            assert wait_for(lambda: watch.answers >= 500)
        yield stage


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_version_is_refused_while_the_old_one_answers_everything(stage, name, figure):
    reason, detail, write = CASES[name]
    stage.settle()
    version = stage.put(write)
    before, lines, memory = stage.failures(), len(read_log(stage)), stage.process.memory_info().rss
    with Watch(stage.service) as watch:
        assert wait_for(lambda: watch.answers)
        stage.store.point({"champion": version})
        refused = wait_for(lambda: stage.failures() != before, 400)
        asked = watch.answers
        assert wait_for(lambda: watch.answers > asked + 20)

    assert refused
    assert {**before, reason: before[reason] + 1} == stage.failures()
    assert 1 == stage.slot()["version"]
    fault = str(stage.slot()["fault"])
    assert [] == watch.wrong
    [line] = [line for line in read_log(stage)[lines:] if line["event"] == "model not loaded"]
    assert reason == line["reason"]
    assert fault.startswith(line["detail"])  # the log cuts long lines
    assert detail in fault
    assert abs(stage.process.memory_info().rss - memory) <= GROWTH
    assert watch.own - memory <= GROWTH
    assert watch.whole <= WHOLE
    figure(
        "R3", f"{name}: {reason}, {watch.answers:,} predictions of the old version, {watch.whole / MB:.0f} MB in all"
    )


def read_log(stage: Stage) -> list[dict[str, str]]:
    return [json.loads(line) for line in stage.service.log.read_text().splitlines()]


def test_a_refused_version_is_not_tried_again(stage):
    stage.settle()
    version = stage.put(of(hostile.less_the_first_row))
    before = stage.failures()
    stage.store.point({"champion": version})
    assert wait_for(lambda: stage.failures() != before)
    own = stage.process.cpu_times()

    for _ in range(10):
        asked = stage.slot()["fault"]
        assert "chooses along the rows" in str(asked)
        threading.Event().wait(0.2)

    now = stage.process.cpu_times()
    assert now.children_user == own.children_user  # no other self-test ended
    assert [] == stage.process.children()


@pytest.mark.parametrize(("name", "status"), [("less the first row", 200), ("no number for other rows", 500)])
def test_without_a_self_test_such_a_model_would_be_served(stage, name, status):
    """Show that such a model is served once it counts as tested."""
    write = CASES[name][2]
    stage.settle()
    version = stage.put(write)
    stage.store.remember_passed(version, stage.store.read(version).digest, ENGINE)
    with Watch(stage.service) as watch:
        stage.store.point({"champion": version})
        assert wait_for(lambda: stage.slot()["version"] == version)
        assert wait_for(lambda: watch.wrong)

        long_route = {**ROUTE, "time_spent": 1_400}
        answer = httpx.post(f"{stage.service.url}/v1/predict", json=[long_route, ROUTE], timeout=60)
        assert status == answer.status_code
        assert "NaN" not in answer.text
    stage.settle()
