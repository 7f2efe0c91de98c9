"""What Grafana shows: settings -> three dashboards, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig, ReduceDataOptions
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as Timeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import DataSourceRef, GraphThresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from gleaner.alerts import BURN_RATES, PROBES, failed_record, number, span
from gleaner.settings import Settings

DATA_SOURCE = "gleaner-prometheus"
"""The uid under which the data source is provisioned: dashboards find it by that, on any machine."""

_SOURCE = DataSourceRef("prometheus", DATA_SOURCE)
_ASKED = f'http_requests_total{{route!~"{PROBES}"}}'
_FAILED = f'http_requests_total{{status=~"5..", route!~"{PROBES}"}}'
_FAILED_SHARE = (
    f"sum by (service) (rate({_FAILED}[$__rate_interval])) / (sum by (service) (rate({_ASKED}[$__rate_interval])) > 0)"
)
_SLOT = 'model_version=~"$slot"'


def make_dashboards(settings: Settings) -> dict[str, str]:
    """The dashboards' JSON by their names."""
    makers: Mapping[str, Callable[[Settings], Dashboard]] = {
        "service": _service,
        "training": _training,
        "model": _model,
    }
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {name: maker(settings).build() for name, maker in makers.items()}
    for dashboard in made.values():
        for i, panel in enumerate(dashboard.panels or [], start=1):
            panel.id_val = i
    return {name: encoder.encode(dashboard) + "\n" for name, dashboard in made.items()}


def _service(settings: Settings) -> Dashboard:
    alerts, promised = settings.alerts, settings.objectives
    quantiles = {
        f"{{{{model_version}}}}, {100 * q:g} in 100": f"histogram_quantile({number(q)}, sum by (model_version, le) "
        f"(rate(model_prediction_duration_seconds_bucket{{{_SLOT}}}[$__rate_interval])))"
        for q in sorted({0.5, 0.95, promised.latency_quantile})
    }
    rate, budget = "[$__rate_interval]", number(1 - promised.availability)
    burns = {f"over {span(long)}": f"{failed_record(long)} / {budget}" for _, long, _, _ in BURN_RATES}
    return (
        _dashboard(
            settings, "service", "Service", "Rate, errors and duration of the service, and what it takes for it."
        )
        .with_variable(_slots())
        .with_panel(_stat("Requests a second", f"sum(rate({_ASKED}{rate}))", "reqps"))
        .with_panel(
            _stat(
                "Answered 5xx",
                _FAILED_SHARE,
                "percentunit",
                bad=alerts.error_ratio,
            )
        )
        .with_panel(
            _stat(
                f"{100 * promised.latency_quantile:g} in 100 predictions take up to",
                f"histogram_quantile({number(promised.latency_quantile)}, sum by (le) "
                f"(rate(model_prediction_duration_seconds_bucket{{{_SLOT}}}{rate})))",
                "s",
                bad=promised.latency_seconds,
            )
        )
        .with_panel(_stat("In flight", "sum(http_requests_in_progress)", "short"))
        .with_panel(_stat("Processes that answer", "sum(up)", "short"))
        .with_panel(_stat("Alerts that fire", 'count(ALERTS{alertstate="firing"}) or vector(0)', "short", bad=1))
        .with_row(Row("Rate"))
        .with_panel(
            _lines("Requests by route", {"{{route}}": f"sum by (route) (rate(http_requests_total{rate}))"}, "reqps")
        )
        .with_panel(
            _lines(
                "Predictions by slot and outcome",
                {
                    "{{model_version}}, {{status}}": "sum by (model_version, status) "
                    f"(rate(model_prediction_requests_total{{{_SLOT}}}{rate}))"
                },
                "reqps",
            )
        )
        .with_panel(
            _lines(
                "Rows predicted",
                {"{{model_version}}": f"sum by (model_version) (rate(model_prediction_rows_total{{{_SLOT}}}{rate}))"},
                "rowsps",
            )
        )
        .with_row(Row("Errors"))
        .with_panel(
            _lines(
                "Share answered 5xx, health checks apart",
                {"{{service}}": _FAILED_SHARE},
                "percentunit",
                line=alerts.error_ratio,
            )
        )
        .with_panel(
            _lines("Answers by status", {"{{status}}": f"sum by (status) (rate(http_requests_total{rate}))"}, "reqps")
        )
        .with_panel(_lines("Times too fast that the error budget burns", burns, "short", line=BURN_RATES[0][0]))
        .with_row(Row("Duration"))
        .with_panel(_lines("Predictions by slot", quantiles, "s", line=promised.latency_seconds))
        .with_panel(
            _lines(
                "Requests by route, 99 in 100",
                {
                    "{{route}}": "histogram_quantile(0.99, sum by (route, le) "
                    f"(rate(http_request_duration_seconds_bucket{rate})))"
                },
                "s",
            )
        )
        .with_panel(_lines("Requests in flight", {"{{service}}": "http_requests_in_progress"}, "short"))
        .with_row(Row("Resources"))
        .with_panel(_lines("CPU", {"{{service}}": "app_cpu_usage_percent"}, "percent", line=alerts.cpu_percent))
        .with_panel(_lines("Memory", {"{{service}}": "app_memory_usage_bytes"}, "bytes", line=alerts.memory_bytes))
        .with_panel(_lines("Disk", {"{{service}}": "app_disk_usage_bytes"}, "bytes"))
        .with_panel(_timeline("Answers Prometheus (1) or not (0)", {"{{service}}": "up"}))
        .with_panel(_lines("Time since the start", {"{{service}}": "time() - process_start_time_seconds"}, "s"))
    )


