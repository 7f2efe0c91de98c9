"""The metrics of a training."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from gleaner.training.events import Chosen, Epoch, Event, Finished, Started, Validated

RESULTS = ("success", "error")

_GAUGES = {
    "training_loss": "Loss on the training rows after the latest epoch.",
    "validation_loss": "Out-of-fold loss.",
    "validation_accuracy": "Share of out-of-fold predictions near enough.",
    "validation_r2": "Out-of-fold r2.",
    "validation_mae": "Out-of-fold mean absolute error, in the target's unit.",
    "training_duration_seconds": "Time the last finished training took.",
    "training_last_success_timestamp_seconds": "When a training last registered its models.",
}


class TrainingMetrics:
    """The metrics of a training, set by its events.

    During a training they show the candidate that is being fitted, and after Chosen the champion. After a failure
    they show the last finished training again.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.gauges = {name: Gauge(name, text, registry=None) for name, text in _GAUGES.items()}
        about = "1 for the candidate that is fitted; afterwards the champion."
        self.candidate = Gauge("training_candidate", about, ["candidate"], registry=registry)
        self.epochs = Counter("training_epoch", "Passes, boosting rounds and batches of trees.", registry=registry)
        self.runs = Counter("training_runs", "Trainings that ended, by result.", ["result"], registry=registry)
        for result in RESULTS:
            self.runs.labels(result)
        self._shown: set[str] = set()

    def record(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started(candidate):
                # The scores of the candidate before must not stand under the name of this one.
                self._hide()
                self._name(candidate)
            case Epoch(_, _, loss):
                self.epochs.inc()
                self._show(training_loss=loss)
            case Validated(_, _, scores):
                self._show(**scores.named("validation_"))
            case Chosen(champion, _):
                self._name(champion.candidate)
                self._show(training_loss=champion.training_loss, **champion.scores.named("validation_"))
            case Finished():
                self.restore(event)
                self.runs.labels("success").inc()
            case _:
                pass

    def failed(self, last: Finished | None) -> None:
        """Count a training that failed. last: the last training that finished."""
        self.runs.labels("error").inc()
        self.restore(last)

    def restore(self, last: Finished | None) -> None:
        """Show the last finished training; nothing if there was none."""
        self._hide()
        self.candidate.clear()
        if last:
            self._name(last.candidate)
            self._show(
                training_loss=last.training_loss,
                training_duration_seconds=last.seconds,
                training_last_success_timestamp_seconds=last.at,
                **last.scores.named("validation_"),
            )

    def _name(self, candidate: str) -> None:
        self.candidate.clear()
        self.candidate.labels(candidate).set(1)

    def _show(self, **values: float) -> None:
        """Set gauges, and expose each from its first value on.

        A 0 before that would be wrong.
        """
        for name, value in values.items():
            self.gauges[name].set(value)
            if name not in self._shown:
                self._shown.add(name)
                self.registry.register(self.gauges[name])

    def _hide(self) -> None:
        scores = {name for name in self._shown if name == "training_loss" or name.startswith("validation_")}
        self._shown -= scores
        for name in scores:
            self.registry.unregister(self.gauges[name])
