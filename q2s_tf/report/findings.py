"""The findings of a report: one sentence for each result that stands out, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from q2s_tf.config import Config
from q2s_tf.evaluation.collection import FUSED, INDEX, LEXICAL, MODEL
from q2s_tf.report.analysis import Analysis
from q2s_tf.report.fusion_weights import SHORT, GroupWeights

LEVEL = 0.05
"""A difference is significant if its p-value, after Holm's correction, is below this."""
MANY_MISSING = 0.2
ALIKE = 0.5
HUBBY, MANY_QUERIES = 2.0, 10
"""Hubs are a problem if the skewness exceeds this multiple of the uniform one, and a hub is in so many first tens."""
INDEX_LOSS = 0.02
DOMINANT = 0.9
WEAKEST = 4


@dataclass(frozen=True)
class Finding:
    """A finding: its kind, the sentence, what to do about it ("" for nothing), and the section that shows it."""

    kind: Literal["good", "problem", "note"]
    text: str
    action: str
    section: str


def summarise(results: dict[str, Any], analysis: Analysis) -> list[Finding]:
    """The findings of a report, problems first.

    Args:
        results: the content of `metrics.json`.
        analysis: the analysis of the same run.
    """
    findings = [
        *_against_bm25(results),
        *_fusion(results),
        *_index_loss(results),
        *_weak_slices(results),
        *_second_stage(analysis),
        *_data_problems(analysis),
        *_dominant_channels(analysis),
        *_idle_channels(analysis),
    ]
    return sorted(findings, key=lambda finding: ("problem", "good", "note").index(finding.kind))


def check_paper(analysis: Analysis, config: Config) -> list[Finding]:
    """The two findings of the paper about channels, compared with the figures of this run."""
    return [*_trigrams_on_short_queries(analysis, config), *_importance_of_images(analysis, config)]


def significant_difference(results: dict[str, Any], a: str, b: str, metric: str) -> float | None:
    """The difference a − b; 0 if it is not significant, None if it was not tested."""
    for test in results["significance"]:
        if (test["metric"], {test["a"], test["b"]}) == (metric, {a, b}):
            difference = test["difference"] if test["a"] == a else -test["difference"]
            return difference if test["p_holm"] < LEVEL else 0.0
    return None


def _against_bm25(results: dict[str, Any]) -> Iterator[Finding]:
    tests = {metric: significant_difference(results, MODEL, LEXICAL, metric) for metric in results["systems"][MODEL]}
    if worse := ", ".join(f"{metric} ({value:+.3f})" for metric, value in tests.items() if value and value < 0):
        text = f"The model is significantly worse than BM25 in {worse}."
        yield Finding("problem", text, "Read the worst queries and the weakest slices.", "systems")
    if better := ", ".join(f"{metric} ({value:+.3f})" for metric, value in tests.items() if value and value > 0):
        yield Finding("good", f"The model is significantly better than BM25 in {better}.", "", "systems")
    if undecided := ", ".join(metric for metric, value in tests.items() if value == 0):
        text = f"The data do not decide whether the model or BM25 is better in {undecided}."
        yield Finding("note", text, "More judged queries narrow the intervals.", "systems")


def _fusion(results: dict[str, Any]) -> Iterator[Finding]:
    metric = "recall@10"
    over_model, over_bm25 = (significant_difference(results, FUSED, name, metric) for name in (MODEL, LEXICAL))
    if over_model is None or over_bm25 is None:
        return
    values = [results["systems"][name][metric]["value"] for name in (FUSED, MODEL, LEXICAL)]
    shown = "{:.3f}, against {:.3f} of the model and {:.3f} of BM25".format(*values)
    if min(over_model, over_bm25) > 0:
        text = f"The fusion of model and BM25 is significantly better than both: its {metric} is {shown}."
        yield Finding("good", text, "Serve hybrid results.", "systems")
    else:
        text = f"The fusion of model and BM25 is not significantly better than both: its {metric} is {shown}."
        yield Finding("note", text, "", "systems")


