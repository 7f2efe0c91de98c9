"""A test of docker-compose.yml without Docker: `make compose-test`, for root on Debian.

podman builds and runs the committed file, on stand-ins for the images that it names: a Debian from debootstrap, with
Debian's Python, Prometheus and Alertmanager. So it tests the Dockerfile, the wiring and the configurations, and not the
images of other projects. Debian has no Grafana: there it tests the mounted files and the password.

Everything is under FOLDER, including storage and networks, and is removed at the end, after a failure and after Ctrl-C.
The next test removes the rest of a killed one. ARGS=--keep keeps the built images.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import yaml

from gleaner.machine.ports import find_holder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A short path, because the paths of sockets are limited.
FOLDER = Path("/var/tmp/gleaner-compose-test")
CLONE, LOG = FOLDER / "clone", FOLDER / "log"
PROJECT = "gleaner-compose-test"
PACKAGES = (
    *("podman", "buildah", "runc", "netavark", "aardvark-dns", "slirp4netns", "fuse-overlayfs", "debootstrap"),
    *("uidmap", "iptables", "docker-compose"),
)
STAND_INS = ("python", "prometheus", "alertmanager", "grafana")
MOST_ADDED_BYTES = 220_000_000
ROUTE = {"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}
PORTS = {
    name: int(os.environ.get(f"{name}_PORT", port))
    for name, port in {"ML_APP": 5000, "MLFLOW": 5002, "PROMETHEUS": 9090, "GRAFANA": 3000}.items()
}
ML_APP, MLFLOW, PROMETHEUS, GRAFANA = (f"http://127.0.0.1:{port}" for port in PORTS.values())
ENVIRONMENT = {
    **os.environ,
    "CONTAINERS_CONF": str(FOLDER / "containers.conf"),
    "CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"),
    "BUILDAH_FORMAT": "docker",
    "COMPOSE_PROJECT_NAME": PROJECT,
    "DOCKER_HOST": f"unix://{FOLDER}/docker.sock",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    **{f"{name.upper()}_IMAGE": f"localhost/stand-in/{name}" for name in STAND_INS},
}
T = TypeVar("T")


class Failed(Exception):
    """A failed step."""


def main() -> None:
    keep = sys.argv[1:] == ["--keep"]
    if sys.argv[1:] and not keep:
        sys.exit("usage: prove.py [--keep]")
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell makes its background processes ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    began, code = time.monotonic(), 1
    try:
        prepare_machine()
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        with only_one():
            clean(keep=keep)
            check_ports()
            try:
                prove()
                code = 0
            except (Failed, AssertionError):
                show_logs()
                raise
            finally:
                with step("clean up"):
                    clean(keep=keep)
                    if not keep:
                        shutil.rmtree(FOLDER)
    except (Failed, AssertionError, httpx.HTTPError) as e:
        print(f"FAILED after {time.monotonic() - began:.0f} s: {e or repr(e)}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {time.monotonic() - began:.0f} s and cleaned up", flush=True)
        code = 130
    else:
        print(f"compose-test passed in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(code)


def prove() -> None:
    with step("write podman's settings, copy the project"):
        write_settings()
        copy_project()
    with step("docker-compose 1.29 accepts the file"):
        run("docker-compose", "--file", "docker-compose.yml", "config", "--quiet")
    make_stand_ins()
    with step("podman-compose build"):
        compose("build", timeout=1500)
    with step("the serving image is small, without MLflow and scikit-learn") as found:
        found.append(check_serving_image())

    with step("podman-compose up: the API returns 503 while there is no model"):
        compose("up", "--detach")
        wait_for("livez", 60, lambda: httpx.get(f"{ML_APP}/livez").status_code == 200)
        expect(503, httpx.get(f"{ML_APP}/readyz").status_code)
        expect(503, httpx.post(f"{ML_APP}/v1/predict", json=ROUTE).status_code)
    with step("a model is trained, registered and served") as found:
        wait_for("readyz", 300, lambda: httpx.get(f"{ML_APP}/readyz").status_code == 200)
        number, version = predict()
        found.append(f"{number} by version {version}")
    with step("every health check passes"):
        for service in services():
            wait_for(f"health of {service}", 120, lambda service=service: is_healthy(service))
    with step("no root, no writable file, no capabilities, published on 127.0.0.1 only"):
        check_hardening()
    with step("MLflow has the runs, hands out artifacts, and refuses other host names"):
        check_mlflow()
    with step("every target is up in Prometheus, rules are loaded, Alertmanager is found"):
        wait_for("targets", 120, all_targets_are_up)
        assert ask_prometheus("rules")["groups"], "no rules"
        assert ask_prometheus("alertmanagers")["activeAlertmanagers"], "no Alertmanager"
    with step("only Alertmanager reads the token in deploy/secrets"):
        for service in services():
            seen = inside(service, "sh", "-c", "cat /secrets/webhook-token 2>/dev/null || echo none").strip()
            expect("a-token" if service == "alertmanager" else "none", seen)
    with step("Grafana's password was made, and opens the provisioned files"):
        password = check_grafana()
    with step("an alias moved in MLflow is served") as found:
        other = move_champion()
        found.append(f"version {other} instead of {version}")
    with step("a stopped trainer is an alert in Alertmanager"):
        compose("stop", "train-metrics")
        wait_for("TargetDown", 300, lambda: "train-metrics" in {alert["labels"].get("service") for alert in alerts()})
        silence = inside("alertmanager", *AMTOOL, "silence", "add", "--comment=test", "alertname=TargetDown").strip()
        compose("start", "train-metrics")

    number, runs, since = predict(), count_runs(), first_sample()
    with step("without MLflow the API starts and serves its kept versions"):
        compose("stop", "mlflow", "ml-app")
        compose("start", "ml-app")
        wait_for("readyz", 30, lambda: httpx.get(f"{ML_APP}/readyz").status_code == 200)
        expect(number, predict())

    with step("podman-compose down"):
        compose("down")
        expect("", podman("ps", "--all", "--quiet"))
    with step("docker-compose 1.29 up, which waits for health; with other data"), docker_api():
        sha256 = override_data()
        run("docker-compose", "up", "--detach", "--no-build", timeout=300)
    with step("nothing is lost and nothing was trained again"):
        wait_for("targets", 180, all_targets_are_up)
        expect(runs, count_runs())
        expect(since, first_sample())
        expect(password, check_grafana())
        assert silence in inside("alertmanager", *AMTOOL, "silence", "query"), "the silence is gone"
        expect(number, predict())
    with step("the trainer trains on that data on request, and the API serves the new version"):
        inside("train-metrics", "gleaner", "train", "--now")
        wait_for("a new version", 300, lambda: int(predict()[1]) > max(int(version), int(other)))
        expect(sha256, find_data_of(predict()[1]))


# The machine


def prepare_machine() -> None:
    """Install the missing programs."""
    release = Path("/etc/os-release")
    if os.geteuid() != 0 or "ID=debian" not in (release.read_text() if release.exists() else ""):
        raise Failed(f"wanted root on Debian, for debootstrap and podman ({' '.join(PACKAGES)})")
    missing = [name for name in PACKAGES if not Path(f"/usr/share/doc/{name}").exists()]
    if missing:
        with step(f"install {' '.join(missing)}"):
            quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
                done = subprocess.run(
                    ["apt-get", "-qq", *command], env=quietly, capture_output=True, text=True, timeout=600, check=False
                )
                if done.returncode:
                    raise Failed(f"apt-get {command[0]}: {done.stderr[-500:]}")


def check_ports() -> None:
    for name, port in PORTS.items():
        if holder := find_holder(port):
            raise Failed(f"port {port} is taken by {holder}; stop it, or set {name}_PORT")


@contextmanager
def only_one() -> Iterator[None]:
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Failed(f"another compose-test uses {FOLDER}; wait until it ends") from e
        yield


def write_settings() -> None:
    """Write podman's settings: everything under FOLDER, for a machine without systemd."""
    (FOLDER / "containers.conf").write_text(
        f"""
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
events_logfile_path = "{FOLDER}/events"
tmp_dir = "{FOLDER}/run"
volume_path = "{FOLDER}/volumes"
[network]
network_backend = "netavark"
network_config_dir = "{FOLDER}/networks"
"""
    )
    (FOLDER / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{FOLDER}/graph"\nrunroot = "{FOLDER}/run/storage"\n'
    )


