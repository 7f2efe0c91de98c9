"""Commands as a user types them: output and exit codes."""

from __future__ import annotations

import json
import shutil
import socket

import mlflow
import numpy as np
import pytest
from projects import ROOT, SETTINGS, write_made_table
from started import INTERRUPTED, gleaner

from gleaner.errors import explain_install
from gleaner.model.store import Store
from gleaner.settings.sections import Ports


def test_wrong_usage_exits_2():
    assert 2 == gleaner("tarin", folder=ROOT).returncode
    assert 2 == gleaner("check", "--data", "{not json", folder=ROOT).returncode


def test_without_settings_the_error_names_gleaner_init(tmp_path):
    done = gleaner("train", folder=tmp_path)

    assert 1 == done.returncode
    assert "gleaner init" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"time_spent,doors_in_route,assessed_value,bags\n", "no usable row"),
        (b"time_spent,doors_in_route,bags\n1,2,3\n", "no column for 'assessed_value'"),
        (b"time_spent,time_spent,doors_in_route,assessed_value,bags\n1,1,2,3,4\n", "stands twice"),
        ("time_spent\n1\n".encode("utf-16"), "no column for 'doors_in_route'"),
        ("time_spent\n1\n".encode("utf-16-le"), "NUL"),
        (None, "is a folder"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_line_and_exit_1(tmp_path, content, said):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    data = tmp_path / "data.csv"
    data.mkdir() if content is None else data.write_bytes(content)

    done = gleaner("train", data, "--metrics-port", 0, folder=tmp_path)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert said in done.stderr
    assert not (tmp_path / ".gleaner").exists()


@pytest.mark.parametrize(("cause", "code"), [("KeyboardInterrupt()", 130), ("ValueError()", 1)])
def test_ctrl_c_while_an_extension_loads_interrupts_and_another_failure_is_shown(tmp_path, cause, code):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    # As an interrupted extension of pybind11 ends.
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "sklearn.py").write_text(f'raise ImportError("initialization failed") from {cause}\n')

    done = gleaner("train", "--metrics-port", 0, folder=tmp_path, PYTHONPATH=str(tmp_path / "libraries"))

    assert code == done.returncode
    assert (done.stderr == "interrupted\n") == (code == 130)
    assert ("initialization failed" in done.stderr) == (code == 1)


def test_ctrl_c_in_code_that_a_library_compiles_interrupts(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "sklearn.py").write_text('exec("raise KeyboardInterrupt")\n')

    done = gleaner("train", "--metrics-port", 0, folder=tmp_path, PYTHONPATH=str(tmp_path / "libraries"))

    assert done.returncode in INTERRUPTED
    assert "interrupted" == done.stderr.strip()


