"""The limits of the self-test's process, and the tries after a refusal."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hostile
import made
import numpy as np
import psutil
import pytest
from started import wait_for

from gleaner.errors import BadArtifact
from gleaner.model import selftest as module
from gleaner.model.artifact import read_artifact
from gleaner.model.predictor import Predictor
from gleaner.model.selftest import MEMORY_BYTES, check_golden, check_rows_alone, random_rows, retry_of, selftest


def refusal(folder: Path) -> BadArtifact:
    with pytest.raises(BadArtifact) as caught:
        selftest(folder)
    return caught.value


def limited(code: str, memory: int = MEMORY_BYTES, cpu: int = 30) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has limited itself."""
    start = f"from gleaner.model.selftest import limit_process; limit_process({memory}, {cpu})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=300, check=False
    )


# Limits


def test_memory_beyond_the_limit_is_refused_to_the_process():
    code = "x = bytearray({} << 20); print(len(x))"

    assert str(64 << 20) == limited(code.format(64)).stdout.strip()
    assert "MemoryError" in limited(code.format(400)).stderr
    assert str(400 << 20) == limited(code.format(400), memory=1 << 30).stdout.strip()


def test_a_process_that_burns_its_cpu_is_ended():
    code = "import time\nwhile time.process_time() < 10: pass"

    assert -signal.SIGXCPU == limited(code, cpu=2).returncode
    assert 0 == limited(code.replace("10", "1"), cpu=30).returncode


def test_the_process_writes_no_file_and_opens_few(tmp_path):
    write = f"open({str(tmp_path / 'new')!r}, 'wb', 0).write(b'x')"

    assert "File too large" in limited(write).stderr
    assert "Too many open files" in limited("files = [open('/dev/null') for _ in range(100)]").stderr
    assert 0 == limited("files = [open('/dev/null') for _ in range(20)]").returncode


def test_limits_that_the_process_has_already_are_not_raised():
    code = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, 1 << 29))\n"
    code += "from gleaner.model.selftest import limit_process; limit_process(1 << 40, 30)\n"
    code += "print(resource.getrlimit(resource.RLIMIT_DATA))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)

    assert f"({1 << 29}, {1 << 29})" == done.stdout.strip()


def test_a_self_test_gives_way_to_predictions():
    assert min(19, os.nice(0) + 10) == int(limited("import os; print(os.nice(0))").stdout)


def memory_at_the_start() -> int:
    """Return the writable memory of Python and the engine, before any model."""
    code = "import gleaner.model.selftest; print(open('/proc/self/status').read())"
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) << 10


def test_a_model_that_needs_more_memory_than_its_size_allows_is_refused_for_good(tmp_path, monkeypatch):
    folder = hostile.pack(tmp_path / "forest", hostile.forest)
    selftest(folder)
    monkeypatch.setattr(module, "MEMORY_BYTES", memory_at_the_start() + (8 << 20))
    monkeypatch.setattr(module, "MEMORY_FOR_EACH_BYTE", 2)

    refused = refusal(folder)

    assert not refused.transient
    assert "MB of memory" in refused.detail


def test_a_model_that_needs_too_much_cpu_is_refused_for_good(tmp_path, monkeypatch):
    folder = hostile.pack(tmp_path / "slow", hostile.slow)
    monkeypatch.setattr(module, "CPU_SECONDS", 5)

    refused = refusal(folder)

    assert ("its self-test took more than 5 s of CPU", False) == (refused.detail, refused.transient)


def self_test() -> psutil.Process | None:
    for child in psutil.Process().children():
        if "gleaner.model.selftest" in child.cmdline():
            return child
    return None


@pytest.mark.parametrize(
    ("number", "detail"), [(signal.SIGSTOP, "took longer than 10 s"), (signal.SIGKILL, "ended by signal 9")]
)
def test_a_process_that_the_machine_stops_is_tried_again(monkeypatch, number, detail):
    monkeypatch.setattr(module, "SELFTEST_SECONDS", 10.0)
    caught: list[BadArtifact] = []

    def run() -> None:
        try:
            selftest(made.artifact("random_forest").folder)
        except BadArtifact as e:
            caught.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_for(self_test)
    self_test().send_signal(number)
    thread.join(60)

    [refused] = caught
    assert detail in refused.detail
    assert refused.transient
    assert self_test() is None