def copy_project() -> None:
    """Copy the files of the working tree, as in a fresh clone."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (CLONE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, CLONE / name)
    token = CLONE / "deploy/secrets/webhook-token"
    token.write_text("a-token")
    token.chmod(0o444)


def make_stand_ins() -> None:
    if "stand-in/grafana" in podman("images", "--format", "{{.Repository}}"):
        return
    mirror, suite = find_mirror()
    with step(f"debootstrap {suite}"):
        run(
            "debootstrap", "--variant=minbase", "--include=ca-certificates", suite, FOLDER / "root", mirror, timeout=900
        )
        # Lists of packages, once for all stand-ins; a machine's clock may be years from the mirror's.
        (FOLDER / "root/etc/apt/apt.conf.d/99-any-date").write_text(
            'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
        )
        run("sh", "-c", f"tar -C {FOLDER}/root -c . | podman import --quiet - localhost/stand-in/fresh", timeout=300)
        shutil.rmtree(FOLDER / "root")
        build("debian", "FROM localhost/stand-in/fresh\nRUN apt-get update -qq\n")
    for name in STAND_INS:
        with step(f"stand-in for {name}"):
            build(name, (HERE / f"stand-ins/{name}.Dockerfile").read_text())


def find_mirror() -> tuple[str, str]:
    """Return this machine's package mirror and the name of its release."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    for line in run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        mirror, suite, component = line.split()
        if component == "main" and "-" not in suite:
            return mirror, suite
    raise Failed("apt-get knows no Debian mirror; apt-get update may help")


