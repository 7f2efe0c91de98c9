"""Whole files, whole folders and locks, with real processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from started import miss

from gleaner.machine.files import (
    locked,
    make_private,
    open_locked,
    replace_file,
    scratch_folder,
    sync,
    temporary_files_in,
    try_lock,
    whole_file,
    whole_folder,
)

WRITE = """
import sys
from pathlib import Path
from gleaner.machine.files import replace_file
path = Path(sys.argv[1])
for i in range(300):
    replace_file(path, b"%d " % i * 20_000, durable=False)
"""

HOLD = """
import sys
from pathlib import Path
from gleaner.machine.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

SCRATCH = """
import sys
from pathlib import Path
from gleaner.machine.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "plot.png").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of what is synced and renamed, in order."""
    made: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def count_sync(handle: int) -> None:
        made.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def count_rename(path: Path, target: Path) -> Path:
        made.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", count_sync)
    monkeypatch.setattr(Path, "rename", count_rename)
    return made


def test_a_reader_sees_a_whole_file_while_another_process_replaces_it(tmp_path):
    path, seen = tmp_path / "file", set()
    replace_file(path, b"0 " * 20_000)
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(path)])
    while writer.poll() is None:
        pieces = path.read_bytes().split()
        assert (20_000, 1) == (len(pieces), len(set(pieces)))
        seen.add(pieces[0])

    assert 0 == writer.returncode
    assert len(seen) > 1
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, calls):
    replace_file(tmp_path / "file", b"content")

    assert ["sync file", "rename", "sync folder"] == calls


def test_the_synced_files_are_those_that_stay_with_all_of_their_content(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def look(handle: int) -> None:
        about = os.fstat(handle)
        synced.add((about.st_ino, about.st_size))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    replace_file(tmp_path / "file", b"content")
    with whole_folder(tmp_path / "folder") as half:
        (half / "a").write_bytes(b"more content")

    for path in (tmp_path / "file", tmp_path / "folder" / "a"):
        about = path.stat()
        assert (about.st_ino, about.st_size) in synced


def test_a_file_that_need_not_last_is_not_synced(tmp_path, calls):
    replace_file(tmp_path / "file", b"content", durable=False)

    assert ["rename"] == calls
    assert b"content" == (tmp_path / "file").read_bytes()


def test_a_folder_and_its_files_are_on_the_disk_before_its_name(tmp_path, calls):
    with whole_folder(tmp_path / "folder") as half:
        for name in ("a", "b"):
            (half / name).write_bytes(b"content")

    assert ["sync file", "sync file", "sync folder", "rename", "sync folder"] == calls


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_file_has_the_mode_that_was_asked_for_whatever_the_umask(tmp_path, mode, umask):
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "file", b"content", mode=mode)
    finally:
        os.umask(before)

    assert mode == stat.S_IMODE((tmp_path / "file").stat().st_mode)


def test_missing_folders_of_a_private_one_are_private_and_others_stay(tmp_path):
    tmp_path.chmod(0o755)
    before = os.umask(0o000)
    try:
        make_private(tmp_path / "some" / "folder")
    finally:
        os.umask(before)

    folders = tmp_path, tmp_path / "some", tmp_path / "some" / "folder"
    assert [0o755, 0o700, 0o700] == [stat.S_IMODE(folder.stat().st_mode) for folder in folders]


