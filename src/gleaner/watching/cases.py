"""promtool's cases of every alert, made from the settings' own thresholds.

A case describes each series over some time and checks the alerts at the end. Two kinds of case verify the length of
a window. If a window is too long, failures after a long quiet time do not fire; if a window is too short, a blip does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gleaner.serving.metrics import BUCKETS
from gleaner.settings.sections import Settings
from gleaner.settings.services import ML_APP
from gleaner.watching.alerts import BURN_RATES, Alert, Group, hurried, make_alerts, number, percent
from gleaner.watching.series import (
    APP,
    OTHER_APP,
    TRAINER,
    Piece,
    Pieces,
    duration_series,
    hold,
    missing,
    request_series,
    up_series,
    write_series,
)

# A day at 15 seconds between scrapes would take promtool a minute. Two values in the shortest window, and one look at
# the rules every hour, are enough.
_BUDGET_STEP_SECONDS, _BUDGET_LOOK_STEPS = 120.0, 30
_DAY = 86_400.0
_MOMENT = 0.001  # Prometheus counts time in milliseconds


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that must fire, with its labels and the summary's `$value`."""

    alert: Alert
    labels: Mapping[str, str]
    value: str = ""

    def fill(self, template: str) -> str:
        """Fill in one of the alerts' Go templates as Prometheus does."""
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: self.labels[found[1]], template)
        return re.sub(r"\{\{ \$value[^}]*\}\}", self.value, text)


@dataclass(frozen=True, slots=True)
class Case:
    """Time series, and the alerts that must fire at their end."""

    alert: Alert
    title: str
    series: Mapping[str, Pieces]
    firing: Sequence[Firing] = ()

    @property
    def at_seconds(self) -> float:
        """The time of the check: the end of the longest series."""
        return max((sum(piece.seconds for piece in pieces) for pieces in self.series.values()), default=0.0)


def make_cases(settings: Settings, hurry: float = 1.0) -> list[Case]:
    """Make every alert's cases: firing, quiet, and quiet without data."""
    alerts: dict[str, list[Alert]] = {}
    for alert in make_alerts(settings, hurry):
        alerts.setdefault(alert.name, []).append(alert)
    cases, budget = _Cases(settings, hurry), _BudgetCases(settings, hurry)
    makers: dict[str, Callable[[Alert], list[Case]]] = {
        "HighErrorRate": cases.high_error_rate,
        "SlowPredictions": cases.slow_predictions,
        "NoModel": cases.no_model,
        "ModelLoadFailing": cases.model_load_failing,
        "RegistryNotFollowed": cases.registry_not_followed,
        "HighTrainingLoss": lambda a: cases.gauge(a, "training_loss", cases.at.training_loss, TRAINER, "{:.3f}".format),
        "LowValidationAccuracy": lambda a: cases.gauge(
            a, "validation_accuracy", cases.at.validation_accuracy, TRAINER, percent, worse=0.9
        ),
        "TrainingStale": cases.training_stale,
        "HighMemoryUsage": lambda a: cases.gauge(a, "app_memory_usage_bytes", cases.at.memory_bytes, APP, _humanize),
        "HighCPUUsage": lambda a: cases.gauge(a, "app_cpu_usage_percent", cases.at.cpu_percent, APP, "{:.1f}".format),
    }
    made = [case for name, maker in makers.items() for case in maker(alerts[name][0])]
    made += budget.error_budget_burn(alerts["ErrorBudgetBurn"])
    made += [*cases.target_down(*alerts["TargetDown"]), *cases.restart_loop(*alerts["RestartLoop"])]
    # For NoModel and TargetDown, `up` is data already.
    nothing = {name: {} if name in {"NoModel", "TargetDown"} else up_series(for_=budget.look) for name in alerts}
    return [*made, *(Case(alerts[name][0], "no data", series) for name, series in nothing.items())]


def make_times(settings: Settings, group: Group, hurry: float = 1.0) -> tuple[float, float]:
    """Return (seconds between values, seconds between evaluations) of a group's cases."""
    if group == "budget":
        step = _milliseconds(_BUDGET_STEP_SECONDS / hurry)
        return step, step * _BUDGET_LOOK_STEPS
    step = _milliseconds(settings.alerts.scrape_seconds / hurry)
    return step, step


def _milliseconds(seconds: float) -> float:
    """Round a time to milliseconds, as Prometheus counts time."""
    return round(1_000 * seconds) / 1_000