def build(name: str, dockerfile: str) -> None:
    """Build a stand-in.

    Only these images get this machine's access to its package index.
    """
    context = FOLDER / "context"
    shutil.copytree(HERE / "stand-ins", context, dirs_exist_ok=True)
    (context / "certificates").mkdir(exist_ok=True)
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, context / "certificates")
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    address = os.environ.get("PIP_INDEX_URL") or index.stdout.strip()
    (context / "pip.conf").write_text(f"[global]\nindex-url = {address}\n" if address else "")
    (context / "Dockerfile").write_text(dockerfile)
    podman("build", "--quiet", "--tag", f"localhost/stand-in/{name}", context, timeout=600)


def clean(*, keep: bool) -> None:
    """End and remove everything that a test started; `keep` leaves the images."""
    if (FOLDER / "storage.conf").exists() and shutil.which("podman"):
        for command in (
            ("rm", "--all", "--force", "--time", "2"),
            ("volume", "rm", "--all", "--force"),
            ("network", "prune", "--force"),
        ):
            with contextlib.suppress(Failed):
                podman(*command, timeout=120)
    if keep:
        shutil.rmtree(CLONE, ignore_errors=True)
        return
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if (mounted := line.split()[1]).startswith(f"{FOLDER}/"):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    for path in FOLDER.iterdir() if FOLDER.exists() else ():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# What is proven


def check_serving_image() -> str:
    """Check an image's packages; return the bytes added to its base."""
    image = f"localhost/{PROJECT}_ml-app"
    size, base = (int(podman("image", "inspect", "--format", "{{.Size}}", it)) for it in (image, "stand-in/python"))
    assert size - base <= MOST_ADDED_BYTES, f"the serving image adds {size - base:,} bytes to its base"
    unwanted = ("mlflow", "sklearn", "pandas", "scipy", "onnx", "matplotlib", "pip")
    code = f"import importlib.util as u; print([n for n in {unwanted} if u.find_spec(n)])"
    expect("[]", podman("run", "--rm", image, "python3", "-c", code).strip())
    return f"{(size - base) / 1e6:.0f} MB more than its base, which has {base / 1e6:.0f} MB"


def services() -> list[str]:
    """Return the services that stay, without the one that exits."""
    found = yaml.safe_load((CLONE / "docker-compose.yml").read_text())["services"]
    return [name for name, service in found.items() if service["restart"] != "no"]


def container(service: str) -> str:
    name = podman("ps", "--format", "{{.Names}}", "--filter", f"label=com.docker.compose.service={service}").strip()
    assert name, f"{service} does not run"
    return name


def inside(service: str, *command: str) -> str:
    return podman("exec", container(service), *command)


