"""`gleaner keys signing`, `gleaner models sign`, and the commands that check."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import mlflow
import pytest
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from signed import ANOTHER_KEY, read_key, sign
from started import gleaner, serving, wait_for

from gleaner.model.manifest import SIGNATURE
from gleaner.model.store import Store

KEYS = {"GLEANER_TRAINING__SIGNING_KEY": "key", "GLEANER_SERVING__PUBLIC_KEY": "key.pub"}


@pytest.fixture
def keyed(project: Path) -> Path:
    """Make a project of two unsigned versions, with new keys."""
    done = gleaner("keys", "signing", "key", folder=project)
    assert 0 == done.returncode, done.stderr
    return project


def hide(module: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as if a module were not installed."""
    code = f"import os, sys; sys.modules[{module!r}] = None; os.environ |= {environment!r}; "
    code += f"from gleaner.cli.main import main; main({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


# Keys


def test_a_new_key_says_what_to_put_into_the_settings(tmp_path):
    done = gleaner("keys", "signing", "key", folder=tmp_path)

    settings = tomllib.loads("\n".join(re.findall(r"^  (.*)$", done.stdout, re.MULTILINE)))
    assert {"training": {"signing_key": "key"}, "serving": {"public_key": "key.pub"}} == settings
    assert "PRIVATE" in (tmp_path / "key").read_text()
    assert 0o600 == (tmp_path / "key").stat().st_mode & 0o777
    assert not set((tmp_path / "key").read_text().split()) & set(done.stdout.split())


def test_a_key_that_exists_stays(keyed):
    before = (keyed / "key").read_bytes()

    done = gleaner("keys", "signing", "key", folder=keyed)

    assert (1, "error: key exists, and a key is never overwritten; name another file\n") == (
        done.returncode,
        done.stderr,
    )
    assert before == (keyed / "key").read_bytes()


# Signing


def test_versions_of_an_old_store_are_refused_once_a_key_is_set_and_served_once_signed(keyed):
    with serving(keyed, **KEYS) as service:
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)
        assert 503 == answer.status_code
        log = service.log.read_text()
        assert "model not loaded slot=v1 reason=signature" in log
        metrics = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
        assert 'model_load_failures_total{reason="signature"} 2.0' in metrics

        done = gleaner("models", "sign", 1, folder=keyed, **KEYS)

        assert "version 1 is signed, by the key " in done.stdout
        # This project's MLflow database is empty.
        assert 3 == done.returncode
        assert done.stderr.startswith("only the store has the signature: MLflow at sqlite:")
        assert wait_for(lambda: httpx.post(f"{service.url}/v1/predict", json=ROUTE).status_code == 200)
        assert {"prediction": [NUMBER]} == httpx.post(f"{service.url}/v1/predict", json=ROUTE).json()


@pytest.mark.parametrize(
    ("environment", "version", "said"),
    [
        ({}, 1, "training.signing_key: is not set"),
        (KEYS, 9, "no version 9 in"),
        (KEYS | {"GLEANER_MODEL__NAME": "other"}, 1, "it is a version of 'made', and model.name is 'other'"),
    ],
)
def test_a_version_that_cannot_be_signed_gets_one_line(keyed, environment, version, said):
    done = gleaner("models", "sign", version, folder=keyed, **environment)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert said in done.stderr


def test_a_damaged_version_is_not_signed(keyed):
    model = keyed / ".gleaner" / "store" / "versions" / "1" / "model.onnx"
    model.write_bytes(b"x" + model.read_bytes()[1:])

    done = gleaner("models", "sign", 1, folder=keyed, **KEYS)

    assert (1, False) == (done.returncode, model.with_name(SIGNATURE).exists())


# The commands that check


@pytest.mark.parametrize(
    "command", [("models", "promote", "2"), ("score", "made.csv", "out.csv"), ("train", "--if-empty", "made.csv")]
)
def test_an_unsigned_version_ends_a_command_in_one_line(keyed, command):
    done = gleaner(*command, folder=keyed, **KEYS)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "it is not signed: manifest.sig is missing" in done.stderr
    assert not (keyed / "out.csv").exists()
    assert 1 == Store(keyed / ".gleaner" / "store").aliases()["champion"]


