"""What shows that an alert can be trusted: promtool's cases of every one, made of the settings' own thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gleaner.alerts import BURN_RATES, Alert, Group, hurried, make_alerts, number, percent
from gleaner.metrics import BUCKETS
from gleaner.settings import Settings

APP = {"job": "ml-api", "instance": "ml-app:8010", "service": "ml-app"}
TRAINER = {"job": "train-metrics", "instance": "train-metrics:8003", "service": "train-metrics"}
# A day of the 15 seconds between scrapes would take promtool a minute: values twice in the shortest window, and a look
# at the rules in every hour, will do.
_BUDGET_STEP_SECONDS, _BUDGET_LOOK_STEPS = 120.0, 30


@dataclass(frozen=True, slots=True)
class Firing:
    """One alert that is to fire: its own labels, and `$value` as the summary shows it."""

    alert: Alert
    labels: Mapping[str, str]
    value: str = ""

    def fill(self, template: str) -> str:
        """A Go template of ours, filled in as Prometheus does."""
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: self.labels[found[1]], template)
        return re.sub(r"\{\{ \$value[^}]*\}\}", self.value, text)


@dataclass(frozen=True, slots=True)
class Case:
    """Series, and which of the alerts of one name fire after so many steps: none, where it stays quiet."""

    alert: Alert
    title: str
    series: Mapping[str, str]
    at: int
    firing: Sequence[Firing] = ()


def make_cases(settings: Settings, hurry: float = 1.0) -> list[Case]:
    """The cases of every alert: it fires, it stays quiet, and it stays quiet where there is nothing to be seen."""
    alerts: dict[str, list[Alert]] = {}
    for alert in make_alerts(settings, hurry):
        alerts.setdefault(alert.name, []).append(alert)
    cases = _Cases(settings, hurry)
    makers: dict[str, Callable[[Alert], list[Case]]] = {
        "HighErrorRate": cases.high_error_rate,
        "SlowPredictions": cases.slow_predictions,
        "NoModel": cases.no_model,
        "ModelLoadFailing": cases.model_load_failing,
        "HighTrainingLoss": lambda a: cases.gauge(a, "training_loss", cases.at.training_loss, TRAINER, "{:.3f}".format),
        "LowValidationAccuracy": lambda a: cases.gauge(
            a, "validation_accuracy", cases.at.validation_accuracy, TRAINER, percent, worse=0.9
        ),
        "TrainingStale": cases.training_stale,
        "RestartLoop": cases.restart_loop,
        "HighMemoryUsage": lambda a: cases.gauge(a, "app_memory_usage_bytes", cases.at.memory_bytes, APP, _humanize),
        "HighCPUUsage": lambda a: cases.gauge(a, "app_cpu_usage_percent", cases.at.cpu_percent, APP, "{:.1f}".format),
    }
    made = [case for name, maker in makers.items() for case in maker(alerts[name][0])]
    made += [*cases.error_budget_burn(alerts["ErrorBudgetBurn"]), *cases.target_down(*alerts["TargetDown"])]
    # That a process is up is all that NoModel and TargetDown need to know.
    nothing = {name: {} if name in {"NoModel", "TargetDown"} else _up(30) for name in alerts}
    return [*made, *(Case(alerts[name][0], "no data", series, 30) for name, series in nothing.items())]


def make_times(settings: Settings, group: Group, hurry: float = 1.0) -> tuple[float, float]:
    """The seconds between a series' values, and those between looks at the rules, in the cases of a rules' file."""
    if group == "budget":
        step = _milliseconds(_BUDGET_STEP_SECONDS / hurry)
        return step, step * _BUDGET_LOOK_STEPS
    step = _milliseconds(settings.alerts.scrape_seconds / hurry)
    return step, step


def _milliseconds(seconds: float) -> float:
    """A time as finely as Prometheus counts, so that so many steps of it are as long there as here."""
    return round(1_000 * seconds) / 1_000


class _Cases:
    def __init__(self, settings: Settings, hurry: float) -> None:
        self.settings, self.at = settings, hurried(settings.alerts, hurry)
        self.step = self.at.scrape_seconds
        # Requests a step: enough to tell, and too few.
        least = self.at.least_requests_per_second * max(self.step, _BUDGET_STEP_SECONDS / hurry)
        self.many, self.scarce = max(1_000.0, 1_000 * least), 0.5 * self.at.least_requests_per_second * self.step

    def steps(self, seconds: float) -> int:
        """The first step that is not before a time."""
        return math.ceil(seconds / self.step - 1e-9)

    def gauge(
        self,
        alert: Alert,
        name: str,
        threshold: float,
        labels: Mapping[str, str],
        show: Callable[[float], str],
        worse: float = 1.1,
    ) -> list[Case]:
        """A value beyond a threshold for a time. worse: a factor that takes one beyond it."""
        series, enough = _series(name, labels), self.steps(alert.for_seconds)
        beyond, end = f"{number(worse * threshold)}x{enough + 5}", enough + 1
        return [
            Case(alert, "fires", {series: beyond}, end, [Firing(alert, labels, show(worse * threshold))]),
            Case(alert, "not yet for long enough", {series: beyond}, enough - 1),
            Case(alert, "at the threshold", {series: f"{number(threshold)}x{end + 5}"}, end),
            Case(alert, "gone again", {series: f"{beyond} {number(threshold)}x5"}, enough + 8),
        ]

    def high_error_rate(self, alert: Alert) -> list[Case]:
        end, most = self.steps(self.at.error_window_seconds) + 5, self.at.error_ratio
        bad, good = min(1.0, 1.2 * most), 0.8 * most
        probes = {
            **_requests([(0.0, self.many, end)]),
            **_requests([(1.0, self.many, end)], route="/readyz", method="GET"),
        }
        callers = {**_requests([(0.0, self.many, end)]), **_requests([(1.0, self.many, end)], fault="422")}
        fires = [Firing(alert, {"service": "ml-app"}, percent(bad))]
        return [
            Case(alert, "fires", _requests([(bad, self.many, end)]), end, fires),
            Case(alert, "fires on 503, too", _requests([(bad, self.many, end)], fault="503"), end, fires),
            Case(alert, "fewer failures", _requests([(good, self.many, end)]), end),
            Case(alert, "too little traffic", _requests([(1.0, self.scarce, end)]), end),
            Case(alert, "health checks that say no", probes, end),
            Case(alert, "faults of the callers", callers, end),
            Case(alert, "gone again", _requests([(bad, self.many, end), (0.0, self.many, end)]), 2 * end),
        ]

    def error_budget_burn(self, alerts: Sequence[Alert]) -> list[Case]:
        cases, budget = [], 1 - self.settings.objectives.availability
        day, ended = (int(seconds / _BUDGET_STEP_SECONDS) for seconds in (86_400, 7_200 + 3_600))
        scarce = self.scarce * _BUDGET_STEP_SECONDS / self.settings.alerts.scrape_seconds
        for alert, (rate, long, _, _) in zip(alerts, BURN_RATES, strict=True):
            end, exactly = int(long / _BUDGET_STEP_SECONDS), f"{number(rate)} times"
            for title, burnt in ((f"fires above {exactly}", 1.2 * rate), (f"not yet at {exactly}", 0.8 * rate)):
                # A share that has lasted as long fills every window, and slower rates are exceeded, too.
                firing = [
                    Firing(other, {"service": "ml-app"}, f"{burnt:.1f}")
                    for other, (slower, *_) in zip(alerts, BURN_RATES, strict=True)
                    if burnt > slower
                ]
                cases.append(Case(alert, title, _requests([(burnt * budget, self.many, end)]), end, firing))
            cases.append(Case(alert, f"too little traffic for {exactly}", _requests([(1.0, scarce, end)]), end))
        over = _requests([(1.2 * BURN_RATES[0][0] * budget, self.many, day), (0.0, self.many, ended)])
        return [*cases, Case(alerts[0], "gone again, though the day's share is still high", over, day + ended)]

    def slow_predictions(self, alert: Alert) -> list[Case]:
        end, promised = self.steps(self.at.slow_window_seconds) + 5, self.settings.objectives
        # One bucket holds all that are too slow, and is so wide that the quantile comes to lie in its middle.
        i = next(i for i, bound in enumerate(BUCKETS) if bound >= promised.latency_seconds)
        slow, labels = 2 * (1 - promised.latency_quantile), {"service": "ml-app", "model_version": "v1"}
        middle = BUCKETS[i] + (BUCKETS[i + 1] - BUCKETS[i]) / 2
        return [
            Case(alert, "fires", _durations(i, slow, self.many, end), end, [Firing(alert, labels, f"{middle:.3g}")]),
            Case(alert, "a few slow ones", _durations(i, slow / 4, self.many, end), end),
            Case(alert, "too little traffic", _durations(i, 1.0, self.scarce, end), end),
        ]

    def no_model(self, alert: Alert) -> list[Case]:
        enough = self.steps(alert.for_seconds)
        slot, end = next(iter(self.settings.serving.slots)), enough + 1
        model = _series("model_info", APP, slot=slot, version="1", run_id="r", candidate="linear")
        other = _series("model_info", APP, slot="v0", version="2", run_id="r", candidate="linear")
        up, down = _up(end), {_series("up", APP): f"0x{end}"}
        return [
            Case(alert, "fires", up, end, [Firing(alert, APP)]),
            Case(alert, "fires although another slot has one", {**up, other: f"1x{end}"}, end, [Firing(alert, APP)]),
            Case(alert, "not yet for long enough", up, enough - 1),
            Case(alert, "with a model", {**up, model: f"1x{end}"}, end),
            Case(alert, "one that came late", {**up, model: "_ " * (enough - 1) + "1x5"}, end),
            Case(alert, "a process that is down", down, end),
        ]

    def model_load_failing(self, alert: Alert) -> list[Case]:
        end = self.steps(self.at.load_window_seconds)
        failures, started = (
            _series("model_load_failures_total", APP, reason="hash"),
            _series("process_start_time_seconds", APP),
        )
        old = {started: f"{number(-10 * self.at.load_window_seconds)}x{3 * end + 9}"}
        fires = [Firing(alert, {"service": "ml-app", "reason": "hash"})]
        return [
            Case(alert, "fires", {**old, failures: f"0x{end} 1x5"}, end + 3, fires),
            Case(alert, "fires on what was refused at the start", {started: "0x5", failures: "1x5"}, 1, fires),
            Case(alert, "nothing refused", {**old, failures: f"0x{end}"}, end),
            Case(alert, "long ago", {**old, failures: f"0x{end} 1x{2 * end}"}, 2 * end + 5),
        ]

    def training_stale(self, alert: Alert) -> list[Case]:
        series, days = _series("training_last_success_timestamp_seconds", TRAINER), self.at.training_age_days
        # promtool's clock starts at 0, so that what was long ago is negative.
        ago, not_so_long = (f"{number(self.step - factor * 86_400 * days)}x5" for factor in (1.1, 0.9))
        fires = [Firing(alert, TRAINER, f"{1.1 * days:.1f}")]
        return [
            Case(alert, "fires", {series: ago}, 1, fires),
            Case(alert, "not so long ago", {series: not_so_long}, 1),
        ]

    def restart_loop(self, alert: Alert) -> list[Case]:
        series, window = _series("process_start_time_seconds", APP), self.steps(self.at.restart_window_seconds)
        most, end = self.at.restarts, self.at.restarts + 1
        starts = [" ".join([*map(str, range(n)), f"{n}x{2 * window + 9}"]) for n in (end, most)]
        return [
            Case(alert, "fires", {series: starts[0]}, end, [Firing(alert, APP, str(end))]),
            Case(alert, "as often as may be", {series: starts[1]}, end),
            Case(alert, "long ago", {series: starts[0]}, end + window + 2),
        ]

    def target_down(self, app: Alert, others: Alert) -> list[Case]:
        enough = self.steps(app.for_seconds)
        down = {_series("up", labels): f"0x{enough + 5}" for labels in (APP, TRAINER)}
        back = dict.fromkeys(down, f"0x{enough - 1} 1x5")
        firing = [Firing(app, APP), Firing(others, TRAINER)]
        return [
            Case(app, "fires", down, enough + 1, firing),
            Case(app, "not yet for long enough", down, enough - 1),
            Case(app, "back in time", back, enough + 3),
            Case(app, "up", _up(enough + 1), enough + 1),
        ]


def _up(steps: int) -> dict[str, str]:
    return {_series("up", labels): f"1x{steps}" for labels in (APP, TRAINER)}


def _series(name: str, *labels: Mapping[str, str], **more: str) -> str:
    pairs = sorted({key: value for part in (*labels, more) for key, value in part.items()}.items())
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


def _counter(pieces: Sequence[tuple[float, int]]) -> str:
    """A counter's values: increments, each for a number of steps."""
    total, text = 0.0, []
    for increment, steps in pieces:
        text.append(f"{number(total)}+{number(increment)}x{steps}")
        total += increment * (steps + 1)
    return " ".join(text)


