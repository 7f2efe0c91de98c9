"""Output of many processes, on one terminal and in bounded files."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gleaner.machine.files import make_private, open_private
from gleaner.redaction import redact

LONGEST_LINE = 8_192
FILE_BYTES = 5_000_000
_UNSHOWN = 1_000


class Lines:
    """Log lines, accepted without waiting for the terminal or the disk.

    folder: holds NAME.log, and the older half as NAME.log.1.
    show: prints a line behind its name; it may block.
    file_bytes: the most bytes that both files of a name may have.
    """

    def __init__(self, folder: Path, show: Callable[[str, str], object], *, file_bytes: int = FILE_BYTES) -> None:
        self.folder, self._show, self._most = folder, show, file_bytes // 2
        make_private(folder)
        self._queue: queue.Queue[tuple[str, str] | None] = queue.Queue(_UNSHOWN)
        self._dropped = 0
        self._thread = threading.Thread(target=self._put_on_terminal, name="terminal", daemon=True)
        self._thread.start()

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def add(self, name: str, text: str) -> None:
        """Show and keep one line.

        Control characters, which could drive a terminal, are escaped, and secrets are hidden.
        """
        text = redact(text)[:LONGEST_LINE]
        text = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
        with contextlib.suppress(OSError):  # a full disk must not stop the service
            self._keep(self.file(name), text)
        try:
            self._queue.put_nowait((name, text))
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Show the waiting lines, if the terminal takes them within `seconds`."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _keep(self, path: Path, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n".encode("utf-8", "replace")
        size = path.stat().st_size if path.exists() else 0
        if size and size + len(line) > self._most:
            path.replace(path.with_suffix(".log.1"))
        with open(path, "ab", opener=open_private) as file:
            file.write(line)

    def _put_on_terminal(self) -> None:
        while item := self._queue.get():
            try:
                self._show(*item)
                if self._dropped and self._queue.empty():
                    dropped, self._dropped = self._dropped, 0
                    self._show("up", f"{dropped} lines were not shown here; they are in {self.folder}")
            except (OSError, ValueError):
                return  # the terminal is gone; the files stay