def test_a_version_by_another_key_is_not_promoted(keyed):
    sign(keyed / ".gleaner" / "store" / "versions" / "2", ANOTHER_KEY)

    done = gleaner("models", "promote", 2, folder=keyed, **KEYS)

    assert "is not the signature of this manifest by the key of serving.public_key" in done.stderr
    assert 1 == Store(keyed / ".gleaner" / "store").aliases()["champion"]


def test_signed_versions_score_and_are_listed(keyed):
    sign(keyed / ".gleaner" / "store" / "versions" / "1", read_key(keyed / "key"))

    listed = gleaner("models", "list", folder=keyed, **KEYS)
    scored = gleaner("score", "made.csv", "out.csv", folder=keyed, **KEYS)

    first, *_, last = listed.stdout.splitlines()[1:]
    assert "decision_tree" in first
    assert last.startswith("version 2: ")
    assert "it is not signed" in last
    assert 0 == scored.returncode, scored.stderr


def test_the_doctor_says_that_a_version_is_not_signed(keyed):
    done = gleaner("doctor", folder=keyed, **KEYS)

    assert "it is not signed: manifest.sig is missing" in done.stdout
    assert "gleaner models sign 1, where the private key is" in done.stdout


# Without the library


@pytest.mark.parametrize(
    "command", [("serve", "--port", "0", "--metrics-port", "0"), ("score", "made.csv", "out.csv"), ("models", "list")]
)
def test_a_public_key_without_the_library_ends_a_command_with_the_install_hint(keyed, command):
    done = hide("cryptography", *command, folder=keyed, **KEYS)

    assert 1 == done.returncode
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cryptography is not installed; to install the extra 'signing': ")
    assert "'cryptography>=50'" in line


def test_without_a_public_key_nothing_needs_the_library(keyed):
    assert 0 == hide("cryptography", "score", "made.csv", "out.csv", folder=keyed).returncode


@pytest.mark.parametrize("command", [("keys", "signing", "new"), ("models", "sign", "1")])
def test_a_missing_library_ends_signing_in_one_line(keyed, command):
    done = hide("cryptography", *command, folder=keyed, **KEYS)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "the extra 'signing'" in done.stderr


def test_the_doctor_names_a_missing_library(keyed):
    done = hide("cryptography", "doctor", folder=keyed, **KEYS)

    assert "cryptography is not installed, so no signature can be checked" in done.stdout


# Training


def test_a_training_signs_in_the_store_and_in_mlflow(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    assert 0 == gleaner("keys", "signing", "key", folder=tmp_path).returncode

    done = gleaner("train", "--metrics-port", "0", folder=tmp_path, **KEYS)

    assert 0 == done.returncode, done.stderr
    uri = f"sqlite:///{tmp_path / '.gleaner' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    for version in (1, 2):
        stored = Store(tmp_path / ".gleaner" / "store").folder(version) / SIGNATURE
        model = client.get_model_version("made", str(version)).source.removeprefix("models:/")
        location = client.get_logged_model(model).artifact_location.removeprefix("mlflow-artifacts:/")
        logged = tmp_path / ".gleaner" / "mlartifacts" / location
        assert stored.read_bytes() == (logged / "gleaner" / SIGNATURE).read_bytes()
        stored.unlink()
        (logged / "gleaner" / SIGNATURE).unlink()
        signed = gleaner("models", "sign", version, folder=tmp_path, **KEYS)
        assert 0 == signed.returncode, signed.stderr
        assert stored.read_bytes() == (logged / "gleaner" / SIGNATURE).read_bytes()


@pytest.mark.parametrize("signing_key", [None, "another"])
def test_a_training_whose_versions_the_store_would_refuse_does_not_begin(keyed, signing_key):
    gleaner("keys", "signing", "another", folder=keyed)
    environment = {"GLEANER_SERVING__PUBLIC_KEY": "key.pub"}
    if signing_key:
        environment["GLEANER_TRAINING__SIGNING_KEY"] = signing_key

    done = gleaner("train", "--metrics-port", "0", folder=keyed, **environment)

    assert 1 == done.returncode
    assert "training.signing_key has to name the private key that belongs to serving.public_key" in done.stderr
    assert not (keyed / ".gleaner" / "mlflow.db").exists()


def test_a_training_refuses_a_private_key_that_others_can_read(keyed):
    (keyed / "key").chmod(0o640)

    done = gleaner("train", "--metrics-port", "0", folder=keyed, GLEANER_TRAINING__SIGNING_KEY="key")

    assert 1 == done.returncode
    assert "other users may use key (mode 0640); run: chmod 600 key" in done.stderr
