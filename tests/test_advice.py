"""The advice follows the figures of the table: every case on synthetic figures."""

import json
import math
import re
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from q2s_tf.evaluation.advice import advise
from q2s_tf.evaluation.resampling import queries_needed
from q2s_tf.evaluation.system_metrics import SystemMetrics

LEXICAL, ENCODER, FUSED, MODEL, HYBRID = SYSTEMS = ("BM25", "encoder", "encoder + BM25", "q2s_tf", "q2s_tf + BM25")


def results(values: dict[str, np.ndarray], weight: float = 0.2, other: dict[str, np.ndarray] | None = None) -> Any:
    """The content of `metrics.json` of systems with these values of recall@10, and of MRR if given, by query."""
    per_query = {name: {"recall@10": column} for name, column in values.items()}
    for name, column in (other or {}).items():
        per_query[name]["mrr@100"] = column
    judged = np.arange(len(next(iter(values.values()))))
    metrics = SystemMetrics(judged, np.ones(len(judged), bool), {}, per_query)
    pairs = [(a, b) for number, b in enumerate(SYSTEMS) for a in SYSTEMS[number + 1 :] if {a, b} <= set(values)]
    return {
        "systems": metrics.figures(1),
        "significance": metrics.differences(pairs, 1, 500),
        "lexical_weight": weight,
        "encoder": {"preset": "a/encoder", "lexical_weight": 0.3} if ENCODER in values else None,
    }


def systems(shifts: dict[str, float], queries: int = 200, noise: float = 0.1) -> dict[str, np.ndarray]:
    """Values of each system: a common part, its shift exactly, and noise of its own with the mean 0."""
    generator = np.random.default_rng(4)
    common = generator.random(queries)
    own = {name: generator.normal(scale=noise, size=queries) for name in shifts}
    return {name: common + shift + own[name] - own[name].mean() for name, shift in shifts.items()}


def test_a_run_that_beats_every_other_system_is_deployed() -> None:
    told = advise(results(systems({LEXICAL: 0, ENCODER: 0.05, FUSED: 0.1, MODEL: 0.12, HYBRID: 0.2}), weight=0.25))
    assert (told["kind"], told["serve"], told["other"], told["more_queries"]) == ("good", HYBRID, FUSED, None)
    assert told["text"].startswith("Deploy the trained run: serve q2s_tf + BM25.")
    assert "a difference of +0.100, with a paired 95 % interval from +0.0" in told["text"]
    assert told["action"] == "Export the run with --lexical-weight 0.25."


@pytest.mark.parametrize("hybrid", [0.2, 0.3])
def test_its_embeddings_are_served_alone_unless_its_hybrid_is_better(hybrid: float) -> None:
    told = advise(results(systems({LEXICAL: 0, ENCODER: 0.05, FUSED: 0.1, MODEL: 0.3, HYBRID: hybrid})))
    assert (told["kind"], told["serve"]) == ("good", MODEL)
    assert told["action"] == "Export the run with --lexical-weight 0."


@pytest.mark.parametrize(
    ("shifts", "serve", "action"),
    [
        ({FUSED: 0.1}, FUSED, "Train a run without --positives .*preset=a/encoder.* --lexical-weight 0.3."),
        ({ENCODER: 0.1}, ENCODER, "Train a run without --positives .*preset=a/encoder.* --lexical-weight 0."),
        ({LEXICAL: 0.1}, LEXICAL, "Keep your lexical search."),
        ({ENCODER: 0.1, FUSED: 0.2}, FUSED, "Train a run without --positives"),
    ],
)
def test_a_run_that_another_system_beats_is_not_deployed(shifts: dict[str, float], serve: str, action: str) -> None:
    told = advise(results(systems({name: shifts.get(name, -0.1) for name in SYSTEMS} | {MODEL: -0.05, HYBRID: 0})))
    assert (told["kind"], told["serve"], told["ours"], told["other"]) == ("problem", serve, HYBRID, serve)
    assert told["text"].startswith(f"Do not deploy the trained run: serve {serve}.")

    assert re.fullmatch(action + ".*", told["action"])


@pytest.mark.parametrize("shift", [0.01, -0.01])
def test_overlapping_intervals_decide_nothing_and_say_how_many_queries_would(shift: float) -> None:
    values = systems({LEXICAL: -0.3, ENCODER: -0.2, FUSED: 0, MODEL: -0.1, HYBRID: shift}, noise=0.2)
    told = advise(results(values))
    differences = (values[HYBRID] - values[FUSED]).tolist()
    needed = math.ceil((1.96 * statistics.stdev(differences) / statistics.mean(differences)) ** 2)
    assert needed > 1_000
    assert (told["kind"], told["more_queries"]) == ("note", needed - 200)
    assert told["serve"] == (HYBRID if shift > 0 else FUSED)
    assert f"About {needed - 200:,} more judged queries would" in told["text"]
    assert "deploy" not in told["text"].lower()


