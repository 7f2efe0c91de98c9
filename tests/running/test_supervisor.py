"""The supervisor over small real processes.

Order, restarts, services that are given up, the end, and the guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from clients import FULL
from started import has_ended, wait_for

from gleaner.errors import Refused
from gleaner.running.guarding import Guard
from gleaner.running.process_logs import Lines
from gleaner.running.program import Pace, Program
from gleaner.running.run_file import Entry, end_stack, hold, read_run_file, write_run_file
from gleaner.running.supervisor import Supervisor

# Responds on a port; its other arguments are its faults.
CHILD = """
import os, pathlib, signal, socket, subprocess, sys, time
port, *what = sys.argv[1:]
here = pathlib.Path(sys.argv[0]).parent
with (here / "events").open("a") as events:
    events.write(f"{port} began\\n")
if "crash" in what:
    sys.exit("no such luck")
if "stubborn" in what:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def end(*_):
        with (here / "events").open("a") as events:
            events.write(f"{port} ended\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
if "family" in what:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code], process_group=0)
print(f"speaking {os.getpid()}", flush=True)
if "deaf" in what:
    time.sleep(600)
if "slow" in what:
    time.sleep(0.5)
with socket.create_server(("127.0.0.1", int(port))) as server:
    with (here / "events").open("a") as events:
        events.write(f"{port} answers\\n")
    while True:
        connection, _ = server.accept()
        path = connection.recv(4096).split()[1]
        ready = path != b"/ready" or (here / "ready").exists()
        connection.sendall(b"HTTP/1.1 %s X\\r\\nContent-Length: 0\\r\\n\\r\\n" % (b"200" if ready else b"503"))
        connection.close()
