"""Every time series: what happened, or nothing. Names and meanings are in docs/metrics.md."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gleaner.artifact import REASONS
from gleaner.events import Chosen, Epoch, Event, Finished, Started, Validated
from gleaner.scores import Scores

if TYPE_CHECKING:  # it loads the engine, of 20 MB, which the trainer does without
    from gleaner.slots import Slots

if TYPE_CHECKING:
    from gleaner.registry import Follower

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNMATCHED, OTHER = "unmatched", "other"
STATUSES = ("success", "invalid", "error", "overloaded")
RESULTS = ("success", "error")
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# What a route has answered is shown from 0 on, so that a first error is an increase.
_KNOWN = ("200", "422", "500", "503")
_PREDICTING = ("/predict", "/infer", "/invocations")


class _Durations:
    """A histogram's counts, added to under the lock of its owner."""

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
    """What the hot path has answered since the last scrape, for one slot."""

    __slots__ = ("computed", "rows", "slot")

    def __init__(self, slot: str) -> None:
        super().__init__()
        self.slot, self.rows, self.computed = slot, 0, _Durations()


class Traffic(Collector):
    """What the service answered. One lock and plain numbers: a prediction costs 0.3 microseconds here, since it is
    counted once and becomes two counters and two histograms at the scrape. Four metrics of prometheus_client, each
    with a lock of its own, cost 3.0.
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
        self._begun: list[None] = []  # to append to a list and to pop from it are atomic, `+= 1` is not
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

    def answered(self, method: str, path: str, status: str, seconds: float) -> None:
        """Count one answer, and end its being in progress."""
        # Whoever tries every method on every route makes one time series a method, not hundreds.
        route = path if path in self.routes and status != "405" else UNMATCHED
        method = method if method in METHODS else "other"
        self._begun.pop()
        with self._lock:
            self._count(method, route, status, seconds)

    def predicted(self, slot: str, status: str, rows: int, seconds: float) -> None:
        """Count one prediction request; `seconds` are those of reading, computing and writing the answer."""
        with self._lock:
            self._predicted(slot, status, rows, seconds)

    def answered_prediction(self, slot: str, path: str, rows: int, seconds: float, computed: float) -> None:
        """Count a prediction that succeeded and its request: the hot path's two in one.

        seconds: since the request's head. computed: since the end of its body.
        """
        self._begun.pop()
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
        """Add what the hot path counted to all that shows it."""
        for path, fast in self._fast.items():
            key, slot, count = ("POST", path, "200"), fast.slot, sum(fast.counts)
            self._requests[key] = self._requests.get(key, 0) + count
            self._durations.setdefault(("POST", path), _Durations()).join(fast)
            self._predictions[slot, "success"] += count
            self._rows[slot] += fast.rows
            self._compute[slot].join(fast.computed)
        self._fast.clear()

    def _count(self, method: str, route: str, status: str, seconds: float) -> None:
        key = (method, route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        timed = (method, route if method == "POST" and route.endswith(_PREDICTING) else OTHER)
        self._durations.setdefault(timed, _Durations()).add(seconds)

    def _predicted(self, slot: str, status: str, rows: int, seconds: float) -> None:
        self._predictions[slot, status] += 1
        if status == "success":
            self._rows[slot] += rows
            self._compute[slot].add(seconds)

    def collect(self) -> Iterator[Metric]:
        """The metric families, all from the same moment."""
        requests = CounterMetricFamily("http_requests", "Requests answered.", labels=["method", "route", "status"])
        same = CounterMetricFamily("flask_http_requests", "http_requests_total by status.", labels=["status"])
        seconds = HistogramMetricFamily(
            "http_request_duration_seconds", "Time from a request's head to its answer.", labels=["method", "route"]
        )
        in_progress = GaugeMetricFamily("http_requests_in_progress", "Requests being answered now.")
        predictions = CounterMetricFamily(
            "model_prediction_requests", "Prediction requests answered.", labels=["model_version", "status"]
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
    """Which version is in which slot, and which could not be loaded."""

    def __init__(self, slots: Slots, registry: CollectorRegistry) -> None:
        self.slots = slots
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "model_info", "1 for the version in each slot.", labels=["slot", "version", "run_id", "candidate"]
        )
        since = GaugeMetricFamily(
            "model_loaded_timestamp_seconds", "When this process took the version in each slot.", labels=["slot"]
        )
        for slot, loaded in list(self.slots.current.items()):
            if loaded:
                info.add_metric([slot, str(loaded.version), loaded.manifest.run_id, loaded.manifest.candidate], 1)
                since.add_metric([slot], self.slots.since[slot])
        yield from (info, since)
        failures = CounterMetricFamily(
            "model_load_failures", "Versions that were refused, by the reason.", labels=["reason"]
        )
        for reason in ("store", *REASONS):
            failures.add_metric([reason], self.slots.failures.get(reason, 0))
        yield failures
        refused = GaugeMetricFamily(
            "model_alias_refused",
            "1 while the store's alias points at what is refused or unreadable.",
            labels=["alias"],
        )
        for alias, is_refused in {alias: self.slots.is_refused(s) for s, alias in self.slots.aliases.items()}.items():
            refused.add_metric([alias], is_refused)
        yield refused


class Following(Collector):
    """How the registry's aliases are followed; there only where an MLflow server keeps them."""

    def __init__(self, follower: Follower, registry: CollectorRegistry) -> None:
        self.follower = follower
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        polls = CounterMetricFamily("registry_polls", "Looks at the registry's aliases.", labels=["result"])
        for result, count in self.follower.polls.items():
            polls.add_metric([result], count)
        yield polls
        refusals = CounterMetricFamily("registry_refusals", "Versions not taken up, by the reason.", labels=["reason"])
        for reason, count in self.follower.refusals.items():
            refusals.add_metric([reason], count)
        yield refusals
        refused = GaugeMetricFamily(
            "registry_alias_refused",
            "1 while the registry's alias points at a version that was refused.",
            labels=["alias"],
        )
        for alias in self.follower.aliases:
            refused.add_metric([alias], self.follower.fault(alias) is not None)
        yield refused
        last = GaugeMetricFamily("registry_last_success_timestamp_seconds", "When a look last succeeded.")
        if self.follower.last_success is not None:
            last.add_metric([], self.follower.last_success)
        yield last


