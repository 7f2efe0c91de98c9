"""Time series: what happened, each from 0 on; the machine's use read at scrape; a training's own gauges."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import made
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gleaner.artifact import MODEL
from gleaner.events import Chosen, Epoch, Finished, Started, Step, Validated
from gleaner.metrics import (
    BUCKETS,
    METHODS,
    RESULTS,
    STATUSES,
    Models,
    Resources,
    Traffic,
    TrainingMetrics,
    allowed_cpus,
    disk_usage,
    tree_memory,
)
from gleaner.scores import Scores
from gleaner.slots import Slots
from gleaner.store import Store


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


# Traffic


@pytest.fixture
def traffic(registry: CollectorRegistry) -> Traffic:
    return Traffic(["v1", "v2"], ["/v1/predict", "/v2/predict", "/livez"], registry)


def test_known_labels_start_at_0(traffic, registry):
    for slot in ("v1", "v2"):
        for status in STATUSES:
            labels = {"model_version": slot, "status": status}
            assert 0 == registry.get_sample_value("model_prediction_requests_total", labels)
        assert 0 == registry.get_sample_value("model_prediction_rows_total", {"model_version": slot})
        for status in ("200", "422", "500", "503"):
            labels = {"method": "POST", "route": f"/{slot}/predict", "status": status}
            assert 0 == registry.get_sample_value("http_requests_total", labels)
    assert 0 == registry.get_sample_value("flask_http_requests_total", {"status": "500"})
    assert 0 == registry.get_sample_value("http_requests_in_progress")


def test_an_answer_is_counted_under_both_names(traffic, registry):
    traffic.began()
    traffic.answered("GET", "/livez", "200", 0.003)

    labels = {"method": "GET", "route": "/livez"}
    assert 1 == registry.get_sample_value("http_requests_total", {**labels, "status": "200"})
    assert 1 == registry.get_sample_value("flask_http_requests_total", {"status": "200"})
    assert 0.003 == registry.get_sample_value("http_request_duration_seconds_sum", {**labels, "route": "other"})
    assert 0 == registry.get_sample_value("http_requests_in_progress")


def test_a_hostile_client_makes_no_new_labels(traffic, registry):
    for i in range(50):
        traffic.began()
        traffic.answered(f"BREW{i}", f"/secret/{i}", "404", 0.001)

    assert 50 == registry.get_sample_value(
        "http_requests_total", {"method": "other", "route": "unmatched", "status": "404"}
    )
    assert {"other", *METHODS} >= {
        sample.labels["method"]
        for family in registry.collect()
        for sample in family.samples
        if "method" in sample.labels
    }


def test_a_histogram_counts_up_to_each_bound_with_the_bound_included(traffic, registry):
    for seconds in (0.0001, 0.001, 0.0011, 11.0):
        traffic.began()
        traffic.answered("GET", "/livez", "200", seconds)

    def count(bound: str) -> float | None:
        labels = {"method": "GET", "route": "other", "le": bound}
        return registry.get_sample_value("http_request_duration_seconds_bucket", labels)

    assert [1, 2, 3, 3, 4] == [count(bound) for bound in ("0.0005", "0.001", "0.0025", "10.0", "+Inf")]
    assert all(count(str(bound)) is not None for bound in BUCKETS)


def test_only_a_success_counts_rows_and_time(traffic, registry):
    traffic.began()
    traffic.answered_prediction("v1", "/v1/predict", 3, 0.5, 0.4)
    traffic.predicted("v1", "invalid", 7, 0.5)

    assert 3 == registry.get_sample_value("model_prediction_rows_total", {"model_version": "v1"})
    assert 1 == registry.get_sample_value("model_prediction_duration_seconds_count", {"model_version": "v1"})
    for status, count in (("success", 1), ("invalid", 1), ("error", 0), ("overloaded", 0)):
        labels = {"model_version": "v1", "status": status}
        assert count == registry.get_sample_value("model_prediction_requests_total", labels)


def test_a_prediction_is_in_both_counters_and_both_histograms_at_every_scrape(traffic, registry):
    shown = {"method": "POST", "route": "/v1/predict"}
    for scrape in (1, 2, 3):
        for seconds in (0.0004, 0.7):
            traffic.began()
            traffic.answered_prediction("v1", "/v1/predict", 5, seconds, seconds / 2)
        traffic.began()
        traffic.answered("POST", "/v1/predict", "200", 0.0004)
        traffic.predicted("v1", "success", 1, 0.0004)

        assert 11 * scrape == registry.get_sample_value("model_prediction_rows_total", {"model_version": "v1"})
        assert 3 * scrape == registry.get_sample_value("http_requests_total", {**shown, "status": "200"})
        assert 3 * scrape == registry.get_sample_value("flask_http_requests_total", {"status": "200"})
        for name, labels, total in (
            ("http_request_duration_seconds", shown, 0.7008),
            ("model_prediction_duration_seconds", {"model_version": "v1"}, 0.3506),
        ):
            assert 2 * scrape == registry.get_sample_value(f"{name}_bucket", {**labels, "le": "0.0005"})
            assert 3 * scrape == registry.get_sample_value(f"{name}_count", labels)
            assert total * scrape == pytest.approx(registry.get_sample_value(f"{name}_sum", labels))


def test_the_exposed_text_has_the_names_of_the_guide(traffic, registry):
    text = generate_latest(registry).decode()

    for name in (
        "model_prediction_requests_total",
        "flask_http_requests_total",
        "http_request_duration_seconds_bucket",
    ):
        assert f"\n{name}{{" in text


# Models


def test_the_versions_in_the_slots_and_the_refusals_are_shown(registry, tmp_path):
    store = made.fill(tmp_path / "store", made.constant(1.0), made.artifact("linear"))
    slots = Slots(store, {"v1": "champion", "v2": "challenger"})
    Models(slots, registry)
    assert 0 == registry.get_sample_value("model_load_failures_total", {"reason": "hash"})

    before = time.time()
    slots.refresh()
    (store.root / "aliases.json").write_text("{")
    slots.refresh()

    shown = {"run_id": "r"}
    assert 1 == registry.get_sample_value(
        "model_info", {"slot": "v1", "version": "1", "candidate": "decision_tree", **shown}
    )
    assert 1 == registry.get_sample_value("model_info", {"slot": "v2", "version": "2", "candidate": "linear", **shown})
    assert 1 == registry.get_sample_value("model_load_failures_total", {"reason": "store"})
    assert 1 == registry.get_sample_value("model_alias_refused", {"alias": "champion"})
    for slot in ("v1", "v2"):
        assert before <= registry.get_sample_value("model_loaded_timestamp_seconds", {"slot": slot}) <= time.time()


def test_an_alias_is_refused_for_as_long_as_it_points_there(registry, tmp_path):
    store = made.fill(tmp_path / "store", made.artifact("decision_tree"), made.artifact("linear"))
    slots = Slots(store, {"v1": "champion", "v2": "challenger"})
    Models(slots, registry)
    refused = lambda: [registry.get_sample_value("model_alias_refused", {"alias": a}) for a in slots.aliases.values()]  # noqa: E731
    store.point({"challenger": None})
    slots.refresh()
    assert [0, 0] == refused()  # a missing alias is not a refused one

    (store.folder(2) / MODEL).write_bytes(b"")
    store.point({"champion": 2})
    seen = []
    for _ in range(3):
        slots.refresh()
        seen.append(refused())
    store.point({"champion": 1})
    slots.refresh()

    assert [[1, 0]] * 3 == seen
    assert [0, 0] == refused()


def test_the_time_of_a_slot_is_that_of_its_own_last_move(registry, tmp_path):
    store = made.fill(tmp_path / "store", made.artifact("decision_tree"), made.artifact("linear"))
    slots = Slots(store, {"v1": "champion", "v2": "challenger"})
    Models(slots, registry)
    slots.refresh()
    before = [registry.get_sample_value("model_loaded_timestamp_seconds", {"slot": slot}) for slot in ("v1", "v2")]
    store.point({"champion": 2})
    slots.refresh()

    after = [registry.get_sample_value("model_loaded_timestamp_seconds", {"slot": slot}) for slot in ("v1", "v2")]
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_an_empty_slot_has_no_model_to_show(registry, tmp_path):
    slots = Slots(Store(tmp_path / "nowhere"), {"v1": "champion"})
    Models(slots, registry)
    slots.refresh()

    assert "\nmodel_info{" not in generate_latest(registry).decode()


# Resources


class Machine:
    """A clock, and the CPU seconds that were used by then."""

    def __init__(self) -> None:
        self.now, self.used = 100.0, 5.0

    def work(self, seconds: float, share: float) -> None:
        """Pass some seconds, busy for a share of all CPUs."""
        self.now, self.used = self.now + seconds, self.used + seconds * share * allowed_cpus()

    def resources(self, registry: CollectorRegistry) -> Resources:
        return Resources([], registry, clock=lambda: self.now, cpu_seconds=lambda: self.used)


def test_cpu_usage_is_a_share_of_the_cpus_since_a_reading_at_least_a_second_old(registry):
    machine = Machine()
    resources = machine.resources(registry)

    machine.work(10, 0.25)

    assert 25.0 == pytest.approx(registry.get_sample_value("app_cpu_usage_percent"))
    machine.work(0.5, 1.0)
    assert 25.0 == pytest.approx(resources.cpu_percent())
    machine.work(0.5, 1.0)
    assert 100.0 == pytest.approx(resources.cpu_percent())


def test_two_scrapers_do_not_shorten_each_others_time(registry):
    machine = Machine()
    resources = machine.resources(registry)
    machine.work(5, 0.5)

    first = resources.cpu_percent()
    machine.work(0.01, 1.0)
    second = resources.cpu_percent()
    machine.work(5, 0.5)

    assert [50.0, 50.0, 50.0] == pytest.approx([first, second, resources.cpu_percent()], abs=0.2)


@pytest.mark.parametrize(("used", "shown"), [(1e9, 100.0), (-1e9, 0.0)])
def test_cpu_usage_stays_between_0_and_100(registry, used, shown):
    machine = Machine()
    resources = machine.resources(registry)
    machine.now, machine.used = machine.now + 2, used

    assert shown == resources.cpu_percent()


def test_real_work_of_this_process_is_seen(registry):
    resources = Resources([], registry)
    end = time.monotonic() + 1.05
    while time.monotonic() < end:
        pass

    assert 10 / allowed_cpus() < resources.cpu_percent() <= 100


def test_the_memory_of_a_child_is_counted_and_gone_when_it_ends():
    before = tree_memory()
    text = "import sys; held = bytearray(b'x') * 60_000_000; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        during = tree_memory()
        child.stdin.close()
        child.wait()

    assert before > 10e6
    assert 60e6 < during - before < 120e6
    assert tree_memory() - before < 20e6


def test_disk_usage_is_the_bytes_of_all_files_below(tmp_path, registry):
    Resources([tmp_path, Path("/no/such/folder")], registry)
    assert 0 == registry.get_sample_value("app_disk_usage_bytes")

    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "file").write_bytes(b"x" * 234)
    (tmp_path / "dangling").symlink_to("/no/such/file")

    assert 1234 + len("/no/such/file") == registry.get_sample_value("app_disk_usage_bytes")
    assert 1000 == disk_usage([tmp_path / "a"])


# Training


SHOWN = ("training_loss", "validation_loss", "validation_accuracy", "validation_r2", "validation_mae")


def shown(registry: CollectorRegistry) -> dict[str, float]:
    values = {name: registry.get_sample_value(name) for name in SHOWN}
    return {name: value for name, value in values.items() if value is not None}


def test_before_a_training_nothing_is_made_up(registry):
    TrainingMetrics(registry)

    assert {} == shown(registry)
    assert registry.get_sample_value("training_last_success_timestamp_seconds") is None
    assert 0 == registry.get_sample_value("training_epoch_total")


def test_while_it_trains_the_candidate_being_fitted_is_shown(registry):
    metrics = TrainingMetrics(registry)

    metrics.record(Started("linear"))
    metrics.record(Validated("linear", 1, Scores(loss=0.5, accuracy=0.7, r2=0.1, mae=9.0)))
    metrics.record(Step("linear", "fold"))
    assert {"validation_loss": 0.5, "validation_accuracy": 0.7, "validation_r2": 0.1, "validation_mae": 9.0} == shown(
        registry
    )

    metrics.record(Epoch("linear", 1, 0.4))
    assert 0.4 == shown(registry)["training_loss"]

    metrics.record(Started("spline"))
    assert {} == shown(registry)
    metrics.record(Epoch("spline", 1, 0.3))
    metrics.record(Epoch("spline", 2, 0.2))
    assert {"training_loss": 0.2} == shown(registry)
    assert 3 == registry.get_sample_value("training_epoch_total")


def test_the_candidate_being_fitted_is_named_alone_and_then_the_champion(registry):
    metrics = TrainingMetrics(registry)

    def named() -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {s.labels["candidate"] for s in samples if s.name == "training_candidate" and s.value == 1}

    assert set() == named()
    metrics.record(Started("linear"))
    metrics.record(Started("spline"))
    assert {"spline"} == named()
    metrics.record(Chosen(made.fitted("decision_tree"), made.fitted("linear")))
    assert {"decision_tree"} == named()


def test_after_a_training_the_champion_is_shown(registry):
    metrics, champion = TrainingMetrics(registry), made.fitted("decision_tree")

    metrics.record(Epoch("linear", 1, 7.0))
    metrics.record(Chosen(champion, made.fitted("linear")))

    assert {"training_loss": champion.training_loss, **champion.scores.named("validation_")} == shown(registry)


FINISHED = Finished({"champion": 3}, "linear", Scores(0.5, 0.75, 0.25, 3.5), 0.375, 600, 0, seconds=12.5, at=1.7e9)


def test_a_success_is_shown_with_its_time_and_outlives_the_next_start(registry):
    metrics = TrainingMetrics(registry)

    metrics.record(FINISHED)
    assert {"training_loss": 0.375, **FINISHED.scores.named("validation_")} == shown(registry)
    metrics.record(Started("linear"))

    assert {} == shown(registry)
    assert 12.5 == registry.get_sample_value("training_duration_seconds")
    assert 1.7e9 == registry.get_sample_value("training_last_success_timestamp_seconds")


def test_trainings_are_counted_by_their_result(registry):
    metrics = TrainingMetrics(registry)
    counts = [registry.get_sample_value("training_runs_total", {"result": result}) for result in RESULTS]
    assert [0, 0] == counts

    metrics.record(FINISHED)
    metrics.failed(FINISHED)
    metrics.failed(None)

    assert 1 == registry.get_sample_value("training_runs_total", {"result": "success"})
    assert 2 == registry.get_sample_value("training_runs_total", {"result": "error"})


def test_after_a_failure_the_last_success_is_shown_again_or_nothing(registry):
    metrics = TrainingMetrics(registry)
    metrics.record(Epoch("spline", 1, 99.0))

    metrics.failed(FINISHED)
    assert {"training_loss": 0.375, **FINISHED.scores.named("validation_")} == shown(registry)

    metrics.record(Started("spline"))
    metrics.record(Epoch("spline", 1, 99.0))
    metrics.failed(None)
    assert {} == shown(registry)


def test_a_scrape_in_the_middle_of_changes_never_fails(registry):
    metrics, stop, failed = TrainingMetrics(registry), threading.Event(), []

    def scrape() -> None:
        while not stop.is_set():
            try:
                generate_latest(registry)
            except Exception as e:
                failed.append(e)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    for i in range(2000):
        metrics.record(Started("linear"))
        metrics.record(Epoch("linear", i, float(i)))
    stop.set()
    scraper.join()

    assert [] == failed
    assert 2000 == registry.get_sample_value("training_epoch_total")
