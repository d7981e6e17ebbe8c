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
from q2s_tf.evaluation.evaluate import write_json
from q2s_tf.evaluation.evaluation import LEXICAL, MODEL, Evaluation
from q2s_tf.files import atomic_write
from q2s_tf.report import charts
from q2s_tf.report.findings import check_paper, summarise
from q2s_tf.report.importance import ROUNDS
from q2s_tf.report.study import DUPLICATE_COSINE, NAMED, Study, study

SECTIONS = {
    "summary": "What was found",
    "systems": "How good it is",
    "training": "Training",
    "slices": "Strong and weak",
    "weights": "What the towers look at",
    "importance": "Importance",
    "map": "Map",
    "worst": "Worst queries",
    "duplicates": "Near-duplicates",
    "hubs": "Hubs",
}
MEANINGS = {
    "roc_auc": "does a relevant pair score above an irrelevant one?",
    "ndcg": "are the judged documents in the right order?",
    "mrr": "how far down is the first relevant one?",
    "recall": "how many of the relevant ones are found in the whole catalogue?",
    "later_recall": "the same for what users chose later",
    "batch_recall": "is the own document found among those of a batch?",
    "index_recall": "how much of exact search does the index find?",
}
SLICE_METRICS = ("roc_auc", "recall@10")
SLICE_SYSTEMS = (MODEL, LEXICAL)
MAX_SLICES = 12
"""Values of a slicing that are drawn; the table has all."""
SLICE_READING = {
    "language": "A weak language wants positives of its own, and a vocabulary (tokenizer) that covers it.",
    "script": "A script that BM25 cannot cut into words is where the model gains most.",
    "country": "A country that differs from others of its language differs in what it sells.",
    "length": "Short queries are vague: weak here means that the common meaning is not learned.",
    "words": "If many words do worse than few, the model drops attributes such as colour or size.",
    "frequency": "Unseen queries far below the head: the model remembers queries rather than reads them.",
    "language_pair": "Across languages only a model that reads meaning, or images, finds anything.",
}
"""What to make of a slicing, below its chart."""
MAP_READING = {
    "language": "A dot is a document, placed so that neighbours stay neighbours (t-SNE); colour and shape are its "
    "language. Where languages mix, things of one kind lie together whatever they are called; an island of one "
    "language is found from that language alone. Distances between islands mean nothing.",
    "cluster": "A dot is a document, placed so that neighbours stay neighbours (t-SNE); colour and shape are its "
    "k-means cluster, named by words frequent in its titles. A cluster in several places, or one without a theme, is "
    "where the tower is unsure. Distances between islands mean nothing.",
}


@dataclass(frozen=True)
class Chart:
    """A chart in the page, and what it is called where it cannot be seen."""

    html: Markup
    label: str


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Writes `OUT/report.html`, `OUT/report.md` and `OUT/insight.json`.

    Args:
        evaluation: of a run; see `q2s_tf.evaluation.evaluate`.
        out: a folder that is there.

    Returns:
        The HTML page. It loads nothing from anywhere.
    """
    known = study(evaluation)
    with console.status("writing the report"):
        context = _context(evaluation, known)
        environment = Environment(
            loader=PackageLoader("q2s_tf.report"),
            autoescape=select_autoescape(["html.j2"], default=False),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["markdown"] = _escape_markdown
        findings = {name: [asdict(finding) for finding in context[name]] for name in ("findings", "paper")}
        write_json({**findings, **asdict(known)}, out / "insight.json")
        for name in ("report.md", "report.html"):
            with atomic_write(out / name) as aside:
                aside.write_text(environment.get_template(f"{name}.j2").render(context), encoding="utf-8")
    return out / "report.html"


def _context(evaluation: Evaluation, known: Study) -> dict[str, Any]:
    """Everything the templates read."""
    results = evaluation.results
    systems = results["systems"]
    metrics = list(dict.fromkeys(metric for figures in systems.values() for metric in figures))
    best = {metric: max(each[metric]["value"] for each in systems.values() if metric in each) for metric in metrics}
    return {
        "results": results,
        "study": known,
        "rated": results["negatives"] == "rated",
        "findings": summarise(results, known),
        "paper": check_paper(known, evaluation.towers.config),
        "sections": SECTIONS,
        "metrics": metrics,
        "best": best,
        "meanings": MEANINGS,
        "slices": [_slice(slicing) for slicing in results["slices"]],
        "slice_systems": SLICE_SYSTEMS,
        "charts": _charts(results, known, metrics),
        "map_how": MAP_READING[known.map.coloured_by],
        "rounds": ROUNDS,
        "duplicate_cosine": DUPLICATE_COSINE,
        "named_titles": NAMED,
        "version": q2s_tf.__version__,
        "plotly_js": Markup(get_plotlyjs()),
    }


def _charts(results: dict[str, Any], known: Study, metrics: list[str]) -> dict[str, Chart | None]:
    length, missing = known.query_weights.get("length"), known.document_weights.get("missing")
    chart = {
        "systems": _embed(
            "systems", charts.systems_chart(results["systems"], metrics), "Metrics by system with intervals"
        ),
        "curves": _embed("curves", charts.curves_chart(known.curves), "Learning curves of both stages")
        if known.curves
        else None,
        "length": _embed("length", charts.length_chart(length), "Fusion weights by query length") if length else None,
        "documents": _embed(
            "documents", charts.weights_chart(missing), "Fusion weights of documents by missing channel"
        )
        if missing
        else None,
        "map": _embed(
            "drawn", charts.map_chart(known.map), f"Map of the catalogue, coloured by {known.map.coloured_by}"
        ),
        "hubs": _embed(
            "counts", charts.hubs_chart(known.hubness), "Documents by how many queries' first ten they are in"
        ),
    }
    for tower in ("query", "document"):
        rows = [each for each in known.importance if each.tower == tower]
        chart[f"importance_{tower}"] = _embed(
            f"importance-{tower}-chart", charts.importance_chart(rows), f"Importance of the {tower} tower's channels"
        )
    return chart


def _slice(slicing: dict[str, Any]) -> dict[str, Any]:
    """A slicing with its chart; metrics that no value of it has are left out."""
    metrics = [
        metric
        for metric in SLICE_METRICS
        if any(metric in entry["systems"].get(MODEL, {}) for entry in slicing["values"])
    ]
    drawn = slicing["values"][:MAX_SLICES]
    title = slicing["name"].replace("_", " ")
    about = slicing["about"][0].upper() + slicing["about"][1:]
    reading = SLICE_READING.get(slicing["name"], "")
    if slicing["name"].startswith("missing_"):
        reading = "If those without it do worse, filling the column is the cheapest gain there is."
    more = f"Drawn: {MAX_SLICES} of {len(slicing['values'])}." if slicing["values"][MAX_SLICES:] else ""
    chart = charts.slice_chart(drawn, metrics, SLICE_SYSTEMS)
    return {
        **slicing,
        "title": title,
        "how": " ".join(filter(None, (f"{about}.", reading, more))),
        "metrics": metrics,
        "chart": _embed(f"chart-{slicing['name']}", chart, f"Metrics by {title} with intervals"),
    }


def _embed(name: str, chart: go.Figure, label: str) -> Chart:
    """A figure as a part of the page. Plotly writes the data so that no text in it can end the script."""
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
