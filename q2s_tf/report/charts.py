"""The charts of a report, as Plotly figures. Series differ by shape, dash or pattern as well as by colour."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.express as px
import plotly.graph_objects as go
import pyarrow as pa

from q2s_tf.evaluation.collection import FUSED, INDEX, LEXICAL, MODEL
from q2s_tf.report.embedding_space import Hubness
from q2s_tf.report.fusion_weights import GroupWeights
from q2s_tf.report.importance import Importance

INK, GRID = "#1b1f24", "#d8dee4"
# The palette of Okabe and Ito, which colour-blind readers can distinguish, without yellow, which is too light on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e7781", "#7a3e9d", "#8c5a2b", "#1b1f24")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "bowtie")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "-", "\\", "|")
SYSTEM_COLOURS = {MODEL: PALETTE[0], INDEX: PALETTE[4], LEXICAL: PALETTE[1], FUSED: PALETTE[2]}
SYSTEM_SYMBOLS = {MODEL: "circle", INDEX: "circle-open", LEXICAL: "square", FUSED: "diamond"}
TITLE_LENGTH = 90

LINES: dict[str, Any] = {
    "color_discrete_sequence": PALETTE,
    "symbol_sequence": SYMBOLS,
    "line_dash_sequence": DASHES,
    "markers": True,
}
BARS: dict[str, Any] = {"color_discrete_sequence": PALETTE, "pattern_shape_sequence": PATTERNS, "orientation": "h"}
OVERLAY = {"fgopacity": 0.25, "fillmode": "overlay"}
Rows = list[dict[str, Any]]


def curves_chart(curves: Sequence[dict[str, Any]]) -> go.Figure:
    """Validation ROC AUC and in-batch recall@1 by epoch of both stages, with the change of the best ROC AUC."""
    metrics = {"val_roc_auc": "validation ROC AUC", "batch_recall@1": "in-batch recall@1 on training batches"}
    rows: Rows = [
        {"epoch": epoch, "stage": f"stage {line['stage']}", "metric": title, "value": line[metric]}
        for metric, title in metrics.items()
        for epoch, line in enumerate(curves, 1)
    ]
    series = {"color": "stage", "symbol": "stage", "line_dash": "stage", "facet_col": "metric"}
    chart = px.line(pa.Table.from_pylist(rows), x="epoch", y="value", **series, **LINES)
    chart.update_yaxes(matches=None, showticklabels=True, title_text=None)
    chart.update_xaxes(dtick=max(1, len(curves) // 10))
    best: dict[int, float] = {}
    for line in curves:
        best[line["stage"]] = max(line["val_roc_auc"], best.get(line["stage"], 0.0))
    if {1, 2} <= best.keys():
        boundary = sum(line["stage"] == 1 for line in curves) + 0.5
        chart.add_vline(boundary, line={"color": INK, "width": 1, "dash": "dot"})
        text = f"stage 2: {best[2] - best[1]:+.4f} "
        chart.add_annotation(x=boundary, y=0.03, yref="paper", xanchor="right", text=text, showarrow=False)
    return _finish(chart, 340)


def systems_chart(systems: dict[str, dict[str, Any]], metrics: Sequence[str]) -> go.Figure:
    """Every metric of every system with its interval; one row per metric."""
    figures = {(metric, "", name): values.get(metric) for metric in metrics for name, values in systems.items()}
    return _interval_chart(figures, 110 + 46 * len(metrics))


def slice_chart(values: Sequence[dict[str, Any]], metrics: Sequence[str], systems: Sequence[str]) -> go.Figure:
    """The metrics of one slicing with their intervals; one row per slice, one column per metric."""
    figures = {
        (f"{entry['value']} ({entry['queries']}{', few' if entry['small'] else ''})", metric, name): entry["systems"]
        .get(name, {})
        .get(metric)
        for metric in metrics
        for entry in values
        for name in systems
    }
    return _interval_chart(figures, 120 + 34 * len(values))


def _interval_chart(figures: dict[tuple[str, str, str], dict[str, float] | None], height: int) -> go.Figure:
    """Values with intervals, by row, column and system; the systems of a row are below each other."""
    labels = list(dict.fromkeys(label for label, _, _ in figures))
    systems = list(dict.fromkeys(system for _, _, system in figures))
    rows: Rows = [
        {
            "row": labels.index(label) + (systems.index(system) - (len(systems) - 1) / 2) * 0.2,
            "column": column,
            "system": system,
            "value": figure["value"],
            "above": figure["high"] - figure["value"],
            "below": figure["value"] - figure["low"],
        }
        for (label, column, system), figure in figures.items()
        if figure
    ]
    chart = px.scatter(
        pa.Table.from_pylist(rows),
        x="value",
        y="row",
        error_x="above",
        error_x_minus="below",
        color="system",
        symbol="system",
        facet_col="column" if any(row["column"] for row in rows) else None,
        category_orders={"system": systems},
        color_discrete_map=SYSTEM_COLOURS,
        symbol_map=SYSTEM_SYMBOLS,
    )
    hover = "%{x:.3f}<extra>%{fullData.name}</extra>"
    chart.update_traces(marker_size=9, error_x_thickness=1.5, error_x_width=3, hovertemplate=hover)
    chart.update_xaxes(matches=None, title_text=None)
    chart.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[escape(label) for label in labels],
        range=[len(labels) - 0.4, -0.6],
        zeroline=False,
        title_text=None,
    )
    return _finish(chart, height)


def length_chart(groups: Sequence[GroupWeights]) -> go.Figure:
    """Mean fusion weights of the query channels by query length, with standard errors."""
    rows: Rows = [
        {"length": f"{group.group}<br>n={group.rows}", "channel": name, "weight": mean, "error": group.error[name]}
        for group in groups
        for name, mean in group.mean.items()
    ]
    series = {"color": "channel", "symbol": "channel", "line_dash": "channel", "error_y": "error"}
    chart = px.line(pa.Table.from_pylist(rows), x="length", y="weight", **series, **LINES)
    chart.update_xaxes(title_text="characters of the query", type="category")
    chart.update_yaxes(title_text="mean fusion weight", rangemode="tozero")
    return _finish(chart, 400)


def weights_chart(groups: Sequence[GroupWeights]) -> go.Figure:
    """Mean fusion weights of groups of rows as stacked bars."""
    rows: Rows = [
        {
            "group": f"{escape(group.group)} ({group.rows:,})",
            "channel": name,
            "weight": weight,
            "label": f"{weight:.2f}" if weight >= 0.05 else "",
        }
        for group in groups
        for name, weight in group.mean.items()
    ]
    series = {"color": "channel", "pattern_shape": "channel", "text": "label"}
    chart = px.bar(pa.Table.from_pylist(rows), x="weight", y="group", **series, **BARS)
    chart.update_traces(textposition="inside", insidetextanchor="middle", textangle=0, marker_pattern=OVERLAY)
    chart.update_layout(bargap=0.35, legend_traceorder="normal")
    chart.update_yaxes(autorange="reversed", title_text=None)
    chart.update_xaxes(title_text="mean fusion weight", range=[0, 1.001])
    return _finish(chart, 150 + 34 * len(groups))


def importance_chart(importance: Sequence[Importance]) -> go.Figure:
    """The loss of ROC AUC and recall@10 without each channel of one tower, by both methods."""
    methods = {"missing": "masked out", "permuted": "from another row"}
    rows: Rows = [
        {"metric": metric, "channel": row.channel, "method": methods[row.method], "loss": loss}
        for row in importance
        for metric, loss in (("loss of ROC AUC", row.roc_auc_drop), ("loss of recall@10", row.recall_drop))
    ]
    series = {"color": "method", "pattern_shape": "method", "facet_col": "metric", "barmode": "group"}
    texts = dict.fromkeys(("metric", "channel", "method"), pa.string())
    table = pa.Table.from_pylist(rows, schema=pa.schema({"loss": pa.float64(), **texts}))  # a loss may be undefined
    chart = px.bar(table, x="loss", y="channel", **series, **BARS)
    chart.update_yaxes(autorange="reversed", title_text=None)
    chart.update_xaxes(matches=None, title_text=None)
    chart.update_traces(marker_pattern=OVERLAY)
    return _finish(chart, 130 + 46 * len({row.channel for row in importance})).update_xaxes(zerolinecolor=INK)


def map_chart(drawn: dict[str, Any]) -> go.Figure:
    """The catalogue in two dimensions: one dot per document, with its title on hover."""
    rows: Rows = [
        {"x": round(x, 2), "y": round(y, 2), "group": escape(group), "title": escape(title[:TITLE_LENGTH])}
        for (x, y), group, title in zip(*(drawn[key] for key in ("places", "groups", "titles")), strict=True)
    ]
    order = {"group": sorted({row["group"] for row in rows})}
    series = {"color": "group", "symbol": "group", "category_orders": order, "custom_data": ["title"]}
    styles = {"color_discrete_sequence": PALETTE, "symbol_sequence": SYMBOLS}
    chart = px.scatter(pa.Table.from_pylist(rows), x="x", y="y", **series, **styles)
    hover = "%{customdata[0]}<extra>%{fullData.name}</extra>"
    chart.update_traces(marker={"size": 6, "opacity": 0.75}, hovertemplate=hover)
    chart.update_xaxes(visible=False)
    chart.update_yaxes(visible=False, scaleanchor="x")
    legend = {"title": {"text": drawn["coloured_by"]}, "orientation": "v", "x": 1, "yref": "paper"}
    return _finish(chart, 640).update_layout(hovermode="closest", legend=legend)


def hubs_chart(hubness: Hubness) -> go.Figure:
    """The number of documents in the first ten of 0, 1, 2 … queries, on a logarithmic scale."""
    counts = hubness.histogram
    chart = go.Figure(go.Bar(x=list(range(len(counts))), y=[n or None for n in counts], marker_color=PALETTE[0]))
    chart.update_xaxes(title_text="queries with the document among their first ten")
    chart.update_yaxes(title_text="documents", type="log", dtick=1)
    return _finish(chart, 320)


def _finish(chart: go.Figure, height: int) -> go.Figure:
    """The common style: white background, thin grid, legend on top."""
    chart.for_each_annotation(
        lambda title: title.update(text=title.text.split("=")[-1])
    )  # of facets, "metric=recall@10"
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