def _index_loss(results: dict[str, Any]) -> Iterator[Finding]:
    for metric in ("recall@10", "recall@100"):
        loss = significant_difference(results, MODEL, INDEX, metric)
        if loss and loss > INDEX_LOSS:
            exact, index = (results["systems"][name][metric]["value"] for name in (MODEL, INDEX))
            text = f"The exported index reduces {metric} significantly, from {exact:.3f} to {index:.3f}."
            yield Finding("problem", text, "Search with a higher effort, or export another kind of index.", "systems")


def _weak_slices(results: dict[str, Any]) -> Iterator[Finding]:
    """Slices whose interval is below the mean of the run, and slices whose interval is below that of BM25."""
    whole = results["systems"][MODEL].get("recall@10")
    weak, behind = [], []
    for slicing in results["slices"]:
        for entry in slicing["values"]:
            model, lexical = (entry["systems"].get(name, {}).get("recall@10") for name in (MODEL, LEXICAL))
            if entry["small"] or not model or not whole:
                continue
            name = f"{slicing['name'].replace('_', ' ')} {entry['value']}"
            if slicing["name"].startswith("missing_"):
                word = "without" if entry["value"] == "missing" else "with"
                name = f"documents {word} {slicing['name'].removeprefix('missing_')}"
            if model["high"] < whole["value"]:
                weak.append((model["value"], f"{name} ({model['value']:.2f})"))
            if lexical and lexical["low"] > model["high"]:
                difference = model["value"] - lexical["value"]
                behind.append((difference, f"{name} ({model['value']:.2f} against {lexical['value']:.2f})"))
    for slices, start in (
        (weak, f"The recall@10 of the model is below its mean of {whole['value'] if whole else 0:.2f} in these slices"),
        (behind, "The recall@10 of the model is below that of BM25, without overlap of the intervals, in these slices"),
    ):
        if slices:
            names = ", ".join(name for _, name in sorted(slices)[:WEAKEST])
            action = "Read their queries in per_query.parquet; more training positives of this kind may help."
            yield Finding("problem", f"{start}: {names}.", action, "slices")


def _second_stage(analysis: Analysis) -> Iterator[Finding]:
    best: dict[int, float] = {}
    for line in analysis.curves:
        best[line["stage"]] = max(line["val_roc_auc"], best.get(line["stage"], 0.0))
    if {1, 2} <= best.keys():
        text = (
            f"The best validation ROC AUC is {best[1]:.4f} in stage 1 and {best[2]:.4f} in stage 2 "
            f"({best[2] - best[1]:+.4f})."
        )
        action = "To test the difference, compare the run with itself: --stage-a 1 --stage-b 2 of q2s compare."
        yield Finding("note", text, action, "training")


def _data_problems(analysis: Analysis) -> Iterator[Finding]:
    for name, share in analysis.missing.items():
        if share == 1:
            action = "Fill the column, or remove its channels from the config."
            yield Finding("note", f"No document has a value of {name}.", action, "weights")
        elif share > MANY_MISSING:
            yield Finding("problem", f"{share:.0%} of the documents have no {name}.", "Fill the column.", "weights")
    duplicates = analysis.duplicates
    if duplicates["groups"]:
        count, groups = duplicates["documents"], duplicates["groups"]
        text = (
            f"{count:,} documents ({count / duplicates['compared']:.1%}) are in {groups:,} groups of near-duplicates."
        )
        yield Finding("problem", text, "Show one document of each group in a page of results.", "duplicates")
    if analysis.spread > ALIKE:
        text = f"All embeddings are similar: the mean cosine of two random documents is {analysis.spread:.2f}."
        yield Finding("problem", text, "Train longer, or with a lower learning rate.", "map")
    hubness = analysis.hubness
    if hubness.skewness > HUBBY * hubness.even and hubness.hubs[0][1] >= MANY_QUERIES:
        text = (
            f"A few documents are in the results of many queries: the skewness is {hubness.skewness:.1f}, against "
            f"{hubness.even:.1f} for uniform results, and one document is among the first ten of "
            f"{hubness.hubs[0][1]} queries."
        )
        yield Finding("problem", text, "Read the titles of these documents.", "hubs")


