"""The steps of a training that need its libraries: train, register, serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gleaner.errors import BadTraining
from gleaner.machine.files import scratch_folder, temporary_files_in
from gleaner.model.artifact import Artifact
from gleaner.model.predictor import ENGINE
from gleaner.model.scores import Scores
from gleaner.model.selftest import selftest
from gleaner.model.signing import SigningKey
from gleaner.model.store import open_store
from gleaner.settings.sections import Settings
from gleaner.table.tables import Table
from gleaner.training.events import Chosen, Event, Fitted, TableRead
from gleaner.training.packing import pack
from gleaner.training.tracking import Recorder
from gleaner.training.train import train


def train_and_register(
    table: Table, settings: Settings, source: Path, listeners: list[Callable[[Event], object]]
) -> tuple[dict[str, int], dict[str, Fitted]]:
    """Train, register the best candidates, point the aliases at them.

    source: the file of the table.
    listeners: each is called with every event.
    Returns the versions and the fitted candidates, both by alias.
    Raises BadTraining, before anything is trained, if the store would refuse the versions.
    """
    store, key = open_store(settings), SigningKey.read(settings)
    if store.signer and (key is None or key.public != store.signer.key):
        needed = "training.signing_key has to name the private key that belongs to serving.public_key"
        raise BadTraining(f"{settings.file}: the store takes only signed versions, so {needed}")
    with (
        Recorder(settings, source) as recorder,
        scratch_folder(settings.state / "scratch") as scratch,
        temporary_files_in(scratch),
    ):
        roles, constant = _train(table, settings, [recorder.record, *listeners])
        artifacts: dict[str, tuple[Fitted, Artifact]] = {}
        for alias, fitted in roles.items():
            run_id = recorder.children[fitted.candidate]
            artifact = pack(fitted, table, constant, settings, scratch / alias, run_id=run_id, key=key)
            artifacts[alias] = (fitted, artifact)
        versions = recorder.register(artifacts)
        for alias, version in versions.items():
            added = store.add(version, artifacts[alias][1].folder)
            selftest(added.folder)
            store.remember_passed(version, added.digest, ENGINE)
        # Aliases move last, so a training that ends earlier changes nothing that serves.
        aliases = {"champion": None, "challenger": None, **versions}
        recorder.point(aliases)
        store.point(aliases)
    return versions, roles


def _train(
    table: Table, settings: Settings, listeners: list[Callable[[Event], object]]
) -> tuple[dict[str, Fitted], Scores]:
    """Train; return the candidates by alias, and the median's scores."""
    for event in train(table, settings):
        for listen in listeners:
            listen(event)
        match event:
            case TableRead():
                constant = event.constant
            case Chosen(champion, challenger):
                roles = {"champion": champion, **({"challenger": challenger} if challenger else {})}
    return roles, constant