def test_a_difference_of_practically_0_is_called_that() -> None:
    told = advise(results(systems({LEXICAL: -0.3, ENCODER: -0.2, FUSED: 0, MODEL: -0.1, HYBRID: 0.001})))
    assert (told["kind"], told["serve"], told["more_queries"]) == ("note", FUSED, None)
    assert "q2s_tf + BM25 and encoder + BM25 are equal in practice." in told["text"]


def test_the_untrained_encoder_equals_itself() -> None:
    values = systems({LEXICAL: -0.3, ENCODER: -0.1, FUSED: 0})
    told = advise(results({**values, MODEL: values[ENCODER], HYBRID: values[FUSED]}))
    assert told["text"].startswith("q2s_tf + BM25 and encoder + BM25 have the same recall@10 in every query.")
    assert (told["kind"], told["serve"], told["more_queries"]) == ("note", HYBRID, None)


def test_a_few_queries_decide_nothing() -> None:
    told = advise(results(systems({LEXICAL: 0, ENCODER: 0, FUSED: 0, MODEL: 0.5, HYBRID: 0.5}, queries=20, noise=0.01)))
    assert (told["kind"], told["serve"], told["more_queries"]) == ("note", HYBRID, 10)


def test_a_run_has_to_beat_every_other_system_not_only_the_best() -> None:
    """The second best one varies independently of the run, so that its difference is not significant."""
    values = systems({LEXICAL: -0.3, ENCODER: 0, FUSED: 0, MODEL: -0.3, HYBRID: 0.05}, noise=0.05)
    noise = np.random.default_rng(7).normal(size=200)
    values[ENCODER] = noise - noise.mean() + values[FUSED].mean() - 0.01
    told = advise(results(values))
    assert (told["kind"], told["other"], told["serve"]) == ("note", ENCODER, HYBRID)


def test_metrics_that_say_the_opposite_are_named() -> None:
    values = systems({LEXICAL: -0.3, ENCODER: -0.2, FUSED: 0, MODEL: 0, HYBRID: 0.1})
    other = systems({LEXICAL: 0, ENCODER: 0, FUSED: 0, MODEL: 0, HYBRID: -0.1})
    told = advise(results(values, other=other))
    assert told["serve"] == HYBRID
    for name in (LEXICAL, ENCODER, FUSED, MODEL):
        assert f"But {name} is significantly better in mrr@100 (+0.100)." in told["text"]


def test_an_encoder_that_was_not_measured_is_mentioned() -> None:
    told = advise(results(systems({LEXICAL: 0, MODEL: 0.1, HYBRID: 0.2})))
    assert (told["kind"], told["serve"], told["other"]) == ("good", HYBRID, LEXICAL)
    assert told["text"].endswith("The unmodified encoder was not measured.")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-0.3, 0.3), min_size=5, max_size=5), st.integers(5, 60), st.floats(0.001, 0.5))
def test_the_advice_is_never_against_the_figures(shifts: list[float], queries: int, noise: float) -> None:
    told = results(systems(dict(zip(SYSTEMS, shifts, strict=True)), queries, noise))
    advice = advise(told)
    json.dumps(advice, allow_nan=False)
    value = {name: figures["recall@10"]["value"] for name, figures in told["systems"].items()}
    assert value[advice["serve"]] >= value[advice["ours"]] - 0.002
    if advice["kind"] != "note":
        assert value[advice["serve"]] == max(value.values())
    if advice["kind"] == "note":
        assert value[advice["serve"]] >= value[advice["other"]] - 0.002


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_the_normal_interval_of_the_needed_queries_excludes_0(differences: list[float]) -> None:
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    assume(not math.isclose(abs(mean), 0.002))
    needed = queries_needed(np.array([*differences, math.nan]))
    if abs(mean) < 0.002:
        assert needed is None
        return
    assert needed is not None
    # mean ± 1.96 · s / √n excludes 0 on n queries, and includes it on one query less.
    assert 1.96 * deviation <= abs(mean) * math.sqrt(needed) + 1e-9
    assert needed <= 1 or 1.96 * deviation >= abs(mean) * math.sqrt(needed - 1) - 1e-9


def test_needed_queries_are_undefined_for_one_query() -> None:
    assert queries_needed(np.array([0.5, math.nan])) is None


def test_simulated_queries_of_the_needed_number_are_significant_half_of_the_time() -> None:
    """At n = (1.96 · s / d)² the expected end of the interval is 0, so that half of the samples exclude 0."""
    generator = np.random.default_rng(2)
    sample = generator.normal(0.03, 0.2, 400)
    needed = queries_needed(sample)
    assert needed is not None
    means = generator.choice(sample, (2_000, needed)).mean(axis=1)
    significant = np.mean(means - 1.96 * sample.std() / math.sqrt(needed) > 0)
    assert 0.45 < significant < 0.55
