"""The report of an evaluation: one self-contained HTML page, a short Markdown page, and the figures as JSON."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import q2s_tf
from q2s_tf.cli import console
from q2s_tf.evaluation.advice import significant_difference
from q2s_tf.evaluation.collection import INDEX, LEXICAL, MODEL
from q2s_tf.evaluation.results import RunEvaluation, split_metrics, write_json
from q2s_tf.files import atomic_write
from q2s_tf.report import analysis, charts
from q2s_tf.report.findings import check_paper, summarise
from q2s_tf.report.importance import METRICS

MAX_SLICES = 12
"""Slices of a slicing in the chart; the table has all."""


def write_report(evaluation: RunEvaluation, out: Path) -> Path:
    """Writes `OUT/report.html`, `OUT/report.md` and `OUT/insight.json`.

    Args:
        evaluation: result of `q2s_tf.evaluation.evaluate.evaluate`.
        out: an existing folder.

    Returns:
        Path of the HTML page, which loads no other file.
    """
    context = _make_context(evaluation)
    with console.status("writing the report"):
        environment = Environment(
            loader=PackageLoader("q2s_tf.report"),
            autoescape=select_autoescape(["html.j2"], default=False),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"markdown": _escape_markdown, "chart": _embed}
        findings = {name: [finding._asdict() for finding in context[name]] for name in ("findings", "paper")}
        write_json({**findings, **asdict(context["analysis"])}, out / "insight.json")
        for name in ("report.md", "report.html"):
            with atomic_write(out / name) as aside:
                aside.write_text(environment.get_template(f"{name}.j2").render(context), encoding="utf-8")
    return out / "report.html"


def _make_context(evaluation: RunEvaluation) -> dict[str, Any]:
    """The variables of the templates."""
    results, found = evaluation.results, analysis.analyse(evaluation)
    metrics, own_metrics = split_metrics(results["systems"])
    return {
        "results": results,
        "analysis": found,
        "rated": results["negatives"] == "rated",
        "findings": summarise(results, found),
        "paper": check_paper(found),
        "metrics": metrics,
        "own_metrics": own_metrics,
        "best": {metric: _find_best(results, metric) for metric in metrics},
        "slice_metrics": METRICS,
        "slice_systems": (MODEL, LEXICAL),
        "max_slices": MAX_SLICES,
        "charts": _make_charts(results, found, metrics),
        "validation": next((name for line in found.curves for name in line if name.startswith("val_")), ""),
        "limits": analysis,
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


def _make_charts(results: dict[str, Any], found: analysis.Analysis, metrics: list[str]) -> dict[str, go.Figure]:
    """By name the charts that the data allow."""

    def by_system(systems: dict[str, Any], metric: str) -> dict[str, Any]:
        return {name: figures[metric] for name, figures in systems.items() if metric in figures}

    figures = {
        "systems": charts.interval_chart(
            {metric: {charts.ALL: by_system(results["systems"], metric)} for metric in metrics}
        )
    }
    if found.curves:
        figures["curves"] = charts.curves_chart(found.curves)
    for name, groups in (("length", found.query_weights), ("documents", found.document_weights)):
        if groups:
            figures[name] = charts.weights_chart(groups)
    for tower in ("query", "document"):
        rows = {row["channel"]: row["losses"] for row in found.importance if row["tower"] == tower}
        losses = {
            name: {f"loss of {metric}": {MODEL: loss} for metric, loss in tests.items()}
            for name, tests in rows.items()
            if tests
        }
        if losses:
            figures[f"importance_{tower}"] = charts.interval_chart(losses, "difference")
    for slicing in results["slices"]:
        values = {
            f"{part['value']} ({part['queries']}{', few' if part['small'] else ''})": {
                metric: by_system({name: part["systems"][name] for name in (MODEL, LEXICAL)}, metric)
                for metric in METRICS
            }
            for part in slicing["values"][:MAX_SLICES]
        }
        figures[f"slice_{slicing['name']}"] = charts.interval_chart(values)
    return figures


def _embed(chart: go.Figure, name: str) -> Markup:
    """A chart as a part of the page. Plotly escapes the data, so that no text in it can end the script."""
    return Markup(
        chart.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"plot-{name}",
            default_height=f"{chart.layout.height}px",
            config={"displayModeBar": False, "responsive": True},
        )
    )


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
