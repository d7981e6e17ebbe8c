"""Which system of an evaluation to deploy: what its figures say, in plain words."""

from typing import Any

from q2s_tf.evaluation.collection import ENCODER, FUSED, HYBRID, LEXICAL, MODEL
from q2s_tf.evaluation.resampling import SAME

DECISIVE = "recall@10"
"""The metric that decides, over the whole catalogue."""
ALPHA = 0.05
"""A difference with a smaller p-value is significant."""
FEW = 30
"""With fewer queries, an interval is too uncertain for a conclusion."""
TRAINED, UNTRAINED = (MODEL, HYBRID), (LEXICAL, ENCODER, FUSED)
"""The systems between which the advice chooses; the first of those with equal values counts as the best."""

UNTRAINED_RUN = (
    "Train a run without --positives (--config own_data --set encoders.text.preset={encoder}), and export it with "
)
ACTIONS = {
    LEXICAL: "Keep your lexical search.",
    ENCODER: UNTRAINED_RUN + "--lexical-weight 0.",
    FUSED: UNTRAINED_RUN + "--lexical-weight {encoder_weight:g}.",
    MODEL: "Export the run with --lexical-weight 0.",
    HYBRID: "Export the run with --lexical-weight {weight:g}.",
}
"""How to serve a system."""
TEXTS = {
    "good": "Deploy the trained run: serve {ours}. {figures} The interval of the difference excludes 0.",
    "problem": "Do not deploy the trained run: serve {other}. {figures} The interval of the difference excludes 0.",
    "same": "{ours} and {other} have the same {metric} in every query. {figures} Serve {ours}.",
    "equal": "{ours} and {other} are equal in practice. {figures} Serve {other}, which needs no training.",
    "note": "These {queries:,} queries do not decide between {ours} and {other}. {figures} About {more:,} more judged "
    "queries would, if their differences have the same mean and variance. Until then serve {serve}, whose {metric} is "
    "higher.",
}
"""The advice if the run is better, worse, the same, equal in practice, or if the queries do not decide it."""


def advise(results: dict[str, Any]) -> dict[str, Any]:
    """The entry `advice` of `metrics.json`, from its entries `systems` and `significance`.

    The better of the two systems of the run is compared with each system that needs no training, by the paired interval
    of the difference in `DECISIVE`. One of these that is better decides against the run; the run has to be better than
    all of them. Systems that are significantly better than the one to serve in another metric are named.

    Returns:
        `kind` ("good", "problem" or "note"), `serve`, the system to serve; `ours` and `other`, the systems that are
        compared; `text` and `action`; `more_queries`, how many more judged queries would decide, or None.
    """
    values = {name: figures[DECISIVE]["value"] for name, figures in results["systems"].items() if DECISIVE in figures}
    ours = max(TRAINED, key=values.__getitem__)
    others = [name for name in UNTRAINED if name in values]
    tests = {row["b"]: row for row in results["significance"] if (row["metric"], row["a"]) == (DECISIVE, ours)}
    queries = results["systems"][ours][DECISIVE]["queries"]
    behind = [other for other in others if queries >= FEW and tests[other]["high"] < 0]
    undecided = [other for other in others if queries < FEW or tests[other]["low"] <= 0]
    other = max(others if behind else undecided or others, key=values.__getitem__)
    test, more = tests[other], None
    if behind:
        kind, serve = "problem", other
    elif not undecided:
        kind, serve = "good", ours
    elif not test["wins"] and not test["losses"]:
        kind, serve = "same", ours
    elif abs(test["difference"]) < SAME:
        kind, serve = "equal", other
    else:
        kind, serve = "note", ours if test["difference"] > 0 else other
        more = max((test["queries_needed"] or FEW) - queries, FEW - queries, 1)
    figures = (
        f"The {DECISIVE} of {ours} is {values[ours]:.3f}, that of {other} {values[other]:.3f}: a difference of "
        f"{test['difference']:+.3f}, with a paired 95 % interval from {test['low']:+.3f} to {test['high']:+.3f}."
    )
    names = {"ours": ours, "other": other, "serve": serve}
    text = TEXTS[kind].format(**names, figures=figures, queries=queries, more=more or 0, metric=DECISIVE)
    for name in values:
        differences = {
            metric: significant_difference(results, name, serve, metric) for metric in results["systems"][serve]
        }
        if better := ", ".join(
            f"{metric} ({value:+.3f})" for metric, value in differences.items() if value and value > 0
        ):
            text += f" But {name} is significantly better in {better}."
    if ENCODER not in values:
        text += " The unmodified encoder was not measured."
    encoder = results["encoder"] or {"preset": None, "lexical_weight": 0.0}
    action = ACTIONS[serve].format(
        encoder=encoder["preset"], encoder_weight=encoder["lexical_weight"], weight=results["lexical_weight"]
    )
    return {
        "kind": kind if kind in ("good", "problem") else "note",
        **names,
        "text": text,
        "action": action,
        "more_queries": more,
    }


def significant_difference(results: dict[str, Any], a: str, b: str, metric: str) -> float | None:
    """The difference a − b; 0 if it is not significant, None if it was not tested."""
    for test in results["significance"]:
        if (test["metric"], {test["a"], test["b"]}) == (metric, {a, b}):
            difference = test["difference"] if test["a"] == a else -test["difference"]
            return difference if test["p_holm"] < ALPHA else 0.0
    return None