def _dominant_channels(analysis: Analysis) -> Iterator[Finding]:
    for tower in ("query", "document"):
        shares: dict[str, float] = {}
        for row in analysis.importance:
            if row.tower == tower and row.present:
                shares[row.channel] = min(row.share, shares.get(row.channel, 1.0))
        for channel, share in shares.items():
            if share >= DOMINANT and len(shares) > 1:
                text = f"The {tower} tower depends on one channel: {channel} has {share:.0%} of the importance."
                yield Finding("note", text, "Longer training or more data may strengthen the others.", "importance")


def _idle_channels(analysis: Analysis) -> Iterator[Finding]:
    present = [row for row in analysis.importance if row.present]
    useful = {row.channel for row in present if (row.roc_auc_drop or 0) > 0 or (row.recall_drop or 0) > 0}
    idle = [name for name in dict.fromkeys(row.channel for row in present) if name not in useful]
    if idle:
        text = f"ROC AUC and recall@10 do not fall without the channel {', '.join(idle)}."
        action = "Train once without it, and compare the two runs with q2s compare."
        yield Finding("note", text, action, "importance")


def _trigrams_on_short_queries(analysis: Analysis, config: Config) -> Iterator[Finding]:
    claim = "In the paper, the weight of 3-grams is higher on short queries than on longer ones. Here"
    channels = config.tower_channels("query")
    trigrams, texts = ([n for n, channel in channels.items() if channel.kind == kind] for kind in ("trigrams", "text"))
    groups = analysis.query_weights["length"]
    short, longer = ([group for group in groups if (group.group == SHORT) == is_short] for is_short in (True, False))
    reason = None
    if not trigrams or not texts:
        reason = "the query tower has no 3-gram channel or no text channel"
    elif not short or not longer or short[0].rows < 2:
        reason = "too few queries are shorter than five characters, or all are"
    if reason:
        yield Finding("note", f"{claim} it cannot be measured: {reason}.", "", "weights")
        return
    (low, low_error), (high, high_error) = _mean(short, trigrams), _mean(longer, trigrams)
    margin = 1.96 * (low_error**2 + high_error**2) ** 0.5
    answer = "the data do not decide it"
    if abs(low - high) > margin:
        answer = "it is too" if low > high else "it is lower"
    text = (
        f"{claim} {answer}: the mean weight is {low:.2f} on queries of up to four characters ({short[0].rows} queries) "
        f"and {high:.2f} on longer ones (95 % interval of the difference {low - high - margin:+.2f} to "
        f"{low - high + margin:+.2f}). The mean weight of text is {_mean(short, texts)[0]:.2f} and "
        f"{_mean(longer, texts)[0]:.2f}."
    )
    yield Finding("note", text, "", "weights")


def _mean(groups: list[GroupWeights], names: list[str]) -> tuple[float, float]:
    """Mean total weight of some channels in some groups, and an upper bound of its standard error."""
    rows = sum(group.rows for group in groups)
    mean = sum(group.rows * sum(group.mean[name] for name in names) for group in groups) / rows
    error = sum((group.rows * sum(group.error[name] for name in names)) ** 2 for group in groups) ** 0.5 / rows
    return mean, error


def _importance_of_images(analysis: Analysis, config: Config) -> Iterator[Finding]:
    claim = "In the paper, images have the largest importance on the document side, 55 %. Here"
    images = [name for name, channel in config.tower_channels("document").items() if channel.kind == "vectors"]
    rows = [row for row in analysis.importance if row.tower == "document"]
    if not any(row.present for row in rows if row.channel in images):
        yield Finding("note", f"{claim} it cannot be measured: no document has images.", "", "importance")
        return
    parts = []
    for method, how in (("missing", "masking"), ("permuted", "permuting")):
        shares = {row.channel: row.share for row in rows if row.method == method}
        best = max(shares, key=lambda name: shares[name])
        other = "the largest" if best in images else f"{best} has the largest, {shares[best]:.0%}"
        parts.append(f"{max(shares[name] for name in images):.0%} by {how} the channel ({other})")
    yield Finding("note", f"{claim} they have {' and '.join(parts)}.", "", "importance")
