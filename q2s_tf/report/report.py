"""The report of an evaluation: one self-contained HTML page, a short Markdown page, and the figures as JSON."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import q2s_tf
from q2s_tf.cli import console
from q2s_tf.evaluation.collection import INDEX, LEXICAL, MODEL
from q2s_tf.evaluation.results import RunEvaluation, write_json
from q2s_tf.files import atomic_write
from q2s_tf.report import charts
from q2s_tf.report.analysis import DUPLICATE_COSINE, SHOWN_TITLES, Analysis, analyse
from q2s_tf.report.findings import check_paper, significant_difference, summarise
from q2s_tf.report.importance import ROUNDS

SECTIONS = {
    "summary": "Findings",
    "systems": "Metrics",
    "training": "Training",
    "slices": "Slices",
    "weights": "Channel weights",
    "importance": "Channel importance",
    "map": "Map of the catalogue",
    "worst": "Worst queries",
    "duplicates": "Near-duplicates",
    "hubs": "Hubs",
}
MEANINGS = {
    "roc_auc": "probability that a relevant pair has a higher score than an irrelevant one",
    "ndcg": "quality of the order of the judged documents",
    "mrr": "reciprocal rank of the first relevant document",
    "recall": "share of the relevant documents that are found in the whole catalogue",
    "later_recall": "the same for documents that users chose later",
    "batch_recall": "share of pairs whose document is found among those of a batch",
    "index_recall": "share of the results of exact search that the index finds",
}
SLICE_METRICS = ("roc_auc", "recall@10")
SLICE_SYSTEMS = (MODEL, LEXICAL)
MAX_SLICES = 12
"""Slices of a slicing in the chart; the table has all."""
MISSING_READING = "If documents without it have lower values, fill the column."
SLICE_READING = {
    "language": "A language with low values needs more positives, and a tokenizer vocabulary that covers it.",
    "script": "BM25 is weak in a script without spaces between words.",
    "country": "Countries with the same language can differ in what is sold.",
    "length": "Short queries are often ambiguous.",
    "words": "If long queries have lower values, the model may ignore attributes such as colour or size.",
    "frequency": "If unseen queries have much lower values than frequent ones, the model generalises poorly.",
    "language_pair": "Across languages, BM25 can only match words that both languages share.",
}
"""How to read a slicing, below its chart."""
MAP_READING = {
    "language": "Colour and shape show the language. If languages mix, similar documents have similar embeddings "
    "whatever their language; documents in a separate group are mostly found by queries in their own language.",
    "cluster": "Colour and shape show the k-means cluster, named by distinctive words of its titles. A cluster that is "
    "spread over the map, or has no common topic, is one that the tower separates poorly.",
}


@dataclass(frozen=True)
class Chart:
    """The HTML of a chart, and its label for screen readers."""

    html: Markup
    label: str


def write_report(evaluation: RunEvaluation, out: Path) -> Path:
    """Writes `OUT/report.html`, `OUT/report.md` and `OUT/insight.json`.

    Args:
        evaluation: result of `q2s_tf.evaluation.evaluate.evaluate`.
        out: an existing folder.

    Returns:
        Path of the HTML page, which loads no other file.
    """
    analysis = analyse(evaluation)
    with console.status("writing the report"):
        context = _make_context(evaluation, analysis)
        environment = Environment(
            loader=PackageLoader("q2s_tf.report"),
            autoescape=select_autoescape(["html.j2"], default=False),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["markdown"] = _escape_markdown
        findings = {name: [asdict(finding) for finding in context[name]] for name in ("findings", "paper")}
        write_json({**findings, **asdict(analysis)}, out / "insight.json")
        for name in ("report.md", "report.html"):
            with atomic_write(out / name) as aside:
                aside.write_text(environment.get_template(f"{name}.j2").render(context), encoding="utf-8")
    return out / "report.html"


def _make_context(evaluation: RunEvaluation, analysis: Analysis) -> dict[str, Any]:
    """The variables of the templates."""
    results = evaluation.results
    metrics = list(dict.fromkeys(metric for figures in results["systems"].values() for metric in figures))
    return {
        "results": results,
        "analysis": analysis,
        "rated": results["negatives"] == "rated",
        "findings": summarise(results, analysis),
        "paper": check_paper(analysis, evaluation.towers.config),
        "sections": SECTIONS,
        "metrics": metrics,
        "best": {metric: _find_best(results, metric) for metric in metrics},
        "meanings": MEANINGS,
        "slices": [_make_slice(slicing) for slicing in results["slices"]],
        "slice_systems": SLICE_SYSTEMS,
        "charts": _make_charts(results, analysis, metrics),
        "map_reading": MAP_READING[analysis.map["coloured_by"]],
        "rounds": ROUNDS,
        "duplicate_cosine": DUPLICATE_COSINE,
        "shown_titles": SHOWN_TITLES,
        "version": q2s_tf.__version__,
        "plotly_js": Markup(get_plotlyjs()),
    }


def _find_best(results: dict[str, Any], metric: str) -> str | None:
    """The system that is significantly better than every other one; the index counts as the same system as the run."""
    systems = [name for name, figures in results["systems"].items() if metric in figures and name != INDEX]
    for name in systems:
        others = [significant_difference(results, name, other, metric) for other in systems if other != name]
        if others and all(difference and difference > 0 for difference in others):
            return name
    return None


def _make_charts(results: dict[str, Any], analysis: Analysis, metrics: list[str]) -> dict[str, Chart]:
    """By name the charts that the data allow, without those of slices."""
    figures = {
        "systems": (charts.systems_chart(results["systems"], metrics), "Metrics by system with intervals"),
        "map": (charts.map_chart(analysis.map), f"Map of the catalogue, coloured by {analysis.map['coloured_by']}"),
        "hubs": (charts.hubs_chart(analysis.hubness), "Documents by number of queries with them in the first ten"),
    }
    if analysis.curves:
        figures["curves"] = (charts.curves_chart(analysis.curves), "Learning curves of both stages")
    if length := analysis.query_weights.get("length"):
        figures["length"] = (charts.length_chart(length), "Fusion weights by query length")
    if missing := analysis.document_weights.get("missing"):
        figures["documents"] = (charts.weights_chart(missing), "Fusion weights of documents by missing channel")
    for tower in ("query", "document"):
        rows = [row for row in analysis.importance if row.tower == tower]
        label = f"Importance of the channels of the {tower} tower"
        figures[f"importance_{tower}"] = (charts.importance_chart(rows), label)
    return {name: _embed(name, *figure) for name, figure in figures.items()}


def _make_slice(slicing: dict[str, Any]) -> dict[str, Any]:
    """A slicing with its chart; metrics that none of its slices has are left out."""
    values, name = slicing["values"], slicing["name"]
    metrics = [name for name in SLICE_METRICS if any(name in entry["systems"].get(MODEL, {}) for entry in values)]
    title = name.replace("_", " ")
    reading = MISSING_READING if name.startswith("missing_") else SLICE_READING.get(name, "")
    shown = f"The chart shows {MAX_SLICES} of {len(values)} slices." if len(values) > MAX_SLICES else ""
    about = f"{slicing['about'][0].upper()}{slicing['about'][1:]}."
    chart = charts.slice_chart(values[:MAX_SLICES], metrics, SLICE_SYSTEMS)
    return {
        **slicing,
        "title": title,
        "reading": " ".join(filter(None, (about, reading, shown))),
        "metrics": metrics,
        "chart": _embed(f"slice-{name}", chart, f"Metrics by {title} with intervals"),
    }


def _embed(name: str, chart: go.Figure, label: str) -> Chart:
    """A chart as a part of the page. Plotly escapes the data, so that no text in it can end the script."""
    html = chart.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        default_height=f"{chart.layout.height}px",
        config={"displayModeBar": False, "responsive": True},
    )
    return Chart(Markup(html), f"Chart: {label}. The figures are in the table that follows, or in insight.json.")


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
