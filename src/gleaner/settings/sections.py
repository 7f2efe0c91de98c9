"""Every setting, in the sections of `gleaner.toml`, as one frozen object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gleaner.errors import wanted
from gleaner.redaction import hide_userinfo
from gleaner.settings import checks
from gleaner.settings.addresses import is_server
from gleaner.settings.file import FILE, STATE, stack_folder
from gleaner.settings.modelling import Model, Scores, TableFiles, Training, WithinFactor
from gleaner.settings.section import Link, SecretPath, Section, Server, Webhook
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema

ARTIFACTS = "mlartifacts"  # MLflow's files, under paths.state
SLOT_PATTERN = r"^v[1-9][0-9]*$"

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=1, le=366 * 86_400)]
_RATE_VALUES = 4  # the fewest scrapes from which a rate is worth an alert


class Ports(Section):
    """Every port outside compose; 0 takes any free one."""

    ml_app: Port = Field(5001, description="The API. `serving.port` is another name for it.")
    ml_app_metrics: Port = Field(8010, description="The API's metrics: the scrape target of the job `ml-api`.")
    train_metrics: Port = Field(8003, description="Training metrics: the scrape target of the job `train-metrics`.")
    mlflow: Port = Field(5002, description="MLflow's pages and API.")
    prometheus: Port = Field(9090, description="Prometheus.")
    alertmanager: Port = Field(9093, description="Alertmanager.")
    grafana: Port = Field(3000, description="Grafana.")


class Serving(Section):
    """The HTTP service and its limits."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    insecure: bool = Field(
        False, description="Allow a `host` that other machines reach although the API asks for no key."
    )
    keys_file: SecretPath = Field(
        "",
        description="The file of API keys, made by `gleaner keys add`; with one, every caller needs a key. "
        "`GLEANER_API_KEYS_FILE` is another name for it.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names of this server, besides addresses and names without a dot; `docs/security.md` has more."
    )
    trusted_proxies: Annotated[tuple[str, ...], AfterValidator(checks.check_networks)] = Field(
        (),
        description="Addresses of proxies, such as `10.0.0.0/8`, that tell a client's address "
        "by X-Forwarded-For or by the PROXY protocol.",
    )
    tls_certificate: str = Field(
        "", description="A PEM file with the API's certificate and those of its issuers; empty for plain HTTP."
    )
    tls_key: SecretPath = Field("", description="A PEM file with the certificate's private key, without a passphrase.")
    metrics_host: str = Field(
        "", description="The address of the metrics ports; empty for `host`, or for 127.0.0.1 with a file of keys."
    )
    slots: dict[Annotated[str, Field(pattern=SLOT_PATTERN)], str] = Field(
        {"v1": "champion", "v2": "challenger"},
        min_length=1,
        description="The serving paths, and the alias that each follows.",
    )
    public_key: SecretPath = Field(
        "", description="The file of a public key; versions without its signature are then refused."
    )
    poll_seconds: float = Field(0.5, gt=0, le=10, description="The time between two polls of the store's aliases.")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="The largest JSON body.")
    max_rows: int = Field(10_000, ge=1, description="The most rows in one JSON body.")
    max_table_bytes: int = Field(64_000_000, ge=1_000, description="The largest body of CSV, Arrow or binary tensors.")
    max_table_rows: int = Field(1_000_000, ge=1, description="The most rows in a body of CSV, Arrow or binary tensors.")
    max_depth: int = Field(32, ge=2, le=200, description="The deepest nesting of a JSON body.")
    max_in_flight: int = Field(16, ge=1, description="The most requests computed at once; others wait, then get a 503.")
    queue_seconds: float = Field(0.08, ge=0, le=5, description="The longest wait of a request for its turn.")
    threads: int = Field(256, ge=8, le=10_000, description="The most requests on threads at once; others get a 503.")
    drain_seconds: float = Field(10.0, ge=0, le=600, description="The time to finish requests at a stop.")
    unready_seconds: float = Field(
        0.0,
        ge=0,
        le=60,
        description="The time between the first 503 of `/readyz` and the end of listening, for a load balancer.",
    )
    log: Literal["human", "json"] = Field("human", description="The form of log lines.")
    access_log: bool = Field(
        False, description="Log every request; without it, the log has those that failed or were slow."
    )
    slow_seconds: float = Field(1.0, gt=0, description="A request that takes longer is slow, and in the log.")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key need each other; set both, or neither")
        return self


