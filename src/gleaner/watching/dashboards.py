"""Grafana's three dashboards, made from the settings as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery as AnyQuery
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

from gleaner.settings.sections import Settings
from gleaner.watching.alerts import BURN_RATES, PROBES, failed_record, number, span

# The uid of the provisioned data source, by which dashboards find it on any machine.
DATA_SOURCE = "gleaner-prometheus"

_SOURCE = DataSourceRef("prometheus", DATA_SOURCE)
_ASKED = f'http_requests_total{{route!~"{PROBES}"}}'
_FAILED = f'http_requests_total{{status=~"5..", route!~"{PROBES}"}}'
_FAILED_SHARE = (
    f"sum by (service) (rate({_FAILED}[$__rate_interval])) / (sum by (service) (rate({_ASKED}[$__rate_interval])) > 0)"
)
_SLOT = 'model_version=~"$slot"'

# A text begins a row of panels, under this title.
Panels = Sequence[Stat | Lines | Table | Timeline | str]


def make_dashboards(settings: Settings) -> dict[str, str]:
    """Make the dashboards: {name: JSON}."""
    makers: Mapping[str, Callable[[Settings], Dashboard]]
    makers = {"service": _service, "training": _training, "model": _model}
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {name: maker(settings).build() for name, maker in makers.items()}
    for dashboard in made.values():
        for i, panel in enumerate(dashboard.panels or [], start=1):
            panel.id_val = i
    return {name: encoder.encode(dashboard) + "\n" for name, dashboard in made.items()}


def _service(settings: Settings) -> Dashboard:
    alerts, promised = settings.alerts, settings.objectives
    rate, budget = "[$__rate_interval]", number(1 - promised.availability)
    buckets = f"(rate(model_prediction_duration_seconds_bucket{{{_SLOT}}}{rate}))"
    quantiles = {
        f"{{{{model_version}}}}, p{100 * q:g}": f"histogram_quantile({number(q)}, sum by (model_version, le) {buckets})"
        for q in sorted({0.5, 0.95, promised.latency_quantile})
    }
    burns = {f"over {span(long)}": f"{failed_record(long)} / {budget}" for _, long, _, _ in BURN_RATES}
    panels: Panels = [
        _stat("Requests per second", f"sum(rate({_ASKED}{rate}))", "reqps"),
        _stat("5xx responses", _FAILED_SHARE, "percentunit", bad=alerts.error_ratio),
        _stat(
            f"Duration of predictions, p{100 * promised.latency_quantile:g}",
            f"histogram_quantile({number(promised.latency_quantile)}, sum by (le) {buckets})",
            "s",
            bad=promised.latency_seconds,
        ),
        _stat("In flight", "sum(http_requests_in_progress)", "short"),
        _stat("Processes up", "sum(up)", "short"),
        _stat("Firing alerts", 'count(ALERTS{alertstate="firing"}) or vector(0)', "short", bad=1),
        "Rate",
        _lines("Requests by route", {"{{route}}": f"sum by (route) (rate(http_requests_total{rate}))"}, "reqps"),
        _lines(
            "Predictions by slot and outcome",
            {
                "{{model_version}}, {{status}}": "sum by (model_version, status) "
                f"(rate(model_prediction_requests_total{{{_SLOT}}}{rate}))"
            },
            "reqps",
        ),
        _lines(
            "Rows predicted",
            {"{{model_version}}": f"sum by (model_version) (rate(model_prediction_rows_total{{{_SLOT}}}{rate}))"},
            "rowsps",
        ),
        "Errors",
        _lines(
            "Share of 5xx responses, without health checks",
            {"{{service}}": _FAILED_SHARE},
            "percentunit",
            line=alerts.error_ratio,
        ),
        _lines("Responses by status", {"{{status}}": f"sum by (status) (rate(http_requests_total{rate}))"}, "reqps"),
        _lines("Error budget burn rate", burns, "short", line=BURN_RATES[0][0]),
        "Duration",
        _lines("Duration of predictions by slot", quantiles, "s", line=promised.latency_seconds),
        _lines(
            "Duration of requests by route, p99",
            {
                "{{route}}": "histogram_quantile(0.99, sum by (route, le) "
                f"(rate(http_request_duration_seconds_bucket{rate})))"
            },
            "s",
        ),
        _lines("Requests in flight", {"{{service}}": "http_requests_in_progress"}, "short"),
        "Resources",
        _lines("CPU", {"{{service}}": "app_cpu_usage_percent"}, "percent", line=alerts.cpu_percent),
        _lines("Memory", {"{{service}}": "app_memory_usage_bytes"}, "bytes", line=alerts.memory_bytes),
        _lines("Disk", {"{{service}}": "app_disk_usage_bytes"}, "bytes"),
        _timeline("Up (1) or down (0)", {"{{service}}": "up"}),
        _lines("Time since start", {"{{service}}": "time() - process_start_time_seconds"}, "s"),
    ]
    about = "Rate, errors, duration and resources of the service."
    return _dashboard(settings, "Service", about, panels).with_variable(_slots())


def _training(settings: Settings) -> Dashboard:
    alerts, unit = settings.alerts, settings.model.unit or "the target's unit"
    finished = (
        AnnotationQuery()
        .name("successful trainings")
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("green")
        .expr("training_last_success_timestamp_seconds * 1000")
        .use_value_for_time(True)
        .title_format("training succeeded")
    )
    panels: Panels = [
        _stat("Last success", "training_last_success_timestamp_seconds * 1000", "dateTimeFromNow").description(
            "The time at which a training last moved the aliases."
        ),
        _stat("Its duration", "training_duration_seconds", "s"),
        _stat("Training loss", "training_loss", "short", bad=alerts.training_loss),
        _stat("Validation loss", "validation_loss", "short"),
        _stat("Validation accuracy", "validation_accuracy", "percentunit", good=alerts.validation_accuracy),
        _stat(f"Mean absolute error, {unit}", "validation_mae", "short"),
        "Per epoch",
        _lines(
            "Loss",
            {"on the training rows": "training_loss", "out of fold": "validation_loss"},
            "short",
            line=alerts.training_loss,
        ),
        _lines("Epochs so far", {"epochs": "training_epoch_total"}, "short"),
        _lines("Epochs a minute", {"epochs": "60 * rate(training_epoch_total[$__rate_interval])"}, "short"),
        _timeline("Candidate in training, then the champion", {"{{candidate}}": "training_candidate"}),
        "Per training; marks show successful trainings",
        _lines("Validation accuracy", {"accuracy": "validation_accuracy"}, "percentunit", alerts.validation_accuracy),
        _lines("Validation r2", {"r2": "validation_r2"}, "short"),
        _lines("Validation mean absolute error", {f"error, {unit}": "validation_mae"}, "short"),
        _lines("Duration", {"seconds": "training_duration_seconds"}, "s"),
    ]
    about = "Loss and accuracy, per epoch and per training."
    return _dashboard(settings, "Training", about, panels, "6h").annotation(finished)


def _model(settings: Settings) -> Dashboard:
    of_slot = "on (job, instance, slot)"
    refusals = {"store": "model_load_failures_total", "registry": "registry_refusals_total"}
    panels: Panels = [
        _in_service(of_slot),
        _stat(
            "Refused versions",
            "sum(increase(model_load_failures_total[$__range])) "
            "+ (sum(increase(registry_refusals_total[$__range])) or vector(0))",
            "short",
            bad=1,
        ).span(6),
        _timeline("Versions", {"{{slot}}: version {{version}}, {{candidate}}": 'model_info{slot=~"$slot"}'}),
        _lines(
            "Predictions by version",
            {
                "{{slot}}: version {{version}}": "sum by (slot, version) (label_replace("
                f'rate(model_prediction_requests_total{{status="success", {_SLOT}}}[$__rate_interval]), '
                f'"slot", "$1", "model_version", "(.*)") * {of_slot} group_left (version) model_info)'
            },
            "reqps",
        ),
        _lines(
            "Refused versions by reason",
            {
                f"{where}: {{{{reason}}}}": f"sum by (reason) (increase({total}[$__rate_interval]))"
                for where, total in refusals.items()
            },
            "short",
        ),
        _lines(
            "Aliases of refused versions (1)",
            {
                "store: {{alias}}": "max by (alias) (model_alias_refused)",
                "registry: {{alias}}": "max by (alias) (registry_alias_refused)",
            },
            "short",
            line=1,
        ),
        _lines(
            "Time since the last successful registry poll",
            {"{{instance}}": "time() - registry_last_success_timestamp_seconds"},
            "s",
            line=settings.alerts.registry_age_seconds,
        ),
    ]
    about = "The version in each slot, its age, and refused versions."
    return _dashboard(settings, "Model", about, panels, "24h").with_variable(_slots())


def _in_service(of_slot: str) -> Table:
    """Make the table of slots: version, candidate, run, and time of loading."""
    since = (
        f'1000 * model_loaded_timestamp_seconds{{slot=~"$slot"}} * {of_slot} '
        "group_left (version, candidate, run_id) model_info"
    )
    hidden = {"Time": True, "instance": True, "job": True, "service": True}
    order = {"slot": 0, "version": 1, "candidate": 2, "Value": 3, "run_id": 4}
    names = {"Value": "loaded at", "run_id": "MLflow run"}
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


def _dashboard(settings: Settings, title: str, about: str, panels: Panels, time: str = "1h") -> Dashboard:
    has_server = settings.tracking.is_server
    mlflow = settings.tracking_uri if has_server else f"http://localhost:{settings.ports.mlflow}"
    dashboard = (
        Dashboard(title)
        .uid(f"gleaner-{title.lower()}")
        .description(about)
        .tags(["gleaner"])
        .readonly()
        .timezone("browser")
        .refresh("30s")
        .time(f"now-{time}", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(DashboardLink("Gleaner").type(DashboardLinkType.DASHBOARDS).tags(["gleaner"]).keep_time(True))
        .link(DashboardLink("MLflow").type(DashboardLinkType.LINK).url(mlflow).icon("external link").target_blank(True))
    )
    for panel in panels:
        dashboard = dashboard.with_row(Row(panel)) if isinstance(panel, str) else dashboard.with_panel(panel)
    return dashboard


def _slots() -> QueryVariable:
    every = VariableOption(selected=True, text="All", value="$__all")
    query = "label_values(model_prediction_requests_total, model_version)"
    return (
        QueryVariable("slot")
        .label("Slot")
        .datasource(_SOURCE)
        .query({"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .refresh(VariableRefresh.ON_DASHBOARD_LOAD)
        .multi(True)
        .include_all(True)
        .current(every)
    )


def _query(expr: str) -> Dataquery:
    return Dataquery().datasource(_SOURCE).expr(expr).ref_id("A")


def _ranges(queries: Mapping[str, str]) -> list[Builder[AnyQuery]]:
    """Make the queries of a panel's lines, named A, B, ..."""
    numbered = enumerate(queries.items())
    return [_query(expr).ref_id(chr(ord("A") + i)).legend_format(legend).range() for i, (legend, expr) in numbered]


