"""Near-duplicates, hubs, map and clusters of embeddings, and learning curves, against plain computations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from q2s_tf.report.analysis import read_curves
from q2s_tf.report.embedding_space import draw_map, measure_hubness, name_clusters, near_duplicates


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


def test_hubness_is_its_formula() -> None:
    generator = np.random.default_rng(5)
    retrieved = np.stack([generator.choice(40, size=12, replace=False, p=np.arange(1, 41) / 820) for _ in range(25)])
    retrieved[3] = [7, *[-1] * 11]
    counts = [sum(document in row[:10] for row in retrieved.tolist()) for document in range(40)]
    mean = sum(counts) / 40
    spread = math.sqrt(sum((count - mean) ** 2 for count in counts) / 40)
    hubness = measure_hubness(retrieved, 40, hubs=3)
    assert hubness.skewness == pytest.approx(sum((count - mean) ** 3 for count in counts) / 40 / spread**3)
    assert hubness.even == pytest.approx(mean**-0.5)
    assert hubness.never == counts.count(0) / 40
    assert hubness.hubs == sorted(enumerate(counts), key=lambda pair: (-pair[1], pair[0]))[:3]
    assert hubness.histogram == [counts.count(value) for value in range(max(counts) + 1)]


def test_hubness_without_results() -> None:
    assert measure_hubness(np.full((2, 10), -1), 3).hubs == []
    assert measure_hubness(np.array([[0, 1, 2]]), 3).skewness == 0


@pytest.mark.parametrize("rows", [1, 2, 9, 40])
def test_a_map_places_every_document(rows: int) -> None:
    embeddings = np.random.default_rng(1).normal(size=(rows, 6)).astype(np.float32)
    places = draw_map(embeddings, seed=1)
    assert places.shape == (rows, 2)
    assert np.isfinite(places).all()


def test_a_map_keeps_neighbours_together() -> None:
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(3), 20)
    places = draw_map(np.eye(3)[groups] * 10 + generator.normal(size=(60, 3)), seed=1)
    centres = np.array([places[groups == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == groups).mean() > 0.95


def test_clusters_are_named_by_distinctive_words() -> None:
    embeddings = np.eye(2)[[0, 0, 0, 1, 1]]
    titles = ["red sofa 12", "blue Sofa new", "sofa bed new", "new lamp", "desk lamp"]
    names = name_clusters(embeddings, titles, clusters=2, seed=1)
    assert len(set(names[:3])) == len(set(names[3:])) == 1
    assert names[0].startswith("sofa, ")
    assert names[3].startswith("lamp, ")


def test_an_epoch_that_was_resumed_counts_once(tmp_path: Path) -> None:
    lines = [
        {"stage": 1, "epoch": 1, "loss": 3.0},
        {"stage": 2, "epoch": 1, "loss": 9.0},
        {"stage": 1, "epoch": 1, "loss": 2.0},
    ]
    assert read_curves(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [line["loss"] for line in read_curves(tmp_path)] == [2.0, 9.0]
