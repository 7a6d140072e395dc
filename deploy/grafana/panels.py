"""The parts of the dashboards.

Every query selects one namespace, or all. If Prometheus gives its targets no such label, "All" is
the whole fleet.
"""

from collections.abc import Mapping

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# A selector of the chosen namespace, for the braces of every query.
NS = 'namespace=~"$namespace"'


def quantile(share: float, metric: str, *labels: str, where: str = "") -> str:
    """The quantile of a histogram, in the metric's unit."""
    by = ", ".join(["le", *labels])
    selector = f"{NS}, {where}" if where else NS
    rates = f"rate({metric}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({by}) ({rates}))"


def quantiles(metric: str) -> dict[str, str]:
    """A histogram's median, 95th and 99th percentile, as queries by legend."""
    return {f"p{round(share * 100)}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


def rate(metric: str, *labels: str, where: str = "") -> str:
    """A counter's rate per second, summed over all labels except `labels`."""
    by = f" by ({', '.join(labels)})" if labels else ""
    selector = f"{NS}, {where}" if where else NS
    return f"sum{by} (rate({metric}{{{selector}}}[$__rate_interval]))"


def mean(metric: str) -> str:
    """The mean of a histogram whose buckets are too wide for usual values."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def of_tier(expression: str, mark: str) -> str:
    """Limits a metric that all tiers have to the processes that also have `mark`."""
    return f"{expression} and on (namespace, instance) {mark}"


def graph(
    title: str,
    meaning: str,
    queries: Mapping[str, str],
    *,
    unit: str = "short",
    stacked: bool = False,
    ceiling: float | None = None,
) -> timeseries.Panel:
    """A panel with lines over time; `queries` are by legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(meaning)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(8)
        .height(8)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if ceiling is not None:
        panel = panel.max(ceiling)
    for ref, (legend, expression) in zip("ABCDEFGH", queries.items(), strict=False):
        panel = panel.with_target(
            Dataquery().ref_id(ref).expr(expression).legend_format(legend).range()
        )
    return panel


def number(
    title: str,
    meaning: str,
    expression: str,
    *,
    unit: str = "short",
    decimals: int | None = None,
    objective: float | None = None,
) -> stat.Panel:
    """A panel with one current number, which is red beyond `objective`."""
    panel = (
        stat.Panel()
        .title(title)
        .description(meaning)
        .datasource(SOURCE)
        .unit(unit)
        .span(4)
        .height(4)
        .color_mode(BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(Dataquery().ref_id("A").expr(expression).range())
    )
    if objective is not None:
        steps = [Threshold(color="green"), Threshold(value=objective, color="red")]
        panel = panel.color_mode(BigValueColorMode.VALUE).thresholds(
            ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
        )
    return panel if decimals is None else panel.decimals(decimals)


def row(title: str) -> Row:
    return Row(title)


def processes(mark: str) -> tuple[timeseries.Panel, ...]:
    """Panels of processor, memory and tasks, for the processes that have the metric `mark`."""
    cpu = of_tier(f"rate(process_cpu_seconds_total{{{NS}}}[$__rate_interval])", mark)
    memory = of_tier(f"process_resident_memory_bytes{{{NS}}}", mark)
    return (
        graph("Processor", "Cores in use by each process.", {"{{instance}}": cpu}),
        graph("Memory", "Resident memory.", {"{{instance}}": memory}, unit="bytes"),
        graph(
            "Tasks of the event loop",
            "Each running call has some. A number that only grows is a leak.",
            {"{{instance}}": of_tier(f"pixtral_asyncio_tasks{{{NS}}}", mark)},
        ),
    )


def gpus() -> tuple[timeseries.Panel, timeseries.Panel]:
    """Panels of the GPUs in the chosen namespace, measured by NVIDIA's dcgm-exporter.

    The exporter's label for the namespace of the pod that uses the GPU is `exported_namespace`, or
    `namespace` if Prometheus honours its labels.
    """

    def used(metric: str) -> str:
        return f'{metric}{{exported_namespace=~"$namespace"}} or {metric}{{{NS}}}'

    return (
        graph(
            "GPU: share of time in use",
            "Measured by dcgm-exporter, if it runs.",
            {"{{Hostname}} {{gpu}}": used("DCGM_FI_DEV_GPU_UTIL")},
            unit="percent",
            ceiling=100,
        ),
        graph(
            "GPU: memory in use",
            "Measured by dcgm-exporter, if it runs.",
            {"{{Hostname}} {{gpu}}": used("DCGM_FI_DEV_FB_USED")},
            unit="decmbytes",
        ),
    )


def new_dashboard(name: str, title: str, description: str) -> Dashboard:
    return (
        Dashboard(title)
        .uid(f"pixtral-{name}")
        .description(description)
        .tags(["pixtral"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            DashboardLink("Pixtral")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["pixtral"])
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            AnnotationQuery()
            .name("Releases")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("blue")
            .expr(
                f"count by (version) (pixtral_build_info{{{NS}}}) "
                f"unless count by (version) (pixtral_build_info{{{NS}}} offset 5m)"
            )
        )
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("namespace")
            .label("Namespace")
            .datasource(SOURCE)
            .query("label_values(pixtral_build_info, namespace)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
        )
    )