def _lines(title: str, queries: Mapping[str, str], unit: str, line: float | None = None) -> Lines:
    """Make a panel of lines over time.

    queries: {legend: PromQL}.
    line: a threshold to draw.
    """
    panel = Lines().title(title).datasource(_SOURCE).unit(unit).axis_soft_min(0).fill_opacity(8).span(8).height(8)
    if line is not None:
        style = GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        panel = panel.thresholds(_steps("transparent", line, "red")).thresholds_style(style)
    return panel.targets(_ranges(queries))


def _stat(title: str, expr: str, unit: str, *, bad: float | None = None, good: float | None = None) -> Stat:
    """Make a panel of one current number.

    bad: the number is red from here up.
    good: the number is red below this.
    """
    latest = ReduceDataOptions().calcs(["lastNotNull"])
    panel = Stat().title(title).datasource(_SOURCE).unit(unit).reduce_options(latest).span(4).height(4)
    if bad is not None:
        panel = panel.thresholds(_steps("green", bad, "red"))
    elif good is not None:
        panel = panel.thresholds(_steps("red", good, "green"))
    else:
        panel = panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, "blue")]))
    return panel.with_target(_query(expr).instant())


def _timeline(title: str, queries: Mapping[str, str]) -> Timeline:
    panel = Timeline().title(title).datasource(_SOURCE).thresholds(_steps("red", 1, "green")).span(8).height(8)
    return panel.targets(_ranges(queries))


def _steps(below: str, value: float, above: str) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, below), Threshold(value, above)])
