"""The charts of a report, as Plotly figures: told apart by shape or dash as well as by colour."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from q2s_tf.evaluation.evaluation import FUSED, INDEX, LEXICAL, MODEL
from q2s_tf.report.catalogue import Hubness
from q2s_tf.report.importance import Importance
from q2s_tf.report.study import Map
from q2s_tf.report.weights import GroupWeights

INK, GRID = "#1b1f24", "#d8dee4"
# Okabe and Ito's palette, which colour-blind readers can tell apart, but for the yellow that white paper swallows.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e7781", "#7a3e9d", "#8c5a2b", "#1b1f24")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "bowtie")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYSTEM_STYLES = {
    MODEL: (PALETTE[0], "circle"),
    INDEX: (PALETTE[4], "circle-open"),
    LEXICAL: (PALETTE[1], "square"),
    FUSED: (PALETTE[2], "diamond"),
}
TITLE_LENGTH = 90


def curves_chart(curves: Sequence[dict[str, Any]]) -> go.Figure:
    """Validation ROC AUC and in-batch recall@1 by epoch, both stages after each other, with the jump marked."""
    chart = make_subplots(1, 2, subplot_titles=("validation ROC AUC", "in-batch recall@1 on training batches"))
    place = 0
    for stage in sorted({line["stage"] for line in curves}):
        lines = [line for line in curves if line["stage"] == stage]
        epochs = [place + at + 1 for at in range(len(lines))]
        style = {"color": PALETTE[stage - 1], "dash": DASHES[stage - 1]}
        for column, metric in ((1, "validation_roc_auc"), (2, "batch_recall@1")):
            trace = go.Scatter(
                x=epochs,
                y=[line[metric] for line in lines],
                mode="lines+markers",
                name=f"stage {stage}",
                line=style,
                marker={"symbol": SYMBOLS[stage - 1], "size": 9},
                showlegend=column == 1,
            )
            chart.add_trace(trace, 1, column)
        if place:
            chart.add_vline(place + 0.5, line={"color": INK, "width": 1, "dash": "dot"})
            best = max(line["validation_roc_auc"] for line in curves if line["stage"] < stage)
            jump = max(line["validation_roc_auc"] for line in lines) - best
            chart.add_annotation(
                x=place + 0.5,
                y=0.03,
                yref="paper",
                xanchor="right",
                text=f"stage {stage}: {jump:+.4f} ",
                showarrow=False,
            )
        place += len(lines)
    chart.update_xaxes(title_text="epoch", dtick=max(1, place // 10))
    return _finish(chart, 340)


def systems_chart(systems: dict[str, dict[str, Any]], metrics: Sequence[str]) -> go.Figure:
    """Every system's figure with its interval, a row a metric."""
    return _dots([(metric, {name: figures.get(metric) for name, figures in systems.items()}) for metric in metrics])


def slice_chart(values: Sequence[dict[str, Any]], metrics: Sequence[str], systems: Sequence[str]) -> go.Figure:
    """One slicing: a row a value, side by side for each metric, every system with its interval."""
    chart = make_subplots(1, len(metrics), shared_yaxes=True, subplot_titles=list(metrics), horizontal_spacing=0.03)
    labels = [f"{entry['value']} ({entry['queries']}{', few' if entry['small'] else ''})" for entry in values]
    for column, metric in enumerate(metrics, 1):
        figures = [{name: entry["systems"].get(name, {}).get(metric) for name in systems} for entry in values]
        for trace in _dots(list(zip(labels, figures, strict=True)), legend=column == 1).data:
            chart.add_trace(trace, 1, column)
    _name_rows(chart, labels)
    return _finish(chart, 120 + 34 * len(values))


def length_chart(groups: Sequence[GroupWeights]) -> go.Figure:
    """Mean fusion weights of the query's channels by its length, with standard errors."""
    chart = go.Figure()
    for at, channel in enumerate(groups[0].mean):
        chart.add_trace(
            go.Scatter(
                x=[f"{group.group}<br>n={group.rows}" for group in groups],
                y=[group.mean[channel] for group in groups],
                error_y={"array": [group.error[channel] for group in groups], "thickness": 1.2},
                name=channel,
                mode="lines+markers",
                line={"color": PALETTE[at % len(PALETTE)], "dash": DASHES[at % len(DASHES)]},
                marker={"symbol": SYMBOLS[at % len(SYMBOLS)], "size": 9},
            )
        )
    chart.update_xaxes(title_text="characters of the query", type="category")
    chart.update_yaxes(title_text="mean fusion weight", rangemode="tozero")
    return _finish(chart, 400)


def weights_chart(groups: Sequence[GroupWeights]) -> go.Figure:
    """Mean fusion weights of groups of rows as stacked bars, each part with its figure where there is room."""
    chart = go.Figure()
    labels = [f"{escape(group.group)} ({group.rows:,})" for group in groups]
    for at, channel in enumerate(groups[0].mean):
        values = [group.mean[channel] for group in groups]
        chart.add_trace(
            go.Bar(
                x=values,
                y=labels,
                orientation="h",
                name=channel,
                text=[f"{value:.2f}" if value >= 0.05 else "" for value in values],
                textposition="inside",
                insidetextanchor="middle",
                marker={
                    "color": PALETTE[at % len(PALETTE)],
                    "line": {"color": "white", "width": 1},
                    "pattern": _pattern(at),
                },
            )
        )
    chart.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    chart.update_yaxes(autorange="reversed", automargin=True)
    chart.update_xaxes(title_text="mean fusion weight", range=[0, 1.001])
    return _finish(chart, 150 + 34 * len(groups))