def test_training_counts_and_shows_refused_rows(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    with (tmp_path / "made.csv").open("a") as file:
        file.write("soon,1,1,1\n9999,1,1,1\n")

    done = gleaner("train", "--metrics-port", 0, "--candidates", "linear,decision_tree", folder=tmp_path)

    assert 0 == done.returncode, done.stderr
    assert "600 rows used, 2 refused" in done.stdout
    assert "refused: line 602, column 'time_spent': wanted a number from 0 to 1,440, got 'soon'" in done.stdout


def test_if_empty_trains_once(project):
    same = gleaner("train", "--if-empty", "made.csv", folder=project)
    with (project / "made.csv").open("a") as file:
        file.write("30,50,200000,23\n")
    changed = gleaner("train", "--if-empty", folder=project)
    missing = gleaner("train", "--if-empty", "nowhere.csv", folder=project)

    assert (0, 0, 1) == (same.returncode, changed.returncode, missing.returncode)
    assert "not training: version 1, trained on made.csv" in same.stdout
    assert 1 == len(same.stdout.splitlines())
    assert "  made.csv has changed since; to train on it: gleaner train made.csv\n" in changed.stdout
    assert "nowhere.csv: no such file" in missing.stderr


@pytest.mark.parametrize("command", [("train",), ("up",), ("serve", "--port", "0", "--metrics-port", "0")])
def test_a_folder_refuses_a_second_model(project, command):
    text = (project / "gleaner.toml").read_text()
    (project / "gleaner.toml").write_text(text.replace('name = "made"', 'name = "other"'))

    done = gleaner(*command, folder=project, **{f"GLEANER_PORTS__{name.upper()}": "0" for name in Ports.model_fields})

    assert 1 == done.returncode
    assert "champion is a version of 'made', but model.name is 'other'" in done.stderr
    assert "set paths.state" in done.stderr


def test_a_training_without_a_challenger_removes_the_alias_everywhere(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    first = gleaner("train", "--metrics-port", 0, folder=tmp_path)
    alone = gleaner("train", "--metrics-port", 0, "--challenger", "none", folder=tmp_path)

    assert (0, 0) == (first.returncode, alone.returncode), first.stderr + alone.stderr
    assert {"champion": 3} == Store(tmp_path / ".gleaner" / "store").aliases()
    uri = f"sqlite:///{tmp_path / '.gleaner' / 'mlflow.db'}"
    assert {"champion": 3} == dict(mlflow.MlflowClient(uri, uri).get_registered_model("made").aliases)


def test_a_champion_no_better_than_the_median_gets_a_warning(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    random = np.random.default_rng(0)
    rows = zip(*(random.integers(1, 100, 60) for _ in range(4)), strict=True)
    text = "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows)
    (tmp_path / "made.csv").write_text(f"time_spent,doors_in_route,assessed_value,bags\n{text}")

    done = gleaner("train", "--metrics-port", 0, folder=tmp_path)

    assert 0 == done.returncode
    assert "no better than always predicting the median" in done.stderr


def test_models_list_shows_aliases_and_scores(trained):
    rows = json.loads(gleaner("models", "list", "--json", folder=trained).stdout)

    assert ["champion"] == rows[0]["aliases"]
    assert "decision_tree" == rows[0]["candidate"]
    assert rows[0]["mae"] < rows[0]["constant_mae"]


def test_promoting_a_missing_version_changes_nothing(trained):
    before = (trained / ".gleaner" / "store" / "aliases.json").read_bytes()

    done = gleaner("models", "promote", 99, folder=trained)

    assert 1 == done.returncode
    assert "no version 99 in" in done.stderr
    assert "there is 1, 2" in done.stderr
    assert before == (trained / ".gleaner" / "store" / "aliases.json").read_bytes()


@pytest.mark.parametrize("alias", ["", "-x", "a/b", "x" * 65, "é"])
def test_an_invalid_alias_is_refused_before_anything_moves(trained, alias):
    done = gleaner("models", "promote", 1, f"--alias={alias}", folder=trained)

    assert 1 == done.returncode
    assert "error: not a valid name of an alias: wanted at most 64 letters" in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_the_list_of_versions_says_once_what_is_wrong_with_a_damaged_one(project):
    model = project / ".gleaner" / "store" / "versions" / "2" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])

    done = gleaner("models", "list", folder=project)

    assert 0 == done.returncode
    assert 1 == done.stdout.count("model.onnx")
    assert "version 2: " in done.stdout.splitlines()[-1]


def test_a_variable_of_the_environment_shows_in_the_settings(trained):
    done = gleaner("config", "show", folder=trained, GLEANER_SERVING__PORT="6001")

    assert "ports.ml_app = 6001" in done.stdout


def test_doctor_names_the_holder_and_the_setting_of_a_taken_port(trained):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        done = gleaner("doctor", "--json", folder=trained, GLEANER_PORTS__ML_APP=port)

    fault = next(finding for finding in json.loads(done.stdout) if finding["verdict"] == "FAIL")
    assert 1 == done.returncode
    assert f"port {port}" == fault["what"]
    assert "pid " in fault["detail"]
    assert "set ports.ml_app (GLEANER_PORTS__ML_APP)" in fault["fix"]


def test_training_on_a_taken_port_names_its_holder(trained):
    with socket.create_server(("127.0.0.1", 0)) as held:
        done = gleaner("train", "--metrics-port", held.getsockname()[1], folder=trained)

    assert 1 == done.returncode
    assert "ports.train_metrics" in done.stderr


def test_a_drafted_gleaner_toml_trains_unchanged(tmp_path):
    write_made_table(tmp_path / "made.csv")

    drafted = gleaner("init", "made.csv", "--target", "bags", folder=tmp_path)
    again = gleaner("init", "made.csv", "--target", "bags", folder=tmp_path)
    done = gleaner("train", "--metrics-port", 0, "--candidates", "linear,decision_tree", "--json", folder=tmp_path)

    assert [0, 1, 0] == [drafted.returncode, again.returncode, done.returncode], done.stderr
    assert {"linear", "decision_tree"} == {about["candidate"] for about in json.loads(done.stdout).values()}


def test_a_european_export_is_drafted_with_its_encoding_and_trains(tmp_path):
    rows = [f"{city};{i},5;{i % 7}.{i:03d},25 €;{3 * i},75\n" for i, city in enumerate(["Łódź", "Kraków"] * 30, 1)]
    path = tmp_path / "dane.csv"
    path.write_bytes(("Sprzedaż 2023\n\nMiasto;Powierzchnia;Cena;Suma\n" + "".join(rows)).encode("cp1250"))

    undeclared = gleaner("init", "dane.csv", "--target", "Suma", folder=tmp_path)
    draft = (tmp_path / "gleaner.toml").read_text(encoding="utf-8")
    done = gleaner("train", "--metrics-port", 0, "--candidates", "linear", "--challenger", "none", folder=tmp_path)

    assert "the file is not UTF-8, and likely cp1250: check some words\n" in undeclared.stdout
    assert "the header is on line 3\n" in undeclared.stdout
    assert 'encoding = "cp1250"\ndecimal = ","\n' in draft
    assert 'values = ["Kraków", "Łódź"]' in draft
    assert 0 == done.returncode, done.stderr
    assert "  the header is on line 3\n" in done.stdout + done.stderr

    (tmp_path / "gleaner.toml").write_text(draft.replace('encoding = "cp1250"\n', ""), encoding="utf-8")
    refused = gleaner("train", "--metrics-port", 0, folder=tmp_path)
    assert 1 == refused.returncode
    assert (
        'is not UTF-8; the file is likely cp1250: add encoding = "cp1250" under [table] in gleaner.toml'
        in refused.stderr
    )


def test_without_the_extra_training_names_the_package_to_install(trained, tmp_path):
    shutil.copy(trained / "gleaner.toml", tmp_path)
    shutil.copy(trained / "made.csv", tmp_path)
    # Without the extra, this import fails first.
    (tmp_path / "mlflow.py").write_text("raise ModuleNotFoundError(\"No module named 'mlflow'\", name='mlflow')\n")

    done = gleaner("train", "--metrics-port", 0, folder=tmp_path)

    assert 1 == done.returncode
    assert f"mlflow is not installed; to install the extra 'train': {explain_install('train')}\n" in done.stderr