class _Cases:
    """The cases of every alert that is evaluated at each scrape."""

    def __init__(self, settings: Settings, hurry: float) -> None:
        self.settings, self.at, self.hurry = settings, hurried(settings.alerts, hurry), hurry
        self.step = self.at.scrape_seconds

    def asked(self, share: float, window: float, *, failures: float | None = None) -> float:
        """Return the requests per second that make enough failures in a window.

        share: the share of the requests that fail.
        failures: the wanted number of failures; by default very many.
        """
        return (100 * (self.at.few_failures + 1) if failures is None else failures) / (share * window)

    def ago(self, seconds: float) -> list[Piece]:
        """Make a timestamp before the end: negative, as promtool starts at 0."""
        return [hold(self.step - seconds, for_=self.step)]

    @property
    def some(self) -> tuple[float, float]:
        """The numbers of failures that are enough to alert, and too few."""
        return 1.3 * self.at.few_failures + 2, 0.7 * self.at.few_failures

    def gauge(
        self,
        alert: Alert,
        name: str,
        threshold: float,
        labels: Mapping[str, str],
        show: Callable[[float], str],
        worse: float = 1.1,
    ) -> list[Case]:
        """Make cases of a value beyond a threshold for a time.

        show: writes the value as the summary does.
        worse: the factor that takes the threshold to a value beyond it.
        """
        series, beyond, enough = write_series(name, labels), worse * threshold, alert.for_seconds + self.step
        return [
            Case(alert, "fires", {series: [hold(beyond, for_=enough)]}, [Firing(alert, labels, show(beyond))]),
            Case(alert, "not yet for long enough", {series: [hold(beyond, for_=alert.for_seconds - _MOMENT)]}),
            Case(alert, "at the threshold", {series: [hold(threshold, for_=enough)]}),
            Case(alert, "cleared", {series: [hold(beyond, for_=enough), hold(threshold, for_=2 * self.step)]}),
        ]

    def high_error_rate(self, alert: Alert) -> list[Case]:
        window, most = self.at.error_window_seconds, self.at.error_ratio
        bad, good, short = min(1.0, 1.2 * most), 0.8 * most, min(1.0, 2.4 * most)
        well, whole = (0.0, 4 * window), window + 2 * self.step
        many, (enough, few) = self.asked(most, window), (self.asked(1.0, window, failures=n) for n in self.some)
        asked = request_series([(0.0, whole)], many)
        probes = request_series([(1.0, whole)], many, route="/readyz", method="GET")
        half = min(1.0, 2 * bad)
        two = {
            **request_series([(half, whole)], many),
            **request_series([(2 * bad - half, whole)], many, instance=OTHER_APP["instance"]),
        }
        fires = [Firing(alert, {"service": ML_APP.name}, percent(bad))]
        outage = [Firing(alert, {"service": ML_APP.name}, percent(1.0))]
        return [
            Case(alert, "fires", request_series([well, (bad, whole)], many), fires),
            Case(alert, "fires on 503", request_series([(bad, whole)], many, status="503"), fires),
            Case(alert, "fires for a service of two instances", two, fires),
            Case(alert, "fires with few requests that all fail", request_series([(1.0, whole)], enough), outage),
            Case(alert, "a blip", request_series([well, (short, window / 4)], many)),
            Case(alert, "fewer failures", request_series([(good, whole)], many)),
            Case(alert, "too few failures, though every request fails", request_series([(1.0, whole)], few)),
            Case(alert, "failing health checks", {**asked, **probes}),
            Case(alert, "4xx responses", {**asked, **request_series([(1.0, whole)], many, status="422")}),
            Case(alert, "cleared", request_series([(bad, whole), (0.0, whole)], many)),
        ]

    def slow_predictions(self, alert: Alert) -> list[Case]:
        window, promised = self.at.slow_window_seconds, self.settings.objectives
        well, whole = (0.0, 4 * window), window + 2 * self.step
        # All slow predictions fall into one bucket, and their share puts the quantile in its middle.
        i = next(i for i, bound in enumerate(BUCKETS) if bound >= promised.latency_seconds)
        slow, labels = 2 * (1 - promised.latency_quantile), {"service": ML_APP.name, "model_version": "v1"}
        middle = BUCKETS[i] + (BUCKETS[i + 1] - BUCKETS[i]) / 2
        fires = [Firing(alert, labels, f"{middle:.3g}")]
        many, (enough, few) = self.asked(slow, window), (self.asked(slow, window, failures=n) for n in self.some)
        quick = duration_series(i, [(0.0, whole)], 100 * many, slot="v2")
        return [
            Case(alert, "fires", duration_series(i, [well, (slow, whole)], many), fires),
            Case(alert, "fires for one slot of two", {**quick, **duration_series(i, [(slow, whole)], many)}, fires),
            Case(alert, "fires with few requests", duration_series(i, [(slow, whole)], enough), fires),
            Case(alert, "a blip", duration_series(i, [well, (slow, window / 4)], many)),
            Case(alert, "a smaller share", duration_series(i, [(slow / 4, whole)], many)),
            Case(alert, "a few slow ones", duration_series(i, [(slow, whole)], few)),
            Case(alert, "cleared", duration_series(i, [(slow, whole), (0.0, whole)], many)),
        ]

    def no_model(self, alert: Alert) -> list[Case]:
        enough, slot = alert.for_seconds + self.step, next(iter(self.settings.serving.slots))
        version = {"version": "1", "run_id": "r", "candidate": "linear"}
        model, others = (write_series("model_info", labels, version, slot=slot) for labels in (APP, OTHER_APP))
        other_slot = write_series("model_info", APP, version, slot="v0")
        there, up = [hold(1, for_=enough)], up_series(for_=enough)
        other_up, down = write_series("up", OTHER_APP), {write_series("up", APP): [hold(0, for_=enough)]}
        late = [missing(for_=alert.for_seconds - self.step), hold(1, for_=2 * self.step)]
        fires = [Firing(alert, APP)]
        return [
            Case(alert, "fires", up, fires),
            Case(alert, "fires although another slot has a model", {**up, other_slot: there}, fires),
            Case(alert, "fires although another instance has a model", {**up, other_up: there, others: there}, fires),
            Case(alert, "not yet for long enough", up_series(for_=alert.for_seconds - _MOMENT)),
            Case(alert, "with a model", {**up, model: there}),
            Case(alert, "a model that came late", {**up, model: late}),
            Case(alert, "a process that is down", down),
        ]

    def model_load_failing(self, alert: Alert) -> list[Case]:
        names = "model_alias_refused", "registry_alias_refused"
        stored, registered = (write_series(name, APP, alias="champion") for name in names)
        another = write_series("registry_alias_refused", OTHER_APP, alias="champion")
        refused, well = hold(1, for_=2 * self.step), hold(0, for_=2 * self.step)
        long = hold(1, for_=_DAY / 8 / self.hurry)
        fires = [Firing(alert, {"service": ML_APP.name, "alias": "champion"})]
        return [
            Case(alert, "fires on what the store points at", {stored: [refused]}, fires),
            Case(alert, "fires on what the registry points at", {stored: [well], registered: [refused]}, fires),
            Case(alert, "fires for one instance of two", {registered: [well], another: [refused]}, fires),
            Case(alert, "fires as long as the refusal lasts", {stored: [well], registered: [well, long]}, fires),
            Case(alert, "nothing refused", {stored: [well], registered: [well]}),
            Case(alert, "cleared", {stored: [refused, well], registered: [refused, well]}),
        ]

    def registry_not_followed(self, alert: Alert) -> list[Case]:
        age, polled = self.at.registry_age_seconds, {"result": "success"}

        def follows(labels: Mapping[str, str], started: float, polls: int, last: float | None) -> dict[str, Pieces]:
            seen = write_series("registry_last_success_timestamp_seconds", labels)
            polled_series = write_series("registry_polls_total", labels, polled)
            start = write_series("process_start_time_seconds", labels)
            series: dict[str, Pieces] = {start: self.ago(started), polled_series: [hold(polls, for_=self.step)]}
            return series if last is None else {seen: self.ago(last), **series}

        well, fires = follows(OTHER_APP, 9 * age, 5, 0.1 * age), [Firing(alert, APP, f"{1.1 * age:.0f}")]
        return [
            Case(alert, "fires", follows(APP, 9 * age, 5, 1.1 * age), fires),
            Case(alert, "fires without a success since the start", {**well, **follows(APP, 1.1 * age, 0, None)}, fires),
            Case(alert, "not yet for long enough", {**well, **follows(APP, 9 * age, 5, 0.9 * age)}),
            Case(alert, "just started", follows(APP, 0.9 * age, 0, None)),
            Case(alert, "no registry to follow", {write_series("process_start_time_seconds", APP): self.ago(9 * age)}),
        ]

    def training_stale(self, alert: Alert) -> list[Case]:
        series, days = write_series("training_last_success_timestamp_seconds", TRAINER), self.at.training_age_days
        fires = [Firing(alert, TRAINER, f"{1.1 * days:.1f}")]
        return [
            Case(alert, "fires", {series: self.ago(1.1 * _DAY * days)}, fires),
            Case(alert, "recent enough", {series: self.ago(0.9 * _DAY * days)}),
        ]

    def restart_loop(self, app: Alert, others: Alert) -> list[Case]:
        most, window = self.at.restarts, self.at.restart_window_seconds

        def started(times: int, *, every: float, then: float = self.step) -> dict[str, Pieces]:
            """Make series of processes that restart, then run on."""
            runs = [hold(every * n, for_=every) for n in range(times)]
            pieces = [*runs, hold(every * times, for_=then)]
            return {write_series("process_start_time_seconds", labels): pieces for labels in (APP, TRAINER)}

        # One more start at this distance would not fit into the window.
        apart = window / (most + 2)
        fires = [Firing(app, APP, str(most + 1)), Firing(others, TRAINER, str(most + 1))]
        return [
            Case(app, "fires", started(most + 1, every=self.step), fires),
            Case(app, "fires on starts far apart", started(most + 1, every=apart), fires),
            Case(app, "as many restarts as allowed", started(most, every=self.step)),
            Case(app, "long ago", started(most + 1, every=self.step, then=window + 2 * self.step)),
        ]

    def target_down(self, app: Alert, others: Alert) -> list[Case]:
        enough, names = app.for_seconds + self.step, [write_series("up", labels) for labels in (APP, TRAINER)]
        down, not_yet = hold(0, for_=enough), hold(0, for_=app.for_seconds - _MOMENT)
        firing = [Firing(app, APP), Firing(others, TRAINER)]
        return [
            Case(app, "fires", {name: [down] for name in names}, firing),
            Case(app, "not yet for long enough", {name: [not_yet] for name in names}),
            Case(app, "back in time", {name: [not_yet, hold(1, for_=4 * self.step)] for name in names}),
            Case(app, "up", up_series(for_=enough)),
        ]


