"""The layers of the source: rules for the table in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "gleaner"
ROWS = re.findall(
    r"^\| `([\w/]+)` \| [^|]+ \| ([^|]*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
)
LAYERS = {name: {part.strip() for part in foreign.split(",")} - {""} for name, foreign in ROWS}
ENTRY = {"__init__", "__main__"}
FILES = sorted(str(path.relative_to(SOURCE).with_suffix("")) for path in SOURCE.rglob("*.py"))

# The order of packages. `journal` and `pages` do not exist yet; these are their places.
PACKAGES = [
    "errors",
    "redaction",
    "logs",
    "machine",
    "table",
    "settings",
    "client",
    "model",
    "journal",
    "backup",
    "running",
    "scoring",
    "training",
    "drafting",
    "serving",
    "pages",
    "watching",
    "programs",
    "doctor",
    "drills",
    "cli",
    "launch",
]
SIBLINGS = {"scoring", "training", "serving"}
HOMES = {
    "cryptography": {"model"},
    "flask": {"serving", "pages"},
    "mlflow": {"training"},
    "sklearn": {"training"},
    "pyarrow": {"scoring"},
}

# The longest file, class and function, in lines; imports inside functions must stay below their number.
LINES = {"file": 400, "class": 200, "function": 60}
INNER_IMPORTS = 15
# Data in code may be longer.
LONGER = {"watching/dashboards:_service": 80, "watching/dashboards:_model": 62, "watching/alerts:_service": 64}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((SOURCE / f"{name}.py").read_text())


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def inner_imports(name: str) -> set[ast.AST]:
    """The import statements inside functions."""
    return {n for function in functions(name) for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)}


def imports(name: str) -> list[str]:
    """The modules that a file imports."""
    found = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.startswith("gleaner.") and (SOURCE / module.removeprefix("gleaner.").replace(".", "/")).is_dir():
                found += [f"{module}.{alias.name}" for alias in node.names]
            else:
                found.append(module)
    return found


def package(name: str) -> str:
    return name.split("/")[0]


# The table


def test_every_file_has_its_row():
    assert sorted(LAYERS) == [name for name in FILES if Path(name).name not in ENTRY]


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_rows_above_it(name):
    above = list(LAYERS)[: list(LAYERS).index(name)]
    own = {m.removeprefix("gleaner.").replace(".", "/") for m in imports(name) if m.startswith("gleaner.")}

    assert own <= set(above)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_no_foreign_package_but_those_in_its_row(name):
    modules = {module.split(".")[0] for module in imports(name)}

    assert LAYERS[name] == modules - set(sys.stdlib_module_names) - {"gleaner"}


# The packages


def test_packages_stand_in_their_order():
    rows = [package(name) for name in LAYERS]

    assert set(rows) <= set(PACKAGES)
    assert sorted(rows, key=PACKAGES.index) == rows


def test_siblings_do_not_import_one_another():
    for name in LAYERS:
        if package(name) in SIBLINGS:
            others = {f"gleaner.{sibling}" for sibling in SIBLINGS - {package(name)}}
            assert not [m for m in imports(name) if m.startswith(tuple(others))], name


@pytest.mark.parametrize("module", HOMES)
def test_a_large_dependency_stands_in_its_packages_only(module):
    assert {package(name) for name in FILES if module in {m.split(".")[0] for m in imports(name)}} <= HOMES[module]


def test_only_settings_reads_the_environment():
    for name in FILES:
        text = (SOURCE / f"{name}.py").read_text()
        assert package(name) == "settings" or not re.search(r"\bos\.(environ|getenv)\b|import.*\benviron\b", text), name


# The imports


def test_no_file_imports_a_private_name_of_another():
    found = {}
    for name in FILES:
        private = [
            alias.name
            for node in ast.walk(tree(name))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gleaner")
            for alias in node.names
            if re.match("_(?!_)", alias.name)
        ]
        if private:
            found[name] = private

    assert {} == found


def test_few_imports_stand_inside_functions():
    found = {name: len(inner_imports(name)) for name in FILES}

    assert sum(found.values()) < INNER_IMPORTS, {name: number for name, number in found.items() if number}


def test_only_commands_and_programs_import_inside_functions():
    allowed = {"cli", "programs", "launch", *ENTRY}

    assert set() == {package(name) for name in FILES if inner_imports(name)} - allowed


# Sizes


def test_no_file_class_or_function_is_too_long():
    found = {}
    for name in FILES:
        sizes = {("file", name): len((SOURCE / f"{name}.py").read_text().splitlines())}
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                sizes[kind, f"{name}:{node.name}"] = node.end_lineno - node.lineno + 1
        found |= {of: lines for (kind, of), lines in sizes.items() if lines > LONGER.get(of, LINES[kind])}

    assert {} == found


# What a process loads


def loaded_with(*modules: str) -> set[str]:
    names = ", ".join(f"gleaner.{name}" for name in modules)
    code = f"import sys, {names}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_resident_trainer_loads_nothing_of_training_nor_the_engine():
    loaded = loaded_with(
        "cli.train", "logs", "machine.exposition", "machine.resources", "training.metrics", "training.resident"
    )

    assert "gleaner.programs.resident" in loaded
    assert set() == loaded & {"mlflow", "sklearn", "pandas", "scipy", "onnx", "onnxruntime", "matplotlib"}


def test_serving_loads_nothing_of_training():
    loaded = loaded_with("cli.serve", "serving.app", "serving.server", "serving.follower", "doctor.examine", "client")

    unwanted = {"pandas", "polars", "scipy", "sklearn", "pyarrow", "mlflow", "onnx", "matplotlib", "cryptography"}
    assert set() == loaded & unwanted
    assert set() == {name for name in loaded if name.startswith("gleaner.training")}
