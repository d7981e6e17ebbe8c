"""What the figures say, in words: a summary that begins a report, each with what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from q2s_tf.config import Config
from q2s_tf.evaluation.evaluation import FUSED, INDEX, LEXICAL, MODEL
from q2s_tf.report.importance import Importance
from q2s_tf.report.study import Study
from q2s_tf.report.weights import GroupWeights

SHORT = "1–4"
"""The length group in which the paper sees the 3-grams lead."""
MANY_MISSING = 0.2
ALIKE = 0.5
HUBBY, MANY_QUERIES = 2.0, 10
"""Skewness against that of even draws, and queries of the worst hub, from which hubs are a problem."""
INDEX_LOSS = 0.02
LONE = 0.9
WEAKEST = 4


@dataclass(frozen=True)
class Finding:
    """One thing found: good news, a problem or neither, in a line; what to do about it; the section that shows it."""

    kind: Literal["good", "problem", "note"]
    text: str
    action: str
    section: str


def summarise(results: dict[str, Any], study: Study) -> list[Finding]:
    """The findings of a report, problems first.

    Args:
        results: what `metrics.json` holds.
        study: the rest.
    """
    found = [
        *_against_bm25(results),
        *_index_loss(results),
        *_weak_slices(results),
        *_second_stage(study),
        *_data_problems(study),
        *_lone_channels(study),
        *_idle_channels(study),
    ]
    order = ("problem", "good", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def check_paper(study: Study, config: Config) -> list[Finding]:
    """The paper's two findings about channels, checked here: yes or no, with the figures."""
    return [*_trigrams_on_short_queries(study, config), *_images_lead(study, config)]


def _against_bm25(results: dict[str, Any]) -> Iterator[Finding]:
    """Where the model wins or loses against BM25, by the paired test."""
    tests = [test for test in results["significance"] if {test["a"], test["b"]} == {MODEL, LEXICAL}]
    for kind, verb in (("problem", "loses to"), ("good", "beats"), ("note", "cannot be told from")):
        parts = []
        for test in tests:
            difference = test["difference"] if test["a"] == MODEL else -test["difference"]
            sure = test["p_holm"] < 0.05
            if kind == ("note" if not sure else "good" if difference > 0 else "problem"):
                parts.append(f"{test['metric']} ({difference:+.3f})")
        if parts:
            action = {
                "problem": f"Retrieve with both and fuse them ({FUSED} in the table), and read the worst queries.",
                "good": "This is what the model is for.",
                "note": "More judged queries would tell.",
            }[kind]
            yield Finding(kind, f"The model {verb} BM25 in {', '.join(parts)}.", action, "systems")  # type: ignore[arg-type]
    fused = results["systems"].get(FUSED, {}).get("recall@10")
    if fused:
        best = max(results["systems"][name]["recall@10"]["value"] for name in (MODEL, LEXICAL))
        if fused["value"] > best:
            text = f"Fusing model and BM25 finds more than either: recall@10 {fused['value']:.3f} against {best:.3f}."
            yield Finding("note", text, "Serve both and fuse by reciprocal rank.", "systems")


def _index_loss(results: dict[str, Any]) -> Iterator[Finding]:
    figures = results["systems"].get(INDEX)
    for metric in ("recall@10", "recall@100") if figures else ():
        exact, index = (results["systems"][name].get(metric) for name in (MODEL, INDEX))
        if exact and index and exact["value"] - index["value"] > INDEX_LOSS:
            text = f"The exported index costs {metric}: {index['value']:.3f} through it, {exact['value']:.3f} exact."
            yield Finding("problem", text, "Ask with more effort, or export with another index.", "systems")


def _weak_slices(results: dict[str, Any]) -> Iterator[Finding]:
    """Slices whose interval is below the mean of the model, and those where BM25 is above their interval."""
    whole = results["systems"][MODEL].get("recall@10")
    weak, behind = [], []
    for slicing in results["slices"]:
        for entry in slicing["values"]:
            own, lexical = (entry["systems"].get(name, {}).get("recall@10") for name in (MODEL, LEXICAL))
            if entry["small"] or not own or not whole:
                continue
            name = _name_slice(slicing["name"], entry["value"])
            if own["high"] < whole["value"]:
                weak.append((own["value"], f"{name} ({own['value']:.2f})"))
            if lexical and lexical["value"] > own["high"]:
                behind.append(
                    (own["value"] - lexical["value"], f"{name} ({own['value']:.2f} against {lexical['value']:.2f})")
                )
    if weak:
        names = ", ".join(name for _, name in sorted(weak)[:WEAKEST])
        text = f"Weakest slices, their whole interval below the mean recall@10 of {whole['value']:.2f}: {names}."
        yield Finding(
            "problem", text, "Look at their queries in per_query.parquet; more positives of them help.", "slices"
        )
    if behind:
        names = ", ".join(name for _, name in sorted(behind)[:WEAKEST])
        text = f"BM25 is above the whole interval of the model's recall@10 in: {names}."
        yield Finding("problem", text, "Fuse with BM25 there.", "slices")


def _name_slice(slicing: str, value: str) -> str:
    if slicing.startswith("missing_"):
        return f"documents {'without' if value == 'missing' else 'with'} {slicing.removeprefix('missing_')}"
    return f"{slicing.replace('_', ' ')} {value}"


def _second_stage(study: Study) -> Iterator[Finding]:
    best = {
        stage: max(line["validation_roc_auc"] for line in study.curves if line["stage"] == stage)
        for stage in {line["stage"] for line in study.curves}
    }
    if {1, 2} <= set(best):
        difference = best[2] - best[1]
        text = f"Stage 2 moved the best validation ROC AUC by {difference:+.4f}, from {best[1]:.4f} to {best[2]:.4f}."
        if difference > 0:
            yield Finding("good", text, "Keep it.", "training")
        else:
            yield Finding("note", text, "It brought nothing: stage 1 may not have converged before it.", "training")