def _requests(
    pieces: Sequence[tuple[float, float, int]],
    *,
    fault: str = "500",
    route: str = "/v1/predict",
    method: str = "POST",
) -> dict[str, str]:
    """Series of http_requests_total. pieces: (share of faults, requests a step, steps)."""
    about = {**APP, "method": method, "route": route}
    return {
        _series("http_requests_total", about, status=fault): _counter([(share * n, t) for share, n, t in pieces]),
        _series("http_requests_total", about, status="200"): _counter([((1 - share) * n, t) for share, n, t in pieces]),
    }


def _durations(i: int, slow: float, many: float, steps: int) -> dict[str, str]:
    """Series of a histogram in which a share of `many` predictions a step falls in the bucket after the i-th."""
    name, about = "model_prediction_duration_seconds", {**APP, "model_version": "v1"}
    bounds = [*map(str, BUCKETS), "+Inf"]
    counts = [many * (1 - slow) if k <= i else many for k in range(len(bounds))]
    buckets = {_series(f"{name}_bucket", about, le=bound): n for bound, n in zip(bounds, counts, strict=True)}
    series = {**buckets, _series(f"{name}_count", about): many}
    return {key: _counter([(n, steps)]) for key, n in series.items()}


def _humanize(value: float) -> str:
    """A number as Prometheus's humanize writes it, such as `550M`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1_000 or prefix == "T":
            break
        value /= 1_000
    return f"{value:.4g}{prefix}"
