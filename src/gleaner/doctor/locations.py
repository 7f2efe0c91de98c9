"""The doctor's look at the locations of MLflow's files, and the repair."""

from __future__ import annotations

from collections.abc import Iterator

from gleaner.backup.locations import DATABASE, Absolute, bring_files, find_absolute, make_portable
from gleaner.doctor.finding import Finding
from gleaner.errors import BadStore
from gleaner.settings.sections import ARTIFACTS, Settings

_WHAT = "mlflow database"
_FIX = "gleaner doctor --fix"


def examine_locations(settings: Settings) -> Iterator[Finding]:
    """Check that MLflow's database can move with its folder."""
    database, files = settings.state / DATABASE, settings.state.absolute() / ARTIFACTS
    if settings.tracking.uri or not database.exists():
        return
    try:
        found = find_absolute(database)
    except BadStore as e:
        yield Finding("FAIL", _WHAT, str(e), "move it away, or restore a backup with `gleaner restore`")
        return
    elsewhere = [location for location in found if location.root != files]
    if elsewhere:
        roots = ", ".join(map(str, sorted({location.root for location in elsewhere})))
        detail = f"{database} points at files in {roots}, {_explain(elsewhere)}"
        yield Finding("FAIL", _WHAT, detail, _FIX)
    elif found:
        detail = f"{database} has {len(found)} locations that name {files}, and a moved folder would lose them"
        yield Finding("WARN", _WHAT, detail, _FIX)
    else:
        yield Finding("OK", _WHAT, f"{database} names no folder, so it can move")


def fix_locations(settings: Settings) -> str:
    """Record locations without a folder; return a line on it.

    The line is empty if there was nothing to do.
    Files in another folder are copied here. Nothing is removed. Raises BadStore.
    """
    database, files = settings.state / DATABASE, settings.state.absolute() / ARTIFACTS
    if settings.tracking.uri or not database.exists() or not (found := find_absolute(database)):
        return ""
    left = make_portable(database, files)
    bring_files(left, files)
    make_portable(database, files)
    copied = f", {len({location.location for location in left})} of them with files copied here" if left else ""
    return f"{_WHAT}: {len(found)} locations recorded without a folder{copied}"


def _explain(elsewhere: list[Absolute]) -> str:
    return "another folder" if any(location.root.exists() for location in elsewhere) else "which is not here"