def _data_problems(study: Study) -> Iterator[Finding]:
    for name, share in study.missing.items():
        if share > MANY_MISSING:
            text = f"{share:.0%} of the documents have no {name}."
            action = "Fill the column." if share < 1 else "Fill the column, or take its channels out of the config."
            yield Finding("problem" if share < 1 else "note", text, action, "weights")
    duplicates = study.duplicates
    if duplicates.groups:
        text = (
            f"{duplicates.documents:,} documents ({duplicates.documents / duplicates.compared:.1%}) are in "
            f"{duplicates.groups:,} groups of near-duplicates."
        )
        yield Finding("problem", text, "They crowd a page of results: show one of each group.", "duplicates")
    if study.spread > ALIKE:
        text = f"The embeddings are much alike: two random documents have a mean cosine of {study.spread:.2f}."
        yield Finding("problem", text, "Train longer, or at a lower rate: towers that collapse begin like this.", "map")
    hubness = study.hubness
    if hubness.skewness > HUBBY * hubness.even and hubness.hubs[0][1] >= MANY_QUERIES:
        text = (
            f"A few documents turn up for many queries: skewness {hubness.skewness:.1f} where even draws would have "
            f"{hubness.even:.1f}; the worst is in the first ten of {hubness.hubs[0][1]} queries."
        )
        yield Finding("problem", text, "Read their titles; stage1.popularity_correction may help.", "hubs")


def _lone_channels(study: Study) -> Iterator[Finding]:
    for tower in ("query", "document"):
        rows = [each for each in study.importance if each.tower == tower and each.present]
        shares: dict[str, float] = {}
        for each in rows:
            shares[each.channel] = min(each.share, shares.get(each.channel, 1.0))
        for channel, share in shares.items():
            if share >= LONE and len(shares) > 1:
                text = f"The {tower} tower hangs on {channel}: it has {share:.0%} of the importance."
                yield Finding(
                    "note", text, "The other channels have learned little: train longer, or more data.", "importance"
                )


def _idle_channels(study: Study) -> Iterator[Finding]:
    drops: dict[str, list[Importance]] = {}
    for each in study.importance:
        drops.setdefault(each.channel, []).append(each)
    present = {name: rows for name, rows in drops.items() if rows[0].present}
    idle = [
        name
        for name, rows in present.items()
        if all((row.roc_auc_drop or 0) <= 0 and (row.recall_drop or 0) <= 0 for row in rows)
    ]
    if idle:
        text = f"Nothing is lost without the channel {', '.join(idle)}: neither ROC AUC nor recall@10."
        yield Finding("note", text, "Train once without it: a smaller model may do.", "importance")


def _trigrams_on_short_queries(study: Study, config: Config) -> Iterator[Finding]:
    channels = config.tower_channels("query")
    kinds = {
        kind: [name for name, channel in channels.items() if channel.kind == kind] for kind in ("trigrams", "text")
    }
    claim = "3-grams weigh more on short queries"
    if not study.query_weights:
        yield Finding("note", f"{claim}: cannot be told, the fusion has no weights of channels.", "", "weights")
        return
    short = [group for group in study.query_weights["length"] if group.group == SHORT]
    longer = [group for group in study.query_weights["length"] if group.group != SHORT]
    if not all(kinds.values()) or not short or not longer:
        lack = (
            "no query is shorter than five characters"
            if all(kinds.values())
            else "the query tower lacks one of the two"
        )
        yield Finding("note", f"{claim}: cannot be told, {lack}.", "", "weights")
        return
    weights = {kind: (_mean(short, names), _mean(longer, names)) for kind, names in kinds.items()}
    yes = weights["trigrams"][0] > weights["trigrams"][1]
    lead = [weights["trigrams"][at] > weights["text"][at] for at in (0, 1)]
    where = ("nowhere", "beyond them only", "on short queries only", "on short queries and beyond")[
        2 * lead[0] + lead[1]
    ]
    text = (
        f"{claim}: {'yes' if yes else 'no'}. Their mean weight is {weights['trigrams'][0]:.2f} under five characters "
        f"({short[0].rows} queries) and {weights['trigrams'][1]:.2f} beyond; the text's {weights['text'][0]:.2f} and "
        f"{weights['text'][1]:.2f}. They outweigh the text {where} (in the paper: on short queries only)."
    )
    yield Finding("good" if yes else "note", text, "", "weights")


def _images_lead(study: Study, config: Config) -> Iterator[Finding]:
    claim = "Images carry the largest importance on the document side"
    images = [name for name, channel in config.tower_channels("document").items() if channel.kind == "vectors"]
    rows = [each for each in study.importance if each.tower == "document"]
    if not any(each.present for each in rows if each.channel in images):
        yield Finding("note", f"{claim}: cannot be told, no document has images.", "", "importance")
        return
    for method in ("missing", "permuted"):
        shares = {each.channel: each.share for each in rows if each.method == method}
        best = max(shares, key=lambda name: shares[name])
        yes = best in images
        own = max(shares[name] for name in images)
        how = "by masking" if method == "missing" else "by permuting"
        others = "" if yes else f", behind {best} with {shares[best]:.0%}"
        text = f"{claim}, {how}: {'yes' if yes else 'no'}, {own:.0%}{others} (55 % in the paper)."
        yield Finding("good" if yes else "note", text, "", "importance")


def _mean(groups: list[GroupWeights], names: list[str]) -> float:
    rows = sum(group.rows for group in groups)
    return sum(group.rows * sum(group.mean[name] for name in names) for group in groups) / rows
