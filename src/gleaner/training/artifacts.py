"""MLflow's files without an MLflow server.

Gleaner records every location as `mlflow-artifacts:/PATH`, so a moved folder keeps its plots and models. A server hands
out such files. Without one, MLflow itself refuses these locations, and they are read beside the database. MLflow finds
`find_files` by the entry point in pyproject.toml, so a notebook can load a model from the database alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from gleaner.settings.sections import ARTIFACTS

_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?!:memory:)([^?]+)")


def find_files(
    location: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> LocalArtifactRepository | MlflowArtifactsRepository:
    """Return a location's files, at the server or beside the database."""
    database = _SQLITE.match(tracking_uri or mlflow.get_tracking_uri())
    parts = urlsplit(location)
    if database is None or parts.netloc:
        return MlflowArtifactsRepository(location, tracking_uri, registry_uri)
    folder = Path(database[1]).absolute().parent / ARTIFACTS
    return LocalArtifactRepository(str(folder / parts.path.lstrip("/")))


def register_files() -> None:
    """Register `find_files` in an installation without the entry point."""
    registry: Any = _artifact_repository_registry
    registry.register("mlflow-artifacts", find_files)
