"""The resident of train-metrics, which trains in child processes.

The resident exposes the metrics of each training. A training takes 420 MB, most of it libraries, which no process gives
back. The resident loads none of them.

state/trainer/lock        held by the resident; its process id
state/trainer/ask         a named pipe: asks for a training, or reports that one by hand has finished
state/trainer/last.json   the event Finished of the last training, by the resident or by hand
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gleaner.errors import Refused
from gleaner.machine.files import make_private, replace_file, try_lock
from gleaner.machine.processes import describe_exit
from gleaner.model.store import Store
from gleaner.settings.sections import Settings
from gleaner.training.events import Epoch, Event, Failed, Finished, Started, Suspect, Validated
from gleaner.training.metrics import TrainingMetrics

log = logging.getLogger(__name__)

# The events that a child sends; the others hold tables and estimators.
_SENT: Mapping[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Validated, Epoch, Suspect, Finished, Failed)
}
_ASK, _FINISHED = b"\n", b"f"  # the messages in the pipe `ask`
_ELSEWHERE = "finished elsewhere"
_SHOWN_SUSPECTS = 5
_LONGEST_REASON = 500  # so that a line has less than 4 KB, which a pipe passes in one piece

# Errors that may end without anybody's help. After any other, somebody has to fix the cause and ask again.
_WORTH_RETRYING = frozenset({"Unreachable"})
_LONGEST_WAIT_SECONDS = 600.0
_END_SECONDS = 8.0  # service managers often kill after ten seconds
_ORPHAN_SECONDS = 2.0


class Trainer:
    """The resident. It runs one training at a time.

    It trains if there is no champion, when asked, and by the clock.

    command: trains once; `--events-fd` and the descriptor for `send_event` are added to it.
    first_wait_seconds: the wait after the first failure that is tried again; it doubles with each.
    """

    def __init__(
        self, command: Sequence[str], settings: Settings, metrics: TrainingMetrics, *, first_wait_seconds: float = 10.0
    ) -> None:
        self.command, self.settings, self.metrics = list(command), settings, metrics
        self.last = read_last(settings.state)
        self._first_wait = self._wait = first_wait_seconds
        self._news: queue.SimpleQueue[str | Event] = queue.SimpleQueue()  # a signal handler may put into this kind
        self._due: tuple[float, str] | None = None
        self._suspects = 0
        metrics.restore(self.last)

    def stop(self) -> None:
        """End `run` and the current training, in order.

        A second call kills the training.
        """
        self._news.put("stop")

    def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Stay, and train, until `stop`.

        on_ready: called once this is the only resident of its state.
        Raises Refused if another resident has the same state.
        """
        folder = _folder(self.settings.state)
        with _only_one(folder), _hearing(folder, self._news):
            on_ready()
            # A training that was killed right before its last step leaves versions and no champion.
            if "champion" not in Store(self.settings.store).aliases():
                self._news.put("no champion")
            self._plan(self.last.at if self.last else time.time())
            while (why := self._next()) != "stop" and self._train(why):
                pass

    def _next(self) -> str:
        """Wait for the next training; return the reason for it, or "stop"."""
        while True:
            try:
                news = self._news.get(timeout=max(0.0, self._due[0] - time.monotonic()) if self._due else None)
            except queue.Empty:
                assert self._due
                return self._due[1]
            if news == _ELSEWHERE:
                self._take_last()
            elif isinstance(news, str):
                return news

    def _train(self, why: str) -> bool:
        """Run one training to its end; return whether to go on."""
        log.info("training started", extra={"why": why})
        self._suspects = 0
        asked = stopping = elsewhere = False
        outcome: Event | None = None
        child = self._start()
        while (news := self._news.get()) != "ended":
            match news:
                case "stop":
                    _kill(child) if stopping else _end(child)
                    stopping = True
                case str() if news == _ELSEWHERE:
                    elsewhere = True
                case str():
                    asked = True
                case Finished() | Failed():
                    outcome = news
                case _:
                    self.metrics.record(news)
                    self._show(news)
        code = child.wait()
        if child.stdin:
            child.stdin.close()
        if isinstance(outcome, Finished):
            self._finished(outcome)
        elif not stopping:
            self._failed(outcome if isinstance(outcome, Failed) else Failed("", describe_exit(code)))
        else:
            log.warning("training stopped")
        if elsewhere and not isinstance(outcome, Finished):
            self._news.put(_ELSEWHERE)
        if asked:
            self._news.put("asked meanwhile")
        return not stopping

    def _show(self, event: Event) -> None:
        """Log the progress of a training, with numbers rounded for people."""
        match event:
            case Started(candidate):
                log.info("candidate started", extra={"candidate": candidate})
            case Validated(candidate, repeat, scores) if repeat == self.settings.training.repeats:
                rounded = {name: float(f"{value:.4g}") for name, value in scores.named().items()}
                log.info("candidate validated", extra={"candidate": candidate, **rounded})
            case Suspect(line, reason):
                self._suspects += 1
                if self._suspects <= _SHOWN_SUSPECTS:
                    log.info("row to look at; it was used", extra={"line": line, "reason": reason})

    def _start(self) -> subprocess.Popen[bytes]:
        read, write = os.pipe()
        try:
            child = subprocess.Popen(
                [*self.command, "--events-fd", str(write)],
                pass_fds=[write],
                # Nothing is written to it. It closes when this process ends, however it ends: see `follow_trainer`.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches this process alone, which ends the child; see also `_kill`
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        threading.Thread(target=self._listen, args=(read,), name="events", daemon=True).start()
        return child

    def _listen(self, read: int) -> None:
        try:
            with os.fdopen(read, "rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # the child was killed while it wrote
                    name, content = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
                    self._news.put(msgspec.json.decode(content, type=_SENT[name]))
        finally:
            self._news.put("ended")

    def _finished(self, last: Finished) -> None:
        self.last, self._wait = last, self._first_wait
        self.metrics.record(last)
        about = {"candidate": last.candidate, "mae": last.scores.mae, "rows": last.rows, "rows_refused": last.refused}
        if self._suspects > _SHOWN_SUSPECTS:
            more = self._suspects - _SHOWN_SUSPECTS
            log.info("more rows to look at", extra={"more": more, "in": "suspect_rows.txt of the run in MLflow"})
        log.info("training finished", extra={**last.versions, **about, "seconds": round(last.seconds, 1)})
        self._plan(last.at)

    def _take_last(self) -> None:
        """Show the last training by hand, which sent no events."""
        last = read_last(self.settings.state)
        if last is None or last == self.last:
            return
        self.last, self._wait = last, self._first_wait
        self.metrics.restore(last)
        log.info("training by hand finished", extra={**last.versions, "candidate": last.candidate, "rows": last.rows})
        self._plan(last.at)

    def _failed(self, failed: Failed) -> None:
        self.metrics.failed(self.last)
        if failed.kind in _WORTH_RETRYING:
            self._due = (time.monotonic() + self._wait, "tried again")
            self._wait = min(2 * self._wait, _LONGEST_WAIT_SECONDS)
        else:
            self._plan(time.time())
        again = "when asked, by `gleaner train --now`"
        if self._due:
            again = f"in {max(0.0, self._due[0] - time.monotonic()):.0f} s"
        log.error("training failed", extra={"reason": failed.reason, "again": again})

    def _plan(self, since: float) -> None:
        """Be due `training.every` after a time.

        since: Unix time; a time in the future counts as now, since the clock may have been set back.
        """
        every = self.settings.training.every_seconds
        wait = 0.0 if every is None else min(every, max(0.0, since + every - time.time()))
        self._due = None if every is None else (time.monotonic() + wait, f"every {self.settings.training.every}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child in order; kill it if it takes too long."""
    child.terminate()
    bound = threading.Timer(_END_SECONDS, _kill, [child])
    bound.daemon = True
    bound.start()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and its process group, which a self-test belongs to."""
    with contextlib.suppress(ProcessLookupError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


def ask(state: Path) -> int:
    """Ask the resident for a training; return its process id. Raises Refused."""
    if not _write(_folder(state), _ASK):
        raise Refused(
            f"no resident trainer runs with its state in {state}; `gleaner train --resident` starts one, "
            "and `gleaner train DATA.csv` trains without one"
        )
    return _holder(_folder(state))


def find_resident(state: Path) -> int | None:
    """Return the process id of the resident; None if none runs."""
    folder = _folder(state)
    return _holder(folder) if _write(folder, b"") else None


def report_finished(state: Path) -> None:
    """Ask the resident, if one runs, to read last.json."""
    _write(_folder(state), _FINISHED)


def _write(folder: Path, message: bytes) -> bool:
    """Write into the resident's pipe; return whether a resident runs."""
    try:
        pipe = os.open(folder / "ask", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as e:
        if e.errno not in {errno.ENOENT, errno.ENXIO}:  # no such pipe, or no reader
            raise
        return False
    with os.fdopen(pipe, "wb") as opened:
        opened.write(message)
    return True


def write_last(state: Path, last: Finished) -> None:
    """Keep the event of a finished training."""
    replace_file(_folder(state) / "last.json", msgspec.json.format(msgspec.json.encode(last), indent=1) + b"\n")


def read_last(state: Path) -> Finished | None:
    """Read the event of the last finished training.

    Returns None if there was none. A file that cannot be read is logged, and returns None.
    """
    path = _folder(state) / "last.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Finished)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.warning("last training unknown", extra={"path": str(path), "reason": str(e)})
        return None


def send_event(descriptor: int, event: Event) -> None:
    """In the child: send an event to the resident.

    Events that hold tables or estimators are not sent.
    Raises KeyboardInterrupt if the resident has ended.
    """
    if type(event).__name__ not in _SENT:
        return
    if isinstance(event, Failed):
        event = Failed(event.kind, event.reason[:_LONGEST_REASON])
    try:
        os.write(descriptor, msgspec.json.encode((type(event).__name__, event)) + b"\n")
    except BrokenPipeError as e:
        raise KeyboardInterrupt from e  # the resident is gone, so the training ends as by Ctrl-C


def follow_trainer(descriptor: int) -> None:
    """In the child: end when the resident ends, however it ends.

    The child leads its process group. It ends in order if that is quick, and is killed otherwise. Linux's
    PR_SET_PDEATHSIG would not do: other systems lack it, and it misses a parent that ended before the call.
    """
    os.set_inheritable(descriptor, False)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="trainer", daemon=True).start()


def _folder(state: Path) -> Path:
    return state / "trainer"


def _holder(folder: Path) -> int:
    """Return the resident's process id; 0 if it is not written yet."""
    try:
        return int((folder / "lock").read_text())
    except (OSError, ValueError):
        return 0


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of the state's only resident. Raises Refused."""
    make_private(folder)
    with (folder / "lock").open("a") as lock:
        if not try_lock(lock):
            raise Refused(
                f"a resident trainer already runs: pid {_holder(folder)}, state in {folder.parent}; "
                "`gleaner train --now` asks it for a training"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _hearing(folder: Path, news: queue.SimpleQueue[str | Event]) -> Iterator[None]:
    """Put the messages from the pipe `ask` among the news."""
    path, ended = folder / "ask", threading.Event()
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    pipe = os.open(path, os.O_RDWR)  # the pipe never ends while this process could write to it

    def hear() -> None:
        while (messages := os.read(pipe, 4096)) and not ended.is_set():
            if _FINISHED in messages:
                news.put(_ELSEWHERE)
            if _ASK in messages:
                news.put("asked")

    thread = threading.Thread(target=hear, name="ask", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # from now on `ask` is refused
        ended.set()
        os.write(pipe, _ASK)
        thread.join()
        os.close(pipe)
