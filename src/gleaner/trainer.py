"""The resident of train-metrics: runs each training in a child that ends, and exposes what the child says.

A training takes 420 MB, most of it libraries, which no process gives back; the resident loads none of them.

state/trainer/lock        held by the trainer that there is; its process id
state/trainer/ask         a pipe with a name: who writes into it asks for a training, or tells that one is finished
state/trainer/last.json   what the last finished training has left, whoever ran it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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

from gleaner.artifact import replace_file
from gleaner.errors import Refused
from gleaner.events import Epoch, Event, Failed, Finished, Started, Suspect, Validated
from gleaner.metrics import TrainingMetrics
from gleaner.settings import Settings
from gleaner.store import Store

log = logging.getLogger(__name__)

# Of what a training says, what its child tells; the other events hold tables and estimators.
_TOLD: Mapping[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Validated, Epoch, Suspect, Finished, Failed)
}
_ASK, _FINISHED = b"\n", b"f"  # what is written into the pipe
_ELSEWHERE = "finished elsewhere"
_SHOWN_SUSPECTS = 5
_LONGEST_REASON = 500  # so that a line has less than 4 KB, and goes through a pipe in one piece
# Only time mends these. Whatever else went wrong will do so again, until somebody mends it and asks.
_WORTH_RETRYING = frozenset({"Unreachable"})
_LONGEST_WAIT_SECONDS = 600.0
_END_SECONDS = 8.0  # what tells a service to stop often waits ten seconds, and then kills
_ORPHAN_SECONDS = 2.0


class Trainer:
    """Trains when nothing is the champion yet, when asked, and by the clock: one training at a time.

    command: what trains once; `--events-fd` and the descriptor to `tell` its events through are added to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Settings,
        metrics: TrainingMetrics,
        *,
        first_wait_seconds: float = 10.0,
    ) -> None:
        self.command, self.settings, self.metrics = list(command), settings, metrics
        self.last = read_last(settings.state)
        self._first_wait = self._wait = first_wait_seconds
        self._news: queue.SimpleQueue[str | Event] = queue.SimpleQueue()  # a signal handler may put into this kind
        self._due: tuple[float, str] | None = None
        self._suspects = 0
        metrics.restore(self.last)

    def stop(self) -> None:
        """End `run`, and in order the training that is under way; a second call ends that at once."""
        self._news.put("stop")

    def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Stay, and train, until told to stop. Raises Refused where another trainer has the same state.

        on_ready: called once there is none.
        """
        folder = _folder(self.settings.state)
        with _only_one(folder), _hearing(folder, self._news):
            on_ready()
            # With versions and no champion, a training was ended right before its last step.
            if "champion" not in Store(self.settings.store).aliases():
                self._news.put("no champion")
            self._plan(self.last.at if self.last else time.time())
            while (why := self._next()) != "stop" and self._train(why):
                pass

    def _next(self) -> str:
        """Why to train now, or "stop"; waits for it."""
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
        """Run one training to its end; whether to go on after it."""
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
            self._failed(outcome if isinstance(outcome, Failed) else Failed("", _how_it_ended(code)))
        else:
            log.warning("training stopped")
        if elsewhere and not isinstance(outcome, Finished):
            self._news.put(_ELSEWHERE)
        if asked:
            self._news.put("asked meanwhile")
        return not stopping

    def _show(self, event: Event) -> None:
        """Log how far a training is; the numbers are rounded for people."""
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
                # Never written to: it closes when this process ends, however it ends. See `follow_trainer`.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for us, and we tell the child once; see also `_kill`
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
                        break  # its writer was killed
                    name, content = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
                    self._news.put(msgspec.json.decode(content, type=_TOLD[name]))
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
        """Show what a training by hand has left, of which nothing but its end was told."""
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
        again = (
            f"in {max(0.0, self._due[0] - time.monotonic()):.0f} s"
            if self._due
            else "when asked, by `gleaner train --now`"
        )
        log.error("training failed", extra={"reason": failed.reason, "again": again})

    def _plan(self, since: float) -> None:
        """Be due `training.every` after a time; where the clock was set back, that long after now."""
        every = self.settings.training.every_seconds
        wait = 0.0 if every is None else min(every, max(0.0, since + every - time.time()))
        self._due = None if every is None else (time.monotonic() + wait, f"every {self.settings.training.every}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Tell a child to end, which it does in order, and see that it does."""
    child.terminate()
    bound = threading.Timer(_END_SECONDS, _kill, [child])
    bound.daemon = True
    bound.start()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child at once, and with it the self-test that it may be waiting for: its whole process group."""
    with contextlib.suppress(ProcessLookupError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


def _how_it_ended(code: int) -> str:
    """A child that did not say why."""
    return f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"


def ask(state: Path) -> int:
    """Ask the running trainer for a training; gives its process id. Raises Refused where none runs."""
    if not _write(_folder(state), _ASK):
        raise Refused(
            f"no trainer runs with its state in {state}; "
            "`gleaner train --resident` starts one, and `gleaner train` trains here and now"
        )
    return _holder(_folder(state))


def find_resident(state: Path) -> int | None:
    """The process id of the running trainer; None where none runs."""
    folder = _folder(state)
    return _holder(folder) if _write(folder, b"") else None


def tell_finished(state: Path) -> None:
    """Tell the running trainer, if there is one, that a training by hand has left its last.json."""
    _write(_folder(state), _FINISHED)


def _write(folder: Path, what: bytes) -> bool:
    """Write into the pipe of the running trainer; whether there is one."""
    try:
        pipe = os.open(folder / "ask", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as e:
        if e.errno not in {errno.ENOENT, errno.ENXIO}:  # no such pipe; nobody at its other end
            raise
        return False
    with os.fdopen(pipe, "wb") as opened:
        opened.write(what)
    return True


def write_last(state: Path, last: Finished) -> None:
    """Keep what a finished training has left, for the trainer that starts next."""
    replace_file(_folder(state) / "last.json", msgspec.json.format(msgspec.json.encode(last), indent=1) + b"\n")


def read_last(state: Path) -> Finished | None:
    """What the last finished training has left; None if there was none, or it cannot be read, which is logged."""
    path = _folder(state) / "last.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Finished)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.warning("last training unknown", extra={"path": str(path), "reason": str(e)})
        return None


def tell(descriptor: int, event: Event) -> None:
    """In the child: tell the trainer an event, if it is one of those that it hears."""
    if type(event).__name__ not in _TOLD:
        return
    if isinstance(event, Failed):
        event = Failed(event.kind, event.reason[:_LONGEST_REASON])
    try:
        os.write(descriptor, msgspec.json.encode((type(event).__name__, event)) + b"\n")
    except BrokenPipeError as e:
        raise KeyboardInterrupt from e  # nobody wants this training any more


def follow_trainer(descriptor: int) -> None:
    """In the child, the leader of its process group: end with the trainer, however that ends.

    In order, if that can be done quickly. Not by Linux's PR_SET_PDEATHSIG, which other systems lack, and which
    leaves a child that asks for it after its parent's end.
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
    """The process id of the trainer that holds the lock; 0 where it has not written it yet."""
    try:
        return int((folder / "lock").read_text())
    except (OSError, ValueError):
        return 0


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of the state's one trainer; it goes with its process. Raises Refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Refused(
                f"a trainer runs already, pid {_holder(folder)}, with its state in {folder.parent}; "
                "`gleaner train --now` tells it to train"
            ) from e
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _hearing(folder: Path, news: queue.SimpleQueue[str | Event]) -> Iterator[None]:
    """Have what is written into the pipe `ask` among the news."""
    path, ended = folder / "ask", threading.Event()
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    pipe = os.open(path, os.O_RDWR)  # with a writer of our own there is no end of it

    def hear() -> None:
        while (said := os.read(pipe, 4096)) and not ended.is_set():
            if _FINISHED in said:
                news.put(_ELSEWHERE)
            if _ASK in said:
                news.put("asked")

    thread = threading.Thread(target=hear, name="ask", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # who asks from now on learns that nobody hears
        ended.set()
        os.write(pipe, _ASK)
        thread.join()
        os.close(pipe)
