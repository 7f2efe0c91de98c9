"""Events and artifacts -> MLflow: runs, metrics, plots, model versions, aliases."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import mlflow
import mlflow.onnx
import onnx
import pandas as pd
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.types import ColSpec, DataType
from mlflow.types import Schema as Columns

from gleaner.artifact import Artifact
from gleaner.errors import Unreachable
from gleaner.events import Chosen, Epoch, Event, Fitted, Loaded, Started, Suspect, Tuned, Validated
from gleaner.plots import draw_plots
from gleaner.schema import Schema
from gleaner.scores import Scores
from gleaner.settings import ARTIFACTS, Settings, hide_userinfo
from gleaner.tables import Table

FLUSH_SECONDS = 2.0


class Recorder:
    """One training's record: a parent run, a child run per candidate, and what of it is registered.

    Used as a context: it marks every open run FINISHED, or FAILED if the block raised (Ctrl-C included).
    Raises Unreachable where MLflow does not answer.
    """

    def __init__(self, settings: Settings, source: Path) -> None:
        self.settings, self.source = settings, source
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)

    def __enter__(self) -> Self:
        settings = self.settings
        with _reachable(settings):
            if not settings.tracking.uri:
                settings.state.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(settings.tracking_uri)
            mlflow.set_registry_uri(settings.tracking_uri)
            _reach_artifacts(settings)
            self.client = mlflow.MlflowClient()
            self.experiment_id = self._experiment()
            self.parent = self._create_run(f"train {self.source.name}", {})
            self.client.log_artifact(self.parent.info.run_id, str(settings.file))
        self.children: dict[str, Run] = {}
        self._points: list[Metric] = []
        self._flushed = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        status = "FAILED" if kind else "FINISHED"
        try:
            for run in (*self.children.values(), self.parent):
                if kind or run is self.parent:
                    self.client.set_terminated(run.info.run_id, status)
        except Exception:
            if kind is None:
                raise
            # The block's own error is the news; MLflow, which may be its cause, need not be told.

    @property
    def run_id(self) -> str:
        return str(self.parent.info.run_id)

    def record(self, event: Event) -> None:
        """Log one event of the training."""
        with _reachable(self.settings):
            match event:
                case Loaded(table, constant):
                    self._loaded(table, constant)
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
        """Log each role's artifact as an MLflow model and make a version of it; the version of each role.

        artifacts: {alias: (candidate, artifact)}. No alias is moved yet: see `point`.
        """
        versions = {}
        with _reachable(self.settings):
            for alias, (fitted, artifact) in artifacts.items():
                versions[alias] = self._register(fitted, artifact)
        return versions

    def point(self, aliases: Mapping[str, int | None]) -> None:
        """Point the registry's aliases at versions; None takes an alias away."""
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
        golden = artifact.manifest.golden
        with mlflow.start_run(run_id=self.children[fitted.candidate].info.run_id):
            logged = mlflow.onnx.log_model(
                onnx.load(str(artifact.model)),
                name="model",
                signature=_signature(schema),
                input_example=pd.DataFrame(golden.rows[:3], columns=list(schema.columns)),
                pip_requirements=[f"{library}=={artifact.manifest.libraries[library]}" for library in _NEEDED],
            )
        self.client.log_model_artifacts(logged.model_id, str(artifact.folder), "gleaner")
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name, description=f"Predicts {schema.target.name}.")
        version = self.client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=self.children[fitted.candidate].info.run_id,
            model_id=logged.model_id,
            tags={"candidate": fitted.candidate},
            description=f"{fitted.candidate}, out-of-fold mean absolute error {fitted.scores.mae:.4g}",
        )
        return int(version.version)

    def _loaded(self, table: Table, constant: Scores) -> None:
        self.table, self.suspects = table, list[str]()
        training = self.settings.training
        self._parameters(
            self.parent,
            {
                "data": table.path.name,
                "data_sha256": table.sha256,
                "rows": len(table.y),
                "rows_refused": table.refused,
                "folds": training.folds,
                "repeats": training.repeats,
                "seed": training.seed,
                **{f"column.{name}": header for name, header in table.taken.items()},
            },
        )
        for name, value in constant.named("constant_").items():
            self.client.log_metric(self.run_id, name, value)
        if table.faults:
            text = "\n".join(map(str, table.faults))
            self.client.log_text(self.run_id, f"{table.refused} rows refused\n{text}\n", "refused_rows.txt")

    def _fitted(self, fitted: Fitted) -> None:
        run_id = self.children[fitted.candidate].info.run_id
        last = {"training_loss": fitted.training_loss, "training_seconds": fitted.seconds}
        self._metrics(fitted.candidate, last, fitted.epochs)
        self._flush(fitted.candidate)
        with tempfile.TemporaryDirectory() as folder:
            for _ in draw_plots(fitted, self.table, self.settings.schema_.target, Path(folder)):
                pass
            self.client.log_artifacts(run_id, folder, "plots")
        self.client.set_terminated(run_id)

    def _chosen(self, champion: Fitted, challenger: Fitted | None) -> None:
        for name, value in champion.scores.named("validation_").items():
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
        self.client.log_batch(self.children[candidate].info.run_id, metrics=self._points)
        self._points, self._flushed = [], time.monotonic()

    def _parameters(self, run: Run, parameters: Mapping[str, object]) -> None:
        self.client.log_batch(run.info.run_id, params=[Param(k, str(v)[:500]) for k, v in parameters.items()])

    def _create_run(self, name: str, tags: Mapping[str, str]) -> Run:
        return self.client.create_run(self.experiment_id, tags={**tags, "mlflow.runName": name})

    def _experiment(self) -> str:
        name = self.settings.tracking.experiment or self.settings.model.name
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        where = None if self.settings.tracking.uri else (self.settings.state.absolute() / ARTIFACTS).as_uri()
        return str(self.client.create_experiment(name, artifact_location=where))


def _reach_artifacts(settings: Settings) -> None:
    """Let an experiment that was begun under `gleaner up` go on without it.

    Its artifacts have addresses at the server, `mlflow-artifacts:/7/...`, which keeps them in a folder of ours.
    """
    kept = settings.state.absolute() / ARTIFACTS

    def find(uri: str, *_: object, **__: object) -> LocalArtifactRepository:
        return LocalArtifactRepository(str(kept / urlsplit(uri).path.lstrip("/")))

    registry: Any = _artifact_repository_registry
    registry.register("mlflow-artifacts", MlflowArtifactsRepository if settings.tracking.uri else find)


_NEEDED = ("onnx", "onnxruntime", "numpy")


def move_alias(settings: Settings, alias: str, version: int) -> None:
    """Point one alias of the registry at a version. Raises Unreachable where MLflow refuses."""
    with _reachable(settings):
        mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri).set_registered_model_alias(
            settings.model.name, alias, str(version)
        )


def _signature(schema: Schema) -> ModelSignature:
    inputs = Columns([ColSpec(DataType.double, name) for name in schema.columns])
    return ModelSignature(inputs=inputs, outputs=Columns([ColSpec(DataType.double, "prediction")]))


@contextmanager
def _reachable(settings: Settings) -> Iterator[None]:
    """MLflow's own errors in one line, naming the server."""
    try:
        yield
    except MlflowException as e:
        first: Any = str(e).strip().splitlines()[0][:300]
        said = hide_userinfo(f"MLflow at {settings.tracking_uri}: {first}")
        raise Unreachable(f"{said}; is tracking.uri right?") from e
