"""Fixtures of several packages, and the check for leftovers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from figures import figure
from projects import MIXED, ROOT, SETTINGS, write_made_table, write_mixed_table
from started import MlflowServer, gleaner

__all__ = ["figure"]

# A runner in the background ignores Ctrl-C and hang-ups, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# In the environment of every process that this suite starts, directly or not.
_SUITE = "SUITE_OF_TESTS"
_MADE_BY_TOOLS = {
    ".venv",
    ".venv-mutants",
    ".git",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".hypothesis",
    "__pycache__",
}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[_SUITE] = uuid.uuid4().hex
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="suite-")
        config.stash[_FILES] = _find_files()


# Files that take a minute or more. They come first, so that no worker begins one when the others are done.
_LONG = ("integration", "reliability", "cli", "training", "test_versions.py", "test_render.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("MOMENTS"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    items.sort(key=lambda item: not set(item.path.relative_to(ROOT / "tests").parts) & set(_LONG))


_FILES = pytest.StashKey[set[Path]]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the suite if it leaves a process or a file behind."""
    if hasattr(session.config, "workerinput"):
        return
    left = [str(path) for path in sorted(_find_files() - session.config.stash[_FILES])]
    for process in _find_processes():
        left.append(f"pid {process.pid}: {' '.join(process.cmdline())[:200]}")
        process.kill()
    if not left and session.exitstatus == 0:
        shutil.rmtree(tempfile.gettempdir())
    if left:
        print("\nleft behind by the tests:", *left, sep="\n  ", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _find_files() -> set[Path]:
    """Return the files of the checkout and of the suite's temporary folder."""
    # pytest removes its own folders, and `made.shared_folder` ends with its process.
    removed_later = ("pytest-of-", "made-")
    found = {path for path in Path(tempfile.gettempdir()).iterdir() if not path.name.startswith(removed_later)}
    found.discard(Path(tempfile.gettempdir(), ".ses"))  # onnxruntime's
    found = {path for path in found if not _is_probe(path)}
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in _MADE_BY_TOOLS]
        found.update(Path(folder, name) for name in files)
    return found


def _is_probe(path: Path) -> bool:
    """Return whether a file is Python's own trial of a temporary folder.

    `tempfile` writes `blat` into such a file and removes it; a process that a test kills at that moment leaves it.
    """
    is_named_so = re.fullmatch("[a-z0-9_]{8}", path.name) is not None
    return is_named_so and path.is_file() and path.read_bytes() in (b"", b"blat")


def _find_processes() -> Iterator[psutil.Process]:
    own = psutil.Process()
    family = {own.pid, *(parent.pid for parent in own.parents())}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(_SUITE)
            if mark == os.environ[_SUITE] and process.pid not in family and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


@pytest.fixture
def eager_threads():
    """Switch threads a hundred times as often.

    That gives more moments in which to mix something up, and less waiting.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with settings, data and a store.

    Version 1 is a tree and the champion; 2 is linear and the challenger.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "train.out").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store of a model with every type of feature.

    Version 1 is linear and the champion; 2 is a tree.
    """
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "gleaner.toml").write_text(MIXED, encoding="utf-8")
    write_mixed_table(folder / "mixed.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """Copy the trained folder's store, for tests that change it.

    Its MLflow database is its own, and empty.
    """
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("gleaner.toml", "made.csv"):
        shutil.copy(trained / name, folder)
    shutil.copytree(trained / ".gleaner" / "store", folder / ".gleaner" / "store")
    return folder


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Start a real MLflow server, empty at first.

    It takes 20 s to start, so the session has one.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), port)
    try:
        server.start()
        yield server
    finally:
        server.stop()
