"""The restoring of a backup into an empty place.

Every file is verified in a scratch folder beside its place. Only then are the files moved, so a damaged backup changes
nothing. Nothing is ever written outside the given folders, whatever the settings in the backup name.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gleaner.backup.archive import DATA, SETTINGS, STATE, Archive, Manifest, Member
from gleaner.backup.create import SERVER_ARTIFACTS
from gleaner.backup.locations import DATABASE
from gleaner.errors import BadBackup, Refused, Unwritable, environment_name
from gleaner.machine.files import make_private, open_private, scratch_folder, sync
from gleaner.settings.file import FILE, is_state_in_environment
from gleaner.settings.load import load_settings
from gleaner.settings.secret_files import secret_files
from gleaner.settings.sections import ARTIFACTS, Settings

OUTSIDE = "outside"  # files whose settings name a place outside the folder

_DATA = "training.data"
_SCRATCH = ".gleaner-restore-"
_LARGEST_SETTINGS = 10_000_000
_MAY_EXIST = frozenset({"lost+found"})


@dataclass(frozen=True, slots=True)
class Restored:
    """A finished restoring.

    settings: with the new paths.
    outside: the files whose settings name a place outside the folder, by the setting.
    """

    manifest: Manifest
    settings: Settings
    outside: dict[str, Path]


@dataclass(slots=True)
class _Plan:
    """The place of each member.

    roots: the folders that get files, in the order of the last moves.
    """

    settings: Settings
    roots: list[Path] = field(default_factory=list)
    targets: dict[str, tuple[Path, PurePosixPath]] = field(default_factory=dict)
    outside: dict[str, Path] = field(default_factory=dict)


def restore_folder(file: BinaryIO, name: str, folder: Path, *, mlflow: Path | None = None) -> Restored:
    """Restore settings, state, data and secrets into a folder.

    A new folder is for this user alone.
    name: the backup's, for errors.
    mlflow: the folder for the database and files of an MLflow server; by default they go into the state folder.
    Raises BadBackup, Refused, Unwritable, BadSetting.
    """
    archive = Archive(file, name)
    members = archive.members()
    first, member, content = next(members, ("", Member(0, "", 0), iter(())))
    if not first.startswith(f"{SETTINGS}/") or member.size > _LARGEST_SETTINGS:
        raise BadBackup(name, "its first file is not the settings file; use another copy")
    kept = b"".join(content)
    for path in (folder / FILE, folder / PurePosixPath(first).name):
        if path.exists():
            fix = "restore into another folder, or only the state, with --state-only"
            raise Refused(f"{path} exists, and a backup replaces nothing; {fix}")
    with ExitStack() as scratch:
        scratches = {folder: _open_scratch(scratch, folder)}
        path = scratches[folder] / PurePosixPath(first).name
        _write(path, member, [kept])
        settings = load_settings(path)
        settings = settings.model_copy(update={"file": folder / path.name})
        plan = _plan(archive.manifest, settings, folder, mlflow)
        return _finish(archive, members, plan, scratch, scratches)


def restore_state(file: BinaryIO, name: str, settings: Settings, *, mlflow: Path | None = None) -> Restored:
    """Restore the state of a backup for settings that are here.

    The backup's settings, data and secrets are not restored. Arguments and errors are those of `restore_folder`.
    """
    archive = Archive(file, name)
    model = archive.manifest.model
    if model != settings.model.name:
        found = f"it is of the model {model!r}, but model.name in {settings.file} is {settings.model.name!r}"
        raise BadBackup(name, f"{found}; set model.name, or restore into another folder")
    plan = _plan(archive.manifest, settings, None, mlflow)
    with ExitStack() as scratch:
        return _finish(archive, archive.members(), plan, scratch, {})


def _plan(manifest: Manifest, settings: Settings, folder: Path | None, mlflow: Path | None) -> _Plan:
    """Choose the place of each member. Raises Refused for a taken one."""
    _check_empty(settings, folder, mlflow)
    plan = _Plan(settings)
    for name in manifest.files:
        top, _, rest = name.partition("/")
        if top == STATE:
            plan.targets[name] = _place_state(rest, settings, folder, mlflow)
        elif folder and top == SETTINGS:
            plan.targets[name] = (folder, PurePosixPath(settings.file.name))
        elif folder:
            setting = _DATA if top == DATA else rest
            path = _named_path(setting, settings)
            if path is None:
                path = PurePosixPath(OUTSIDE, rest)
                plan.outside[setting] = folder / path
            plan.targets[name] = (folder, path)
    for root, path in plan.targets.values():
        if (root / path).exists():
            raise Refused(f"{root / path} exists, and a backup replaces nothing; restore into another folder")
    plan.roots = sorted({root for root, _ in plan.targets.values()}, key=lambda root: root == folder)
    return plan


def _check_empty(settings: Settings, folder: Path | None, mlflow: Path | None) -> None:
    """Raise Refused for a state outside the folder, or a used one."""
    if folder and not _is_inside(settings.paths.state) and not is_state_in_environment():
        found = f"paths.state in the backup is {str(settings.paths.state)!r}, outside {folder}"
        raise Refused(f"{found}; set {environment_name('paths.state')} to the folder for the state")
    if entries := _list_entries(settings.state):
        fix = "move it away, or restore into another folder"
        raise Refused(f"{settings.state} holds {', '.join(entries[:3])} already; {fix}, as a backup replaces nothing")
    for taken in (DATABASE, SERVER_ARTIFACTS):
        if mlflow and ((mlflow / taken).is_file() or _list_entries(mlflow / taken)):
            raise Refused(f"{mlflow / taken} exists, and a backup replaces nothing; move it away")


def _place_state(rest: str, settings: Settings, folder: Path | None, mlflow: Path | None) -> tuple[Path, PurePosixPath]:
    """Return the root and the path of a file of the state."""
    first, _, below = rest.partition("/")
    if mlflow and first in {DATABASE, ARTIFACTS}:
        return mlflow, PurePosixPath(DATABASE) if first == DATABASE else PurePosixPath(SERVER_ARTIFACTS, below)
    if folder and _is_inside(settings.paths.state):
        return folder, PurePosixPath(settings.paths.state, rest)
    return settings.state, PurePosixPath(rest)


def _named_path(setting: str, settings: Settings) -> PurePosixPath | None:
    """Return a setting's path; None for one outside the folder."""
    path = settings.data if setting == _DATA else secret_files(settings).get(setting)
    if path is None or not path.is_relative_to(settings.file.parent):
        return None
    below = path.relative_to(settings.file.parent)
    is_state = path.is_relative_to(settings.state)  # where a file could pose as a run file
    return PurePosixPath(below) if _is_inside(below) and not is_state else None


