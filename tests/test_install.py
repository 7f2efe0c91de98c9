"""The built distribution, and the printed commands that install an extra."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from projects import ROOT

from gleaner import __version__
from gleaner.errors import DISTRIBUTION, MissingExtra, explain_install

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_distribution_has_a_name_of_its_own_and_the_command_keeps_the_short_one():
    assert DISTRIBUTION == PROJECT["name"] != "gleaner"
    assert ["gleaner"] == [*PROJECT["scripts"]]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_installs_every_requirement_of_the_extra_into_this_python(extra, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    python, *command = shlex.split(explain_install(extra))

    assert (sys.executable, ["-m", "pip", "install"]) == (python, command[:3])
    assert sorted(names(EXTRAS[extra])) == sorted(names(command[3:]))
    assert all(re.search(r"[<>]", requirement) for requirement in command[3:])


def test_the_command_is_short_where_python_on_the_path_is_this_one(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    assert "python -m pip install 'pyarrow>=20'" == explain_install("parquet")


def test_without_pip_the_command_is_one_of_uv(monkeypatch, tmp_path):
    monkeypatch.setattr("gleaner.errors.find_spec", lambda name: None)
    (tmp_path / "uv").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert f"uv pip install --python {sys.executable} 'pyarrow>=20'" == explain_install("parquet")


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_image_can_be_built_with_each_extra(extra, monkeypatch, tmp_path):
    monkeypatch.setattr("gleaner.errors.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = shlex.split(explain_install(extra).partition(" (")[0])
    (part,) = [word.removeprefix("PART=") for word in command if word.startswith("PART=")]
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / f"{part}.lock").read_text(), re.MULTILINE)

    assert part == {"signing": "serve"}.get(extra, extra)  # every image has `signing`
    assert ["docker", "build", "--build-arg", f"PART={part}", "--file", "deploy/Dockerfile", "."] == command
    assert "COPY requirements/${PART}.lock" in (ROOT / "deploy" / "Dockerfile").read_text()
    assert names([*PROJECT["dependencies"], *EXTRAS[extra]]) <= set(pinned)


def test_without_its_metadata_gleaner_has_to_be_installed_first(monkeypatch):
    monkeypatch.setattr("gleaner.errors.DISTRIBUTION", "no-such-distribution")

    assert "install no-such-distribution first, from a clone: make venv" == explain_install("train")


def test_a_missing_extra_names_the_module_the_extra_and_the_command(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    assert ("pyarrow is not installed; to install the extra 'parquet': python -m pip install 'pyarrow>=20'") == str(
        MissingExtra("parquet", "pyarrow")
    )


def test_the_wheel_has_the_version_the_help_and_the_command_for_an_extra(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist"]
    run(*build, folder=ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert f"gleaner_tabular-{__version__}-py3-none-any.whl" == wheel.name
    home = tmp_path / "home"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", home, wheel)

    begin = f"import sys; sys.path.insert(0, {str(home)!r}); sys.modules['yaml'] = None; import gleaner.__main__ as g; "
    run(sys.executable, "-c", begin + f"assert g.__file__.startswith({str(home)!r})")
    program = [sys.executable, "-c", begin + "g.main()"]
    (tmp_path / "routes.csv").write_text("a,y\n1,2\n2,3\n")
    assert f"gleaner, version {__version__}\n" == run(*program, "--version").stdout
    assert "Commands:" in run(*program, "--help").stdout
    run(*program, "init", "routes.csv", "--target", "y", folder=tmp_path)
    failed = run(*program, "config", "render", "--for", "local", "--out", "out", folder=tmp_path, code=1)

    assert f"error: yaml is not installed; to install the extra 'monitoring': {explain_install('monitoring')}\n" == (
        failed.stderr
    )


def names(requirements: list[str]) -> set[str]:
    """The names of requirements, without their bounds."""
    return {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in requirements}


def run(*command: object, folder=None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that has to end with an exit code."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert code == done.returncode, done.stdout + done.stderr
    return done
