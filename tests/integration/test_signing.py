"""A training that signs, and a service elsewhere that checks."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from pathlib import Path

import httpx
import made
import mlflow
import psutil
import pytest
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from started import MlflowServer, Service, gleaner, serving, wait_for

from gleaner.model.manifest import SIGNATURE
from gleaner.model.store import Store

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def name() -> str:
    """Make a model's name that no other test has."""
    return f"signed-{secrets.token_hex(4)}"


def settings_of(name: str) -> str:
    return SETTINGS.replace('name = "made"', f'name = "{name}"')


@pytest.fixture
def trained(name: str, mlflow_server: MlflowServer, tmp_path: Path) -> Path:
    """Make the machine that trains, after a first training."""
    folder = tmp_path / "trains"
    folder.mkdir()
    keys = '\n[serving]\npublic_key = "key.pub"\n'
    text = settings_of(name).replace("[training]", '[training]\nsigning_key = "key"')
    (folder / "gleaner.toml").write_text(f'{text}{keys}\n[tracking]\nuri = "{mlflow_server.url}"\n')
    write_made_table(folder / "made.csv")
    for command in (("keys", "signing", "key"), ("train", "--metrics-port", "0")):
        done = gleaner(*command, folder=folder)
        assert 0 == done.returncode, done.stdout + done.stderr
    return folder


@pytest.fixture
def machine(name: str, mlflow_server: MlflowServer, trained: Path, tmp_path: Path) -> Path:
    """Make another machine's folder with the public key, and without a store."""
    folder = tmp_path / "serves"
    folder.mkdir()
    shutil.copy(trained / "key.pub", folder)
    text = f'{settings_of(name)}\n[serving]\npublic_key = "key.pub"\n\n[tracking]\nuri = "{mlflow_server.url}"\n'
    (folder / "gleaner.toml").write_text(text)
    return folder


def publish(client: mlflow.MlflowClient, name: str, artifact: Path) -> int:
    """Register an artifact as somebody without the key could."""
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(artifact), "model/gleaner")
    return int(client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id).version)


def versions(service: Service) -> list[int | None]:
    slots = httpx.get(f"{service.url}/health_status").json()["slots"]
    return [slot["version"] for slot in slots.values()]


def refusals(service: Service, reason: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    return float(re.findall(rf'registry_refusals_total{{reason="{reason}"}} (\S+)', text)[0])


def libraries(service: Service) -> set[str]:
    """Return the files of the packages that a process has mapped."""
    mapped = [each.path for each in psutil.Process(service.process.pid).memory_maps()]
    return {path.rpartition("site-packages/")[2].partition("/")[0] for path in mapped if "site-packages" in path}


def test_a_service_elsewhere_serves_only_what_training_signed(machine, trained, name, mlflow_server):
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = mlflow.MlflowClient(mlflow_server.url, mlflow_server.url)
    unsigned = publish(client, name, made.constant(7.0).folder)
    copied = publish(client, name, shutil.copytree(Store(trained / ".gleaner" / "store").folder(2), machine / "copied"))
    with serving(machine) as service:
        assert wait_for(lambda: versions(service) == [1, 2]), service.log.read_text()
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)
        assert {"prediction": [NUMBER]} == answer.json()
        here, there = (Store(folder / ".gleaner" / "store") for folder in (machine, trained))
        assert (here.folder(1) / SIGNATURE).read_bytes() == (there.folder(1) / SIGNATURE).read_bytes()

        client.set_registered_model_alias(name, "champion", str(unsigned))
        assert wait_for(lambda: refusals(service, "signature") == 1), service.log.read_text()
        assert [1, 2] == versions(service)
        assert unsigned not in here.versions()

        # Somebody without the key can copy a signed version to a new number, and move an alias back.
        client.set_registered_model_alias(name, "challenger", str(copied))
        assert wait_for(lambda: versions(service) == [1, copied]), service.log.read_text()
        client.set_registered_model_alias(name, "challenger", "2")
        assert wait_for(lambda: versions(service) == [1, 2]), service.log.read_text()
        rolled_back = f"WARNING - model rolled back slot=v2 alias=challenger from={copied} to=2"
        assert wait_for(lambda: rolled_back in service.log.read_text()), service.log.read_text()

        # The engine is mapped, so the list would have the library.
        assert "onnxruntime" in libraries(service)
        assert "cryptography" not in libraries(service)

    with serving(machine) as again:
        assert [1, 2] == versions(again)
        assert 200 == httpx.post(f"{again.url}/v1/predict", json=ROUTE).status_code


@pytest.mark.slow
def test_a_version_that_is_signed_later_is_served_elsewhere(machine, trained):
    """Training without the key, then `models sign` where the key is."""
    plain = (trained / "gleaner.toml").read_text()
    (trained / "gleaner.toml").write_text(re.sub(r"signing_key.*|public_key.*", "", plain))
    done = gleaner("train", "--metrics-port", "0", folder=trained)
    assert 0 == done.returncode, done.stderr
    (trained / "gleaner.toml").write_text(plain)
    newest = Store(trained / ".gleaner" / "store").aliases()["champion"]

    with serving(machine) as service:
        assert wait_for(lambda: refusals(service, "signature") == 2), service.log.read_text()
        assert [None, None] == versions(service)
    done = gleaner("models", "sign", newest, folder=trained)
    assert 0 == done.returncode, done.stderr
    with serving(machine) as service:
        assert wait_for(lambda: versions(service)[0] == newest), service.log.read_text()