def _is_inside(path: Path) -> bool:
    """Return whether a path stays below the folder that it starts at."""
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _list_entries(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name not in _MAY_EXIST and not p.name.startswith(_SCRATCH))


def _open_scratch(stack: ExitStack, root: Path) -> Path:
    """Make a scratch folder in a root, or beside a missing one."""
    base = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    try:
        return stack.enter_context(scratch_folder(base, prefix=_SCRATCH))
    except OSError as e:
        raise Unwritable(base, f"cannot be written: {e.strerror or e}; restore into another folder") from e


def _finish(
    archive: Archive,
    members: Iterator[tuple[str, Member, Iterator[bytes]]],
    plan: _Plan,
    stack: ExitStack,
    scratches: dict[Path, Path],
) -> Restored:
    """Unpack and verify the other members, then move everything."""
    for root in plan.roots:
        if root not in scratches:
            scratches[root] = _open_scratch(stack, root)
    total = sum(member.size for member in archive.manifest.files.values())
    for root in plan.roots:
        free = shutil.disk_usage(scratches[root]).free
        if total > free:
            raise Refused(f"the backup has {total:,} bytes, and {free:,} are free for {root}; free some space")
    for name, member, content in members:
        if name in plan.targets:
            root, path = plan.targets[name]
            _write(scratches[root] / path, member, content)
        else:
            for _ in content:
                pass
    _move_all(plan, scratches)
    return Restored(archive.manifest, plan.settings, plan.outside)


def _write(path: Path, member: Member, content: Iterable[bytes]) -> None:
    try:
        make_private(path.parent)
        with open(path, "xb", opener=open_private) as file:
            file.writelines(content)
            file.flush()
            os.fchmod(file.fileno(), member.mode)
            os.fsync(file.fileno())
    except OSError as e:
        raise Unwritable(path, f"cannot be written: {e.strerror or e}") from e


def _move_all(plan: _Plan, scratches: dict[Path, Path]) -> None:
    """Move everything to its place; move it back if a step fails."""
    moved: list[tuple[Path, Path]] = []
    try:
        for root in plan.roots:
            if root.exists():
                last = plan.settings.file.name
                for path in sorted(scratches[root].iterdir(), key=lambda path: path.name == last):
                    _move(path, root / path.name, moved)
            else:
                root.parent.mkdir(parents=True, exist_ok=True)
                _move(scratches[root], root, moved)
            sync(root)
            sync(root.parent)
    except OSError as e:
        for source, target in reversed(moved):
            target.rename(source)
        raise Unwritable(e.filename or "the folder", f"cannot be written: {e.strerror or e}") from e


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    if source.is_dir() and target.is_dir() and not target.is_symlink():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name, moved)
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists already, or is a link", str(target))
    source.rename(target)
    moved.append((source, target))
