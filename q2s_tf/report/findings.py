"""The findings of a report: what the figures and their intervals say, and what to do about it.

A difference is significant if its p-value is below `ALPHA` (paired bootstrap over queries, after Holm's correction). A
finding recommends something only if the figures decide it; otherwise it says that they do not. The sentences are in
`templates/findings.toml`.
"""

import tomllib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from q2s_tf.evaluation.advice import ALPHA, significant_difference
from q2s_tf.evaluation.collection import INDEX, LEXICAL, MODEL
from q2s_tf.report.analysis import Analysis

MANY_MISSING, ALIKE, MANY_DUPLICATES, INDEX_LOSS = 0.2, 0.5, 0.01, 0.02
WEAKEST = 4
RECALL, ROC_AUC = "recall@10", "roc_auc"
SENTENCES = tomllib.loads((files("q2s_tf.report") / "templates/findings.toml").read_text(encoding="utf-8"))


class Finding(NamedTuple):
    """A finding: "good", "problem" or "note"; the sentence, what to do about it, and the section that shows it."""

    kind: str
    text: str
    action: str
    section: str


def _finding(key: str, /, **values: Any) -> Finding:
    entry = {"action": "", **SENTENCES[key]}
    return Finding(**{field: entry[field].format(**values) for field in Finding._fields})


def summarise(results: dict[str, Any], analysis: Analysis) -> list[Finding]:
    """The findings about the content of `metrics.json` and the analysis of its run: what to deploy, then problems."""
    advice = results["advice"]
    findings = [
        *_index_loss(results),
        *_weak_slices(results),
        *_data_problems(analysis),
        *_channels(analysis),
    ]
    findings.sort(key=lambda finding: ("problem", "good", "note").index(finding.kind))
    return [Finding(advice["kind"], advice["text"], advice["action"], "systems"), *findings]


def check_paper(analysis: Analysis) -> list[Finding]:
    """The two findings of the paper about channels, compared with the figures of this run."""
    return [_trigrams_on_short_queries(analysis), _importance_of_images(analysis)]


def _index_loss(results: dict[str, Any]) -> Iterator[Finding]:
    for metric in (RECALL, "recall@100"):
        loss = significant_difference(results, MODEL, INDEX, metric)
        if loss and loss > INDEX_LOSS:
            exact, index = (results["systems"][name][metric]["value"] for name in (MODEL, INDEX))
            yield _finding("index_loss", metric=metric, exact=exact, index=index)


def _weak_slices(results: dict[str, Any]) -> Iterator[Finding]:
    """Slices whose interval is below that of all queries, and slices whose interval is below that of BM25."""
    whole = results["systems"][MODEL].get(RECALL)
    weak, behind = [], []
    for slicing in results["slices"]:
        for entry in slicing["values"]:
            model, lexical = (entry["systems"].get(name, {}).get(RECALL) for name in (MODEL, LEXICAL))
            if entry["small"] or not model or not whole:
                continue
            name = f"{slicing['name'].replace('_', ' ')} {entry['value']}"
            if slicing["name"].startswith("missing_"):
                word = "without" if entry["value"] == "missing" else "with"
                name = f"documents {word} {slicing['name'].removeprefix('missing_')}"
            if model["high"] < whole["low"]:
                weak.append((model["value"], f"{name} ({model['value']:.2f})"))
            if lexical and lexical["low"] > model["high"]:
                difference = model["value"] - lexical["value"]
                behind.append((difference, f"{name} ({model['value']:.2f} against {lexical['value']:.2f})"))
    for finding, slices in (("weak_slices", weak), ("slices_behind_bm25", behind)):
        if slices:
            yield _finding(finding, mean=whole["value"], slices=", ".join(name for _, name in sorted(slices)[:WEAKEST]))


def _data_problems(analysis: Analysis) -> Iterator[Finding]:
    for name, share in analysis.missing.items():
        if share > MANY_MISSING:
            yield _finding("empty_input" if share == 1 else "missing_input", name=name, share=share)
    share = analysis.duplicates["documents"] / analysis.duplicates["compared"]
    if share > MANY_DUPLICATES:
        yield _finding("duplicates", share=share, **analysis.duplicates)
    if analysis.spread > ALIKE:
        yield _finding("alike", spread=analysis.spread)


def _channels(analysis: Analysis) -> Iterator[Finding]:
    """Channels without which a metric changes significantly, and those that the data do not decide about."""
    named: dict[str, list[str]] = {"harmful_channels": [], "useful_channels": [], "undecided_channels": []}
    for row in analysis.importance:
        losses = {metric: test["difference"] for metric, test in row["losses"].items() if test["p_holm"] < ALPHA}
        if losses:
            finding = "harmful_channels" if min(losses.values()) < 0 else "useful_channels"
            changes = ", ".join(f"{metric} {-loss:+.3f}" for metric, loss in losses.items())
            named[finding].append(f"{row['channel']} ({changes})")
        elif row["present"]:
            named["undecided_channels"].append(row["channel"])
    yield from (_finding(name, channels=", ".join(channels)) for name, channels in named.items() if channels)


def _trigrams_on_short_queries(analysis: Analysis) -> Finding:
    trigrams, text = (analysis.short_queries.get(kind) for kind in ("trigrams", "text"))
    if trigrams is None or text is None:
        return _finding("paper_trigrams_unknown", reason="the query tower has no 3-gram channel or no text channel")
    if not trigrams or not text:
        reason = "too few queries are shorter than five characters, or all are"
        return _finding("paper_trigrams_unknown", reason=reason)
    answer = "the data do not decide it"
    if trigrams["low"] > 0 or trigrams["high"] < 0:
        answer = "it is too" if trigrams["low"] > 0 else "it is lower"
    return _finding("paper_trigrams", answer=answer, **trigrams, short_text=text["first"], longer_text=text["second"])


def _importance_of_images(analysis: Analysis) -> Finding:
    rows = {row["channel"]: row for row in analysis.importance if row["tower"] == "document"}
    losses = {name: row["losses"][ROC_AUC] for name, row in rows.items() if ROC_AUC in row["losses"]}
    order = sorted(losses, key=lambda name: -losses[name]["difference"])
    images = [name for name in order if name in analysis.image_channels and rows[name]["present"]]
    others = [name for name in order if name not in analysis.image_channels]
    if not images:
        return _finding("paper_images_unknown", reason="no document has images, or ROC AUC is undefined")
    image, answer = losses[images[0]], "they are the only channel"
    if others:
        best = losses[others[0]]
        answer = f"the data do not decide whether theirs or that of {others[0]} is larger"
        if image["low"] > best["high"]:
            answer = "they have the largest too"
        elif image["high"] < best["low"]:
            answer = f"{others[0]} has a larger one, {rows[others[0]]['share']:.0%}"
    return _finding("paper_images", answer=answer, share=rows[images[0]]["share"], **image)
