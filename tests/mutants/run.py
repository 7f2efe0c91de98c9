"""The mutants of the source that no test sees.

Run by `make mutants`, in an environment of its own with cosmic-ray. Works on a copy of the checkout. The mutants are a
sample by seed over all parts of parts.toml, and their order is the sample's. So a run that ends early has looked at
some of every part.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path

from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
PYTEST = f"{PYTHON} -m pytest -q -x -n 0 -p no:cacheprovider"

# A mutant may wait for ever. Its tests end after so many times the time of the unchanged source.
TIMES, LEAST_SECONDS = 5.0, 60.0


def copy_checkout(folder: Path) -> None:
    """Copy the checkout's files, without those that Git ignores."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)


def find_mutants(name: str, modules: list[str], folder: Path) -> list[MutationSpec]:
    """Return every mutant of some modules, in the order of the source."""
    config, session = folder / f"{name}.toml", folder / f"{name}.sqlite"
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {modules}\ntimeout = 1.0\nexcluded-modules = []\ntest-command = 'false'\n"
        "[cosmic-ray.distributor]\nname = 'local'\n"
    )
    command = [str(Path(sys.executable).parent / "cosmic-ray"), "init", str(config), str(session)]
    subprocess.run(command, cwd=folder, check=True)
    with use_db(str(session), WorkDB.Mode.open) as database:
        found = [item.mutations[0] for item in database.work_items]
    return sorted(found, key=lambda m: (str(m.module_path), m.start_pos, m.operator_name, m.occurrence))


def check_unchanged(name: str, command: str) -> float:
    """Run a part's tests on the unchanged source; return their seconds."""
    began = time.monotonic()
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the tests of {name} fail on the unchanged source:\n{done.stdout[-3000:]}")
    print(f"{name}: {time.monotonic() - began:.0f} s on the unchanged source", flush=True)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=300, help="the size of the sample")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the sample")
    parser.add_argument("--minutes", type=float, default=120, help="the longest time of the whole run")
    parser.add_argument("--part", help="only this part of parts.toml")
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    parts = tomllib.loads((Path(__file__).parent / "parts.toml").read_text())["parts"]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = Path(scratch, "checkout")
        copy_checkout(folder)
        (Path(scratch) / "tmp").mkdir()
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder / "src"), "TMPDIR": str(Path(scratch) / "tmp"), "CI": "true"}
        command = [str(PYTHON), "-c", "import gleaner; print(gleaner.__file__)"]
        where = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(where).is_relative_to(folder):
            sys.exit(f"the tests would run on another source: {where}")
        commands, limits, mutants = {}, {}, []
        for part in parts:
            if asked.part in {None, part["name"]}:
                name, commands[part["name"]] = part["name"], f"{PYTEST} {part['tests']}"
                limits[name] = max(LEAST_SECONDS, TIMES * check_unchanged(name, commands[name]))
                mutants += [(name, mutant) for mutant in find_mutants(name, part["modules"], folder)]
        sample = random.Random(asked.seed).sample(mutants, min(asked.mutants, len(mutants)))
        print(f"{len(mutants)} mutants, of which {len(sample)} are tried", flush=True)
        outcomes: Counter[str] = Counter()
        for number, (name, mutant) in enumerate(sample, 1):
            if time.monotonic() > deadline:
                outcomes["not tried"] = len(sample) - number + 1
                break
            result = mutate_and_test([mutant], commands[name], limits[name])
            outcome = result.test_outcome.value if result.test_outcome else str(result.worker_outcome.value)
            outcomes[outcome] += 1
            print(f"{number} {name} {mutant.module_path}:{mutant.start_pos[0]} {outcome}", flush=True)
            if result.test_outcome != TestOutcome.KILLED:
                print(result.diff or result.output, flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main()
