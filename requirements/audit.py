"""Ask for known advisories on every locked version: `make audit`.

pip-audit asks PyPI over the network. A version without an answer is a failure here, and not a pass. The exit code is
0 without an advisory, 1 with one, and 2 if some version has no answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locks import FOLDER, read_lock

REMEDY = (
    "ask again with a network; for a mirror of OSV: make audit ARGS='--vulnerability-service osv --osv-url ADDRESS'"
)


def main(arguments: Sequence[str]) -> int:
    wanted = {(found.name, found.version) for path in sorted(FOLDER.glob("*.lock")) for found in read_lock(path)}
    answers = []
    with tempfile.TemporaryDirectory() as scratch:
        for file in write_requirements(Path(scratch), wanted):
            command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
            command += ["--format", "json", "--requirement", str(file), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            try:
                answers += json.loads(done.stdout)["dependencies"]
            except ValueError:
                last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
                print(f"audit: stopped, because pip-audit failed: {last}\n{REMEDY}")
                return 2
    text, code = rate(answers, wanted)
    print(text)
    return code


def write_requirements(folder: Path, wanted: set[tuple[str, str]]) -> list[Path]:
    """Write files for pip-audit, with one version of a package in each.

    They have no markers, because pip-audit would skip the packages of other systems.
    """
    files: list[dict[str, str]] = []
    for name, version in sorted(wanted):
        for file in files:
            if name not in file:
                file[name] = version
                break
        else:
            files.append({name: version})
    paths = [folder / f"{number}.txt" for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_text("".join(f"{name}=={version}\n" for name, version in file.items()))
    return paths


def rate(answers: Sequence[Mapping[str, Any]], wanted: set[tuple[str, str]]) -> tuple[str, int]:
    """Return the text and the exit code for pip-audit's answers."""
    answered = {(each["name"], each["version"]): each["vulns"] for each in answers if "vulns" in each}
    missing = sorted(wanted - answered.keys())
    lines = []
    for name, version in sorted(wanted & answered.keys()):
        for each in answered[name, version]:
            fixed = f"fixed in {', '.join(each['fix_versions'])}" if each["fix_versions"] else "not fixed yet"
            lines.append(f"{name} {version}: {' '.join([each['id'], *each['aliases']])}, {fixed}")
    if lines:
        lines.append("to fix them: make lock, make test")
    if missing:
        names = ", ".join(" ".join(each) for each in missing[:5]) + (", ..." if len(missing) > 5 else "")
        lines.append(f"audit: {len(missing)} of {len(wanted)} locked versions had no answer: {names}\n{REMEDY}")
        return "\n".join(lines), 2
    if not lines:
        lines.append(f"audit: no known advisory for {len(wanted)} locked versions")
        return lines[0], 0
    return "\n".join(lines), 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
