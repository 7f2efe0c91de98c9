"""The command group: imports, its table, completion, reference and missing extras."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from projects import ROOT, SETTINGS
from started import gleaner

from gleaner.cli import main as cli

SOURCE = ROOT / "src" / "gleaner"
HEAVY = {"mlflow", "sklearn", "flask", "pandas", "scipy", "onnxruntime", "numpy", "pydantic", "rich", "httpx"}


def groups() -> Iterator[tuple[click.Context, click.Group]]:
    root = click.Context(cli.gleaner, info_name="gleaner")
    yield root, cli.gleaner
    for name, group in cli.gleaner.commands.items():
        assert isinstance(group, click.Group)
        yield click.Context(group, info_name=name, parent=root), group


def modules_after(*arguments: str, folder: Path) -> tuple[int, set[str]]:
    """Return a command's exit code and the modules that it loaded."""
    code = f"""
import sys
from gleaner.__main__ import main
sys.argv = ["gleaner", *{arguments!r}]
try:
    main()
except SystemExit as e:
    print("loaded", *sys.modules, file=sys.stderr)
    sys.exit(e.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["models", "--help"], 0), (["--version"], 0), (["status"], 1), (["sevre"], 2)],
)
def test_a_quick_command_imports_nothing_heavy(tmp_path, arguments, code):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)

    exit_code, loaded = modules_after(*arguments, folder=tmp_path)

    assert code == exit_code
    assert "gleaner.cli.main" in loaded
    assert set() == loaded & HEAVY


def test_the_table_has_the_short_help_of_every_command():
    for context, group in groups():
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command.name == name
            assert command.get_short_help_str(100).rstrip(".") == group.short_help_of(name)
            assert len(group.short_help_of(name)) <= 65, "longer ones wrap on a terminal of 80 columns"


def test_every_file_of_commands_is_in_the_table_and_every_command_has_its_file():
    shared = {"__init__", "main", "lazy", "options", "extras", "versions"}
    tables = [group.table for _, group in groups()]
    modules = {target.partition(":")[0].rpartition(".")[2] for table in tables for target, _ in table.values()}

    assert {path.stem for path in (SOURCE / "cli").glob("*.py")} - shared == modules


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["sevre"], "did you mean 'serve'?"),
        (["models", "pomote"], "did you mean 'promote'?"),
        (["x"], "known: 'backup', 'check',"),
    ],
)
def test_a_wrong_command_exits_2_and_names_the_nearest(tmp_path, arguments, suggestion):
    done = gleaner(*arguments, folder=tmp_path)

    assert 2 == done.returncode
    assert f"Error: No such command '{arguments[-1]}'; {suggestion}" in done.stderr


# Completion


COMPLETIONS = [
    ("gleaner mo", ["models"]),
    ("gleaner s", ["score", "serve", "status"]),
    ("gleaner models pro", ["promote"]),
    ("gleaner config render --for ", ["compose", "local"]),
    ("gleaner score --fo", ["--format"]),
]


@pytest.mark.parametrize(("line", "expected"), COMPLETIONS, ids=[line for line, _ in COMPLETIONS])
def test_bash_completes_a_command_line(tmp_path, line, expected):
    script = """
eval "$(_GLEANER_COMPLETE=bash_source gleaner)"
IFS=' ' read -ra COMP_WORDS <<< "$1"; [[ $1 == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
"$(complete -p gleaner | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" gleaner
printf '%s\\n' "${COMPREPLY[@]}"
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ("", expected) == (done.stderr, done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_page_shows_the_line_of_every_shell(tmp_path, shell):
    done = gleaner(folder=tmp_path, _GLEANER_COMPLETE=f"{shell}_source")

    assert f"_GLEANER_COMPLETE={shell}_complete" in done.stdout
    assert f"_GLEANER_COMPLETE={shell}_source gleaner" in (ROOT / "docs" / "cli.md").read_text()


def test_completion_imports_no_command(tmp_path):
    code = """
import atexit, sys
from gleaner.cli.main import main
atexit.register(lambda: print(*sys.modules))
main()
"""
    variables = {"_GLEANER_COMPLETE": "bash_complete", "COMP_WORDS": "gleaner ", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )

    assert "plain,train" in done.stdout
    assert set() == HEAVY & set(done.stdout.split())


# The page of commands


def test_the_page_of_commands_is_fresh():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)

    assert make_cli.page() == (ROOT / "docs" / "cli.md").read_text(), "run `make docs`"


# Missing extras


@pytest.mark.parametrize(
    ("extra", "module", "arguments"),
    [
        ("train", "sklearn", ["train", "--metrics-port", "0"]),
        ("train", "mlflow", ["train", "--metrics-port", "0"]),
        ("monitoring", "yaml", ["config", "render", "--for", "local"]),
        ("parquet", "pyarrow", ["score", "made.csv", "out.parquet"]),
    ],
)
def test_a_missing_extra_ends_a_command_in_one_line(project, extra, module, arguments):
    code = f"import sys; sys.modules[{module!r}] = None; from gleaner.cli.main import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {module}")
    assert "is not installed" in line


@pytest.mark.parametrize("command", ["train", "score", "up", "drill", "config render"])
def test_without_any_extra_a_command_still_explains_itself(tmp_path, command):
    hidden = ["mlflow", "sklearn", "onnx", "matplotlib", "scipy", "yaml", "grafana_foundation_sdk", "pyarrow"]
    arguments = [*command.split(), "--help"]
    code = f"import sys; sys.modules |= dict.fromkeys({hidden}); from gleaner.cli.main import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