def test_missing_folders_are_made(tmp_path):
    replace_file(tmp_path / "some" / "folder" / "file", b"content")

    assert b"content" == (tmp_path / "some" / "folder" / "file").read_bytes()


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    replace_file(tmp_path / "file", b"old")

    def fail(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        replace_file(tmp_path / "file", b"new")

    assert ["file"] == [path.name for path in tmp_path.iterdir()]
    assert b"old" == (tmp_path / "file").read_bytes()


def test_an_error_in_the_block_leaves_no_folder(tmp_path):
    def write_half() -> None:
        with whole_folder(tmp_path / "new") as half:
            (half / "first").write_bytes(b"written")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_half()

    assert [] == [path.name for path in tmp_path.iterdir()]


def test_an_existing_folder_is_not_replaced(tmp_path):
    (tmp_path / "there").mkdir()

    with pytest.raises(FileExistsError), whole_folder(tmp_path / "there"):
        pass

    assert ["there"] == [path.name for path in tmp_path.iterdir()]


def test_a_folder_is_readable_by_other_users(tmp_path):
    with whole_folder(tmp_path / "folder"):
        pass

    assert 0o755 == stat.S_IMODE((tmp_path / "folder").stat().st_mode)


def test_a_lock_excludes_other_processes_and_ends_with_its_process(tmp_path):
    path = tmp_path / "some" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert "held\n" == holder.stdout.readline()
    with path.open("a") as lock:
        assert not try_lock(lock)
        assert not try_lock(lock.fileno())

        holder.kill()
        holder.wait()

        assert try_lock(lock)
    for stream in (holder.stdin, holder.stdout):
        assert stream
        stream.close()


def test_a_scratch_folder_of_a_killed_process_is_removed_and_one_in_use_stays(tmp_path):
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", SCRATCH, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    killed, used = (Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout)
    holders[0].kill()
    holders[0].wait()

    with scratch_folder(tmp_path) as own:
        assert {used, own} == set(tmp_path.iterdir())

    assert not killed.exists()
    assert [used / "plot.png"] == list(used.iterdir())
    assert 0o700 == stat.S_IMODE(used.stat().st_mode)
    holders[1].communicate(timeout=60)
    assert 0 == holders[1].returncode
    assert [] == list(tmp_path.iterdir())
    holders[0].communicate()


def test_temporary_files_of_libraries_are_in_the_folder_meanwhile(tmp_path):
    before = tempfile.gettempdir()

    with temporary_files_in(tmp_path), tempfile.NamedTemporaryFile() as file:
        assert tmp_path == Path(file.name).parent

    assert before == tempfile.gettempdir()


def test_a_second_holder_waits_for_the_first(tmp_path):
    order, waiting = [], threading.Event()

    def second() -> None:
        waiting.set()
        with locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "lock"):
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)

    assert ["first", "second"] == order


def test_a_locked_file_is_refused_to_a_second_writer_and_emptied_for_the_next(tmp_path):
    path = tmp_path / "half"
    with open_locked(path) as file:
        file.write(b"left by a process that was killed")
        with pytest.raises(BlockingIOError):
            open_locked(path)

    open_locked(path).close()

    assert b"" == path.read_bytes()


def test_a_locked_file_that_was_renamed_meanwhile_is_not_written(tmp_path, monkeypatch):
    path, lock = tmp_path / "half", try_lock
    renames = iter([lambda: path.rename(tmp_path / "result"), lambda: None])

    def lock_late(handle: int) -> bool:
        next(renames)()  # between the opening and the locking
        return lock(handle)

    monkeypatch.setattr("gleaner.machine.files.try_lock", lock_late)
    path.write_bytes(b"finished")
    with open_locked(path) as file:
        file.write(b"new")

    assert b"finished" == (tmp_path / "result").read_bytes()
    assert b"new" == path.read_bytes()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"content")
    (tmp_path / "half").symlink_to("precious")

    with pytest.raises(OSError):  # noqa: PT011  # ELOOP, worded by the system
        open_locked(tmp_path / "half")

    assert b"content" == (tmp_path / "precious").read_bytes()


def test_syncing_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")


# Whole files that are written in pieces


def test_a_whole_file_has_its_name_only_at_the_end_and_its_mode_from_the_start(tmp_path):
    path = tmp_path / "b.tar.gz"

    with whole_file(path, mode=0o600) as file:
        file.write(b"half")
        assert not path.exists()
        assert 0o600 == stat.S_IMODE((tmp_path / ".b.tar.gz.half").stat().st_mode)
        with pytest.raises(BlockingIOError), whole_file(path):
            pass
        file.write(b" and whole")

    assert ["b.tar.gz"] == [each.name for each in tmp_path.iterdir()]
    assert (b"half and whole", 0o600) == (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))


def test_a_whole_file_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "b").write_text("before")

    def fail() -> None:
        with whole_file(tmp_path / "b") as file:
            file.write(b"after")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert ["b"] == [each.name for each in tmp_path.iterdir()]
    assert "before" == (tmp_path / "b").read_text()


def test_what_a_killed_process_left_of_a_whole_file_is_used(tmp_path):
    (tmp_path / ".b.half").write_bytes(b"much more than the next one")

    with whole_file(tmp_path / "b") as file:
        file.write(b"new")

    assert b"new" == (tmp_path / "b").read_bytes()


def test_a_file_that_another_user_put_there_gets_no_content(tmp_path):
    if os.geteuid() != 0:
        miss("only root can give a file to another user")
    (tmp_path / ".b.half").touch()
    os.chown(tmp_path / ".b.half", 12345, 12345)

    with pytest.raises(PermissionError, match="another user has put"), whole_file(tmp_path / "b") as file:
        file.write(b"secret")

    assert not (tmp_path / "b").exists()
