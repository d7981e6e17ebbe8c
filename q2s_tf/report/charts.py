"""The charts of a report, as Plotly figures. Series differ by shape, dash or pattern as well as by colour."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.express as px
import plotly.graph_objects as go
import pyarrow as pa

from q2s_tf.evaluation.collection import ENCODER, FUSED, HYBRID, INDEX, LEXICAL, MODEL

INK, GRID = "#1b1f24", "#d8dee4"
# The palette of Okabe and Ito, which colour-blind readers can distinguish, without yellow, which is too light on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e7781", "#7a3e9d", "#8c5a2b", "#1b1f24")
PATTERNS = ("", "/", ".", "x", "-", "\\", "|")
SYSTEM_COLOURS = dict(zip((MODEL, LEXICAL, HYBRID, ENCODER, INDEX, FUSED), PALETTE, strict=False))
SYSTEM_SYMBOLS = {
    MODEL: "circle", INDEX: "circle-open", LEXICAL: "square", HYBRID: "diamond", ENCODER: "triangle-up",
    FUSED: "triangle-down",
}  # fmt: skip
ALL = ""
"""The column of a chart with a single column."""

Interval = Mapping[str, Any]
"""A figure with its `low` and `high` end."""


def curves_chart(curves: Sequence[dict[str, Any]]) -> go.Figure:
    """The validation metric and in-batch recall@1 by epoch of both stages."""
    validation = [name for name in curves[0] if name.startswith("val_")]
    metrics = {name: f"validation {name.removeprefix('val_')}" for name in validation}
    metrics["batch_recall@1"] = "in-batch recall@1 on training batches"
    rows = [
        {"epoch": epoch, "stage": f"stage {line['stage']}", "metric": title, "value": line[metric]}
        for metric, title in metrics.items()
        for epoch, line in enumerate(curves, 1)
    ]
    series = {"color": "stage", "symbol": "stage", "line_dash": "stage", "facet_col": "metric", "markers": True}
    chart = px.line(pa.Table.from_pylist(rows), x="epoch", y="value", color_discrete_sequence=PALETTE, **series)
    chart.update_yaxes(matches=None, showticklabels=True, title_text=None)
    chart.update_xaxes(dtick=max(1, len(curves) // 10))
    return _finish(chart, 340)


def interval_chart(figures: Mapping[str, Mapping[str, Mapping[str, Interval]]], value: str = "value") -> go.Figure:
    """Values with intervals: one row for each label, one column for each metric, the systems below each other.

    Args:
        figures: by label, metric and system the figure.
        value: key of the value of a figure.
    """
    labels = list(figures)
    systems = list(
        dict.fromkeys(name for by_metric in figures.values() for each in by_metric.values() for name in each)
    )
    rows = [
        {
            "row": number + (systems.index(system) - (len(systems) - 1) / 2) * min(0.2, 0.8 / len(systems)),
            "metric": metric,
            "system": system,
            "value": figure[value],
            "above": figure["high"] - figure[value],
            "below": figure[value] - figure["low"],
        }
        for number, by_metric in enumerate(figures.values())
        for metric, by_system in by_metric.items()
        for system, figure in by_system.items()
    ]
    chart = px.scatter(
        pa.Table.from_pylist(rows),
        x="value",
        y="row",
        error_x="above",
        error_x_minus="below",
        color="system",
        symbol="system",
        facet_col="metric" if rows and rows[0]["metric"] != ALL else None,
        category_orders={"system": systems},
        color_discrete_map=SYSTEM_COLOURS,
        symbol_map=SYSTEM_SYMBOLS,
    )
    hover = "%{x:.3f}<extra>%{fullData.name}</extra>"
    chart.update_traces(marker_size=9, error_x_thickness=1.5, error_x_width=3, hovertemplate=hover)
    chart.update_xaxes(matches=None, title_text=None, rangemode="tozero" if value == "difference" else "normal")
    chart.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[escape(label) for label in labels],
        range=[len(labels) - 0.4, -0.6],
        zeroline=False,
        title_text=None,
    )
    chart.update_layout(showlegend=len(systems) > 1)
    return _finish(chart, 110 + (24 + 9 * len(systems)) * len(labels))


def weights_chart(groups: Sequence[dict[str, Any]]) -> go.Figure:
    """Mean fusion weights of groups of rows as stacked bars."""
    rows = [
        {
            "group": f"{escape(group['group'])} ({group['rows']:,})",
            "channel": name,
            "weight": weight,
            "label": f"{weight:.2f}" if weight >= 0.05 else "",
        }
        for group in groups
        for name, weight in group["mean"].items()
    ]
    series = {"color": "channel", "pattern_shape": "channel", "text": "label", "orientation": "h"}
    styles = {"color_discrete_sequence": PALETTE, "pattern_shape_sequence": PATTERNS}
    chart = px.bar(pa.Table.from_pylist(rows), x="weight", y="group", **series, **styles)
    overlay = {"fgopacity": 0.25, "fillmode": "overlay"}
    chart.update_traces(textposition="inside", insidetextanchor="middle", textangle=0, marker_pattern=overlay)
    chart.update_layout(bargap=0.35, legend_traceorder="normal")
    chart.update_yaxes(autorange="reversed", title_text=None)
    chart.update_xaxes(title_text="mean fusion weight", range=[0, 1.001])
    return _finish(chart, 150 + 34 * len(groups))


def _finish(chart: go.Figure, height: int) -> go.Figure:
    """The common style: white background, thin grid, legend on top."""
    for title in chart.layout.annotations:  # of facets, "metric=recall@10"
        title.text = title.text.split("=")[-1]
    chart.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"title": None, "orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    chart.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    chart.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    return chart
