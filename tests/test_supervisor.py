"""The supervisor over small real processes: started in order and again, given up, ended, and never left behind."""

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
from pathlib import Path

import psutil
import pytest

from gleaner.errors import Refused
from gleaner.lines import Lines
from gleaner.running import Entry, end_run, hold, read_run
from gleaner.supervisor import Pace, Program, Supervisor

# Answers on a port, and does what its other arguments say.
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
    first_wait_seconds=0.02, failing_seconds=1.0, most_ends=4, look_seconds=0.1, answer_seconds=0.5, most_silent=3
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Running:
    """A supervisor under test, and what it says."""

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
        """Its programs, kept until the block ends."""

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
                lines.close()

    def events(self, *programs: Program) -> list[str]:
        names = {program.command[2]: program.name for program in programs}
        pairs = [line.split() for line in (self.folder / "events").read_text().splitlines()]
        return [f"{names[port]} {what}" for port, what in pairs]


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def until_ok(supervisor: Supervisor, name: str) -> Entry:
    await until(lambda: supervisor.entry(name).health == "ok")
    return supervisor.entry(name)


def has_ended(pid: int) -> bool:
    """Also where the first process of a container does not ask how its adopted children ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def stage(tmp_path) -> Running:
    return Running(tmp_path)


def test_one_waits_for_another_to_answer_and_they_end_the_other_way_round(stage):
    first, second = stage.program("first", "slow"), stage.program("second", after=("first",))

    async def play() -> None:
        async with stage.keeping(first, second) as supervisor:
            assert "waiting" == supervisor.entry("second").state
            await until(lambda: stage.settled)
            assert {"ok"} == {supervisor.entry(name).health for name in ("first", "second")}
        assert {"stopped"} == {supervisor.entry(name).state for name in ("first", "second")}

    asyncio.run(play())

    assert ["first began", "first answers", "second began", "second answers", "second ended", "first ended"] == (
        stage.events(first, second)
    )
    assert 1 == stage.settled
    assert [] == stage.given_up


def test_a_process_that_answers_is_not_ready_before_it_says_so(stage):
    program = stage.program("slow")
    program = Program("slow", program.command, live=program.live, ready=f"{program.live}ready", ports=program.ports)
    other = stage.program("other", after=("slow",))

    async def play() -> None:
        async with stage.keeping(program, other) as supervisor:
            await until_ok(supervisor, "other")
            await until(lambda: supervisor.entry("slow").health == "not ready")
            assert 0 == stage.settled
            (stage.folder / "ready").touch()
            await until_ok(supervisor, "slow")
            await until(lambda: stage.settled)
            (stage.folder / "ready").unlink()
            await until(lambda: supervisor.entry("slow").health == "not ready")
            assert 0 == supervisor.entry("slow").restarts

    asyncio.run(play())


def test_a_process_that_is_killed_five_times_is_back_each_time_and_waits_longer_each_time(stage):
    stage.pace = Pace(look_seconds=0.1)
    program = stage.program("child")
    waits = []

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            for _ in range(5):
                entry = await until_ok(supervisor, "child")
                os.kill(entry.pid, signal.SIGKILL)
                began = time.monotonic()
                await until(lambda pid=entry.pid: supervisor.entry("child").pid not in {0, pid})
                waits.append(time.monotonic() - began)
            await until_ok(supervisor, "child")
            assert 5 == supervisor.entry("child").restarts

    asyncio.run(play())

    assert [] == [wait for wait in waits if wait > 2]
    assert ["0.02", "0.04", "0.08", "0.16", "0.32"] == [
        line.split()[-2] for line in stage.said if "signal 9 (Killed); it is started again in" in line
    ]


def test_one_that_was_well_for_a_time_begins_with_the_shortest_wait_again(stage):
    stage.pace = Pace(steady_seconds=0.3, look_seconds=0.1, most_ends=3)
    program = stage.program("child")

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            for _ in range(5):
                entry = await until_ok(supervisor, "child")
                await asyncio.sleep(0.4)
                os.kill(entry.pid, signal.SIGKILL)
                await until(lambda pid=entry.pid: supervisor.entry("child").pid not in {0, pid})
            assert "given up" != supervisor.entry("child").state

    asyncio.run(play())

    assert 5 == len([line for line in stage.said if "started again in 0.02 s" in line])


def test_a_crash_loop_is_given_up_with_its_last_words_and_the_others_go_on(stage):
    loop, other = stage.program("loop", "crash"), stage.program("other", after=("loop",))

    async def play() -> None:
        async with stage.keeping(loop, other) as supervisor:
            await until(lambda: stage.settled)
            assert ("given up", 0) == (supervisor.entry("loop").state, supervisor.entry("loop").pid)
            assert "ok" == supervisor.entry("other").health

    asyncio.run(play())

    (told,) = [line for line in stage.said if "given up" in line]
    assert told.startswith("up: loop is given up: ended with exit code 1, 4 times in a row: no such luck; ")
    assert str(stage.folder / "logs" / "loop.log") in told
    assert ["loop"] == stage.given_up
    assert 4 == stage.events(loop, other).count("loop began")


def test_one_that_has_answered_goes_on_with_the_longest_wait_and_is_given_up_by_the_clock(stage):
    stage.pace = Pace(first_wait_seconds=0.01, longest_wait_seconds=0.03, most_ends=2, failing_seconds=4.0)
    # Its life is seen the first time; no address is asked.
    code = "import os, time; os.path.exists('been') or (open('been', 'w'), time.sleep(0.5)); exit('full')"
    command = (sys.executable, "-c", code.replace("been", str(stage.folder / "been")))
    began = time.monotonic()

    async def play() -> None:
        async with stage.keeping(Program("child", command)) as supervisor:
            await until(lambda: supervisor.entry("child").state == "given up")

    asyncio.run(play())

    assert time.monotonic() - began >= 4.0
    waits = [line.split()[-2] for line in stage.said if "it is started again in" in line]
    assert ["0.01", "0.02", "0.03"] == waits[:3]
    assert {"0.03"} == set(waits[2:])
    (told,) = [line for line in stage.said if "given up" in line]
    assert f"ended with exit code 1, {len(waits) + 1} times in a row: full; " in told


def test_what_passes_in_time_ends_no_service(stage):
    # As a full disk or a lock would: it has answered before, then ends at once some times more than most may.
    stage.pace = Pace(first_wait_seconds=0.01, most_ends=2, look_seconds=0.1)
    program = stage.program("child")
    full = stage.folder / "full"
    (stage.folder / "child.py").write_text(f"import os\nif os.path.exists({str(full)!r}): exit('full')\n{CHILD}")

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            full.touch()
            os.kill(entry.pid, signal.SIGKILL)
            await until(lambda: supervisor.entry("child").restarts >= 5)
            full.unlink()
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert [] == stage.given_up


def test_when_all_is_given_up_there_is_nothing_to_stay_for(stage):
    async def play() -> list[str]:
        lines = Lines(stage.folder / "logs", lambda *_: None)
        with hold(stage.folder) as lock:
            programs = [stage.program("loop", "crash"), Program("nowhere", ["/no/such/program"])]
            supervisor = Supervisor(programs, stage.folder, lines, lock=lock, pace=QUICK)
            return await asyncio.wait_for(supervisor.run(), 30)

    assert ["loop", "nowhere"] == asyncio.run(play())
    assert "/no/such/program cannot be run: No such file" in (stage.folder / "logs" / "nowhere.log").read_text()


def test_one_that_never_answers_is_ended_in_the_end(stage):
    program = stage.program("deaf", "deaf", start_seconds=0.3)

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            await until(lambda: supervisor.entry("deaf").state == "given up")

    asyncio.run(play())

    assert ["deaf"] == stage.given_up
    assert any("given up: did not answer within 0.3 s, 4 times in a row" in line for line in stage.said)


def test_a_stranger_that_answers_on_its_port_does_not_stand_for_it(stage):
    program = stage.program("deaf", "deaf", start_seconds=0.5)

    async def play() -> None:
        with subprocess.Popen(program.command[:3]) as stranger:
            try:
                async with stage.keeping(program) as supervisor:
                    await until(lambda: supervisor.entry("deaf").state == "given up")
            finally:
                stranger.kill()

    asyncio.run(play())

    assert not any("is ready" in line for line in stage.said)


def test_one_that_hangs_is_started_anew(stage):
    program = stage.program("child")

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            os.kill(entry.pid, signal.SIGSTOP)
            await until(lambda: supervisor.entry("child").health == "no answer")
            await until(lambda: supervisor.entry("child").pid not in {0, entry.pid})
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert any("child did not answer 3 times; it is started again" in line for line in stage.said)


def test_what_a_process_has_started_ends_with_it(stage):
    program = stage.program("child", "family")

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            (grandchild,) = psutil.Process(entry.pid).children()
            os.kill(entry.pid, signal.SIGKILL)
            await until(lambda: supervisor.entry("child").pid not in {0, entry.pid})
            assert has_ended(grandchild.pid)
            entry = await until_ok(supervisor, "child")
            (grandchild,) = psutil.Process(entry.pid).children()
        assert has_ended(grandchild.pid)

    asyncio.run(play())


def test_one_that_does_not_want_to_end_is_made_to(stage):
    program = stage.program("child", "stubborn", stop_seconds=0.3)

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            await until_ok(supervisor, "child")

    asyncio.run(play())

    assert any("child has not ended within 0.3 s, and is killed" in line for line in stage.said)


def test_told_a_second_time_it_waits_for_nobody(stage):
    program = stage.program("child", "stubborn", stop_seconds=60)

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            await until_ok(supervisor, "child")
            supervisor.stop()
            await until(lambda: supervisor.entry("child").state == "stopping")
            began = time.monotonic()
        assert time.monotonic() - began < 10

    asyncio.run(play())


def test_a_program_can_be_replaced_by_another_and_back(stage):
    program = stage.program("child")
    other = Program("child", (*program.command, "other"), live=program.live, ports=program.ports)

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            commands = []
            for wanted in (None, other, program):
                if wanted:
                    await supervisor.replace(wanted)
                entry = await until_ok(supervisor, "child")
                commands.append(psutil.Process(entry.pid).cmdline()[-1])
            assert [program.command[-1], "other", program.command[-1]] == commands
            assert 0 == supervisor.entry("child").restarts

    asyncio.run(play())

    assert ["began", "answers", "ended"] * 3 == [line.split()[1] for line in stage.events(program)]


def test_another_terminal_sees_the_run_and_a_second_one_is_refused(stage):
    program = stage.program("child")

    async def play() -> None:
        async with stage.keeping(program) as supervisor:
            entry = await until_ok(supervisor, "child")
            run = read_run(stage.folder)
            assert os.getpid() == run.pid
            assert run.alive
            assert (entry,) == run.entries
            with pytest.raises(Refused, match=rf"runs here already, pid {os.getpid()}"), hold(stage.folder):
                pass

    asyncio.run(play())

    assert read_run(stage.folder) is None


ALONE = """
import asyncio, sys
from pathlib import Path
from gleaner.lines import Lines
from gleaner.running import hold
from gleaner.supervisor import Program, Supervisor
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
    """A supervisor in a process of its own, over two children that have children; all refuse to end."""
    (folder / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", ALONE, str(folder), str(free_port()), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "settled\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def is_guard(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # one that has just ended has no command
        return "gleaner.guard" in process.cmdline()
    return False


def descendants(process: subprocess.Popen[str]) -> tuple[psutil.Process, list[psutil.Process]]:
    """A supervisor's guard, and all the others."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    (guard,) = filter(is_guard, everyone)
    return guard, [one for one in everyone if one != guard]


def all_end(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(has_ended(one.pid) for one in processes):
            return True
        time.sleep(0.02)
    return False


def test_a_killed_supervisor_leaves_nobody_behind(tmp_path):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        process.kill()

        assert 4 == len(others)
        assert all_end([guard, *others], 3)
    assert read_run(tmp_path) is None
    with hold(tmp_path):  # and another one can begin at once
        pass


def test_nor_does_one_whose_guard_was_killed_before(tmp_path):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        guard.kill()
        deadline = time.monotonic() + 20
        while not any(map(is_guard, psutil.Process(process.pid).children())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.kill()

        assert all_end(others, 3)


def test_those_whose_supervisor_and_guard_were_both_killed_are_found_and_ended(tmp_path):
    with supervising(tmp_path) as process:
        guard, others = descendants(process)
        process.send_signal(signal.SIGSTOP)
        guard.kill()
        process.kill()
        process.wait()
        left = read_run(tmp_path)

        assert not left.alive
        assert 2 == len(left.entries)
        assert {entry.name for entry in left.entries} == set(end_run(tmp_path, seconds=10))
        assert all_end(others, 3)
    assert [] == end_run(tmp_path, seconds=10)


def test_a_number_that_now_belongs_to_another_process_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as stranger:
        entry = Entry("child", stranger.pid, 1.0, 0.0, "running", "ok", 0, "", {}, "")
        from gleaner import running

        running.write_run(tmp_path, (entry,), 0.0)
        text = (tmp_path / "run.json").read_text().replace(f'"pid": {os.getpid()}', f'"pid": {stranger.pid}')
        (tmp_path / "run.json").write_text(text)
        try:
            assert read_run(tmp_path) is None
            assert [] == end_run(tmp_path, seconds=1)
            assert stranger.poll() is None
        finally:
            stranger.kill()
