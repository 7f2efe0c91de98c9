"""Private files of stacks and states, whatever the umask."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import made
import pytest

from gleaner.running.process_logs import Lines
from gleaner.running.run_file import hold

STACK = """
import asyncio, sys
from pathlib import Path
from gleaner.running.process_logs import Lines
from gleaner.running.program import Program
from gleaner.running.run_file import hold
from gleaner.running.supervisor import Supervisor
folder = Path(sys.argv[1])
child = Program("child", (sys.executable, "-c", "import time; print('a line', flush=True); time.sleep(600)"))
async def main():
    with hold(folder) as lock:
        supervisor = Supervisor([child], folder, Lines(folder / "logs", lambda *_: None, file_bytes=100), lock=lock)
        running = asyncio.create_task(supervisor.run(lambda: None))
        while not (folder / "logs" / "child.log").exists() or not (folder / "logs" / "up.log.1").exists():
            supervisor._shared.say("a line of some length")
            await asyncio.sleep(0.02)
        print("kept", flush=True)
        sys.stdin.read()
        supervisor.stop()
        await running
asyncio.run(main())
"""

STORE = """
import sys
from pathlib import Path
from gleaner.model.store import Store
store = Store(Path(sys.argv[1]))
store.add(1, Path(sys.argv[2]))
store.point({"champion": 1})
store.remember_passed(1, "digest", "engine")
"""


def modes(folder: Path) -> dict[str, str]:
    """Return the permissions of a folder and of everything in it."""
    return {
        str(path.relative_to(folder.parent)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in sorted([folder, *folder.rglob("*")])
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_files_of_a_stack_are_for_its_user_alone(tmp_path, umask):
    command = [sys.executable, "-c", STACK, str(tmp_path / "state" / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, umask=umask) as process:
        assert process.stdout
        assert "kept\n" == process.stdout.readline()
        found = modes(tmp_path / "state")
        process.communicate("", timeout=60)

    assert 0 == process.returncode
    lock = found.pop("state/run/lock")
    assert {
        "state": "0o700",
        "state/run": "0o700",
        "state/run/logs": "0o700",
        "state/run/logs/child.log": "0o600",
        "state/run/logs/up.log": "0o600",
        "state/run/logs/up.log.1": "0o600",
        "state/run/run.json": "0o600",
    } == found
    assert oct(0o666 & ~umask) == lock  # it holds nothing, in a private folder


def test_a_run_folder_of_an_older_version_becomes_private(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)

    with hold(tmp_path / "run"):
        Lines(tmp_path / "run" / "logs", lambda *_: None).close()
        assert {"0o700"} == {mode for name, mode in modes(tmp_path / "run").items() if name in {"run", "run/logs"}}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_store_is_private_and_its_files_are_writable_by_its_user_alone(tmp_path, umask):
    command = [sys.executable, "-c", STORE, str(tmp_path / "state" / "store"), str(made.artifact("linear").folder)]
    subprocess.run(command, check=True, timeout=60, umask=umask)

    found = modes(tmp_path / "state")
    assert {"0o700"} == {found["state"], found["state/store"]}
    assert {"0o644"} == {found["state/store/aliases.json"], found["state/store/passed/1.json"]}
    assert "0o755" == found["state/store/versions/1"]


def test_a_trainings_state_folder_is_private(trained):
    assert "0o700" == modes(trained / ".gleaner")[".gleaner"]
