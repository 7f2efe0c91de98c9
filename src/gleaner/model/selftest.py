"""The self-test of an artifact, in a separate process with limits."""

from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gleaner.errors import BadArtifact
from gleaner.model.artifact import Artifact, read_artifact
from gleaner.model.confinement import Limits, Refusing, limit_process, refuse, run_limited
from gleaner.model.manifest import LARGEST_MODEL, MODEL, REASONS, Manifest
from gleaner.model.operators import check_operators
from gleaner.model.predictor import Predictor
from gleaner.table.dates import DAY
from gleaner.table.feature import Feature
from gleaner.table.numbers import LARGEST, Array

# A forest of 57 MB takes 7 s of CPU. The wait is longer, since other processes may have the CPUs.
CPU_SECONDS = 30
SELFTEST_SECONDS = 300.0

# Python and the engine take 110 MB. To load a forest of 57 MB, the engine takes 19 times its size for a moment: it
# passed with 18 bytes of memory for each of the file, and failed with 15.
MEMORY_BYTES = 256 << 20
MEMORY_FOR_EACH_BYTE = 24

# The stack of the thread that loads and predicts: a fraction of what the service's threads have, so that a tree which
# overflows theirs cannot pass here.
_STACK_BYTES = 512 << 10

_LONGEST_WAIT_SECONDS = 600.0
_MOST_TRIES = 5

# Another processor may sum in another order; a wrong model differs by much more.
TOLERANCE = 1e-9

# Random dates: from 1950 to 2100, in seconds since 1970.
_MOMENTS = (-7_305 * DAY, 47_482 * DAY)

_TILED_ROWS, _RANDOM_ROWS, _ALONE_ROWS = 10_000, 1_000, 100


class Retry(NamedTuple):
    """The time of the next try of a refused artifact.

    at: seconds of the monotonic clock.
    wait: seconds between the refusal and `at`.
    tries: the number of tries that did not end so far.
    """

    at: float
    wait: float
    tries: int = 0


NEVER = Retry(math.inf, 0.0)


def retry_of(error: BadArtifact, before: Retry | None = None, *, first_seconds: float = 30.0) -> Retry:
    """Return the next try of a refused artifact.

    A busy machine may be the reason for a transient error. Then the wait doubles with each try, up to ten minutes.
    After five tries, or for another error, it never comes.
    before: the last try, if there was one.
    """
    tries = before.tries + 1 if before else 1
    if not error.transient or tries >= _MOST_TRIES:
        return NEVER._replace(tries=tries)
    wait = min(2 * before.wait if before and before.wait else first_seconds, _LONGEST_WAIT_SECONDS)
    return Retry(time.monotonic() + wait, wait, tries)


def selftest(folder: Path) -> None:
    """Check an artifact's operators, trees and predictions in a separate process.

    A model may crash or hang, or take any amount of memory: a tree of tens of thousands of levels is valid, and
    overflows the stack. The process has limits on memory, CPU, files and time, and none of this one's environment.
    Raises BadArtifact for a forbidden operator, a wrong prediction, a crash, or a limit.
    """
    try:
        size = min((folder / MODEL).stat().st_size, LARGEST_MODEL)
    except OSError as e:
        raise BadArtifact(folder, "missing", f"cannot read {MODEL}: {e.strerror}") from e
    memory = MEMORY_BYTES + MEMORY_FOR_EACH_BYTE * size
    run_limited(
        "gleaner.model.selftest",
        [str(folder.absolute())],
        Limits(memory, CPU_SECONDS, SELFTEST_SECONDS),
        Refusing(folder, "selftest", "its self-test", REASONS),
    )


def check_golden(artifact: Artifact, predictor: Predictor | None = None) -> None:
    """Predict the golden rows in this process.

    predictor: the artifact's, if it is there already.
    Raises BadArtifact if a prediction differs by more than 1e-9, relative; ArithmeticError if one is not finite.
    """
    golden = artifact.manifest.golden
    wanted = np.array(golden.answers)
    got = (predictor or Predictor(artifact)).predict(np.array(golden.numbers))
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=TOLERANCE, atol=1e-12):
        worst = int(np.argmax(np.abs(got - wanted))) if got.shape == wanted.shape else 0
        reason = f"golden row {worst}: wanted the prediction {float(wanted[worst])!r}, got {float(got.flat[worst])!r}"
        raise BadArtifact(artifact.folder, "selftest", reason)