def _training(settings: Settings) -> Dashboard:
    alerts, unit = settings.alerts, settings.model.unit or "the target's unit"
    finished = (
        AnnotationQuery()
        .name("a training succeeded")
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("green")
        .expr("training_last_success_timestamp_seconds * 1000")
        .use_value_for_time(True)
        .title_format("a training succeeded")
    )
    return (
        _dashboard(
            settings, "training", "Training", "Loss and accuracy, epoch by epoch and training by training.", "6h"
        )
        .annotation(finished)
        .with_panel(
            _stat("Last success", "training_last_success_timestamp_seconds * 1000", "dateTimeFromNow").description(
                "When a training last moved the aliases."
            )
        )
        .with_panel(_stat("It took", "training_duration_seconds", "s"))
        .with_panel(_stat("Training loss", "training_loss", "short", bad=alerts.training_loss))
        .with_panel(_stat("Validation loss", "validation_loss", "short"))
        .with_panel(_stat("Validation accuracy", "validation_accuracy", "percentunit", good=alerts.validation_accuracy))
        .with_panel(_stat(f"Mean absolute error, {unit}", "validation_mae", "short"))
        .with_row(Row("Epoch by epoch"))
        .with_panel(
            _lines(
                "Loss",
                {"on the training rows": "training_loss", "out of fold": "validation_loss"},
                "short",
                line=alerts.training_loss,
            )
        )
        .with_panel(_lines("Epochs so far", {"epochs": "training_epoch_total"}, "short"))
        .with_panel(_lines("Epochs a minute", {"epochs": "60 * rate(training_epoch_total[$__rate_interval])"}, "short"))
        .with_panel(
            _timeline("The candidate that is fitted; afterwards the champion", {"{{candidate}}": "training_candidate"})
        )
        .with_row(Row("Training by training; a mark is a success"))
        .with_panel(
            _lines(
                "Validation accuracy",
                {"accuracy": "validation_accuracy"},
                "percentunit",
                line=alerts.validation_accuracy,
            )
        )
        .with_panel(_lines("Validation r2", {"r2": "validation_r2"}, "short"))
        .with_panel(_lines("Validation mean absolute error", {f"error, {unit}": "validation_mae"}, "short"))
        .with_panel(_lines("Time taken", {"seconds": "training_duration_seconds"}, "s"))
    )


def _model(settings: Settings) -> Dashboard:
    of_slot = "on (job, instance, slot)"
    return (
        _dashboard(
            settings, "model", "Model", "Which version is in which slot, since when, and what was refused.", "24h"
        )
        .with_variable(_slots())
        .with_panel(_in_service(of_slot))
        .with_panel(
            _stat(
                "Refused in this time",
                "sum(increase(model_load_failures_total[$__range])) "
                "+ (sum(increase(registry_refusals_total[$__range])) or vector(0))",
                "short",
                bad=1,
            ).span(6)
        )
        .with_panel(
            _timeline("Versions", {"{{slot}}: version {{version}}, {{candidate}}": 'model_info{slot=~"$slot"}'})
        )
        .with_panel(
            _lines(
                "Predictions by version",
                {
                    "{{slot}}: version {{version}}": "sum by (slot, version) (label_replace("
                    f'rate(model_prediction_requests_total{{status="success", {_SLOT}}}[$__rate_interval]), '
                    f'"slot", "$1", "model_version", "(.*)") * {of_slot} group_left (version) model_info)'
                },
                "reqps",
            )
        )
        .with_panel(
            _lines(
                "Versions refused, by reason",
                {
                    f"{where}: {{{{reason}}}}": f"sum by (reason) (increase({refusals}[$__rate_interval]))"
                    for where, refusals in (
                        ("store", "model_load_failures_total"),
                        ("registry", "registry_refusals_total"),
                    )
                },
                "short",
            )
        )
        .with_panel(
            _lines(
                "Aliases that point at a refused version (1)",
                {
                    "store: {{alias}}": "max by (alias) (model_alias_refused)",
                    "registry: {{alias}}": "max by (alias) (registry_alias_refused)",
                },
                "short",
                line=1,
            )
        )
        .with_panel(
            _lines(
                "Since the last look at the registry that succeeded",
                {"{{instance}}": "time() - registry_last_success_timestamp_seconds"},
                "s",
                line=settings.alerts.registry_age_seconds,
            )
        )
    )