class Tracking(Section):
    """The record of runs and versions, and the aliases to follow."""

    uri: Server = Field("", description="An MLflow server; empty for a database under `paths.state`.")
    experiment: str = Field("", description="The experiment's name; empty for the model's name.")
    timeout_seconds: float = Field(
        8.0,
        gt=0,
        description="The longest time for one call to the MLflow server, and for a silence while it sends files.",
    )
    poll_seconds: float = Field(1.0, gt=0, le=5, description="The time between two polls of the server's aliases.")
    fetch_seconds: float = Field(60.0, gt=0, le=3_600, description="The longest time to fetch one version's files.")

    @property
    def is_server(self) -> bool:
        """Return whether an MLflow server keeps runs, versions and aliases."""
        return is_server(self.uri)


class Objectives(Section):
    """The service's promises to its callers, which alerts watch."""

    availability: float = Field(0.995, ge=0.95, lt=1, description="The share of requests without a 5xx response.")
    latency_seconds: float = Field(
        0.25,
        gt=0,
        le=5,
        description="The longest time for a prediction; an alert is exact at a bucket of the histogram.",
    )
    latency_quantile: float = Field(0.99, ge=0.5, lt=1, description="The share of predictions within that time.")


class Alerts(Section):
    """The thresholds of every alert in docs/alerts.md, and their receiver."""

    scrape_seconds: float = Field(
        15, ge=1, le=60, description="The time between scrapes, and between evaluations of rules."
    )
    memory_bytes: float = Field(500_000_000, gt=0, description="HighMemoryUsage: a process uses more than this.")
    memory_for_seconds: Seconds = Field(60, description="HighMemoryUsage: the time above `memory_bytes`.")
    cpu_percent: float = Field(80, gt=0, lt=100, description="HighCPUUsage: a process uses more than this.")
    cpu_for_seconds: Seconds = Field(60, description="HighCPUUsage: the time above `cpu_percent`.")
    error_ratio: float = Field(0.05, gt=0, lt=1, description="HighErrorRate: a share of 5xx responses above this.")
    error_window_seconds: Seconds = Field(300, description="HighErrorRate: the window of `error_ratio`.")
    training_loss: float = Field(0.5, gt=0, description="HighTrainingLoss: a loss above this.")
    training_loss_for_seconds: Seconds = Field(300, description="HighTrainingLoss: the time above `training_loss`.")
    validation_accuracy: float = Field(0.8, gt=0, le=1, description="LowValidationAccuracy: accuracy below this.")
    validation_accuracy_for_seconds: Seconds = Field(300, description="LowValidationAccuracy: the time below that.")
    down_for_seconds: Seconds = Field(60, description="TargetDown: the time without a response to Prometheus.")
    no_model_for_seconds: Seconds = Field(300, description="NoModel: the time without a model in the first slot.")
    registry_age_seconds: Seconds = Field(
        300, description="RegistryNotFollowed: the time without a successful poll of `tracking.uri`."
    )
    slow_window_seconds: Seconds = Field(300, description="SlowPredictions: the window of `objectives`.")
    training_age_days: float = Field(30, gt=0, description="TrainingStale: the time without a successful training.")
    restarts: int = Field(2, ge=1, description="RestartLoop: a process restarts more often than this.")
    restart_window_seconds: Seconds = Field(900, description="RestartLoop: the window of `restarts`.")
    few_failures: int = Field(
        10, ge=0, description="An alert on failed or slow requests needs more than this in its window."
    )
    runbooks: Link = Field("docs/alerts.md", description="The address of docs/alerts.md, for links in alerts.")
    dashboards: Link = Field("", description="Grafana's address in alerts; empty for `ports.grafana` on this machine.")
    webhook: Webhook = Field(
        "", description="The address that gets every alert; only its host is shown. Alertmanager's file has all of it."
    )
    webhook_token_file: SecretPath = Field("", description="A file with the webhook's token, for Alertmanager.")

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        least = _RATE_VALUES * self.scrape_seconds
        for name, seconds in self:
            if name.endswith("_window_seconds") and seconds < least:
                right = f"{least:g} or more, {_RATE_VALUES} times scrape_seconds"
                raise ValueError(f"{name}: {wanted(right, f'{seconds:g}')}")
        most = int(self.restart_window_seconds / self.scrape_seconds) - 2  # a scrape shows at most one restart
        if self.restarts > most:
            right = f"{most} or fewer in {self.restart_window_seconds:g} s"
            raise ValueError(f"restarts: {wanted(right, str(self.restarts))}")
        return self


