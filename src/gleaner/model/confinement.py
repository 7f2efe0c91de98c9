"""Separate processes with limits, which check files of unknown origin."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from gleaner.errors import BadArtifact

_MOST_FILES = 64
_NICENESS = 10  # predictions come first: a check beside them gets a tenth of a CPU that both want


class Limits(NamedTuple):
    """The limits of a process.

    memory_bytes: all writable memory.
    cpu_seconds: the time on CPUs.
    seconds: the time on the clock. It is longer, since other processes may have the CPUs.
    """

    memory_bytes: int
    cpu_seconds: int
    seconds: float


class Refusing(NamedTuple):
    """The words of a refusal.

    folder: the artifact.
    reason: the reason of a crash or a limit, one of `manifest.REASONS`.
    check: the check in words, such as "its self-test".
    others: further reasons that the process may give.
    """

    folder: Path
    reason: str
    check: str
    others: Collection[str] = ()


def run_limited(
    module: str, arguments: Sequence[str], limits: Limits, refusing: Refusing, *, content: bytes = b""
) -> None:
    """Run a module in a separate process, which may refuse a file.

    The process has none of this one's environment. The module calls `limit_process` with its first two arguments.
    arguments: its further arguments.
    content: its standard input.
    Raises BadArtifact for a refusal, a crash, or a limit.
    """
    folder, reason, check, others = refusing
    command = [sys.executable, "-B", "-P", "-m", module, str(limits.memory_bytes), str(limits.cpu_seconds), *arguments]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limits.seconds, check=False, env=environment, cwd="/", input=content
        )
    except subprocess.TimeoutExpired as e:
        # It did not use the CPU that it may use, so it waited for the CPU or was stopped.
        raise BadArtifact(folder, reason, f"{check} took longer than {limits.seconds:.0f} s", transient=True) from e
    if done.returncode == -signal.SIGXCPU:
        raise BadArtifact(folder, reason, f"{check} took more than {limits.cpu_seconds} s of CPU")
    if done.returncode < 0:
        detail = f"{check} was ended by signal {-done.returncode}"
        # The system kills a process when the machine has no memory left, which need not be this one's fault.
        raise BadArtifact(folder, reason, detail, transient=done.returncode == -signal.SIGKILL)
    if done.returncode:
        found, detail = _read_refusal(done.stdout, done.stderr)
        raise BadArtifact(folder, found if found in others else reason, detail)


def _read_refusal(output: bytes, errors: bytes) -> tuple[str, str]:
    """Return the reason and the detail that the process wrote."""
    try:
        reason, detail = json.loads(output)
    except ValueError:
        reason, detail = "", (errors.decode(errors="replace").strip().splitlines() or ["it failed"])[-1]
    return str(reason), str(detail)[:1_000]


def refuse(reason: str, detail: str) -> NoReturn:
    """Write a refusal, which `run_limited` reads, and exit."""
    sys.stdout.write(json.dumps((reason, detail)))
    sys.exit(1)


def limit_process(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit this process for good; it cannot undo this.

    memory_bytes: all writable memory, with what it has already.
    """
    limits = {
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    with contextlib.suppress(OSError):
        # If the machine has no memory left, this process ends, and not the service.
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(_NICENESS)
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, hard if limit == resource.RLIMIT_CPU else most))
