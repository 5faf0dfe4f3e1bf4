"""The words in which dashboards are written here, and their translation into Grafana's own.

A `Panel` says what is shown, in which unit, what it means and when to worry. Everything that panels share (data source,
legend, grid, links to the runbook) is added here once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_WIDTH = 24
HEIGHT = {"stat": 4, "timeseries": 8, "table": 8}
GREEN, ORANGE, RED = "green", "orange", "red"


class Shape(StrEnum):
    """How a panel draws; the values are Grafana's panel types."""

    NUMBER = "stat"
    LINES = "timeseries"
    ROWS = "table"


class Unit(StrEnum):
    """Units that we show, by Grafana's identifiers."""

    NUMBER = "short"
    SECONDS = "s"
    RATIO = "percentunit"
    BYTES_PER_SECOND = "Bps"
    PER_SECOND = "cps"
    CELSIUS = "celsius"
    WATT = "watt"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `docs` is a page under the documentation's root that says what to do."""

    title: str
    description: str
    queries: tuple[Query, ...]
    docs: str
    shape: Shape = Shape.LINES
    unit: Unit = Unit.NUMBER
    width: int = 8
    is_stacked: bool = False
    orange_from: float | None = None
    red_from: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together, under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """Moments marked on every graph of a board: those at which the expression has a value."""

    name: str
    expr: str
    title: str
    colour: str


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()
    """(name, the query that lists its values)"""
    annotations: tuple[Annotation, ...] = ()

    def panels(self) -> Iterator[Panel]:
        """Yield every panel, in reading order."""
        return (panel for row in self.rows for panel in row.panels)

    def expressions(self) -> Iterator[tuple[str, str]]:
        """Yield (where, PromQL) of every panel and annotation."""
        for panel in self.panels():
            yield from ((f"{self.title} / {panel.title}", query.expr) for query in panel.queries)
        yield from ((f"{self.title} / marks {mark.name}", mark.expr) for mark in self.annotations)


def as_json(board: Board, docs_url: str) -> dict[str, Any]:
    """Give the dashboard as Grafana's JSON; `docs_url` is where the documentation stands, for the links."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["instep"])
        .editable()
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("Instep").type(models.DashboardLinkType.DASHBOARDS).tags(["instep"]).keep_time(True)
        )
    )
    for name, query in board.variables:
        builder = builder.with_variable(_variable(name, query))
    for mark in board.annotations:
        builder = builder.annotation(
            dashboard.AnnotationQuery()
            .name(mark.name)
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(mark.colour)
            .expr(mark.expr)
        )
    _place(builder, board, docs_url)
    made: dict[str, Any] = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    for mark, written in zip(board.annotations, made["annotations"].get("list", []), strict=True):
        written["titleFormat"] = mark.title  # Prometheus's own field; the SDK's type does not have it.
    return made


def _place(builder: dashboard.Dashboard, board: Board, docs_url: str) -> None:
    """Put rows and panels on the grid; the places are ours, so that no two panels overlap."""
    number, y = 1, 0
    for row in board.rows:
        builder.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=GRID_WIDTH, x=0, y=y)))
        number, y, x, line = number + 1, y + 1, 0, 0
        for panel in row.panels:
            height = HEIGHT[panel.shape]
            if x + panel.width > GRID_WIDTH:
                x, y, line = 0, y + line, 0
            builder.with_panel(
                _drawn(panel, docs_url).id(number).grid_pos(models.GridPos(h=height, w=panel.width, x=x, y=y))
            )
            number, x, line = number + 1, x + panel.width, max(line, height)
        y += line


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query({"query": query, "refId": name, "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _drawn(panel: Panel, docs_url: str) -> Any:
    """Give the builder of a panel with all that panels share."""
    builder: Any = {Shape.NUMBER: _number, Shape.LINES: _lines, Shape.ROWS: _rows}[panel.shape](panel)
    builder.title(panel.title).description(panel.description).datasource(DATASOURCE).unit(panel.unit.value)
    builder.links(
        [
            dashboard.DashboardLink("What to do")
            .type(models.DashboardLinkType.LINK)
            .url(f"{docs_url.rstrip('/')}/{panel.docs}")
            .target_blank(True)
        ]
    )
    for number, query in enumerate(panel.queries):
        builder.with_target(_target(panel, query, "ABCDEFGH"[number]))
    return builder.thresholds(_thresholds(panel))


def _target(panel: Panel, query: Query, name: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(name).datasource(DATASOURCE)
    if panel.shape is Shape.ROWS:
        return made.instant().format(PromQueryFormat.TABLE)
    return made.range()


def _number(_panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _rows(_panel: Panel) -> table.Panel:
    time_column = models.DynamicConfigValue(id_val="custom.hidden", value=True)
    aligned = table.Panel().align(common_models.FieldTextAlignment.AUTO).inspect(False)
    return aligned.override_by_name("Time", [time_column])


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    drawn = timeseries.Panel().legend(legend).fill_opacity(40 if panel.is_stacked else 5).min(0)
    if panel.is_stacked:
        drawn = drawn.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if panel.orange_from is not None or panel.red_from is not None:
        lines = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        drawn = drawn.thresholds_style(lines)
    return drawn


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color=GREEN)]
    steps += [
        models.Threshold(value=value, color=colour)
        for value, colour in ((panel.orange_from, ORANGE), (panel.red_from, RED))
        if value is not None
    ]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
