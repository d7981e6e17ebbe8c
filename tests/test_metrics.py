"""Metrics compared with their definitions in plain Python, including ties and degenerate inputs."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from q2s_tf.evaluation.metrics import as_run, batch_hits, mean_by_query, ndcg, overlap_at_k, retrieval, roc_auc

# Few distinct scores, so that ties are common.
SCORES = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])


def brute_force_auc(scores: list[float], relevant: list[bool]) -> float:
    """The share of (relevant, irrelevant) pairs in the right order, ties counting half."""
    won, total = 0.0, 0
    for score, is_relevant in zip(scores, relevant, strict=True):
        for other, other_relevant in zip(scores, relevant, strict=True):
            if is_relevant and not other_relevant:
                won += 1.0 if score > other else 0.5 if score == other else 0.0
                total += 1
    return won / total if total else math.nan


@settings(deadline=None)
@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=25))
def test_roc_auc_is_the_probability_of_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    scores, relevant = [score for score, _ in pairs], [each for _, each in pairs]
    expected = brute_force_auc(scores, relevant)
    assert roc_auc(np.array(scores), np.array(relevant)) == pytest.approx(expected, nan_ok=True)


def test_roc_auc_of_one_class_is_undefined() -> None:
    assert math.isnan(roc_auc(np.array([0.1, 0.2]), np.array([True, True])))
    assert math.isnan(roc_auc(np.array([0.1, 0.2]), np.array([False, False])))


def brute_force_ndcg(scores: list[float], gain: list[float], k: int) -> float:
    """DCG over the best DCG; tied documents take every order equally often."""

    def dcg(gains: list[float]) -> float:
        return sum(each / math.log2(rank + 2) for rank, each in enumerate(gains[:k]))

    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    mean = sum(dcg([gain[place] for place in order]) for order in orders) / len(orders)
    return mean / dcg(sorted(gain, reverse=True))


GRADED = st.lists(st.tuples(SCORES, st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(GRADED, min_size=1, max_size=4), st.integers(1, 6))
def test_ndcg_is_the_mean_over_all_orders_of_ties(queries: list[list[tuple[float, float]]], k: int) -> None:
    expected = [
        brute_force_ndcg([score for score, _ in query], [gain for _, gain in query], k)
        if len(query) > 1 and any(gain > 0 for _, gain in query)
        else math.nan
        for query in queries
    ]
    rows = [(number, *pair) for number, query in enumerate(queries) for pair in query]
    # A last query without any judged document, and the pairs of the others in any order.
    query, scores, gains = (np.array(column) for column in zip(*sorted(rows, key=hash), strict=True))
    actual = ndcg(query, scores, gains, len(queries) + 1, k)
    np.testing.assert_allclose(actual, [*expected, math.nan])


def test_ndcg_equals_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    scores, gains = generator.integers(0, 6, (20, 30)) / 2, generator.integers(0, 4, (20, 30))
    actual = ndcg(np.repeat(np.arange(20), 30), scores.ravel(), gains.ravel(), 20)
    assert actual.mean() == pytest.approx(ndcg_score(gains, scores, k=10))


def test_ndcg_by_hand() -> None:
    # Gains 3 and 1 in the wrong order: (1 + 3/log2(3)) / (3 + 1/log2(3)).
    wrong = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    one, two = np.array([0]), np.array([0, 0])
    assert ndcg(two, np.array([0.1, 0.9]), np.array([3.0, 1.0]), 1) == pytest.approx(wrong)
    assert ndcg(two, np.array([0.9, 0.1]), np.array([3.0, 1.0]), 1) == pytest.approx(1)
    assert np.isnan(ndcg(one, np.array([0.9]), np.array([3.0]), 1)), "one document has no order"
    assert np.isnan(ndcg(two, np.array([0.9, 0.1]), np.zeros(2), 1)), "no gain"
    assert ndcg(np.zeros(0, int), np.zeros(0), np.zeros(0), 0).size == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), unique=True, max_size=8), st.sets(st.integers(0, 9), max_size=5)),
        min_size=1,
        max_size=5,
    )
)
def test_recall_and_reciprocal_rank_count_what_was_found(queries: list[tuple[list[int], set[int]]]) -> None:
    # Documents 0 to 4 stand far down: nothing from rank 11 to 94, then these.
    found = np.full((len(queries), 100), -1)
    expected: dict[str, list[float]] = {"recall@10": [], "recall@100": [], "mrr@100": []}
    for row, (order, wanted) in zip(found, queries, strict=True):
        near, far = [place for place in order if place > 4], [place for place in order if place <= 4]
        row[: len(near)], row[95 : 95 + len(far)] = near, far
        # Ranks count; −1 in between is a document that is not in the catalogue.
        ranks = [row.tolist().index(place) + 1 for place in wanted if place in order]
        expected["recall@10"].append(sum(rank <= 10 for rank in ranks) / len(wanted) if wanted else math.nan)
        expected["recall@100"].append(len(ranks) / len(wanted) if wanted else math.nan)
        first = 1 / min(ranks) if ranks else 0.0
        expected["mrr@100"].append(first if wanted else math.nan)
    pairs = [(number, place) for number, (_, wanted) in enumerate(queries) for place in wanted]
    query, document = np.array(pairs, int).reshape(-1, 2).T
    actual = retrieval(as_run(found), query, document)
    for metric, values in expected.items():
        np.testing.assert_allclose(actual[metric], values, err_msg=metric)


def test_overlap_is_the_share_of_exact_search() -> None:
    exact = np.array([[4, 2, 7], [1, -1, -1], [-1, -1, -1]])
    found = np.array([[2, 9, 4], [3, 1, -1], [5, -1, -1]])
    np.testing.assert_allclose(overlap_at_k(found, exact, 2), [0.5, 1, math.nan])
    np.testing.assert_allclose(overlap_at_k(found, exact, 3), [2 / 3, 1, math.nan])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_batch_recall_ranks_each_document_among_the_negatives(seed: int, rows: int, k: int) -> None:
    # Whole numbers: products are exact, so ties are real ties.
    generator = np.random.default_rng(seed)
    queries, documents = (generator.integers(-1, 2, (rows, 3)).astype(np.float32) for _ in range(2))
    mask = (generator.random((rows, rows)) < 0.7) | np.eye(rows, dtype=bool)
    expected = []
    for row in range(rows):
        scores = [float(queries[row] @ document) for document in documents]
        rivals = [scores[other] for other in range(rows) if other != row and mask[row, other]]
        expected.append(sum(score >= scores[row] for score in rivals) < k)
    assert batch_hits(queries, documents, mask, k).numpy().tolist() == expected


def test_the_mean_of_a_query_is_over_its_own_pairs() -> None:
    values = mean_by_query(np.array([True, False, True]), np.array([2, 2, 0]), 4)
    np.testing.assert_allclose(values, [1, math.nan, 0.5, math.nan])
