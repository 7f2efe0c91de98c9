"""Whole files and folders, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

_SCRATCH = ".scratch-"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `folder` at the end.

    By then its files are on the disk. If the block raises, nothing is left. Only files directly in the folder are
    synced.
    Raises FileExistsError if `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=".half-", dir=folder.parent))
    try:
        yield half
        half.chmod(0o755)
        for path in half.iterdir():
            sync(path)
        sync(half)
        half.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def scratch_folder(parent: Path, *, prefix: str = _SCRATCH) -> Iterator[Path]:
    """Give a temporary folder in `parent` that is removed at the end.

    Folders that killed processes left there are removed first.
    prefix: the start of the folder's name, and of those that may be removed.
    """
    make_private(parent)
    with _locked_folder(parent):
        for left in parent.glob(f"{prefix}*"):
            _remove_unused(left)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        used = os.open(folder, os.O_RDONLY)
        try_lock(used)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(used)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libraries put their temporary files into a folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unused(folder: Path) -> None:
    """Remove a scratch folder unless its process still runs."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if try_lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def make_private(folder: Path) -> None:
    """Make a folder, and its missing parents, for this user alone.

    Folders that exist keep their permissions.
    """
    for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)


def open_private(path: str, flags: int) -> int:
    """Open a file; a new one is for this user alone."""
    return os.open(path, flags, 0o600)


def replace_file(path: Path, content: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file; readers see the old content or the new.

    mode: the file's permissions, whatever the umask.
    durable: wait until the content and the name are on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".half-{secrets.token_hex(8)}")
    try:
        with open(half, "xb", opener=open_private) as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        half.chmod(mode)
        half.rename(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def mark_of(path: Path) -> tuple[int, int, int] | None:
    """Return a mark that changes with the file; None without a file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Give an open file that gets its name at the end.

    By then its content is on the disk.
    If the block raises, nothing is left. If the process is killed, the next one uses the rest.
    mode: the file's permissions, from the start.
    Raises BlockingIOError if another process writes this file.
    """
    half = path.with_name(f".{path.name}.half")
    file = open_locked(half, mode=0o600)
    try:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"another user has put {half.name} there", str(half))
        os.fchmod(file.fileno(), mode)
        yield file
        file.flush()
        os.fsync(file.fileno())
        half.rename(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):  # from bytes that a full disk did not take
            file.close()
    sync(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock file `path` and hold it.

    The lock ends with its process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file; return whether it could be locked.

    It cannot while another process holds the lock. The lock ends when the last process that holds the descriptor closes
    it.
    """
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def open_locked(path: Path, *, mode: int = 0o666) -> BinaryIO:
    """Open an empty file, locked until it is closed.

    mode: the permissions of a new file, less those that the umask takes.

    A file that a killed process left under this name is emptied and used. A link is not followed.
    Raises BlockingIOError if another process holds the file, OSError if it cannot be opened.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            if not try_lock(handle):
                raise BlockingIOError(path)
            # The process that held the lock may have renamed or removed the file since this one opened it.
            if _is_still(handle, path):
                os.ftruncate(handle, 0)
                return os.fdopen(handle, "wb")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_still(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False