@contextmanager
def docker_api() -> Iterator[None]:
    """Run podman as Docker's engine, with its health checks.

    podman's own health checks need systemd.
    """
    ended = threading.Event()

    def check() -> None:
        while not ended.wait(3):
            for service in services():
                with contextlib.suppress(Failed, AssertionError):
                    is_healthy(service)

    command = ["podman", "system", "service", "--time=300", ENVIRONMENT["DOCKER_HOST"]]
    thread = threading.Thread(target=check, daemon=True)
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for("podman's service", 30, (FOLDER / "docker.sock").exists)
            thread.start()
            yield
        finally:
            ended.set()
            process.terminate()
    thread.join()


def is_healthy(service: str) -> bool:
    """Check that a service is healthy; raises Failed."""
    podman("healthcheck", "run", container(service))
    return True


def check_hardening() -> None:
    for service in services():
        status = dict(re.findall(r"(\w+):\t(.*)", inside(service, "cat", "/proc/1/status")))
        assert status["Uid"].split()[0] != "0", f"{service} runs as root"
        expect(("0" * 16, "1"), (status["CapEff"], status["NoNewPrivs"]))
        with contextlib.suppress(Failed):
            inside(service, "touch", "/opt/here")
            raise AssertionError(f"{service} can write to its image")
        found = json.loads(podman("inspect", "--format", "{{json .HostConfig}}", container(service)))
        assert found["Memory"], f"{service} has no bound on its memory"
        wanted = yaml.safe_load((CLONE / "docker-compose.yml").read_text())["services"][service]
        expect(wanted["pids_limit"], found["PidsLimit"])
        (mounted,) = re.findall(r" /tmp tmpfs .*size=(\d+)k", inside(service, "cat", "/proc/mounts"))
        expect(wanted["tmpfs"], [f"/tmp:size={int(mounted) // 1024}m"])
        hosts = {binding["HostIp"] for bindings in found["PortBindings"].values() for binding in bindings}
        assert hosts <= {"127.0.0.1"}, f"{service} is published on {hosts}"


def predict() -> tuple[float, str]:
    """Return a prediction and the version that made it."""
    answer = httpx.post(f"{ML_APP}/v1/predict", json=ROUTE)
    expect(200, answer.status_code)
    return answer.json()["prediction"][0], answer.headers["X-Model-Version"]


def ask_mlflow(path: str, **query: str) -> dict:
    return httpx.get(f"{MLFLOW}/api/2.0/mlflow/{path}", params=query, timeout=30).raise_for_status().json()


def check_mlflow() -> None:
    assert count_runs() > 2, "no runs"
    version = ask_mlflow("registered-models/alias", name="food-drive", alias="champion")["model_version"]["version"]
    where = ask_mlflow("model-versions/get-download-uri", name="food-drive", version=version)["artifact_uri"]
    expect("mlflow-artifacts", where.partition(":")[0])
    path = where.partition(":")[2].lstrip("/")
    manifest = httpx.get(f"{MLFLOW}/api/2.0/mlflow-artifacts/artifacts/{path}/gleaner/manifest.json", timeout=30)
    expect("food-drive", manifest.json()["model"])
    strange = httpx.get(f"{MLFLOW}/api/2.0/mlflow/experiments/search", headers={"Host": "elsewhere.example"})
    expect(403, strange.status_code)


def count_runs() -> int:
    found = ask_mlflow("experiments/get-by-name", experiment_name="food-drive")["experiment"]["experiment_id"]
    asked = {"experiment_ids": [found], "max_results": 1000}
    answer = httpx.post(f"{MLFLOW}/api/2.0/mlflow/runs/search", json=asked, timeout=30).raise_for_status()
    return len(answer.json()["runs"])


def move_champion() -> str:
    """Move `champion` to the challenger in MLflow; wait until it serves."""
    version = ask_mlflow("registered-models/alias", name="food-drive", alias="challenger")["model_version"]["version"]
    asked = {"name": "food-drive", "alias": "champion", "version": version}
    httpx.post(f"{MLFLOW}/api/2.0/mlflow/registered-models/alias", json=asked, timeout=30).raise_for_status()
    wait_for("the moved alias", 10, lambda: predict()[1] == version)
    return version