class _BudgetCases(_Cases):
    """The cases of ErrorBudgetBurn, whose rules are evaluated every `look` seconds."""

    def __init__(self, settings: Settings, hurry: float) -> None:
        super().__init__(settings, hurry)
        self.look = make_times(settings, "budget", hurry)[1]
        self.budget = 1 - settings.objectives.availability

    def error_budget_burn(self, alerts: Sequence[Alert]) -> list[Case]:
        """Make cases of each rate alone.

        The failures are too short for longer windows and too few for higher rates.
        """
        cases = []
        for alert, (rate, *windows, _) in zip(alerts, BURN_RATES, strict=True):
            long, short = (seconds / self.hurry for seconds in windows)
            at, burn, ended = f"{number(rate)} times", (1.2 * rate, 1.1 * long), (0.0, 1.3 * short)
            many = self.asked(rate * self.budget, long)
            enough, few = (self.asked(1.2 * rate * self.budget, long, failures=n) for n in self.some)
            fires = [Firing(alert, {"service": ML_APP.name}, f"{1.2 * rate:.1f}")]
            shown = f"cleared, though the long window at {at} still shows it"
            cases += [
                Case(alert, f"fires above {at}", self.burnt([burn], many), fires),
                Case(alert, f"fires above {at} with few requests", self.burnt([burn], enough), fires),
                Case(alert, f"below {at}", self.burnt([(0.8 * rate, 1.1 * long)], many)),
                Case(alert, f"a blip of {at}", self.burnt([(1.5 * rate, 1.3 * short)], many)),
                Case(alert, shown, self.burnt([burn, ended], many)),
                Case(alert, f"a blip soon after {at}", self.burnt([burn, ended, (1.5 * rate, short / 4)], many)),
                Case(alert, f"too few failures above {at}", self.burnt([burn], few)),
            ]
        return cases

    def burnt(self, parts: Sequence[tuple[float, float]], per_second: float) -> dict[str, Pieces]:
        """Make series of requests that fail after at least a good day.

        parts: (burn rate, seconds). The good day is longer where needed, so that the failures end at an evaluation.
        """
        seconds = sum(seconds for _, seconds in parts)
        good = self.look * math.ceil((_DAY / self.hurry + seconds) / self.look) - seconds
        shares = [(0.0, good), *((min(1.0, times * self.budget), seconds) for times, seconds in parts)]
        return request_series(shares, per_second)


def _humanize(value: float) -> str:
    """Write a number as Prometheus's humanize does, such as `550M`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1_000 or prefix == "T":
            break
        value /= 1_000
    return f"{value:.4g}{prefix}"
