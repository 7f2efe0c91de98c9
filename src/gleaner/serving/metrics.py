"""All metrics of the service. Their names and meanings are in docs/metrics.md."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gleaner.model.manifest import REASONS

if TYPE_CHECKING:
    from gleaner.serving.follower import Follower
    from gleaner.serving.slots import Slots


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNMATCHED, OTHER = "unmatched", "other"
STATUSES = ("success", "invalid", "error", "overloaded")

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# These statuses are exposed from 0 on, so that a first error is an increase.
_KNOWN = ("200", "422", "500", "503")
_PREDICTING = ("/predict", "/infer", "/invocations")


class _Durations:
    """A histogram's counts; its owner's lock protects them."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts, self.total = [0] * (len(BUCKETS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def join(self, other: _Durations) -> None:
        self.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        running, rows = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class _Fast(_Durations):
    """The hot path's counts of one slot since the last scrape."""

    __slots__ = ("computed", "rows", "slot")

    def __init__(self, slot: str) -> None:
        super().__init__()
        self.slot, self.rows, self.computed = slot, 0, _Durations()


class Traffic(Collector):
    """The counts and times of all requests, behind one lock.

    A prediction costs 0.3 microseconds here: it is counted once, and becomes two counters and two histograms at the
    scrape. Four metrics of prometheus_client, each with its own lock, cost 3.0.
    """

    def __init__(self, slots: Iterable[str], routes: Iterable[str], registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self.routes = frozenset(routes)
        self._requests: dict[tuple[str, str, str], int] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}
        self._predictions = {(slot, status): 0 for slot in slots for status in STATUSES}
        self._rows = dict.fromkeys(slots, 0)
        self._compute = {slot: _Durations() for slot in slots}
        self._fast: dict[str, _Fast] = {}
        self._begun: list[None] = []  # append and pop are atomic, `+= 1` is not
        for route in self.routes:
            does_predict = route.endswith(_PREDICTING)
            for status in _KNOWN if does_predict else ("200", "500"):
                self._requests["POST" if does_predict else "GET", route, status] = 0
            if does_predict:
                self._durations["POST", route] = _Durations()
        registry.register(self)

    @property
    def in_progress(self) -> int:
        return len(self._begun)

    def began(self) -> None:
        self._begun.append(None)

    def ended(self) -> None:
        self._begun.pop()

    def count_response(self, method: str, path: str, status: str, seconds: float) -> None:
        """Count one response."""
        # A client that tries every method on every route makes one series a method, not hundreds.
        route = path if path in self.routes and status != "405" else UNMATCHED
        method = method if method in METHODS else "other"
        key = (method, route, status)
        timed = (method, route if method == "POST" and route.endswith(_PREDICTING) else OTHER)
        with self._lock:
            self._requests[key] = self._requests.get(key, 0) + 1
            self._durations.setdefault(timed, _Durations()).add(seconds)

    def predicted(self, slot: str, status: str, rows: int, seconds: float) -> None:
        """Count one prediction request.

        seconds: the time to read, compute and write.
        """
        with self._lock:
            self._predictions[slot, status] += 1
            if status == "success":
                self._rows[slot] += rows
                self._compute[slot].add(seconds)

    def count_prediction(self, slot: str, path: str, rows: int, seconds: float, computed: float) -> None:
        """Count a successful prediction and its request at once.

        seconds: the time since the request's head.
        computed: the time since the end of its body.
        """
        bucket, own = bisect_left(BUCKETS, seconds), bisect_left(BUCKETS, computed)
        with self._lock:
            try:
                fast = self._fast[path]
            except KeyError:
                fast = self._fast[path] = _Fast(slot)
            fast.counts[bucket] += 1
            fast.total += seconds
            fast.computed.counts[own] += 1
            fast.computed.total += computed
            fast.rows += rows

    def _spread(self) -> None:
        """Add the hot path's counts to the counters and histograms."""
        for path, fast in self._fast.items():
            key, slot, count = ("POST", path, "200"), fast.slot, sum(fast.counts)
            self._requests[key] = self._requests.get(key, 0) + count
            self._durations.setdefault(("POST", path), _Durations()).join(fast)
            self._predictions[slot, "success"] += count
            self._rows[slot] += fast.rows
            self._compute[slot].join(fast.computed)
        self._fast.clear()

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, all from the same moment."""
        requests = CounterMetricFamily("http_requests", "Requests responded to.", labels=["method", "route", "status"])
        same = CounterMetricFamily("flask_http_requests", "http_requests_total by status.", labels=["status"])
        seconds = HistogramMetricFamily(
            "http_request_duration_seconds", "Time from a request's head to its response.", labels=["method", "route"]
        )
        in_progress = GaugeMetricFamily("http_requests_in_progress", "Requests in progress now.")
        predictions = CounterMetricFamily(
            "model_prediction_requests", "Prediction requests responded to.", labels=["model_version", "status"]
        )
        rows = CounterMetricFamily("model_prediction_rows", "Rows predicted.", labels=["model_version"])
        compute = HistogramMetricFamily(
            "model_prediction_duration_seconds",
            "Time from the end of a request's body to a successful prediction.",
            labels=["model_version"],
        )
        with self._lock:
            self._spread()
            by_status: dict[str, int] = {}
            for key, count in self._requests.items():
                requests.add_metric(key, count)
                by_status[key[2]] = by_status.get(key[2], 0) + count
            for status, count in by_status.items():
                same.add_metric([status], count)
            for pair, durations in self._durations.items():
                seconds.add_metric(pair, durations.buckets(), durations.total)
            in_progress.add_metric([], self.in_progress)
            for outcome, count in self._predictions.items():
                predictions.add_metric(outcome, count)
            for slot, count in self._rows.items():
                rows.add_metric([slot], count)
                compute.add_metric([slot], self._compute[slot].buckets(), self._compute[slot].total)
        yield from (requests, same, seconds, in_progress, predictions, rows, compute)


class Models(Collector):
    """The metrics of the versions in the slots, and of refused versions."""

    def __init__(self, slots: Slots, registry: CollectorRegistry) -> None:
        self.slots = slots
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "model_info", "1 for the version in each slot.", labels=["slot", "version", "run_id", "candidate"]
        )
        since = GaugeMetricFamily(
            "model_loaded_timestamp_seconds", "Time at which a slot took its version.", labels=["slot"]
        )
        for slot, loaded in list(self.slots.current.items()):
            if loaded:
                info.add_metric([slot, str(loaded.version), loaded.manifest.run_id, loaded.manifest.candidate], 1)
                since.add_metric([slot], self.slots.since[slot])
        yield from (info, since)
        failures = {reason: self.slots.failures.get(reason, 0) for reason in ("store", *REASONS)}
        refusals = CounterMetricFamily("model_load_failures", "Refused versions, by reason.", labels=["reason"])
        yield _labelled(refusals, failures)
        refused = {alias: self.slots.is_refused(slot) for slot, alias in self.slots.aliases.items()}
        help_ = "1 while the store's alias points at a refused version, or the store is unreadable."
        yield _labelled(GaugeMetricFamily("model_alias_refused", help_, labels=["alias"]), refused)


class Following(Collector):
    """The metrics of a follower of an MLflow server."""

    def __init__(self, follower: Follower, registry: CollectorRegistry) -> None:
        self.follower = follower
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        follower = self.follower
        polls = CounterMetricFamily("registry_polls", "Polls of the registry's aliases, by result.", labels=["result"])
        yield _labelled(polls, follower.polls)
        refusals = CounterMetricFamily("registry_refusals", "Refused versions, by reason.", labels=["reason"])
        yield _labelled(refusals, follower.refusals)
        help_ = "1 while the registry's alias points at a refused version."
        refused = {alias: follower.fault(alias) is not None for alias in follower.aliases}
        yield _labelled(GaugeMetricFamily("registry_alias_refused", help_, labels=["alias"]), refused)
        last = GaugeMetricFamily("registry_last_success_timestamp_seconds", "Time of the last successful poll.")
        if follower.last_success is not None:
            last.add_metric([], follower.last_success)
        yield last


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    """Add one sample per label value."""
    for label, value in values.items():
        family.add_metric([label], value)
    return family