def test_the_process_has_nothing_of_this_ones_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GLEANER_SECRET", "hunter2")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$(env; pwd)" >&2\nexit 1\n'.replace("$(env; pwd)", "$(echo $(env) $(pwd))"))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    detail = refusal(made.artifact("linear").folder).detail

    assert "PYTHONPATH=" in detail  # it did write its environment
    assert "hunter2" not in detail
    assert "HOME=" not in detail
    assert detail.endswith(" /")


# Tries


def test_what_was_refused_for_good_is_never_tried_again():
    assert math.inf == retry_of(BadArtifact("x", "selftest", "no")).at


def test_a_transient_refusal_is_tried_five_times_in_all():
    busy, retry, waits = BadArtifact("x", "selftest", "slow", transient=True), None, []
    for _ in range(5):
        retry = retry_of(busy, retry, first_seconds=30.0)
        waits.append(retry.wait if retry.at < math.inf else None)

    assert [30.0, 60.0, 120.0, 240.0, None] == waits


# Predictions


@pytest.mark.parametrize("mixing", ["the sum of all rows", "less the first row", "the sum of whole numbers"])
def test_rows_that_change_with_their_neighbours_fail_also_without_the_table_of_operators(tmp_path, mixing):
    artifact = read_artifact(hostile.pack(tmp_path / "new", hostile.MIXING[mixing]))
    predictor = Predictor(artifact)

    with pytest.raises(BadArtifact, match="rows get another prediction"):
        check_rows_alone(artifact, predictor)


def test_a_prediction_that_is_not_finite_beyond_the_golden_rows_fails(tmp_path):
    artifact = read_artifact(hostile.pack(tmp_path / "new", hostile.not_finite_elsewhere))
    predictor = Predictor(artifact)
    check_golden(artifact, predictor)

    with pytest.raises(ArithmeticError):
        check_rows_alone(artifact, predictor)


def test_random_rows_lie_within_the_bounds_of_their_columns():
    manifest = made.artifact("linear").manifest

    rows = random_rows(manifest, np.random.default_rng(0))

    assert [[0.0] * 3, [1440.0, 10_000.0, 1e9]] == rows[:2].tolist()
    for j, feature in enumerate(manifest.features):
        edges = manifest.histograms[feature.name].edges
        assert (rows[:, j] >= feature.min).all()
        assert (rows[:, j] <= feature.max).all()
        assert ((rows[1002:, j] >= edges[0]) & (rows[1002:, j] <= edges[-1])).all()


def test_a_column_without_bounds_gets_those_of_its_training_data(tmp_path):
    manifest = made.artifact("linear").manifest
    features = [{"name": feature.name} for feature in manifest.features]
    artifact = read_artifact(made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), features=features))

    rows = random_rows(artifact.manifest, np.random.default_rng(0))

    for j, feature in enumerate(artifact.manifest.features):
        edges = artifact.manifest.histograms[feature.name].edges
        assert (edges[0], edges[-1]) == (rows[:, j].min(), rows[:, j].max())


@pytest.mark.parametrize("candidate", made.CANDIDATES)
def test_a_batch_in_blocks_is_predicted_to_the_bit(candidate):
    predictor, rows = Predictor(made.artifact(candidate)), made.questions(1_003)
    whole = predictor.predict(rows)
    assert predictor._block > 10_000

    predictor._block = 64

    assert whole.tobytes() == predictor.predict(rows).tobytes()


def test_the_memory_of_a_batch_has_a_limit(tmp_path):
    """Predict rows that take 480 MB at once, within 256 MB."""
    folder = hostile.pack(tmp_path / "wide", lambda: hostile.wide(1_000))
    code = (
        "import sys; import numpy as np; from pathlib import Path; from gleaner.model.artifact import read_artifact\n"
    )
    code += "from gleaner.model.predictor import Predictor; p = Predictor(read_artifact(Path(sys.argv[1])))\n"
    code += "p._block = int(sys.argv[2]) or p._block\n"
    code += "from gleaner.model.selftest import limit_process; limit_process(256 << 20, 60)\n"
    code += "print(len(p.predict(np.ones((60_000, 3)))))"
    ends = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(block)], capture_output=True, timeout=300
        ).returncode
        for block in (0, 1 << 30)
    ]

    assert 0 == ends[0]
    assert 0 != ends[1]  # all rows in one block