def _in_service(of_slot: str) -> Table:
    """A row for each slot: version, candidate, run, and since when."""
    since = (
        f'1000 * model_loaded_timestamp_seconds{{slot=~"$slot"}} * {of_slot} '
        "group_left (version, candidate, run_id) model_info"
    )
    hidden = {"Time": True, "instance": True, "job": True, "service": True}
    order = {"slot": 0, "version": 1, "candidate": 2, "Value": 3, "run_id": 4}
    names = {"Value": "in this process since", "run_id": "MLflow run"}
    return (
        Table()
        .title("In service")
        .datasource(_SOURCE)
        .with_target(_query(since).instant().format(PromQueryFormat.TABLE))
        .with_transformation(
            DataTransformerConfig(
                "organize", options={"excludeByName": hidden, "indexByName": order, "renameByName": names}
            )
        )
        .override_by_name(names["Value"], [DynamicConfigValue("unit", "dateTimeAsIso")])
        .span(18)
        .height(6)
    )


def _dashboard(settings: Settings, name: str, title: str, about: str, time: str = "1h") -> Dashboard:
    return (
        Dashboard(title)
        .uid(f"gleaner-{name}")
        .description(about)
        .tags(["gleaner"])
        .readonly()
        .timezone("browser")
        .refresh("30s")
        .time(f"now-{time}", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(DashboardLink("Gleaner").type(DashboardLinkType.DASHBOARDS).tags(["gleaner"]).keep_time(True))
        .link(
            DashboardLink("MLflow")
            .type(DashboardLinkType.LINK)
            .url(_mlflow_url(settings))
            .icon("external link")
            .target_blank(True)
        )
    )


def _mlflow_url(settings: Settings) -> str:
    uri = settings.tracking.uri
    return uri if uri.startswith(("http://", "https://")) else f"http://localhost:{settings.ports.mlflow}"


def _slots() -> QueryVariable:
    every = VariableOption(selected=True, text="All", value="$__all")
    return (
        QueryVariable("slot")
        .label("Slot")
        .datasource(_SOURCE)
        .query(
            {
                "query": "label_values(model_prediction_requests_total, model_version)",
                "refId": "PrometheusVariableQueryEditor-VariableQuery",
            }
        )
        .refresh(VariableRefresh.ON_DASHBOARD_LOAD)
        .multi(True)
        .include_all(True)
        .current(every)
    )


def _query(expr: str, legend: str = "", ref: str = "A") -> Dataquery:
    query = Dataquery().datasource(_SOURCE).expr(expr).ref_id(ref)
    return query.legend_format(legend) if legend else query


def _lines(title: str, queries: Mapping[str, str], unit: str, line: float | None = None) -> Lines:
    """Lines over time, by their legends. line: a threshold, drawn."""
    panel = Lines().title(title).datasource(_SOURCE).unit(unit).axis_soft_min(0).fill_opacity(8).span(8).height(8)
    for i, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(_query(expr, legend, chr(ord("A") + i)).range())
    if line is not None:
        panel = panel.thresholds(_steps("transparent", line, "red")).thresholds_style(
            GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        )
    return panel


def _stat(title: str, expr: str, unit: str, *, bad: float | None = None, good: float | None = None) -> Stat:
    """One number, now. bad: it is red from there on; good: it is red below."""
    panel = (
        Stat()
        .title(title)
        .datasource(_SOURCE)
        .unit(unit)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .span(4)
        .height(4)
    )
    if bad is not None:
        panel = panel.thresholds(_steps("green", bad, "red"))
    elif good is not None:
        panel = panel.thresholds(_steps("red", good, "green"))
    else:
        panel = panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, "blue")]))
    return panel.with_target(_query(expr).instant())


def _timeline(title: str, queries: Mapping[str, str]) -> Timeline:
    panel = Timeline().title(title).datasource(_SOURCE).thresholds(_steps("red", 1, "green")).span(8).height(8)
    for i, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(_query(expr, legend, chr(ord("A") + i)).range())
    return panel


def _steps(below: str, value: float, above: str) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, below), Threshold(value, above)])