"""
QUICK = Pace(
    first_wait_seconds=0.02, failing_seconds=1.0, most_ends=4, look_seconds=0.1, response_seconds=10.0, most_silent=3
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Running:
    """A supervisor under test, and its lines."""

    def __init__(self, folder: Path, *, pace: Pace = QUICK) -> None:
        self.folder, self.pace = folder, pace
        self.said: list[str] = []
        self.settled = 0
        (folder / "child.py").write_text(CHILD)

    def program(self, name: str, *what: str, **more) -> Program:
        port = free_port()
        url = f"http://127.0.0.1:{port}/"
        command = (sys.executable, str(self.folder / "child.py"), str(port), *what)
        return Program(name, command, live=url, ports={"ports.made": port}, **more)

    @contextlib.asynccontextmanager
    async def keeping(self, *programs: Program) -> AsyncIterator[Supervisor]:
        """Keep some programs running until the block ends."""

        def settled() -> None:
            self.settled += 1

        lines = Lines(self.folder / "logs", lambda name, text: self.said.append(f"{name}: {text}"))
        with hold(self.folder) as lock:
            supervisor = Supervisor(programs, self.folder, lines, lock=lock, pace=self.pace)
            running = asyncio.create_task(supervisor.run(settled))
            try:
                yield supervisor
            finally:
                supervisor.stop()
                self.given_up = await running
                lines.close(30)

    def events(self, *programs: Program) -> list[str]:
        names = {program.command[2]: program.name for program in programs}
        pairs = [line.split() for line in (self.folder / "events").read_text().splitlines()]
        return [f"{names[port]} {what}" for port, what in pairs]


async def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def until_ok(supervisor: Supervisor, name: str) -> Entry:
    await until(lambda: supervisor.entry(name).health == "ok")
    return supervisor.entry(name)


@pytest.fixture
def running(tmp_path) -> Running:
    return Running(tmp_path)


def test_a_program_starts_after_another_has_responded_and_ends_before_it(running):
    first, second = running.program("first", "slow"), running.program("second", after=("first",))

    async def play() -> None:
        async with running.keeping(first, second) as supervisor:
            assert "waiting" == supervisor.entry("second").state
            await until(lambda: running.settled)
            assert {"ok"} == {supervisor.entry(name).health for name in ("first", "second")}
        assert {"stopped"} == {supervisor.entry(name).state for name in ("first", "second")}

    asyncio.run(play())

    assert ["first began", "first answers", "second began", "second answers", "second ended", "first ended"] == (
        running.events(first, second)
    )
    assert 1 == running.settled
    assert [] == running.given_up


def test_a_process_that_responds_is_not_ready_before_its_ready_url_returns_200(running):
    program = running.program("slow")
    program = Program("slow", program.command, live=program.live, ready=f"{program.live}ready", ports=program.ports)
    other = running.program("other", after=("slow",))

    async def play() -> None:
        async with running.keeping(program, other) as supervisor:
            await until_ok(supervisor, "other")
            await until(lambda: supervisor.entry("slow").health == "not ready")
            assert 0 == running.settled
            (running.folder / "ready").touch()
            await until_ok(supervisor, "slow")
            await until(lambda: running.settled)
            (running.folder / "ready").unlink()
            await until(lambda: supervisor.entry("slow").health == "not ready")
            assert 0 == supervisor.entry("slow").restarts

    asyncio.run(play())


def test_a_process_killed_five_times_restarts_each_time_after_a_longer_wait(running, figure):
    running.pace = Pace(look_seconds=0.1, steady_seconds=600.0)
    program, back = running.program("child"), []

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            for _ in range(5):
                entry, began = await until_ok(supervisor, "child"), time.monotonic()
                os.kill(entry.pid, signal.SIGKILL)
                await until(lambda pid=entry.pid: supervisor.entry("child").pid not in {0, pid})
                await until_ok(supervisor, "child")
                back.append(time.monotonic() - began)
            assert 5 == supervisor.entry("child").restarts

    asyncio.run(play())

    figure("C6", f"a child killed 5 times: ready again after at most {max(back):.2f} s")
    assert not FULL or max(back) <= 2

    assert ["0.02", "0.04", "0.08", "0.16", "0.32"] == [
        line.split()[-2] for line in running.said if "child was killed by signal 9 (Killed); it restarts in" in line
    ]


def test_the_guard_forgets_a_process_once_its_session_has_ended(running, monkeypatch):
    program, forgotten, remove = running.program("child", "family"), [], Guard.remove

    def count(guard: Guard, session: int) -> None:
        forgotten.append((session, has_ended(session)))
        remove(guard, session)

    monkeypatch.setattr(Guard, "remove", count)

    async def play() -> int:
        async with running.keeping(program) as supervisor:
            first = (await until_ok(supervisor, "child")).pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: supervisor.entry("child").pid not in {0, first})
            assert [(first, True)] == forgotten
            return (await until_ok(supervisor, "child")).pid

    second = asyncio.run(play())

    assert [(second, True)] == forgotten[1:]


def test_a_process_that_was_steady_restarts_after_the_shortest_wait(running):
    running.pace = Pace(steady_seconds=0.3, look_seconds=0.1, most_ends=3)
    program = running.program("child")

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            for _ in range(5):
                entry = await until_ok(supervisor, "child")
                await asyncio.sleep(0.4)
                os.kill(entry.pid, signal.SIGKILL)
                await until(lambda pid=entry.pid: supervisor.entry("child").pid not in {0, pid})
            assert "given up" != supervisor.entry("child").state

    asyncio.run(play())

    assert 5 == len([line for line in running.said if "it restarts in 0.02 s" in line])


def test_a_crash_loop_is_given_up_with_its_last_line_and_the_others_stay(running, figure):
    loop, other = running.program("loop", "crash"), running.program("other", after=("loop",))

    async def play() -> None:
        async with running.keeping(loop, other) as supervisor:
            await until(lambda: running.settled)
            assert ("given up", 0) == (supervisor.entry("loop").state, supervisor.entry("loop").pid)
            assert "ok" == supervisor.entry("other").health

    asyncio.run(play())

    (told,) = [line for line in running.said if "given up" in line]
    assert told.startswith("up: loop is given up: exited with code 1, 4 times in a row: no such luck; ")
    assert str(running.folder / "logs" / "loop.log") in told
    assert ["loop"] == running.given_up
    assert 4 == running.events(loop, other).count("loop began")
    figure("C6", "a crash loop: given up with its last line, the others stay")


def test_a_program_that_has_responded_is_given_up_after_a_time_not_after_a_number_of_exits(running):
    running.pace = Pace(first_wait_seconds=0.01, longest_wait_seconds=0.03, most_ends=1, failing_seconds=4.0)
    full = running.folder / "full"  # it has no URL to check, so it is well while it runs
    code = f"import os, time\nwhile not os.path.exists({str(full)!r}): time.sleep(0.01)\nexit('full')"

    async def play() -> float:
        async with running.keeping(Program("child", (sys.executable, "-c", code))) as supervisor:
            await until_ok(supervisor, "child")
            full.touch()
            began = time.monotonic()
            await until(lambda: supervisor.entry("child").state == "given up")
            return time.monotonic() - began

    assert asyncio.run(play()) >= 4.0
    waits = [line.split()[-2] for line in running.said if "it restarts in" in line]
    assert waits == (["0.01", "0.02"] + ["0.03"] * len(waits))[: len(waits)]
    assert waits
    (told,) = [line for line in running.said if "given up" in line]
    assert f"exited with code 1, {len(waits) + 1} times in a row: full; " in told


def test_a_fault_that_passes_in_time_gives_up_no_service(running):
    # Such as a full disk: it has responded before, and then exits at once more often than `most_ends`.
    running.pace = Pace(first_wait_seconds=0.01, most_ends=2, look_seconds=0.1)
    program = running.program("child")
    full = running.folder / "full"
    (running.folder / "child.py").write_text(f"import os\nif os.path.exists({str(full)!r}): exit('full')\n{CHILD}")

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            full.touch()
            os.kill(entry.pid, signal.SIGKILL)
            await until(lambda: supervisor.entry("child").restarts >= 5)
            full.unlink()
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert [] == running.given_up


def test_the_supervisor_ends_when_every_program_is_given_up(running):
    async def play() -> list[str]:
        lines = Lines(running.folder / "logs", lambda *_: None)
        with hold(running.folder) as lock:
            programs = [running.program("loop", "crash"), Program("nowhere", ["/no/such/program"])]
            supervisor = Supervisor(programs, running.folder, lines, lock=lock, pace=QUICK)
            return await asyncio.wait_for(supervisor.run(), 120)

    assert ["loop", "nowhere"] == asyncio.run(play())
    assert "/no/such/program cannot be run: No such file" in (running.folder / "logs" / "nowhere.log").read_text()


def test_a_process_that_never_responds_is_given_up(running):
    program = running.program("deaf", "deaf", start_seconds=0.3)

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            await until(lambda: supervisor.entry("deaf").state == "given up")

    asyncio.run(play())

    assert ["deaf"] == running.given_up
    assert any("given up: did not respond within 0.3 s, 4 times in a row" in line for line in running.said)


def test_a_stranger_that_responds_on_its_port_does_not_count_as_the_program(running):
    program = running.program("deaf", "deaf", start_seconds=0.5)

    async def play() -> None:
        with subprocess.Popen(program.command[:3]) as stranger:
            try:
                async with running.keeping(program) as supervisor:
                    await until(lambda: supervisor.entry("deaf").state == "given up")
            finally:
                stranger.kill()

    asyncio.run(play())

    assert not any("is ready" in line for line in running.said)


def test_a_process_that_hangs_is_restarted(running):
    running.pace = replace(QUICK, response_seconds=0.5)
    program = running.program("child")

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            os.kill(entry.pid, signal.SIGSTOP)
            await until(lambda: supervisor.entry("child").health == "no answer")
            await until(lambda: supervisor.entry("child").pid not in {0, entry.pid})
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert any("child did not respond 3 times; it restarts in" in line for line in running.said)


def test_the_children_of_a_process_end_with_it(running):
    program = running.program("child", "family")

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            (grandchild,) = psutil.Process(entry.pid).children()
            os.kill(entry.pid, signal.SIGKILL)
            await until(lambda: supervisor.entry("child").pid not in {0, entry.pid})
            assert has_ended(grandchild.pid)
            entry = await until_ok(supervisor, "child")
            (grandchild,) = psutil.Process(entry.pid).children()
        assert has_ended(grandchild.pid)

    asyncio.run(play())


def test_a_process_that_ignores_sigterm_is_killed(running):
    program = running.program("child", "stubborn", stop_seconds=0.3)

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert any("child has not exited within 0.3 s and is killed" in line for line in running.said)


def test_a_second_stop_kills_at_once(running):
    program = running.program("child", "stubborn", stop_seconds=600)  # longer than a test may take

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            await until_ok(supervisor, "child")
            supervisor.stop()
            await until(lambda: supervisor.entry("child").state == "stopping")

    asyncio.run(play())

    assert not any("has not exited" in line for line in running.said)


def test_a_program_can_be_replaced_by_another_and_back(running):
    program = running.program("child")
    other = Program("child", (*program.command, "other"), live=program.live, ports=program.ports)

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            commands = []
            for wanted in (None, other, program):
                if wanted:
                    await supervisor.replace(wanted)
                entry = await until_ok(supervisor, "child")
                commands.append(psutil.Process(entry.pid).cmdline()[-1])
            assert [program.command[-1], "other", program.command[-1]] == commands
            assert 0 == supervisor.entry("child").restarts

    asyncio.run(play())

    assert ["began", "answers", "ended"] * 3 == [line.split()[1] for line in running.events(program)]


def test_another_terminal_sees_the_stack_and_a_second_one_is_refused(running):
    program = running.program("child")

    async def play() -> None:
        async with running.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            run = read_run_file(running.folder)
            assert os.getpid() == run.pid
            assert run.alive
            assert (entry,) == run.entries
            with pytest.raises(Refused, match=rf"runs here already, pid {os.getpid()}"), hold(running.folder):
                pass

    asyncio.run(play())

    assert read_run_file(running.folder) is None


ALONE = """
import asyncio, sys
from pathlib import Path
from gleaner.running.process_logs import Lines
from gleaner.running.program import Program
from gleaner.running.run_file import hold
from gleaner.running.supervisor import Supervisor
folder = Path(sys.argv[1])
child = (sys.executable, str(folder / "child.py"))
ports = sys.argv[2:]
programs = [Program(port, (*child, port, "family", "stubborn"), live=f"http://127.0.0.1:{port}/") for port in ports]
async def main():
    with hold(folder) as lock:
        supervisor = Supervisor(programs, folder, Lines(folder / "logs", lambda *_: None), lock=lock)
        await supervisor.run(lambda: print("settled", flush=True))