def check_rows_alone(artifact: Artifact, predictor: Predictor) -> None:
    """Check that predictions are finite and depend on no other row.

    Predicts golden rows and random ones alone, together, in another order, and repeated to 10,000 rows.
    Raises BadArtifact if the bits of a prediction differ; ArithmeticError if one is not finite.
    """
    # The same rows whenever the artifact is tested, but not known before its manifest is.
    random = np.random.default_rng(int(artifact.digest[:16], 16))
    golden = np.array(artifact.manifest.golden.numbers)
    within = random_rows(artifact.manifest, random)
    for name, rows in (("golden", golden), ("random", within)):
        together, order = predictor.predict(rows), random.permutation(len(rows))
        some = order[:_ALONE_ROWS]
        places = np.resize(np.arange(len(rows)), _TILED_ROWS)
        ways = {
            "alone, one by one": (some, np.array([predictor.predict_row(row) for row in rows[some].tolist()])),
            "alone": (some, np.concatenate([predictor.predict(rows[i : i + 1]) for i in some])),
            "in another order": (order, predictor.predict(rows[order])),
            f"among {_TILED_ROWS:,} rows": (places, predictor.predict(rows[places])),
        }
        for way, (which, got) in ways.items():
            if got.tobytes() != together[which].tobytes():
                raise BadArtifact(artifact.folder, "selftest", f"{name} rows get another prediction {way}")


def random_rows(manifest: Manifest, random: np.random.Generator) -> Array:
    """Return rows within the bounds of every column, shape (n, k).

    A column without declared bounds has those of the training data. A second part of the rows lies within the
    bounds of the training data. The first two rows have the least and the greatest numbers.
    """
    numbers = np.column_stack([_random_column(feature, manifest, random) for feature in manifest.features])
    return manifest.schema.matrix(numbers)


def _random_column(feature: Feature, manifest: Manifest, random: np.random.Generator) -> Array:
    """Return accepted numbers of one feature, shape (n,).

    A tenth is missing, if the feature allows it.
    """
    count = 2 * _RANDOM_ROWS
    if feature.type == "category":
        column = random.integers(len(feature.words) + (feature.unknown == "other"), size=count).astype(np.float64)
    elif feature.type == "bool":
        column = random.integers(2, size=count).astype(np.float64)
    elif feature.is_date:
        column = np.floor(random.uniform(*_MOMENTS, count))
        column = np.floor(column / DAY) * DAY if feature.type == "date" else column
    else:
        trained = manifest.histograms.get(feature.name)
        low, high = (trained.edges[0], trained.edges[-1]) if trained else (-LARGEST, LARGEST)
        least = low if feature.min is None else feature.lowest
        most = high if feature.max is None else feature.highest
        column = np.concatenate(
            [[least, most], random.uniform(least, most, _RANDOM_ROWS), random.uniform(low, high, _RANDOM_ROWS - 2)]
        )
        column = np.clip(column, feature.lowest, feature.highest)
        column = np.floor(column) if feature.type == "int" else column
    if feature.allows_gaps:
        column[random.random(count) < 0.1] = np.nan
    return column


def _test(folder: Path, memory_bytes: int) -> tuple[str, str] | None:
    """Test an artifact in this process; return a refusal's reason and detail."""
    try:
        artifact = read_artifact(folder)
        check_operators(folder)
        predictor = Predictor(artifact)
        check_golden(artifact, predictor)
        check_rows_alone(artifact, predictor)
    except BadArtifact as e:
        reason, detail = e.reason, e.detail
    except (ArithmeticError, RuntimeError, MemoryError, ValueError) as e:
        reason, detail = "selftest", str(e) or type(e).__name__
    else:
        return None
    # The engine reports a failed allocation in several ways.
    if any(words in detail for words in ("bad_alloc", "MemoryError", "allocate", "bad allocation")):
        return "selftest", f"its self-test took more than {memory_bytes >> 20:,} MB of memory"
    return reason, detail


def main(memory_bytes: str, cpu_seconds: str, folder: str) -> None:
    """Test an artifact under limits; write a refusal to the standard output."""
    limit_process(int(memory_bytes), int(cpu_seconds))
    results: list[tuple[str, str] | None] = []

    def test() -> None:
        results.append(_test(Path(folder), int(memory_bytes)))

    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=test)
    thread.start()
    thread.join()
    if not results:  # the error is on the standard error
        sys.exit(1)
    if results[0]:
        refuse(*results[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
