"""CPU, memory and disk of a process, as its metrics show them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gleaner.machine.resources import Resources, allowed_cpus, disk_usage, tree_memory


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


class Machine:
    """A clock, and the CPU seconds used so far."""

    def __init__(self) -> None:
        self.now, self.used = 100.0, 5.0

    def work(self, seconds: float, share: float) -> None:
        """Let some seconds pass, with a share of all CPUs busy."""
        self.now, self.used = self.now + seconds, self.used + seconds * share * allowed_cpus()

    def resources(self, registry: CollectorRegistry) -> Resources:
        return Resources([], registry, clock=lambda: self.now, cpu_seconds=lambda: self.used)


def test_cpu_usage_covers_at_least_the_last_second(registry):
    machine = Machine()
    resources = machine.resources(registry)

    machine.work(10, 0.25)

    assert 25.0 == pytest.approx(registry.get_sample_value("app_cpu_usage_percent"))
    machine.work(0.5, 1.0)
    assert 25.0 == pytest.approx(resources.cpu_percent())
    machine.work(0.5, 1.0)
    assert 100.0 == pytest.approx(resources.cpu_percent())


def test_two_scrapers_do_not_shorten_each_others_interval(registry):
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


def test_the_work_of_this_process_is_measured(registry):
    resources = Resources([], registry)
    end = time.monotonic() + 1.05
    while time.monotonic() < end:
        pass

    assert 1 / allowed_cpus() < resources.cpu_percent() <= 100


def test_the_memory_of_a_child_counts_until_the_child_exits():
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


def test_disk_usage_is_the_bytes_of_all_files_below_a_folder(tmp_path, registry):
    Resources([tmp_path, Path("/no/such/folder")], registry)
    assert 0 == registry.get_sample_value("app_disk_usage_bytes")

    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "file").write_bytes(b"x" * 234)
    (tmp_path / "dangling").symlink_to("/no/such/file")

    assert 1234 + len("/no/such/file") == registry.get_sample_value("app_disk_usage_bytes")
    assert 1000 == disk_usage([tmp_path / "a"])