def importance_chart(importance: Sequence[Importance]) -> go.Figure:
    """What ROC AUC and recall@10 lose without each channel of one tower, by both methods."""
    chart = make_subplots(
        1, 2, shared_yaxes=True, subplot_titles=("loss of ROC AUC", "loss of recall@10"), horizontal_spacing=0.04
    )
    for at, method in enumerate(("missing", "permuted")):
        rows = [each for each in importance if each.method == method]
        for column, values in ((1, [row.roc_auc_drop for row in rows]), (2, [row.recall_drop for row in rows])):
            bar = go.Bar(
                x=values,
                y=[row.channel for row in rows],
                orientation="h",
                name={"missing": "masked out", "permuted": "from another row"}[method],
                showlegend=column == 1,
                marker={
                    "color": PALETTE[at],
                    "pattern": _pattern(at),
                },
            )
            chart.add_trace(bar, 1, column)
    chart.update_yaxes(autorange="reversed", automargin=True)
    chart.update_xaxes(zeroline=True, zerolinecolor=INK)
    return _finish(chart, 130 + 46 * len({each.channel for each in importance}))


def map_chart(drawn: Map) -> go.Figure:
    """The catalogue in the plane, a dot a document; its title shows on hover."""
    chart = go.Figure()
    for at, group in enumerate(sorted(set(drawn.groups))):
        rows = [row for row, own in enumerate(drawn.groups) if own == group]
        chart.add_trace(
            go.Scatter(
                x=[round(drawn.places[row][0], 2) for row in rows],
                y=[round(drawn.places[row][1], 2) for row in rows],
                mode="markers",
                name=escape(group),
                text=[escape(drawn.titles[row][:TITLE_LENGTH]) for row in rows],
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
                marker={
                    "color": PALETTE[at % len(PALETTE)],
                    "symbol": SYMBOLS[at % len(SYMBOLS)],
                    "size": 6,
                    "opacity": 0.75,
                },
            )
        )
    chart.update_xaxes(visible=False)
    chart.update_yaxes(visible=False, scaleanchor="x")
    _finish(chart, 640)
    return chart.update_layout(
        hovermode="closest", legend={"title": {"text": drawn.coloured_by}, "orientation": "v", "x": 1, "yref": "paper"}
    )


def hubs_chart(hubness: Hubness) -> go.Figure:
    """How many documents are in the first ten of 0, 1, 2 … queries; the counts are logarithmic."""
    counts = hubness.histogram
    chart = go.Figure(
        go.Bar(x=list(range(len(counts))), y=[count or None for count in counts], marker_color=PALETTE[0])
    )
    chart.update_xaxes(title_text="queries whose first ten hold the document")
    chart.update_yaxes(title_text="documents", type="log", dtick=1)
    return _finish(chart, 320)


def _dots(rows: Sequence[tuple[str, dict[str, Any]]], legend: bool = True) -> go.Figure:
    """A chart of points with whiskers: rows from the top, systems beside each other within a row."""
    chart = go.Figure()
    systems = list(dict.fromkeys(name for _, figures in rows for name in figures))
    for at, system in enumerate(systems):
        colour, symbol = SYSTEM_STYLES[system]
        there = [(place, figures[system]) for place, (_, figures) in enumerate(rows) if figures.get(system)]
        offset = (at - (len(systems) - 1) / 2) * 0.2
        chart.add_trace(
            go.Scatter(
                x=[figure["value"] for _, figure in there],
                y=[place + offset for place, _ in there],
                error_x={
                    "type": "data",
                    "array": [figure["high"] - figure["value"] for _, figure in there],
                    "arrayminus": [figure["value"] - figure["low"] for _, figure in there],
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                name=system,
                legendgroup=system,
                showlegend=legend,
                hovertemplate="%{x:.3f}<extra>" + system + "</extra>",
                marker={"color": colour, "symbol": symbol, "size": 9},
            )
        )
    _name_rows(chart, [name for name, _ in rows])
    return _finish(chart, 110 + 46 * len(rows))


def _name_rows(chart: go.Figure, names: Sequence[str]) -> None:
    ticks = [escape(name) for name in names]
    chart.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        range=[len(ticks) - 0.4, -0.6],
        automargin=True,
        zeroline=False,
    )


def _pattern(at: int) -> dict[str, Any]:
    return {"shape": ("", "/", ".", "x", "-", "\\", "|")[at % 7], "fgopacity": 0.25, "fillmode": "overlay"}


def _finish(chart: go.Figure, height: int) -> go.Figure:
    """The common looks: plain paper, thin grid, legend on top."""
    chart.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    chart.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    chart.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    return chart
