"""The locked packages of requirements/*.lock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
PROJECT = "gleaner-tabular"

_PACKAGE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)(?: ; (?P<marker>.*?))?(?: \\)?"
)
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")
_VIA = re.compile(r"    #(?: via|  )(?: ([a-z0-9][a-z0-9._-]*)(?: \(.*\))?)?")


class Package(NamedTuple):
    """A locked version.

    marker: the environments that install it; empty for all.
    hashes: the SHA-256 of each file that may be installed.
    via: the packages that need it, the project among them.
    """

    name: str
    version: str
    marker: str
    hashes: list[str]
    via: list[str]


def read_lock(path: Path) -> list[Package]:
    """Return the packages of a lock. Raises ValueError for a line that `make lock` does not write."""
    packages: list[Package] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("#"):
            continue
        if found := _PACKAGE.fullmatch(line):
            packages.append(Package(found["name"], found["version"], found["marker"] or "", [], []))
        elif packages and (found := _HASH.fullmatch(line)):
            packages[-1].hashes.append(found[1])
        elif packages and (found := _VIA.fullmatch(line)):
            packages[-1].via.extend(filter(None, [found[1]]))
        else:
            raise ValueError(f"{path}, line {number}: wanted a package with its hashes, got {line!r}; run `make lock`")
    return packages
