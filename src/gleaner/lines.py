"""What many processes print: on one terminal, a name before each line, and in files of bounded size."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

LONGEST_LINE = 8_192
FILE_BYTES = 5_000_000
_UNSHOWN = 1_000


class Lines:
    """Takes lines and never waits: neither a paused terminal nor a full disk may hold up who prints them.

    folder: gets NAME.log, and the half before it as NAME.log.1. show: puts a line on the terminal, and may block.
    """

    def __init__(self, folder: Path, show: Callable[[str, str], object], *, file_bytes: int = FILE_BYTES) -> None:
        self.folder, self._show, self._most = folder, show, file_bytes // 2
        folder.mkdir(parents=True, exist_ok=True)
        self._queue: queue.Queue[tuple[str, str] | None] = queue.Queue(_UNSHOWN)
        self._dropped = 0
        self._thread = threading.Thread(target=self._put_on_terminal, name="terminal", daemon=True)
        self._thread.start()

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def add(self, name: str, text: str) -> None:
        """One line of a process, shown and kept; control characters, which could drive a terminal, are escaped."""
        text = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text[:LONGEST_LINE])
        with contextlib.suppress(OSError):  # a full disk is no reason to stop serving
            self._keep(self.file(name), text)
        try:
            self._queue.put_nowait((name, text))
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Show what is still to be shown, if the terminal takes it in time."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _keep(self, path: Path, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n".encode("utf-8", "replace")
        with path.open("ab") as file:
            if file.tell() + len(line) > self._most and file.tell():
                path.replace(path.with_suffix(".log.1"))
                with path.open("ab") as anew:
                    anew.write(line)
                return
            file.write(line)

    def _put_on_terminal(self) -> None:
        while item := self._queue.get():
            try:
                self._show(*item)
                if self._dropped and self._queue.empty():
                    dropped, self._dropped = self._dropped, 0
                    self._show("up", f"{dropped} lines were not shown here; they are in {self.folder}")
            except (OSError, ValueError):
                return  # the terminal is gone; the files are not