class Paths(Section):
    """The folders that Gleaner writes to, relative to the folder of `gleaner.toml`."""

    state: Path = Field(Path(STATE), description="The folder of the store and of MLflow's database.")


class Settings(BaseSettings):
    """Every port, path and threshold of the whole system."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="GLEANER_",
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    model: Model
    features: Annotated[tuple[Feature, ...], Field(min_length=1), AfterValidator(checks.check_features)]
    table: TableFiles = TableFiles()
    training: Training = Training()
    scores: Scores = Scores()
    ports: Ports = Ports()
    serving: Serving = Serving()
    tracking: Tracking = Tracking()
    objectives: Objectives = Objectives()
    alerts: Alerts = Alerts()
    paths: Paths = Paths()

    file: Path = Field(default=Path(FILE), exclude=True, repr=False)  # the file that was read; no key of it

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        by_factor = isinstance(self.scores.accuracy, WithinFactor)
        checks.check_scores(self.scores.loss, by_factor=by_factor, least=self.model.min)
        age, fetch = self.alerts.registry_age_seconds, self.tracking.fetch_seconds
        if age <= fetch:  # one slow fetch from MLflow would set off RegistryNotFollowed
            right = f"more than tracking.fetch_seconds, {fetch:g}"
            raise ValueError(f"alerts.registry_age_seconds: {wanted(right, f'{age:g}')}")
        if self.model.target in {feature.name for feature in self.features}:
            raise ValueError(f"model.target: {self.model.target!r} is a feature, too; delete it from [[features]]")
        checks.check_notations(self.schema_)
        return self

    @property
    def schema_(self) -> Schema:
        """Return the columns of the table."""
        model = self.model
        plain = TableFiles()
        notation = {key: sign for key, sign in self.table if key != "encoding" and sign != getattr(plain, key)}
        features = [
            replace(one, **{key: sign for key, sign in notation.items() if one.is_number and getattr(one, key) is None})
            for one in self.features
        ]
        target = Target(name=model.target, sources=model.target_sources, unit=model.unit, min=model.min, **notation)
        target = replace(target, missing_values=model.target_missing_values)
        return Schema(tuple(features), target, model.date_sources, model.date_formats, self.training.group)

    @property
    def state(self) -> Path:
        return self.file.parent / self.paths.state

    @property
    def data(self) -> Path | None:
        """Return `training.data`, relative to the settings file."""
        return self.file.parent / self.training.data if self.training.data else None

    @property
    def signing_key(self) -> Path | None:
        """Return `training.signing_key`, relative to the settings file."""
        return self.file.parent / self.training.signing_key if self.training.signing_key else None

    @property
    def public_key(self) -> Path | None:
        """Return `serving.public_key`, relative to the settings file."""
        return self.file.parent / self.serving.public_key if self.serving.public_key else None

    @property
    def store(self) -> Path:
        return self.state / "store"

    @property
    def keys_file(self) -> Path | None:
        """Return `serving.keys_file`, relative to the settings file."""
        return self.file.parent / self.serving.keys_file if self.serving.keys_file else None

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Return the files of the certificate and its key, or None."""
        serving, folder = self.serving, self.file.parent
        return (folder / serving.tls_certificate, folder / serving.tls_key) if serving.tls_key else None

    @property
    def keys_used(self) -> Path:
        """Return the file for the time of each key's last use."""
        return self.state / "keys-used.json"

    @property
    def metrics_host(self) -> str:
        """Return the address of the metrics ports."""
        serving = self.serving
        return serving.metrics_host or ("127.0.0.1" if serving.keys_file else serving.host)

    @property
    def stack_folder(self) -> Path:
        """Return the folder of the run file, logs and rendered files."""
        return stack_folder(self.state)

    @property
    def tracking_uri(self) -> str:
        """Return MLflow's address without a user and password; see `prepare_mlflow`."""
        uri = hide_userinfo(self.tracking.uri) if self.tracking.is_server else self.tracking.uri
        return uri or f"sqlite:///{self.state.absolute() / 'mlflow.db'}"
