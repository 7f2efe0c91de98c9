"""The table in docs/architecture.md is how the code is layered."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "gleaner"
ROWS = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
LAYERS = {name: {part.strip() for part in foreign.split(",")} - {""} for name, foreign in ROWS}
ENTRY = {"__init__", "__main__"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported at the top) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            top -= {id(node) for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", id(node) in top))
    return found


def test_every_file_has_its_row():
    assert sorted(LAYERS) == sorted({path.stem for path in SOURCE.glob("*.py")} - ENTRY)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_rows_above_it(name):
    above = list(LAYERS)[: list(LAYERS).index(name)]
    own = {module.split(".")[1] for module, _ in imports(SOURCE / f"{name}.py") if module.startswith("gleaner.")}

    assert own <= set(above)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_no_foreign_package_but_those_in_its_row(name):
    modules = {module.split(".")[0] for module, _ in imports(SOURCE / f"{name}.py")}

    assert LAYERS[name] == modules - set(sys.stdlib_module_names) - {"gleaner"}


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"cli", "programs", "launch"}))
def test_only_commands_and_programs_import_inside_functions(name):
    assert [] == [module for module, at_top in imports(SOURCE / f"{name}.py") if not at_top]


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"settings"}))
def test_only_settings_reads_the_environment(name):
    text = (SOURCE / f"{name}.py").read_text()

    assert not re.search(r"\bos\.(environ|getenv)\b", text)


def test_the_resident_trainer_loads_nothing_of_training_nor_the_engine():
    modules = "cli, logs, metrics, server, settings, trainer"
    code = f"import sys; from gleaner import {modules}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )

    assert "gleaner.trainer" in loaded
    assert set() == loaded & {"mlflow", "sklearn", "pandas", "scipy", "onnx", "onnxruntime", "matplotlib"}


def test_serving_loads_nothing_of_training():
    modules = "app, server, slots, metrics, settings, doctor, client"
    code = f"import sys; from gleaner import {modules}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )

    assert set() == loaded & {"pandas", "polars", "scipy", "sklearn", "pyarrow", "mlflow", "onnx", "matplotlib"}
    assert set() == loaded & {f"gleaner.{name}" for name in ("training", "candidates", "export", "plots", "tracking")}