class Resources(Collector):
    """What the service uses of the machine, read at scrape.

    folders: the service's own data directories. clock, cpu_seconds: replaced in tests.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_seconds: Callable[[], float] | None = None,
    ) -> None:
        self.folders, self._clock = list(folders), clock
        self._cpu_seconds = cpu_seconds or _tree_cpu_seconds
        self._lock = threading.Lock()
        self._before = (self._clock(), self._cpu_seconds())
        self._percent = 0.0
        registry.register(self)

    def cpu_percent(self) -> float:
        """Percent of the CPUs that the process may use, 0 to 100, over at least the last second.

        Between two readings at least a second apart, so that two scrapers do not shorten each other's time.
        """
        with self._lock:
            now, used = self._clock(), self._cpu_seconds()
            then, before = self._before
            if now - then >= 1.0:
                percent = 100 * (used - before) / ((now - then) * allowed_cpus())
                self._percent = min(100.0, max(0.0, percent))
                self._before = (now, used)
            return self._percent

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "app_cpu_usage_percent", "Percent of the CPUs that the process may use.", value=self.cpu_percent()
        )
        yield GaugeMetricFamily(
            "app_memory_usage_bytes", "Memory of the process and its children.", value=tree_memory()
        )
        yield GaugeMetricFamily(
            "app_disk_usage_bytes", "Bytes under the service's own data directories.", value=disk_usage(self.folders)
        )


class TrainingMetrics:
    """The gauges of a training, set by its events.

    While it runs they show the candidate being fitted; after Chosen, the champion; after a failure, again what the
    last finished training has left.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=None)

        self.registry = registry
        self.gauges = {
            "training_loss": gauge("training_loss", "Loss on the training rows after the latest epoch."),
            "validation_loss": gauge("validation_loss", "Out-of-fold loss."),
            "validation_accuracy": gauge("validation_accuracy", "Share of out-of-fold predictions near enough."),
            "validation_r2": gauge("validation_r2", "Out-of-fold r2."),
            "validation_mae": gauge("validation_mae", "Out-of-fold mean absolute error, in the target's unit."),
            "training_duration_seconds": gauge("training_duration_seconds", "Time the last finished training took."),
            "training_last_success_timestamp_seconds": gauge(
                "training_last_success_timestamp_seconds", "When a training last registered its models."
            ),
        }
        self.candidate = Gauge(
            "training_candidate",
            "1 for the candidate that is fitted; afterwards the champion.",
            ["candidate"],
            registry=registry,
        )
        self.epochs = Counter("training_epoch", "Passes, boosting rounds and batches of trees.", registry=registry)
        self.runs = Counter("training_runs", "Trainings that ended, by result.", ["result"], registry=registry)
        for result in RESULTS:
            self.runs.labels(result)
        self._shown: set[str] = set()

    def record(self, event: Event) -> None:
        match event:
            case Started(candidate):
                # The candidate before is no longer what is shown, and this one has nothing to show yet.
                self._hide()
                self._name(candidate)
            case Epoch(_, _, loss):
                self.epochs.inc()
                self._show(training_loss=loss)
            case Validated(_, _, scores):
                self._show(**_validation(scores))
            case Chosen(champion, _):
                self._name(champion.candidate)
                self._show(training_loss=champion.training_loss, **_validation(champion.scores))
            case Finished():
                self.restore(event)
                self.runs.labels("success").inc()
            case _:
                pass

    def failed(self, last: Finished | None) -> None:
        """A training has ended without a model; `last` is the last one that did not."""
        self.runs.labels("error").inc()
        self.restore(last)

    def restore(self, last: Finished | None) -> None:
        """Show what the last finished training has left, or nothing where there was none."""
        self._hide()
        self.candidate.clear()
        if last:
            self._name(last.candidate)
            self._show(
                training_loss=last.training_loss,
                training_duration_seconds=last.seconds,
                training_last_success_timestamp_seconds=last.at,
                **_validation(last.scores),
            )

    def _name(self, candidate: str) -> None:
        self.candidate.clear()
        self.candidate.labels(candidate).set(1)

    def _show(self, **values: float) -> None:
        """Set gauges; each is exposed from its first value on, since a 0 would be made up."""
        for name, value in values.items():
            self.gauges[name].set(value)
            if name not in self._shown:
                self._shown.add(name)
                self.registry.register(self.gauges[name])

    def _hide(self) -> None:
        for name in ("training_loss", *_validation(Scores(0, 0, 0, 0))):
            if name in self._shown:
                self._shown.remove(name)
                self.registry.unregister(self.gauges[name])


def _validation(scores: Scores) -> dict[str, float]:
    return scores.named("validation_")


def allowed_cpus() -> float:
    """The CPUs that this process may use: its affinity, and the quota of its control group where there is one."""
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cpus, int(quota) / int(period)) if quota != "max" else cpus
    except (OSError, ValueError):
        return cpus


def tree_memory() -> float:
    """Bytes of memory of this process and its children: proportional set sizes where the system has them.

    Proportional: a page that two processes share counts half for each.
    """
    total = 0.0
    for process in _tree():
        try:
            full = process.memory_full_info()
            total += getattr(full, "pss", 0) or full.rss
        except psutil.Error:
            continue  # it ended between being listed and being read
    return total


def _tree_cpu_seconds() -> float:
    """CPU seconds of this process and its children, those already ended among them."""
    total = 0.0
    for process in _tree():
        try:
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        except psutil.Error:
            continue
    return total


def _tree() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def disk_usage(folders: Iterable[Path]) -> float:
    """Bytes of the files under some folders; one that is not there has none."""
    total = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118  # a scrape walks many
                except OSError:
                    continue
    return float(total)
