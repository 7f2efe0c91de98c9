"""The service's metrics: each starts at 0 and counts requests once."""

from __future__ import annotations

import time

import made
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gleaner.model.manifest import MODEL
from gleaner.model.store import Store
from gleaner.serving.metrics import BUCKETS, METHODS, STATUSES, Models, Traffic
from gleaner.serving.slots import Slots


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


def test_a_response_is_counted_under_both_names(traffic, registry):
    traffic.count_response("GET", "/livez", "200", 0.003)

    labels = {"method": "GET", "route": "/livez"}
    assert 1 == registry.get_sample_value("http_requests_total", {**labels, "status": "200"})
    assert 1 == registry.get_sample_value("flask_http_requests_total", {"status": "200"})
    assert 0.003 == registry.get_sample_value("http_request_duration_seconds_sum", {**labels, "route": "other"})


def test_a_request_is_in_progress_until_it_has_ended(traffic, registry):
    traffic.began()
    during = registry.get_sample_value("http_requests_in_progress")
    traffic.ended()

    assert (1, 0) == (during, registry.get_sample_value("http_requests_in_progress"))


def test_a_hostile_client_makes_no_new_labels(traffic, registry):
    for i in range(50):
        traffic.count_response(f"BREW{i}", f"/secret/{i}", "404", 0.001)

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
        traffic.count_response("GET", "/livez", "200", seconds)

    def count(bound: str) -> float | None:
        labels = {"method": "GET", "route": "other", "le": bound}
        return registry.get_sample_value("http_request_duration_seconds_bucket", labels)

    assert [1, 2, 3, 3, 4] == [count(bound) for bound in ("0.0005", "0.001", "0.0025", "10.0", "+Inf")]
    assert all(count(str(bound)) is not None for bound in BUCKETS)


def test_only_a_success_counts_rows_and_time(traffic, registry):
    traffic.count_prediction("v1", "/v1/predict", 3, 0.5, 0.4)
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
            traffic.count_prediction("v1", "/v1/predict", 5, seconds, seconds / 2)
        traffic.began()
        traffic.count_response("POST", "/v1/predict", "200", 0.0004)
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


def test_versions_in_slots_and_refusals_are_shown(registry, tmp_path):
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


def test_an_alias_is_refused_while_it_points_at_a_refused_version(registry, tmp_path):
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


def test_the_time_of_a_slot_is_its_own_last_move(registry, tmp_path):
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
