"""Metrics against definitions written out in plain Python, ties and degenerate input included."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2s_tf.evaluation.metrics import batch_recall_at_k, ndcg, recall_at_k, roc_auc

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


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=25))
def test_roc_auc_is_the_chance_of_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    scores, relevant = [score for score, _ in pairs], [each for _, each in pairs]
    expected = brute_force_auc(scores, relevant)
    assert roc_auc(np.array(scores), np.array(relevant)) == pytest.approx(expected, nan_ok=True)


def test_roc_auc_of_one_class_is_not_defined() -> None:
    assert math.isnan(roc_auc(np.array([0.1, 0.2]), np.array([True, True])))
    assert math.isnan(roc_auc(np.array([0.1, 0.2]), np.array([False, False])))


def brute_force_ndcg(scores: list[float], grades: list[float], k: int) -> float:
    """DCG over the best DCG; tied documents take every order equally often."""
    gain = [max(0.0, 2 ** (grade - 1) - 1) for grade in grades]

    def dcg(gains: list[float]) -> float:
        return sum(each / math.log2(rank + 2) for rank, each in enumerate(gains[:k]))

    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    mean = sum(dcg([gain[place] for place in order]) for order in orders) / len(orders)
    return mean / dcg(sorted(gain, reverse=True))


GRADED = st.lists(st.tuples(SCORES, st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=5)


@given(st.lists(GRADED, min_size=1, max_size=4), st.integers(1, 6))
def test_ndcg_is_the_mean_over_queries_that_order_something(queries: list[list[tuple[float, float]]], k: int) -> None:
    values = [
        brute_force_ndcg([score for score, _ in query], [grade for _, grade in query], k)
        for query in queries
        if len(query) > 1 and any(grade > 1 for _, grade in query)
    ]
    scores = [np.array([score for score, _ in query]) for query in queries]
    grades = [np.array([grade for _, grade in query]) for query in queries]
    expected = sum(values) / len(values) if values else math.nan
    assert ndcg(scores, grades, k) == pytest.approx(expected, nan_ok=True)


def test_ndcg_by_hand() -> None:
    # Grades 3 and 2 gain 3 and 1. In the wrong order: (1 + 3/log2(3)) / (3 + 1/log2(3)).
    wrong = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert ndcg([np.array([0.1, 0.9])], [np.array([3.0, 2.0])]) == pytest.approx(wrong)
    assert ndcg([np.array([0.9, 0.1])], [np.array([3.0, 2.0])]) == pytest.approx(1)
    assert math.isnan(ndcg([np.array([0.9])], [np.array([3.0])])), "one document orders nothing"
    assert math.isnan(ndcg([np.array([0.9, 0.1])], [np.array([1.0, 0.0])])), "no gain, nothing to order"
    assert math.isnan(ndcg([], []))


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), unique=True, max_size=8), st.sets(st.integers(0, 9), max_size=5)),
        max_size=5,
    ),
    st.integers(1, 10),
)
def test_recall_counts_what_was_found_of_what_is_relevant(queries: list[tuple[list[int], set[int]]], k: int) -> None:
    shares = []
    for found, wanted in queries:
        if wanted:
            shares.append(sum(1 for document in wanted if document in found[:k]) / len(wanted))
    expected = sum(shares) / len(shares) if shares else math.nan
    actual = recall_at_k([found for found, _ in queries], [wanted for _, wanted in queries], k)
    assert actual == pytest.approx(expected, nan_ok=True)


def test_recall_of_fewer_than_k() -> None:
    assert recall_at_k([[4, 2]], [{2, 7}], 100) == 0.5


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 5), st.integers(2, 7))
def test_batch_recall_ranks_each_document_within_its_batch(seed: int, rows: int, k: int, batch_size: int) -> None:
    # Whole numbers: products are exact, so ties are real ties.
    generator = np.random.default_rng(seed)
    queries, documents = (generator.integers(-1, 2, (rows, 3)).astype(np.float32) for _ in range(2))
    hits = 0
    for row in range(rows):
        start = row // batch_size * batch_size
        scores = [float(queries[row] @ documents[other]) for other in range(start, min(rows, start + batch_size))]
        better_or_tied = sum(score >= scores[row - start] for score in scores) - 1
        hits += better_or_tied < k
    assert batch_recall_at_k(queries, documents, k, batch_size) == pytest.approx(hits / rows)


def test_batch_recall_without_rows_is_not_defined() -> None:
    assert math.isnan(batch_recall_at_k(np.empty((0, 4)), np.empty((0, 4)), 1))
