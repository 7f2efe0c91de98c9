"""`gleaner.toml`, the environment and the flags as one frozen object: a flag beats the environment beats the file."""

from __future__ import annotations

import base64
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from gleaner.errors import BadSetting, environment_name, nearest
from gleaner.schema import Feature, Schema, Target

FILE = "gleaner.toml"
ARTIFACTS = "mlartifacts"  # MLflow's files, under paths.state
Candidate = Literal["linear", "decision_tree", "random_forest", "gradient_boosting", "spline"]
CANDIDATES: tuple[Candidate, ...] = ("linear", "decision_tree", "random_forest", "gradient_boosting", "spline")
# Read elsewhere than in the file's sections: which file to read, and the real routes that some tests want.
_OTHER_VARIABLES = frozenset({"GLEANER_CONFIG", "GLEANER_REAL_ROUTES"})

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_SLOT = r"^v[1-9][0-9]*$"


def _duration(text: str) -> str:
    if text and not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise ValueError("wanted a duration such as 90m, 24h or 7d, or nothing")
    return text


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=1, le=366 * 86_400)]
Duration = Annotated[str, AfterValidator(_duration)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(_Section):
    """The model: its name in the registry, and the column that it predicts."""

    name: str = Field(pattern=_NAME, description="Its name in the registry.")
    target: str = Field(description="The column to be predicted.")
    target_sources: tuple[str, ...] = Field((), description="Headers under which a file may keep the target, in order.")
    unit: str = Field("", description="The target's unit.")
    min: float | None = Field(None, description="Predictions and actuals never fall below it.")
    date_sources: tuple[str, ...] = Field(
        (), description="Headers under which a file may keep a row's day; only used to point at stray rows."
    )


class Training(_Section):
    """What training tries, and how it chooses."""

    candidates: tuple[Candidate, ...] = Field(CANDIDATES, min_length=1, description="The model families to try.")
    champion: Literal["best", Candidate] = Field("best", description="`best`, or a candidate's name.")
    challenger: Literal["second", "none", Candidate] = Field(
        "second", description="`second`, a candidate's name, or `none`."
    )
    folds: int = Field(5, ge=2, le=50, description="Folds of the cross-validation.")
    repeats: int = Field(3, ge=1, le=50, description="Times the cross-validation is repeated, shuffled anew.")
    seed: int = Field(0, ge=0, lt=2**32, description="The seed of everything random.")
    data: Path | None = Field(None, description="The CSV file to train from where none is named.")
    max_rows: int = Field(1_000_000, ge=1, description="A file with more rows is refused; memory grows with it.")
    suspect_gap_days: int = Field(90, ge=1, description="A row this many days from every other one is pointed at.")
    suspect_deviation: float = Field(
        5.0, gt=0, description="A row is pointed at when its residual is this many robust standard deviations off."
    )
    every: Duration = Field(
        "",
        description="How long after a training `gleaner train --resident` trains anew: `24h`, `7d`; empty for never.",
    )

    @property
    def every_seconds(self) -> float | None:
        return float(self.every[:-1]) * _SECONDS[self.every[-1]] if self.every else None


class WithinFactor(_Section):
    """A prediction is accurate within a factor: max((1+y)/(1+p), (1+p)/(1+y)) <= within_factor."""

    within_factor: float = Field(gt=1)


class Within(_Section):
    """A prediction is accurate within a distance, in the target's unit."""

    within: float = Field(gt=0)


class Scores(_Section):
    """How a model is judged; docs/metrics.md has the formulas."""

    loss: Literal["squared_log_error", "standardised_squared_error"] = Field(
        "squared_log_error", description="The training loss; the second is for a target that can be negative."
    )
    accuracy: WithinFactor | Within = Field(
        WithinFactor(within_factor=2.0),
        description="What counts as accurate: `{ within_factor = 2.0 }`, or `{ within = 10.0 }` in the target's unit.",
    )


class Ports(_Section):
    """Every port of the whole system, and the only place to move one, outside compose; 0 means any free one."""

    ml_app: Port = Field(5001, description="The API. Also accepted as `serving.port`.")
    ml_app_metrics: Port = Field(8010, description="The API's metrics alone: the scrape target of job `ml-api`.")
    train_metrics: Port = Field(8003, description="Training metrics: the scrape target of job `train-metrics`.")
    mlflow: Port = Field(5002, description="MLflow's pages and API.")
    prometheus: Port = Field(9090, description="Prometheus.")
    alertmanager: Port = Field(9093, description="Alertmanager; compose does not publish it.")
    grafana: Port = Field(3000, description="Grafana.")


class Serving(_Section):
    """The HTTP service and its limits."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    insecure: bool = Field(False, description="Listen beyond loopback although anybody there may then ask.")
    slots: dict[Annotated[str, Field(pattern=_SLOT)], str] = Field(
        {"v1": "champion", "v2": "challenger"},
        min_length=1,
        description="The serving paths, and the alias that each follows.",
    )
    poll_seconds: float = Field(0.5, gt=0, le=10, description="How often the store is looked at for a moved alias.")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="The largest body of JSON.")
    max_rows: int = Field(10_000, ge=1, description="The most rows in one request of JSON.")
    max_table_bytes: int = Field(64_000_000, ge=1_000, description="The largest body of CSV, Arrow or binary tensors.")
    max_table_rows: int = Field(1_000_000, ge=1, description="The most rows in one of them.")
    max_depth: int = Field(32, ge=2, le=200, description="The deepest nesting of JSON.")
    max_in_flight: int = Field(16, ge=1, description="Requests computed at once; more wait, then get a 503.")
    queue_seconds: float = Field(0.09, ge=0, le=5, description="How long a request waits for its turn.")
    threads: int = Field(1_200, ge=110, le=10_000, description="Threads; a client that sends slowly holds one.")
    drain_seconds: float = Field(10.0, ge=0, le=600, description="Time to answer what is in flight when told to stop.")
    unready_seconds: float = Field(
        0.0, ge=0, le=60, description="Time between `/readyz` saying no and the end of listening, for a load balancer."
    )
    log: Literal["human", "json"] = Field("human", description="The form of log lines.")


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _address(uri: str) -> str:
    """An address as it was given, once it is seen to be one. The password in it is nobody's to read."""
    if _is_server(uri):
        wanted = "wanted http://host:port, with user:password@ before the host or nothing"
        try:
            parts = urlsplit(uri)
            whole = bool(parts.hostname) and parts.port != 0 and bool(parts.username) == bool(parts.password)
        except ValueError as e:  # its own text may hold a piece of a password
            raise ValueError(wanted) from e
        if not whole or parts.query or parts.fragment or "@" in parts.path or not re.fullmatch(r"[!-~]+", uri):
            raise ValueError(wanted)
    return uri


class Tracking(_Section):
    """Where runs and versions are recorded; the aliases of a server are followed while serving."""

    uri: Annotated[str, AfterValidator(_address)] = Field(
        "", description="An MLflow server, or empty for a database of its own under `paths.state`."
    )
    experiment: str = Field("", description="The experiment's name; empty for the model's.")
    timeout_seconds: float = Field(8.0, gt=0, description="How long one call to an MLflow server may take.")
    poll_seconds: float = Field(
        1.0, gt=0, le=5, description="How often a server is asked where its aliases point, while serving."
    )
    fetch_seconds: float = Field(
        60.0, gt=0, le=3_600, description="How long fetching one version's files from a server may take."
    )

    @property
    def is_server(self) -> bool:
        """Whether an MLflow server keeps the registry, so that its aliases are there to be followed."""
        return _is_server(self.uri)

    @field_serializer("uri")
    def _show_uri(self, uri: str) -> str:
        return hide_userinfo(uri)


class Objectives(_Section):
    """What the service promises its callers; what breaks a promise is an alert."""

    availability: float = Field(0.995, ge=0.95, lt=1, description="The share of requests that are not answered 5xx.")
    latency_seconds: float = Field(
        0.25, gt=0, le=5, description="How long a prediction may take; exact where it is a bucket of the histogram."
    )
    latency_quantile: float = Field(0.99, ge=0.5, lt=1, description="The share of predictions that are as quick.")


class Alerts(_Section):
    """When Prometheus alerts, and whom Alertmanager tells; docs/alerts.md has a section for every alert."""

    scrape_seconds: float = Field(
        15, ge=1, le=60, description="How often Prometheus asks every process, and looks at the rules."
    )
    memory_bytes: float = Field(500_000_000, gt=0, description="HighMemoryUsage: more than this ...")
    memory_for_seconds: Seconds = Field(60, description="... for this long.")
    cpu_percent: float = Field(80, gt=0, lt=100, description="HighCPUUsage: more than this ...")
    cpu_for_seconds: Seconds = Field(60, description="... for this long.")
    error_ratio: float = Field(0.05, gt=0, lt=1, description="HighErrorRate: more than this share answered 5xx ...")
    error_window_seconds: Seconds = Field(300, description="... over this long.")
    training_loss: float = Field(0.5, gt=0, description="HighTrainingLoss: more than this ...")
    training_loss_for_seconds: Seconds = Field(300, description="... for this long.")
    validation_accuracy: float = Field(0.8, gt=0, le=1, description="LowValidationAccuracy: less than this ...")
    validation_accuracy_for_seconds: Seconds = Field(300, description="... for this long.")
    down_for_seconds: Seconds = Field(60, description="TargetDown: a process does not answer Prometheus for this long.")
    no_model_for_seconds: Seconds = Field(300, description="NoModel: the first slot has no model for this long.")
    registry_age_seconds: Seconds = Field(
        300, description="RegistryNotFollowed: no look at the aliases of `tracking.uri` has succeeded for this long."
    )
    slow_window_seconds: Seconds = Field(300, description="SlowPredictions: `objectives` missed over this long.")
    training_age_days: float = Field(30, gt=0, description="TrainingStale: no training has succeeded for this long.")
    restarts: int = Field(2, ge=1, description="RestartLoop: a process started anew more often than this ...")
    restart_window_seconds: Seconds = Field(900, description="... within this long.")
    few_failures: int = Field(
        10, ge=0, description="So few failed requests, or slow ones, in the window of an alert say nothing."
    )
    runbooks: str = Field("docs/alerts.md", description="Where that page can be read: the start of `runbook_url`.")
    dashboards: str = Field("", description="Grafana's address for people; empty for this machine's `ports.grafana`.")
    webhook: str = Field(
        "", description="An address that Alertmanager tells; it is written into a file, so it holds no secret."
    )
    webhook_token_file: str = Field(
        "", description="A file with the token that the webhook asks for; Alertmanager reads it, not Gleaner."
    )

    @model_validator(mode="after")
    def _can_be_watched(self) -> Self:
        for name in ("error", "slow", "restart"):
            if getattr(self, f"{name}_window_seconds") < 4 * self.scrape_seconds:
                raise ValueError(
                    f"{name}_window_seconds is less than four times scrape_seconds: too few values for a rate"
                )
        if self.restarts + 2 > self.restart_window_seconds / self.scrape_seconds:
            raise ValueError("restarts is more than can be seen in restart_window_seconds, a look every scrape_seconds")
        if self.webhook and not re.fullmatch(r"https?://[^@\s]+", self.webhook):
            raise ValueError(
                "webhook is an address such as https://example.org/alerts, without a name or password in it"
            )
        return self


class Paths(_Section):
    """Where files are kept; relative to the folder of `gleaner.toml`."""

    state: Path = Field(Path(".gleaner"), description="Everything that Gleaner writes: the store, MLflow's database.")


def _distinct(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    for i, feature in enumerate(features):
        if feature.name in {other.name for other in features[:i]}:
            raise ValueError(f"two features are named {feature.name!r}")
        if not feature.name or ":" in feature.name:
            raise ValueError(f"a feature's name is not empty and has no colon; got {feature.name!r}")
        if feature.type == "category" and not feature.values:
            raise ValueError(f'{feature.name!r}: a category names its words: add `values = ["...", ...]`')
        if feature.type != "category" and feature.values:
            raise ValueError(
                f'{feature.name!r}: `values` are for a category: add `type = "category"`, or leave them out'
            )
        for word in (*feature.values, *feature.map):
            if word != word.strip():  # no cell of a file could ever match it
                raise ValueError(f"{feature.name!r}: {word!r} has blanks around it; wanted {word.strip()!r}")
        if len(set(feature.values)) < len(feature.values):
            raise ValueError(f"{feature.name!r}: a value stands twice in `values`")
        if feature.type == "category" and (feature.map or feature.monotone or {feature.min, feature.max} != {None}):
            raise ValueError(f"{feature.name!r}: a category has no `min`, `max`, `monotone` or `map`")
        if not feature.lowest < feature.highest:
            raise ValueError(f"{feature.name!r}: `min` is not below `max`")
    return features


class Settings(BaseSettings):
    """Every port, path and threshold of the whole system."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="GLEANER_", env_nested_delimiter="__")

    model: Model
    features: Annotated[tuple[Feature, ...], Field(min_length=1), AfterValidator(_distinct)]
    training: Training = Training()
    scores: Scores = Scores()
    ports: Ports = Ports()
    serving: Serving = Serving()
    tracking: Tracking = Tracking()
    objectives: Objectives = Objectives()
    alerts: Alerts = Alerts()
    paths: Paths = Paths()

    file: Path = Field(default=Path(FILE), exclude=True, repr=False)  # where these were read; not a key of it

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.scores.loss == "squared_log_error" and (self.model.min is None or self.model.min <= -1):
            raise ValueError(
                "scores.loss: squared_log_error needs model.min above -1; "
                "for a target that can be negative use standardised_squared_error and accuracy = { within = ... }"
            )
        if isinstance(self.scores.accuracy, WithinFactor) and (self.model.min is None or self.model.min <= -1):
            raise ValueError("scores.accuracy: within_factor needs model.min above -1; use { within = ... }")
        if self.alerts.registry_age_seconds <= self.tracking.fetch_seconds:
            raise ValueError(
                "alerts.registry_age_seconds: wanted more than tracking.fetch_seconds, "
                f"{self.tracking.fetch_seconds:g}, which one look may take; got {self.alerts.registry_age_seconds:g}"
            )
        if self.model.target in {feature.name for feature in self.features}:
            raise ValueError(f"model.target: {self.model.target!r} is a feature, too")
        return self

    @property
    def schema_(self) -> Schema:
        """The columns, as every reader wants them."""
        target = Target(
            name=self.model.target, sources=self.model.target_sources, unit=self.model.unit, min=self.model.min
        )
        return Schema(self.features, target, self.model.date_sources)

    @property
    def state(self) -> Path:
        return self.file.parent / self.paths.state

    @property
    def data(self) -> Path | None:
        """The CSV file to train from where none is named."""
        return self.file.parent / self.training.data if self.training.data else None

    @property
    def store(self) -> Path:
        return self.state / "store"

    @property
    def tracking_uri(self) -> str:
        """What MLflow is told; of a server without the user and the password, which it is told in another way."""
        uri = hide_userinfo(self.tracking.uri) if self.tracking.is_server else self.tracking.uri
        return uri or f"sqlite:///{self.state.absolute() / 'mlflow.db'}"


class _Source(PydanticBaseSettingsSource):
    """Nested values from anywhere, in which `serving.port` is `ports.ml_app`: people look for it in both places."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self.values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = dict(self.values)
        serving, ports = values.get("serving"), values.get("ports", {})
        if isinstance(serving, dict) and "port" in serving and isinstance(ports, dict):
            values["serving"] = {key: value for key, value in serving.items() if key != "port"}
            values["ports"] = {**ports, "ml_app": serving["port"]}
        return values


def prepare_mlflow(settings: Settings) -> None:
    """Set what MLflow reads from the environment while it is imported: no telemetry, bounded waiting, no chatter."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(settings.tracking.timeout_seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    user, password = _userinfo(settings)
    if user:  # there it is out of the texts of errors
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password


def read_authorization(settings: Settings) -> str:
    """The header `Authorization` for an MLflow server, empty for none; never to be shown.

    Made of the user and password in the address, else of the variables that MLflow's own client reads.
    Raises BadSetting for a token that no header can hold.
    """
    user, password = _userinfo(settings)
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user and password:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise BadSetting("environment", "MLFLOW_TRACKING_TOKEN", "wanted a token: plain characters without spaces")
    return f"Bearer {token}" if token else ""


def _userinfo(settings: Settings) -> tuple[str, str]:
    """The user and the password in the server's address, both empty where there are none."""
    parts = urlsplit(settings.tracking.uri if settings.tracking.is_server else "")
    return unquote(parts.username or ""), unquote(parts.password or "")


def hide_userinfo(text: str) -> str:
    """A text without the users and passwords in its addresses."""
    return re.sub(r"//\S*@", "//", text)


def make_environment(**more: str) -> dict[str, str]:
    """The environment of a process that is started from here: this one's, and some variables more."""
    return {**os.environ, **more}


def drop_request_variables() -> None:
    """Take out of the environment what a WSGI server would mistake for parts of every request.

    granian lays a request's headers over a copy of it: a variable HTTP_X_API_KEY would be everybody's key.
    """
    for name in list(os.environ):
        if name.startswith("HTTP_") or name in {"CONTENT_LENGTH", "CONTENT_TYPE", "QUERY_STRING"}:
            del os.environ[name]


def find_settings(path: Path | None = None) -> Path:
    """The file to read: `path`, else GLEANER_CONFIG, else `gleaner.toml` in this folder."""
    return path or Path(os.environ.get("GLEANER_CONFIG") or FILE)


def load_settings(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a file (see `find_settings`), the environment, and `flags`, nested as the file is.

    Raises BadSetting, naming the source, the key and what would be right.
    """
    path = find_settings(path)
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors of Windows leave a mark
    except FileNotFoundError as e:
        raise BadSetting(
            str(path),
            "",
            f"no such file in {path.absolute().parent}; go to the folder of {FILE}, or give --config or "
            "GLEANER_CONFIG; `gleaner init DATA.csv --target COLUMN` writes a first one",
        ) from e
    except UnicodeDecodeError as e:
        raise BadSetting(str(path), "", "is not UTF-8; save it as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise BadSetting(str(path), "", f"is not TOML: {e}") from e
    except OSError as e:
        raise BadSetting(str(path), "", f"cannot be read: {e.strerror}") from e
    if "file" in parsed:
        raise BadSetting(str(path), "file", f"no such setting{nearest('file', _known(()))}")
    _check_environment()
    layers: dict[str, Mapping[str, Any]] = {}  # what each source gave, the strongest first

    class Bound(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            layers.update({"flag": init_settings(), "environment": env_settings(), str(path): parsed})
            given = list(layers.values())
            for i, layer in enumerate(given):
                _outweigh(layer, given[i + 1 :])
            return tuple(_Source(settings_cls, layer) for layer in layers.values())

    try:
        return Bound(**{"file": path, **(flags or {})})
    except SettingsError as e:
        raise _not_json(e) from e
    except ValidationError as e:
        raise _readable(path, layers, e) from e


def _check_environment() -> None:
    for name in os.environ:
        section = name.lower().removeprefix("gleaner_").split("__")[0]
        if name.lower().startswith("gleaner_") and name not in _OTHER_VARIABLES and section not in _known(()):
            known = sorted(_OTHER_VARIABLES | {environment_name(key) for key in _known(())})
            raise BadSetting("environment", name, f"no such setting{nearest(name, known)}")


def _known(location: tuple[object, ...]) -> list[str]:
    """The keys that a section takes."""
    names = {
        "": [name for name in Settings.model_fields if name != "file"],
        "features": list(Feature.__dataclass_fields__),
        "scores.accuracy": [*WithinFactor.model_fields, *Within.model_fields],
    }
    section = str(location[0]) if location else ""
    for name in (".".join(map(str, location)), section):
        if name in names:
            return names[name]
    model = Settings.model_fields[section].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [*model.model_fields, *(["port"] if section == "serving" else [])]


def _not_json(error: SettingsError) -> BadSetting:
    """A variable that stands for a list or a table, and cannot be read as one."""
    text = getattr(error.__cause__, "doc", None)
    found = [name for name, value in os.environ.items() if name.lower().startswith("gleaner_") and value == text]
    if not found:
        return BadSetting("environment", "", str(error))
    got = hide_userinfo(repr(text))
    return BadSetting("environment", found[0], f"a list or a table is written as JSON here; got {got}")


def _readable(path: Path, layers: Mapping[str, Mapping[str, Any]], error: ValidationError) -> BadSetting:
    """The most telling fault of a validation, in the words of the person who wrote the key."""
    # A misspelt key is also a missing one, a bad value in one branch of a union a wrong key in the other, and a list
    # whose only item is bad an empty one.
    rank = {"too_short": 3, "missing": 2, "extra_forbidden": 1, "unexpected_keyword_argument": 1}
    fault = min(error.errors(), key=lambda fault: rank.get(fault["type"], 0))
    location = tuple(part for part in fault["loc"] if not _is_branch(part))
    if fault["type"] == "missing" and location[:2] == ("scores", "accuracy"):
        location = location[:2]  # of either branch of the union, the key is missing
    source, values, given = _origin(layers, location) or (str(path), layers[str(path)], location)
    key = _key(source, values, given)
    if fault["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = _known(location[:-1])
        if location[-1] in known:
            return BadSetting(source, key, f"wanted only one of {', '.join(map(repr, known))}")
        return BadSetting(source, key, f"no such setting{nearest(str(location[-1]), known)}")
    wanted = _wanted(fault, location)
    if fault["type"] == "missing" and not wanted:
        return BadSetting(source, key, "is missing")
    message = wanted or fault["msg"].removeprefix("Value error, ")
    if not location:
        return BadSetting(source, "", message)
    # A list is long, and an address may hold a password.
    unsaid = isinstance(fault["input"], list | tuple) or location in {("tracking",), ("tracking", "uri")}
    got = "" if unsaid else f"; got {fault['input']!r}"
    return BadSetting(source, key, f"{message[0].lower()}{message[1:]}{got}")


def _wanted(fault: Mapping[str, Any], location: tuple[Any, ...]) -> str:
    """What would be right, in TOML's words, where pydantic says it in Python's; else nothing."""
    if location == ("scores", "accuracy"):
        return "wanted { within_factor = 2.0 }, or { within = 10.0 } in the target's unit"
    if location[:1] == ("features",) and len(location) <= 2 and fault["type"] not in {"missing", "value_error"}:
        return "wanted one or more [[features]], a table for each column"
    if fault["type"] == "string_pattern_mismatch":
        return {
            _NAME: "wanted 1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or a digit",
            _SLOT: "wanted a slot such as v1 or v2",
        }[fault["ctx"]["pattern"]]
    return {
        "dataclass_type": "wanted a table of `key = value`",
        "dict_type": "wanted a table of `key = value`",
        "model_type": "wanted a table of `key = value`",
        "path_type": "wanted a path in quotes",
        "string_type": "wanted a text in quotes",
        "too_short": "wanted at least one",
        "tuple_type": 'wanted a list, such as ["..."]',
    }.get(fault["type"], "")


def _origin(
    layers: Mapping[str, Mapping[str, Any]], location: tuple[Any, ...]
) -> tuple[str, Mapping[str, Any], tuple[Any, ...]] | None:
    """The strongest source that gave a value, all that it gave, and where in that it did; None if none did."""
    for source, values in layers.items():
        # As `_Source` has it: within one source, `serving.port` goes before `ports.ml_app`.
        other = [("serving", "port")] if location == ("ports", "ml_app") else []
        for given in (*other, location):
            if given and _value_at(values, given) is not None:
                return source, values, given
    return None


def _key(source: str, values: Mapping[str, Any], location: tuple[Any, ...]) -> str:
    """A key as its source spells it; a feature by its name, and of a list the whole, for nobody counts from 0."""
    feature = []
    if len(location) > 1 and location[0] == "features":
        name = _value_at(values, (*location[:2], "name"))
        feature = [f"feature {name!r}" if name and isinstance(name, str) else f"feature {location[1] + 1}"]
        feature += [".".join(str(part) for part in location[2:] if not isinstance(part, int))]
        location = location[:1]
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    if source == "environment":
        key = environment_name(key)
    elif feature:
        key = ""
    return ": ".join(filter(None, [key, *feature]))


def _outweigh(values: Mapping[str, Any], weaker: list[Mapping[str, Any]]) -> None:
    """Take `scores.accuracy` out of weaker sources: it is one of two tables, which laid over each other are neither."""
    if _value_at(values, ("scores", "accuracy")) is not None:
        for other in weaker:
            if isinstance(scores := other.get("scores"), dict):
                scores.pop("accuracy", None)


def _is_branch(part: object) -> bool:
    """Whether a part of a location is pydantic's name for a branch of a union, and no key of ours."""
    return isinstance(part, str) and ("[" in part or part in {"WithinFactor", "Within"})


def _value_at(values: Any, location: tuple[Any, ...]) -> object:
    """What stands at a location of nested values; None where nothing does."""
    for part in location:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return None
    return values


_FEATURE_KEYS = {
    "name": "The column's name in requests.",
    "type": "`float`, `int` or `category`; a category becomes one 0/1 column per value.",
    "unit": "Its unit, for people.",
    "min": "A row with less is refused, with the reason.",
    "max": "A row with more is refused, with the reason.",
    "monotone": "`up` or `down`: candidates that can, keep to it.",
    "sources": "Headers under which a file may keep the column, in order; its own name comes last.",
    "map": 'Words of a file that stand for numbers, without blanks around them; `""` for an empty cell.',
    "values": "The words that a category takes, without blanks around them; any other is refused.",
    "description": "What it is, for people.",
}


def describe_settings() -> str:
    """`docs/settings.md`: every setting with its type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "Made by `gleaner config describe`; a test fails when it is stale. One file, `gleaner.toml`: a flag beats the",
        "environment beats the file beats the default. In the environment `serving.host` is `GLEANER_SERVING__HOST`;",
        "`GLEANER_CONFIG` names the file to read, else `gleaner.toml` in the current folder. An unknown key is an",
        "error that names the nearest known one. `gleaner config show` prints what holds.",
    ]
    for section, info in Settings.model_fields.items():
        model = info.annotation
        if section == "features":
            lines += [
                "",
                "## `[[features]]`",
                "",
                "One input column each, in the order of the model's matrix. A row with an empty cell is",
            ]
            lines += ["refused, in training as in serving: [what a table may look like](tables.md).", ""]
            lines += ["| key | meaning |", "| --- | --- |"]
            lines += [f"| `{key}` | {meaning} |" for key, meaning in _FEATURE_KEYS.items()]
        elif isinstance(model, type) and issubclass(model, BaseModel):
            lines += ["", f"## `[{section}]`", "", (model.__doc__ or "").strip(), ""]
            lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
            for name, setting in model.model_fields.items():
                default = "required" if setting.is_required() else f"`{_toml(setting.default)}`"
                lines.append(f"| `{name}` | {_kind(setting.annotation)} | {default} | {setting.description} |")
    return "\n".join(lines) + "\n"


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f'"{value}"' for value in arguments)
    if origin is UnionType or str(origin) == "typing.Union":
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    if origin in {tuple, dict}:
        return {tuple: "list", dict: "table"}[origin]
    names = {float: "number", int: "whole number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, "table")


def _toml(value: object) -> str:
    if isinstance(value, BaseModel):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value) + " }"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, int) and abs(value) >= 10_000:  # not below, where a port would look like none
        return f"{value:_}"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def show_settings(settings: Settings) -> str:
    """Every setting as it holds, a line each."""
    lines = []
    for section, values in settings.model_dump().items():
        if section == "features":
            names = ", ".join(feature.name for feature in settings.features)
            lines.append(f"features = {names}")
            continue
        lines += [f"{section}.{name} = {_toml(getattr(getattr(settings, section), name))}" for name in values]
    return hide_userinfo("\n".join(lines))
