"""The metrics of a training."""

from __future__ import annotations

import threading

import made
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gleaner.model.scores import Scores
from gleaner.training.events import Chosen, Epoch, Finished, Started, Step, Validated
from gleaner.training.metrics import RESULTS, TrainingMetrics


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


SHOWN = ("training_loss", "validation_loss", "validation_accuracy", "validation_r2", "validation_mae")


def shown(registry: CollectorRegistry) -> dict[str, float]:
    values = {name: registry.get_sample_value(name) for name in SHOWN}
    return {name: value for name, value in values.items() if value is not None}


def test_before_a_training_no_gauge_is_exposed(registry):
    TrainingMetrics(registry)

    assert {} == shown(registry)
    assert registry.get_sample_value("training_last_success_timestamp_seconds") is None
    assert 0 == registry.get_sample_value("training_epoch_total")


def test_during_a_training_the_candidate_being_fitted_is_shown(registry):
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


def test_only_the_candidate_being_fitted_is_named_and_then_the_champion(registry):
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


def test_a_scrape_during_changes_never_fails(registry):
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