def override_data() -> str:
    """Follow docs/compose.md for other data, the sample's first half; return its sha256."""
    (override,) = re.findall(r"```yaml\n(.*?)```", (CLONE / "docs/compose.md").read_text(), re.DOTALL)
    (CLONE / "docker-compose.override.yml").write_text(override)
    (CLONE / "data").mkdir()
    lines = (CLONE / "examples/food-drive/routes.csv").read_bytes().splitlines(keepends=True)
    (CLONE / "data/routes.csv").write_bytes(half := b"".join(lines[: len(lines) // 2]))
    return hashlib.sha256(half).hexdigest()


def find_data_of(version: str) -> str:
    """Return the sha256 of a version's training data from MLflow."""
    run = ask_mlflow("model-versions/get", name="food-drive", version=version)["model_version"]["run_id"]
    tags = {tag["key"]: tag["value"] for tag in ask_mlflow("runs/get", run_id=run)["run"]["data"]["tags"]}
    parent = ask_mlflow("runs/get", run_id=tags["mlflow.parentRunId"])["run"]["data"]["params"]
    return {param["key"]: param["value"] for param in parent}["data_sha256"]


def ask_prometheus(path: str, **query: str) -> dict:
    return httpx.get(f"{PROMETHEUS}/api/v1/{path}", params=query).raise_for_status().json()["data"]


def all_targets_are_up() -> bool:
    wanted = yaml.safe_load((CLONE / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    states = {target["labels"]["job"]: target["health"] for target in ask_prometheus("targets")["activeTargets"]}
    expect({job["job_name"]: "up" for job in wanted}, states)
    return True


def first_sample() -> float:
    """Return the time at which Prometheus first scraped itself."""
    found = ask_prometheus("query", query='min_over_time(timestamp(up{job="prometheus"})[1h:1s])')["result"]
    return float(found[0]["value"][1])


AMTOOL = ("amtool", "--alertmanager.url=http://127.0.0.1:9093")


def alerts() -> list[dict]:
    return json.loads(inside("alertmanager", *AMTOOL, "--output=json", "alert", "query", "alertname=TargetDown"))


def check_grafana() -> str:
    """Check that only the made password opens Grafana.

    Returns the password and the stand-in's first file.
    """
    password = inside("grafana", "cat", "/var/lib/grafana/admin-password")
    assert len(password) == 32, "no password of 128 bits"
    for other in ("", "admin"):
        expect(401, httpx.get(GRAFANA, auth=("admin", other)).status_code)
    answer = httpx.get(GRAFANA, auth=("admin", password)).raise_for_status().json()
    for part in ("provisioning", "dashboards"):
        for path in (CLONE / "deploy/grafana" / part).rglob("*.*"):
            expect(path.read_text(), answer["files"][f"/etc/grafana/{path.relative_to(CLONE / 'deploy/grafana')}"])
    return password + answer["first_start"]


# Running things


def run(*command: object, timeout: float = 60) -> str:
    """Run a command and log its output; return the output.

    Raises Failed.
    """
    words = [str(word) for word in command]
    folder = CLONE if CLONE.exists() else FOLDER
    try:
        done = subprocess.run(
            words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise Failed(f"{' '.join(words)}: not done after {timeout:.0f} s") from e
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def podman(*command: object, timeout: float = 60) -> str:
    return run("podman", *command, timeout=timeout)


def compose(*command: str, timeout: float = 180) -> str:
    return run("podman-compose", *command, timeout=timeout)


def expect(wanted: T, found: T) -> None:
    if wanted != found:
        raise AssertionError(f"wanted {wanted!r}, found {found!r}")


def wait_for(what: str, seconds: float, is_there: Callable[[], bool]) -> None:
    """Call `is_there` until it returns True. Raises Failed."""
    until, last = time.monotonic() + seconds, "no"
    while time.monotonic() < until:
        try:
            if is_there():
                return
        except (httpx.HTTPError, Failed, AssertionError) as e:
            last = str(e) or repr(e)
        time.sleep(0.5)
    raise Failed(f"{what}: not after {seconds:.0f} s; last: {last}")


@contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Print a step and its seconds; the block may add notes."""
    began, found = time.monotonic(), list[str]()
    print(f"{what} ... ", end="", flush=True)
    try:
        yield found
    except BaseException:
        print(flush=True)
        raise
    print(", ".join([f"{time.monotonic() - began:.0f} s", *found]), flush=True)


def show_logs() -> None:
    """Print the end of every container's log."""
    with contextlib.suppress(Failed):
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            command = ["podman", "logs", "--tail", "15", name]
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
            print(f"--- {name}\n{done.stdout}{done.stderr}", flush=True)


if __name__ == "__main__":
    main()
