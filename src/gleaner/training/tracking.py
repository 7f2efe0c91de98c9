"""The record of a training in MLflow: runs, plots, versions, aliases."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import mlflow.onnx
import onnx
import pandas as pd
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType
from mlflow.types import Schema as Columns

from gleaner.backup.locations import FILES, local_folder
from gleaner.errors import Refused, Unreachable
from gleaner.machine.files import make_private, scratch_folder
from gleaner.model.artifact import Artifact
from gleaner.model.manifest import ARTIFACT_FOLDER, MANIFEST, SIGNATURE
from gleaner.model.scores import Scores
from gleaner.redaction import hide_login, hide_userinfo, redact
from gleaner.settings.sections import ARTIFACTS, Settings
from gleaner.table.schema import Schema
from gleaner.table.tables import Table
from gleaner.training.artifacts import register_files
from gleaner.training.events import Chosen, Epoch, Event, Fitted, Started, Suspect, TableRead, Tuned, Validated
from gleaner.training.plots import draw_plots

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0


class Recorder:
    """The record of one training in MLflow.

    It has a parent run, a child run per candidate, and the registered versions. Used as a context, it marks every open
    run FINISHED, or FAILED if the block raised (Ctrl-C included). Its methods raise Unreachable if MLflow does not
    respond.
    """

    def __init__(self, settings: Settings, source: Path) -> None:
        self.settings, self.source = settings, source
        _quieten()

    def __enter__(self) -> Self:
        settings = self.settings
        with _reachable(settings):
            if not settings.tracking.uri:
                make_private(settings.state)
            mlflow.set_tracking_uri(settings.tracking_uri)
            mlflow.set_registry_uri(settings.tracking_uri)
            register_files()
            self.client = mlflow.MlflowClient()
            self.experiment_id = self._experiment()
            self.run_id = self._create_run(f"train {self.source.name}", {})
            # The settings in effect, and not their file, which may hold a password.
            self.client.log_text(self.run_id, settings.model_dump_json(indent=1), "settings.json")
        self.children: dict[str, str] = {}
        self._points: list[Metric] = []
        self._flushed = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = "FAILED" if kind else "FINISHED"
        try:
            for run_id in (*(self.children.values() if kind else ()), self.run_id):
                self.client.set_terminated(run_id, status)
        except Exception as e:
            # The block's error matters more than this one, and MLflow may be the cause of both. Without one, the
            # versions are registered and serve, and only the run's status is not recorded.
            if kind is None:
                log.warning(
                    "run not marked as finished", extra={"run_id": self.run_id, "detail": hide_userinfo(str(e))}
                )

    def record(self, event: Event) -> None:
        """Log one event of the training."""
        with _reachable(self.settings):
            match event:
                case TableRead(table, constant, _, forward):
                    self._loaded(table, constant, forward)
                case Started(candidate):
                    tags = {"mlflow.parentRunId": self.run_id, "candidate": candidate}
                    self.children[candidate] = self._create_run(candidate, tags)
                case Tuned(candidate, parameters):
                    self._parameters(self.children[candidate], parameters)
                case Validated(candidate, repeat, scores):
                    self._metrics(candidate, scores.named("validation_"), repeat)
                case Epoch(candidate, epoch, loss):
                    self._metrics(candidate, {"training_loss": loss}, epoch)
                case Fitted():
                    self._fitted(event)
                case Suspect(line, reason):
                    self.suspects.append(f"line {line}: {reason}")
                case Chosen(champion, challenger):
                    self._chosen(champion, challenger)
                case _:
                    pass

    def register(self, artifacts: Mapping[str, tuple[Fitted, Artifact]]) -> dict[str, int]:
        """Register each artifact as a version; return the version of each alias.

        artifacts: the candidate and its artifact, by the alias that it is to have.
        Moves no alias: see `point`.
        """
        with _reachable(self.settings):
            return {alias: self._register(fitted, artifact) for alias, (fitted, artifact) in artifacts.items()}

    def point(self, aliases: Mapping[str, int | None]) -> None:
        """Point the registry's aliases at versions; None removes an alias."""
        name = self.settings.model.name
        with _reachable(self.settings):
            there = self.client.get_registered_model(name).aliases
            for alias, version in aliases.items():
                if version is not None:
                    self.client.set_registered_model_alias(name, alias, str(version))
                elif alias in there:
                    self.client.delete_registered_model_alias(name, alias)

    def _register(self, fitted: Fitted, artifact: Artifact) -> int:
        name, schema = self.settings.model.name, artifact.manifest.schema
        golden, run_id = artifact.manifest.golden, self.children[fitted.candidate]
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.onnx.log_model(
                onnx.load(str(artifact.model)),
                name="model",
                signature=_signature(schema),
                input_example=pd.DataFrame(golden.numbers[:3], columns=list(schema.columns)),
                pip_requirements=[f"{library}=={artifact.manifest.libraries[library]}" for library in _NEEDED],
            )
        self.client.log_model_artifacts(logged.model_id, str(artifact.folder), ARTIFACT_FOLDER)
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name, description=f"Predicts {schema.target.name}.")
        version = self.client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=run_id,
            model_id=logged.model_id,
            tags={"candidate": fitted.candidate},
            description=f"{fitted.candidate}, out-of-fold mean absolute error {fitted.scores.mae:.4g}",
        )
        return int(version.version)

    def _loaded(self, table: Table, constant: Scores, forward: Scores | None) -> None:
        self.table, self.suspects = table, list[str]()
        training = self.settings.training
        parameters = {
            "data": table.path.name,
            "data_sha256": table.sha256,
            "rows": len(table.y),
            "rows_refused": table.refused,
            "rows_without_target": table.unlabelled,
            "folds": training.folds,
            "repeats": training.repeats,
            "seed": training.seed,
            **({"group": training.group, "groups": table.group_count} if training.group else {}),
            **{f"column.{name}": header for name, header in table.taken.items()},
            **{f"missing.{name}": f"{share:.6g}" for name, share in table.missing.items()},
        }
        self._parameters(self.run_id, parameters)
        for name, value in (constant.named("constant_") | _named(forward, "constant_forward_")).items():
            self.client.log_metric(self.run_id, name, value)
        if table.faults:
            text = "\n".join(map(str, table.faults))
            self.client.log_text(self.run_id, f"{table.refused} rows refused\n{text}\n", "refused_rows.txt")

    def _fitted(self, fitted: Fitted) -> None:
        run_id = self.children[fitted.candidate]
        last = {"training_loss": fitted.training_loss, "training_seconds": fitted.seconds}
        more = _scores_by_gaps(fitted) | _named(fitted.forward, "forward_")
        self._metrics(fitted.candidate, last | more, fitted.epochs)
        self._flush(fitted.candidate)
        with scratch_folder(self.settings.state / "scratch") as folder:
            for _ in draw_plots(fitted, self.table, self.table.schema.target, folder):
                pass
            self.client.log_artifacts(run_id, str(folder), "plots")
        self.client.set_terminated(run_id)

    def _chosen(self, champion: Fitted, challenger: Fitted | None) -> None:
        more = _scores_by_gaps(champion) | _named(champion.forward, "forward_")
        for name, value in (champion.scores.named("validation_") | more).items():
            self.client.log_metric(self.run_id, name, value)
        self.client.log_metric(self.run_id, "training_loss", champion.training_loss)
        self.client.set_tag(self.run_id, "champion", champion.candidate)
        if challenger:
            self.client.set_tag(self.run_id, "challenger", challenger.candidate)
        if self.suspects:
            self.client.log_text(self.run_id, "\n".join(self.suspects) + "\n", "suspect_rows.txt")

    def _metrics(self, candidate: str, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._points += [Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS or len(self._points) >= 500:
            self._flush(candidate)

    def _flush(self, candidate: str) -> None:
        self.client.log_batch(self.children[candidate], metrics=self._points)
        self._points, self._flushed = [], time.monotonic()

    def _parameters(self, run_id: str, parameters: Mapping[str, object]) -> None:
        self.client.log_batch(run_id, params=[Param(k, str(v)[:500]) for k, v in parameters.items()])

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self.experiment_id, tags={**tags, "mlflow.runName": name})
        return str(run.info.run_id)

    def _experiment(self) -> str:
        name = self.settings.tracking.experiment or self.settings.model.name
        found = self.client.get_experiment_by_name(name)
        if found:
            self._check_location(found.artifact_location)
            return str(found.experiment_id)
        # A server names the location itself. This one has no folder in it, so the state folder can move.
        where = None if self.settings.tracking.uri else f"{FILES}/"
        return str(self.client.create_experiment(name, artifact_location=where))

    def _check_location(self, location: str) -> None:
        """Raise Refused if an older Gleaner recorded files in another folder.

        MLflow would make that folder and write there.
        """
        folder = local_folder(location)
        if folder and folder.name == ARTIFACTS and folder != self.settings.state.absolute() / ARTIFACTS:
            found = f"MLflow's database names {folder} for the files of this experiment, and the database has moved"
            raise Refused(f"{found}; run `gleaner doctor --fix` in the folder of the database")


def _named(scores: Scores | None, prefix: str) -> dict[str, float]:
    """Return scores as metrics; nothing for None."""
    return scores.named(prefix) if scores else {}


def _scores_by_gaps(fitted: Fitted) -> dict[str, float]:
    """Return the scores of rows with and without gaps, as metrics."""
    gaps = fitted.gaps
    parts = {"with_gaps": gaps.with_gaps, "without_gaps": gaps.without_gaps} if gaps else {}
    return {f"validation_{name}_{rows}": value for rows, scores in parts.items() for name, value in scores.items()}


def _quieten() -> None:
    """Let MLflow and its database's library log errors only."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)


_NEEDED = ("onnx", "onnxruntime", "numpy")
_MODELS = "models:/"  # the source of a version that `register` makes is this and the id of its logged model


def move_alias(settings: Settings, alias: str, version: int) -> None:
    """Point one alias of the registry at a version.

    Raises Unreachable if MLflow refuses.
    """
    with _reachable(settings):
        client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
        client.set_registered_model_alias(settings.model.name, alias, str(version))


def log_signature(settings: Settings, version: int, folder: Path) -> None:
    """Log the signature of a registered version beside its manifest.

    folder: the version's folder in the store.
    Raises Unreachable if MLflow refuses.
    """
    _quieten()
    with _reachable(settings):
        client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
        register_files()
        source = client.get_model_version(settings.model.name, str(version)).source or ""
        if not source.startswith(_MODELS):
            fix = f"put {folder / SIGNATURE} beside the version's {ARTIFACT_FOLDER}/{MANIFEST}"
            raise Unreachable(f"MLflow's version {version} was not registered by `gleaner train`; {fix}")
        client.log_model_artifact(source.removeprefix(_MODELS), str(folder / SIGNATURE), ARTIFACT_FOLDER)


def _signature(schema: Schema) -> ModelSignature:
    inputs = Columns([ColSpec(DataType.double, name) for name in schema.columns])
    return ModelSignature(inputs=inputs, outputs=Columns([ColSpec(DataType.double, "prediction")]))


@contextmanager
def _reachable(settings: Settings) -> Iterator[None]:
    """Turn MLflow's errors into Unreachable, in one line that names the server."""
    try:
        yield
    except MlflowException as e:
        first: Any = hide_userinfo(redact(str(e).strip().splitlines()[0]))[:300]
        reason = f"MLflow at {hide_login(settings.tracking_uri)}: {first}"
        raise Unreachable(f"{reason}; is tracking.uri right?" if settings.tracking.uri else reason) from e