asyncio.run(main())
"""


@contextlib.contextmanager
def supervising(folder: Path):
    """Run a supervisor in its own process, over two children.

    Each child has a child of its own, and all ignore SIGTERM.
    """
    (folder / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", ALONE, str(folder), str(free_port()), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "settled\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def is_guard(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # a process that has just ended has no command
        return "gleaner.running.guard" in process.cmdline()
    return False


def descendants(process: subprocess.Popen[str]) -> tuple[psutil.Process, list[psutil.Process]]:
    """A supervisor's guard, and all its other descendants."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    (guard,) = filter(is_guard, everyone)
    return guard, [one for one in everyone if one != guard]


def all_end(processes: list[psutil.Process]) -> bool:
    return wait_for(lambda: all(has_ended(one.pid) for one in processes))


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path, figure):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        began = time.monotonic()
        process.kill()

        assert 4 == len(others)
        assert all_end([guard, *others])
        seconds = time.monotonic() - began
    figure("C6", f"the supervisor killed: {len(others)} processes, none left after {seconds:.2f} s")
    assert not FULL or seconds <= 3
    assert read_run_file(tmp_path) is None
    with hold(tmp_path):  # another one can begin at once
        pass


def test_a_supervisor_whose_guard_was_killed_before_leaves_no_process_behind(tmp_path):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        guard.kill()
        children = psutil.Process(process.pid).children
        assert wait_for(lambda: any(one != guard and is_guard(one) for one in children()))
        process.kill()

        assert all_end(others)


def test_processes_whose_supervisor_and_guard_were_both_killed_are_found_and_ended(tmp_path):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        process.send_signal(signal.SIGSTOP)
        guard.kill()
        process.kill()
        process.wait()
        left = read_run_file(tmp_path)

        assert not left.alive
        assert 2 == len(left.entries)
        assert {entry.name for entry in left.entries} == set(end_stack(tmp_path, seconds=60))
        assert all_end(others)
    assert [] == end_stack(tmp_path, seconds=60)


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as stranger:
        entry = Entry("child", stranger.pid, 1.0, 0.0, "running", "ok", 0, "", {}, "")
        write_run_file(tmp_path, (entry,), 0.0)
        text = (tmp_path / "run.json").read_text().replace(f'"pid": {os.getpid()}', f'"pid": {stranger.pid}')
        (tmp_path / "run.json").write_text(text)
        try:
            assert read_run_file(tmp_path) is None
            assert [] == end_stack(tmp_path, seconds=1)
            assert stranger.poll() is None
        finally:
            stranger.kill()
