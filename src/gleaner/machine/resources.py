"""CPU, memory and disk used by this process, read at each scrape."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Resources(Collector):
    """Gauges of the CPU, memory and disk that the service uses.

    folders: the service's own data directories.
    clock: seconds, of a clock that is never set; another one in tests.
    cpu_seconds: CPU seconds used so far; another function in tests.
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
        """Return the percent of the allowed CPUs in use, 0 to 100.

        It covers at least the last second.

        Readings are at least a second apart, so that two scrapers do not shorten each other's interval.
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
        for name, about, value in (
            ("app_cpu_usage_percent", "Percent of the CPUs that the process may use.", self.cpu_percent()),
            ("app_memory_usage_bytes", "Memory of the process and its children.", tree_memory()),
            ("app_disk_usage_bytes", "Bytes under the service's own data directories.", disk_usage(self.folders)),
        ):
            yield GaugeMetricFamily(name, about, value=value)


def allowed_cpus() -> float:
    """Return the CPUs allowed by process affinity and control group quota."""
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cpus, int(quota) / int(period)) if quota != "max" else cpus
    except (OSError, ValueError):
        return cpus


def tree_memory() -> float:
    """Return the bytes of memory of this process and its children.

    These are proportional set sizes where the system has them: a page shared by two processes counts half for each.
    """

    def used(process: psutil.Process) -> float:
        full = process.memory_full_info()
        return float(getattr(full, "pss", 0) or full.rss)

    return _sum_tree(used)


def _tree_cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children.

    Children that have ended are included.
    """

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return float(times.user + times.system + ended)

    return _sum_tree(used)


def _sum_tree(measure: Callable[[psutil.Process], float]) -> float:
    """Return the sum over this process and its children."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # the process ended after it was listed
            total += measure(process)
    return total


def disk_usage(folders: Iterable[Path]) -> float:
    """Return the bytes of all files under some folders.

    A missing folder counts 0.
    """
    total = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118  # faster: a scrape visits many files
                except OSError:
                    continue
    return float(total)
