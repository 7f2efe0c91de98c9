"""docker-compose.yml, deploy/Dockerfile and the addresses in docs/compose.md; `make compose-test` runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import yaml
from projects import ROOT
from started import gleaner, tool

from gleaner.settings.load import load_settings
from gleaner.settings.sections import Serving

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
SERVICES = COMPOSE["services"]
ONE_SHOT = "grafana-password"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PAGE = (ROOT / "docs" / "compose.md").read_text()
PORTS = load_settings(ROOT / "gleaner.toml").ports
# The published port of each service. Only the API's differs from `[ports]`: macOS holds 5000, so `gleaner up` has 5001.
PUBLISHED = {"ml-app": 5000, "mlflow": PORTS.mlflow, "prometheus": PORTS.prometheus, "grafana": PORTS.grafana}


def published(service: str) -> list[tuple[str, int, int]]:
    """Yield the address and the two ports of each published port.

    (address, port on this machine, port in the container)
    """
    found = [port.rsplit(":", 2) for port in SERVICES[service].get("ports", [])]
    return [(address, int(here), int(inside)) for address, here, inside in found]


def pinned(service: str, port: str) -> int:
    """A port in the environment of a service."""
    return SERVICES[service]["environment"][f"GLEANER_PORTS__{port.upper()}"]


def mounts(service: str) -> dict[str, str]:
    """The source of each mounted path."""
    return {path: what for what, path, *_ in (volume.split(":") for volume in SERVICES[service].get("volumes", []))}


def test_the_file_fits_the_schema_of_compose():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout


def test_the_file_has_no_key_that_docker_compose_1_29_refuses():
    assert {"services", "volumes"} == {key for key in COMPOSE if not key.startswith("x-")}


def test_the_services_are_those_of_the_system_and_one_that_makes_a_password():
    assert {"ml-app", "train-metrics", "mlflow", "prometheus", "alertmanager", "grafana", ONE_SHOT} == set(SERVICES)


def test_everything_published_is_on_loopback_at_the_ports_of_the_settings():
    found = {name: published(name) for name in SERVICES}

    assert {"127.0.0.1"} == {address for ports in found.values() for address, _, _ in ports}
    assert PUBLISHED == {name: here for name, ports in found.items() for _, here, _ in ports}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name):
    service = SERVICES[name]

    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["read_only"] is True
    assert re.fullmatch(r"/tmp:size=\d+m", "".join(service["tmpfs"]))
    assert 0 < service["pids_limit"] <= 1024
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_a_full_tmp_leaves_half_of_the_memory(name):
    (size,) = re.findall(r"\d+(?=m$)", SERVICES[name]["tmpfs"][0])
    number, unit = re.fullmatch(r"(\d+)([mg])", SERVICES[name]["mem_limit"]).groups()

    assert int(size) <= int(number) * (1024 if unit == "g" else 1) / 2


def test_the_service_may_have_all_its_threads_and_those_of_a_self_test():
    assert SERVICES["ml-app"]["pids_limit"] >= Serving().threads + 64


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {ONE_SHOT}))
def test_every_service_that_stays_has_a_health_check_and_restarts(name):
    assert "CMD" == SERVICES[name]["healthcheck"]["test"][0]
    assert "unless-stopped" == SERVICES[name]["restart"]


def test_every_image_is_pinned_and_can_be_replaced_by_a_variable():
    images = re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", TEXT)
    unpinned = [image for _, image in images if not re.search(r":v?\d+\.\d+\.\d+(-[a-z-]+)?$", image)]

    assert {"PYTHON_IMAGE", "PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE", "GRAFANA_IMAGE"} == {name for name, _ in images}
    assert [] == unpinned
    assert len(set(images)) == 4, "one image has two versions"
    assert all("build" in service or "image" in service for service in SERVICES.values())


def test_every_image_can_be_named_by_its_digest(tmp_path):
    images = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", TEXT))
    pinned = {name: f"{image}@sha256:{number:064x}" for number, (name, image) in enumerate(images.items())}
    podman = tmp_path / "podman"  # podman-compose asks for its version, and `config` for nothing else
    podman.write_text("#!/bin/sh\necho podman version 4.3.1\n")
    podman.chmod(0o755)
    command = [sys.executable, "-m", "podman_compose", "--file", ROOT / "docker-compose.yml", "config"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **pinned}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)

    services = yaml.safe_load(done.stdout)["services"].values()
    used = {service.get("image") for service in services if "build" not in service}
    for service in services:
        args = service.get("build", {}).get("args", [])
        used |= {arg.removeprefix("BASE=") for arg in args if arg.startswith("BASE=")}
    assert set(pinned.values()) == used
    for name, image in images.items():
        assert name in PAGE
        assert f"`{image}`" in PAGE


def test_the_dockerfiles_base_is_the_one_of_the_compose_file():
    (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)

    assert {base} == {service["build"]["args"]["BASE"] for service in SERVICES.values() if "build" in service}
    assert {"${BASE}", "libraries"} == {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM ")}


def test_images_install_only_locked_packages_checked_by_hash():
    installs = DOCKERFILE.replace("\\\n", " ").count(" install --no-cache-dir")

    assert 3 == installs
    assert 2 == DOCKERFILE.count("--require-hashes")
    assert 1 == DOCKERFILE.count("--no-deps")


def test_every_written_path_is_in_a_volume_that_outlives_down():
    named = [what for name in SERVICES for what in mounts(name).values() if not what.startswith("./")]

    assert set(COMPOSE["volumes"]) == set(named)
    assert {"grafana"} == {what for what in named if named.count(what) > 1}
    assert all(about is None for about in COMPOSE["volumes"].values())


def test_project_folders_are_mounted_read_only():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).is_dir(), f"{name}: {volume}"
                assert volume.endswith(":ro"), f"{name}: {volume}"


def test_a_token_has_a_folder_that_alertmanager_reads_and_git_ignores(tmp_path):
    assert "./deploy/secrets" == mounts("alertmanager")["/secrets"]
    assert ["alertmanager"] == [name for name in SERVICES if "./deploy/secrets" in mounts(name).values()]
    # A repository of this test's own: git refuses to look into a clone that another user owns.
    git = [tool("git"), "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name, code in (("webhook-token", 0), ("README.md", 1)):  # Docker would make a missing folder for root alone
        ignored = [*git, "check-ignore", "--quiet", "--no-index", f"deploy/secrets/{name}"]
        assert code == subprocess.run(ignored, check=False).returncode, name


def test_prometheus_scrapes_the_ports_of_the_services():
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for config in job["static_configs"] for target in config["targets"]}
    own = {f"ml-app:{pinned('ml-app', 'ml_app_metrics')}", f"train-metrics:{pinned('train-metrics', 'train_metrics')}"}

    assert own | {"mlflow:5000", "prometheus:9090"} == targets
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)
    assert "--expose-prometheus=/tmp/metrics" in SERVICES["mlflow"]["command"]


def test_a_port_moved_in_the_settings_moves_no_port_inside(tmp_path):
    """Check that services listen on the ports that others connect to."""
    text = (ROOT / "gleaner.toml").read_text()
    for name in ("ml_app", "ml_app_metrics", "train_metrics"):
        text = re.sub(rf"^{name} = \d+$", f"{name} = {7000 + len(name)}", text, flags=re.MULTILINE)
    (tmp_path / "gleaner.toml").write_text(text)

    done = gleaner("config", "render", "--for", "compose", folder=tmp_path)

    assert 0 == done.returncode, done.stderr
    rendered = (tmp_path / "deploy/prometheus/prometheus.yml").read_text()
    assert (ROOT / "deploy/prometheus/prometheus.yml").read_text() == rendered
    for name, port in (("ml-app", "ml_app"), ("train-metrics", "train_metrics")):
        environment = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
        shown = gleaner("config", "show", folder=tmp_path, **environment).stdout
        (checked,) = re.findall(r"127\.0\.0\.1:(\d+)", " ".join(SERVICES[name]["healthcheck"]["test"]))
        assert f"ports.{port} = {checked}\n" in shown
        assert "ports.ml_app_metrics = 8010\n" in shown


def test_mlflow_accepts_only_the_names_of_compose_and_of_this_machine():
    (hosts,) = [word.split("=")[1] for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts")]

    assert "mlflow:5000,localhost:*,127.0.0.1:*" == hosts
    for name in ("ml-app", "train-metrics"):
        assert "http://mlflow:5000" == SERVICES[name]["environment"]["GLEANER_TRACKING__URI"]


def test_grafana_never_starts_without_its_password():
    made = SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    folder, name = made.rsplit("/", 1)

    # Its start waits for the file even if compose ignores conditions.
    assert f"until test -s {made}; do sleep 1; done; exec /run.sh" == SERVICES["grafana"]["entrypoint"][2]
    assert "service_completed_successfully" == SERVICES["grafana"]["depends_on"][ONE_SHOT]["condition"]
    assert mounts(ONE_SHOT)[folder] == mounts("grafana")[folder]
    assert f"mv {name}.half {name}" in SERVICES[ONE_SHOT]["command"][0]
    for setting in ("GF_USERS_ALLOW_SIGN_UP", "GF_AUTH_ANONYMOUS_ENABLED", "GF_ANALYTICS_REPORTING_ENABLED"):
        assert "false" == SERVICES["grafana"]["environment"][setting]


def test_the_api_is_unready_before_it_stops_and_has_the_time_for_both():
    app, serving = SERVICES["ml-app"], load_settings(ROOT / "gleaner.toml").serving
    unready = app["environment"]["GLEANER_SERVING__UNREADY_SECONDS"]

    assert 10 == unready
    assert int(app["stop_grace_period"].removesuffix("s")) >= unready + serving.drain_seconds + 5
    assert 0 == serving.unready_seconds  # on a laptop, a stop does not wait


def test_no_secret_is_in_the_file():
    settings = [key for service in SERVICES.values() for key in service.get("environment", {})]

    assert ["GF_SECURITY_ADMIN_PASSWORD__FILE"] == [key for key in settings if re.search("PASS|TOKEN|SECRET|KEY", key)]


def test_the_build_context_holds_only_the_files_that_the_dockerfile_copies():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = [line[1:] for line in lines if line.startswith("!")]
    wanted = ["requirements/serve.lock", "requirements/train.lock", "requirements/hatchling.lock", "pyproject.toml"]
    wanted += ["README.md", "LICENSE", "gleaner.toml", "examples/food-drive/routes.csv", "src/gleaner"]

    assert "*" == lines[0]
    assert "**/__pycache__" == lines[-1]
    assert [] == [path for path in wanted if not any(fnmatch(path, pattern) for pattern in let_in)]
    assert [] == [path for path in wanted if not (ROOT / path).exists()]
    assert [] == [pattern for pattern in let_in if not any(fnmatch(path, pattern) for path in wanted)]


def test_the_pages_table_has_every_service_with_its_addresses():
    table = PAGE.split("| service | on this machine |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]

    assert set(SERVICES) - {ONE_SHOT} == {row[0].strip("`") for row in rows}
    for name, here, inside, _ in rows:
        ports = published(name.strip("`"))
        assert [f"http://127.0.0.1:{port}" for _, port, _ in ports] == re.findall(r"http://[\d.:]+", here)
        assert {f"{name.strip('`')}:{port}" for _, _, port in ports} <= set(re.findall(r"`([^`]+)`", inside))
    inside = {address for row in rows for address in re.findall(r"`([^`]+)`", row[2])}
    own = {f"ml-app:{PORTS.ml_app_metrics}", f"train-metrics:{PORTS.train_metrics}"}
    assert own | {f"alertmanager:{PORTS.alertmanager}"} == inside - {
        f"{name}:{port}" for name in SERVICES for _, _, port in published(name)
    }


def test_the_pages_limits_are_those_of_the_file():
    table = PAGE.split("| service | memory |")[1].split("\n\n")[0]
    rows = {
        name: (memory, int(pids.replace(",", "")), int(tmp))
        for name, memory, pids, tmp in re.findall(r"\| `([\w-]+)` \| ([\d.]+ [GM]B) \| ([\d,]+) \| (\d+) MB \|", table)
    }
    found = {}
    for name, service in SERVICES.items():
        number, unit = re.fullmatch(r"(\d+)([mg])", service["mem_limit"]).groups()
        megabytes = int(number) * (1024 if unit == "g" else 1)
        memory = f"{megabytes / 1024:g} GB" if megabytes >= 1024 else f"{megabytes} MB"
        found[name] = memory, service["pids_limit"], int(re.findall(r"\d+", service["tmpfs"][0])[0])

    assert found == rows
