"""Near-duplicates and the mean cosine of embeddings, against plain computations."""

import numpy as np
import pytest

from q2s_tf.report.embedding_space import mean_cosine, near_duplicates


@pytest.mark.parametrize(("dimension", "seed"), [(4, 1), (64, 2), (64, 3)])
def test_near_duplicates_are_connected_components(dimension: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    seeds = generator.normal(size=(150, dimension))
    # Copies at all distances around the threshold, and chains: a copy of a copy.
    copies = seeds[generator.integers(150, size=200)] + generator.normal(size=(200, dimension)) * 0.1
    chained = copies[:100] + generator.normal(size=(100, dimension)) * 0.1
    rows = generator.permutation(np.concatenate([seeds, copies, chained])).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = rows.astype(float) @ rows.T.astype(float) >= 0.99
    seen: set[int] = set()
    expected = []
    for start in range(len(rows)):
        group, waiting = set[int](), [start]
        while waiting and start not in seen:
            at = waiting.pop()
            if at not in group:
                group.add(at)
                waiting += np.flatnonzero(near[at]).tolist()
        seen |= group
        if len(group) > 1:
            expected.append(sorted(group))
    expected.sort(key=lambda group: (-len(group), group[0]))
    assert expected
    assert [group.tolist() for group in near_duplicates(rows)] == expected


def test_a_collapsed_catalogue_is_one_group() -> None:
    rows = np.full((700, 64), 0.125, np.float32)
    rows[3] *= -1
    assert [len(group) for group in near_duplicates(rows)] == [699]


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_the_mean_cosine_is_that_of_all_pairs(rows: int) -> None:
    embeddings = np.random.default_rng(4).normal(size=(rows, 6)) + 0.5
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [float(embeddings[i] @ embeddings[j]) for i in range(rows) for j in range(rows) if i != j]
    assert mean_cosine(embeddings) == pytest.approx(sum(pairs) / len(pairs) if pairs else 0)
