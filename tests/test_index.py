"""The kinds of index: the exact index compared with NumPy, the others with the exact index."""

from collections.abc import Callable
from typing import Any

import numpy as np
import preloaded
import pytest
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.index import ExactIndex, Index, PartitionedIndex, build_index, exact, restore_index

DIMENSION = 16


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int = 0, clusters: int = 40) -> np.ndarray:
    """Vectors around centres, as embeddings of a catalogue are."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, DIMENSION))
    return unit(
        centres[generator.integers(clusters, size=count)] + generator.normal(scale=0.3, size=(count, DIMENSION))
    )


def queries_near(embeddings: np.ndarray, count: int = 20) -> np.ndarray:
    generator = np.random.default_rng(9)
    chosen = embeddings[generator.integers(len(embeddings), size=count)]
    return unit(chosen + generator.normal(scale=0.1, size=chosen.shape))


def one_trace(index: Index) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`search` as the servables call it: all parameters are tensors, and it is traced once."""
    specs = [
        tf.TensorSpec([None, DIMENSION], tf.float32),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int32),
    ]
    function = tf.function(index.search, input_signature=specs, autograph=False)
    order = getattr(index, "order", None)

    def search(queries: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = function(tf.constant(queries), tf.constant(k), tf.constant(effort))
        assert function.experimental_get_tracing_count() == 1
        rows = rows.numpy()
        return scores.numpy(), rows if order is None else np.where(rows < 0, np.int32(-1), order[rows])

    return search


def build_in_order(kind: str, embeddings: np.ndarray, **options: Any) -> Any:
    """An index that remembers which of the embeddings its rows are, for `one_trace`."""
    index, order = build_index(kind, embeddings, 1, **options)
    assert sorted(order.tolist()) == list(range(len(embeddings)))
    index.order = order  # type: ignore[attr-defined]
    return index


def check_answer(embeddings: np.ndarray, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """Check what holds for all results: falling scores, each the cosine of its row, no row twice, −1 last."""
    assert scores.dtype == np.float32
    assert rows.dtype == np.int32
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    for query, row_scores, results in zip(queries, scores, rows, strict=True):
        present = results >= 0
        assert (results[~present] == -1).all()
        assert (row_scores[~present] == -1).all()
        assert present[: present.sum()].all()
        assert len(set(results[present].tolist())) == present.sum()
        np.testing.assert_allclose(row_scores[present], embeddings[results[present]] @ query, atol=1e-5)


def recall(embeddings: np.ndarray, queries: np.ndarray, rows: np.ndarray, k: int) -> float:
    best = np.argsort(-(queries @ embeddings.T), axis=1)[:, :k]
    pairs = zip(best.tolist(), rows.tolist(), strict=True)
    return float(np.mean([len(set(expected) & set(results)) / k for expected, results in pairs]))


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return clustered(2_000)


@pytest.fixture(scope="module")
def queries(embeddings: np.ndarray) -> np.ndarray:
    return queries_near(embeddings)


@pytest.fixture(scope="module")
def partitioned(embeddings: np.ndarray) -> Index:
    return build_in_order("partitioned", embeddings)


# --- exact


@pytest.mark.parametrize("k", [1, 7, 2_000, 5_000])
def test_exact_is_a_sort_of_all_cosines(embeddings: np.ndarray, queries: np.ndarray, k: int) -> None:
    scores, rows = one_trace(ExactIndex(embeddings))(queries, k, 1)
    check_answer(embeddings, queries, scores, rows)
    expected = -np.sort(-(queries @ embeddings.T), axis=1)[:, :k]
    np.testing.assert_allclose(scores[:, :2_000], expected, atol=1e-5)
    assert (scores[:, 2_000:] == -1).all()


def test_effort_changes_nothing_in_the_exact_index(embeddings: np.ndarray, queries: np.ndarray) -> None:
    search = one_trace(ExactIndex(embeddings))
    for effort in (-3, 0, 2**31 - 1):
        np.testing.assert_array_equal(search(queries, 9, effort)[1], search(queries, 9, 1)[1])


# --- partitioned


def test_all_partitions_give_the_exact_answer(embeddings: np.ndarray, queries: np.ndarray, partitioned: Index) -> None:
    search, exact = one_trace(partitioned), one_trace(ExactIndex(embeddings))
    for k, effort in ((1, 10**6), (50, 2**31 - 1), (2_000, partitioned.parameters["partitions"]), (5_000, 10**6)):
        scores, rows = search(queries, k, effort)
        check_answer(embeddings, queries, scores, rows)
        np.testing.assert_allclose(scores, exact(queries, k, 1)[0], atol=1e-5)


def test_recall_grows_with_effort(embeddings: np.ndarray, queries: np.ndarray, partitioned: Index) -> None:
    search = one_trace(partitioned)
    recalls = []
    for effort in (1, 2, 4, 8, 16, 32, 125):
        scores, rows = search(queries, 50, effort)
        check_answer(embeddings, queries, scores, rows)
        recalls.append(recall(embeddings, queries, rows, 50))
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.95, "one partition cannot hold everything near"
    assert recalls[-1] == 1


def test_an_effort_under_one_searches_one_partition(queries: np.ndarray, partitioned: Index) -> None:
    search = one_trace(partitioned)
    for effort in (0, -5):
        np.testing.assert_array_equal(search(queries, 9, effort)[1], search(queries, 9, 1)[1])


def test_k_beyond_the_partitions_searched_ends_in_blanks(
    embeddings: np.ndarray, queries: np.ndarray, partitioned: Index
) -> None:
    scores, rows = one_trace(partitioned)(queries, 1_500, 2)
    check_answer(embeddings, queries, scores, rows)
    assert (rows == -1).any(), "partitions differ in size, so a batch has rows to fill"


def test_the_default_effort_reaches_the_recall_it_promises(embeddings: np.ndarray, partitioned: Index) -> None:
    queries = queries_near(embeddings, 200)
    rows = one_trace(partitioned)(queries, 100, partitioned.default_effort)[1]
    assert recall(embeddings, queries, rows, 100) > 0.93
    assert partitioned.parameters["sample_recall_at_100"] >= 0.95
    assert partitioned.default_effort < partitioned.parameters["partitions"]


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_catalogue_of_a_few_documents(count: int) -> None:
    few = clustered(count, seed=3)
    scores, rows = one_trace(build_in_order("partitioned", few))(few, 20, 10**6)
    check_answer(few, few, scores, rows)
    assert recall(few, few, rows, count) == 1


def test_documents_that_are_all_alike_are_all_found() -> None:
    same = np.repeat(clustered(1), 30, axis=0)
    scores, rows = one_trace(build_in_order("partitioned", same))(same[:2], 30, 10**6)
    check_answer(same, same[:2], scores, rows)
    assert sorted(rows[0].tolist()) == list(range(30))


# --- ScaNN


@pytest.fixture(scope="module")
def scann(embeddings: np.ndarray) -> Any:
    return build_in_order("scann", embeddings)


@pytest.mark.parametrize("effort", [10**6, 2**31 - 1])
def test_scann_finds_nearly_everything_in_all_leaves(
    embeddings: np.ndarray, queries: np.ndarray, scann: Any, effort: int
) -> None:
    search = one_trace(scann)
    for k in (1, 10, 100):
        scores, rows = search(queries, k, effort)
        assert rows.shape == (len(queries), k)
        check_answer(embeddings, queries, scores, rows)
        assert recall(embeddings, queries, rows, k) >= 0.9


def test_scann_searches_more_with_more_effort(embeddings: np.ndarray, queries: np.ndarray, scann: Any) -> None:
    search = one_trace(scann)
    recalls = [recall(embeddings, queries, search(queries, 50, effort)[1], 50) for effort in (0, 1, 4, 16, 45)]
    assert recalls[0] == recalls[1] < recalls[2] <= recalls[3] <= recalls[4] + 0.02


def test_scann_fills_a_k_above_the_catalogue(embeddings: np.ndarray, queries: np.ndarray, scann: Any) -> None:
    scores, rows = one_trace(scann)(queries, 5_000, 10**6)
    check_answer(embeddings, queries, scores, rows)
    assert (rows[:, 2_000:] == -1).all()


def test_two_scann_indexes_of_one_process_stay_apart(embeddings: np.ndarray, scann: Any) -> None:
    other = clustered(1_200, seed=77)
    another = build_in_order("scann", other)
    for index, vectors in ((scann, embeddings), (another, other), (scann, embeddings)):
        queries = queries_near(vectors, 5)
        scores, rows = one_trace(index)(queries, 5, 10**6)
        check_answer(vectors, queries, scores, rows)
        assert recall(vectors, queries, rows, 5) >= 0.9


# --- what all kinds share


@pytest.fixture(scope="module", params=["exact", "partitioned", "bfloat16", "int8", "scann"])
def index(request: pytest.FixtureRequest, embeddings: np.ndarray, partitioned: Index, scann: Any) -> Any:
    ready = {"partitioned": partitioned, "scann": scann}
    if request.param in ready:
        return ready[request.param]
    if request.param == "exact":
        return build_in_order("exact", embeddings)
    return build_in_order("partitioned", embeddings, storage=request.param)


def test_more_recall_costs_more_effort(embeddings: np.ndarray, partitioned: Index, scann: Any) -> None:
    for usual in (partitioned, scann):
        easy, _ = build_index(usual.parameters["kind"], embeddings, 1, recall=0.6)
        assert easy.default_effort < usual.default_effort
        for built, target in ((easy, 0.6), (usual, 0.95)):
            assert built.parameters["sample_recall_at_100"] >= target
            assert built.parameters["target_recall"] == target


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_no_lower_effort_would_do(embeddings: np.ndarray, storage: str) -> None:
    """On the sample, an effort that is 5% lower misses the recall."""
    queries = queries_near(embeddings, 200)
    index = build_in_order("partitioned", embeddings, recall=0.9, storage=storage, queries=queries)
    search, effort = one_trace(index), index.default_effort
    reached, lower = (
        recall(embeddings, queries, search(queries, 100, each)[1], 100) for each in (effort, effort - 1 - effort // 20)
    )
    assert reached == pytest.approx(index.parameters["sample_recall_at_100"], abs=1e-4)
    assert lower < 0.9 <= reached


def test_real_queries_set_the_effort(embeddings: np.ndarray) -> None:
    """Queries that are documents need less effort than random queries."""
    near = build_index("partitioned", embeddings, 1, queries=embeddings[:200])[0]
    far = build_index("partitioned", embeddings, 1, queries=unit(np.random.default_rng(5).normal(size=(200, 16))))[0]
    assert near.default_effort < far.default_effort
    assert near.parameters["sample"] == "queries"


def test_scores_of_rows_are_their_cosines(index: Any, embeddings: np.ndarray, queries: np.ndarray) -> None:
    """In the precision of the storage: 8 bits of a number in bfloat16, 127 steps of the largest in int8."""
    atol = {"bfloat16": 4e-3, "int8": 1e-2}.get(index.parameters.get("storage", ""), 1e-5)
    order = getattr(index, "order", np.arange(len(embeddings)))
    rows = np.array([5, 0, 1_999, 5], np.int32)
    few, every = index.score(tf.constant(queries), tf.constant(rows)), index.score(tf.constant(queries))
    np.testing.assert_allclose(few, queries @ embeddings[order[rows]].T, atol=atol)
    np.testing.assert_allclose(every, queries @ embeddings[order].T, atol=atol)


def test_a_restored_index_answers_as_the_one_that_was_saved(
    index: Any, embeddings: np.ndarray, queries: np.ndarray, tmp_path: Any
) -> None:
    checkpoint = tf.train.Checkpoint(index=index).write(str(tmp_path / "saved"))
    reader, value = tf.train.load_checkpoint(checkpoint), "/.ATTRIBUTES/VARIABLE_VALUE"
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("index/") and value in name]
    tensors = {name.removeprefix("index/").removesuffix(value): reader.get_tensor(name) for name in names}
    restored = restore_index(dict(index.parameters), tensors)
    restored.order = getattr(index, "order", None)  # type: ignore[attr-defined]
    for effort in (3, 10**6):
        results, expected = (one_trace(each)(queries, 30, effort) for each in (restored, index))
        np.testing.assert_allclose(results[0], expected[0], atol=1e-6)
        np.testing.assert_array_equal(results[1], expected[1])
    stored = restored.stored_embeddings(np.arange(2_000))
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, embeddings[getattr(index, "order", np.arange(2_000))], atol=1e-2)


def test_int8_takes_a_quarter_of_the_memory(index: Any, embeddings: np.ndarray) -> None:
    share = {"bfloat16": 2, "int8": 4}.get(index.parameters.get("storage", ""), 1)
    if index.parameters["kind"] == "partitioned":
        assert index.embeddings.numpy().nbytes == embeddings.nbytes / share


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 11])
def test_scores_in_chunks_are_those_of_all_rows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MAX_GATHERED", 4 * DIMENSION)
    vectors = clustered(20)
    rows = np.random.default_rng(count).integers(20, size=count).astype(np.int32)
    scores = ExactIndex(vectors).score(tf.constant(vectors[:2]), tf.constant(rows))
    np.testing.assert_allclose(scores, vectors[:2] @ vectors[rows].T, atol=1e-6)


# --- which kind


def test_the_kind_is_chosen_by_name_or_by_size(embeddings: np.ndarray) -> None:
    assert isinstance(build_index("exact", embeddings, 1)[0], ExactIndex)
    assert isinstance(build_index("partitioned", embeddings, 1)[0], PartitionedIndex)
    assert isinstance(build_index(None, embeddings, 1)[0], ExactIndex)
    with pytest.raises(InputError, match="index 'hnsw': must be one of exact, partitioned, scann"):
        build_index("hnsw", embeddings, 1)
    with pytest.raises(InputError, match="index scann: needs .*1000 documents; got 999"):
        build_index("scann", embeddings[:999], 1)
    with pytest.raises(InputError, match="storage 'int4': must be one of float32, bfloat16, int8"):
        build_index("partitioned", embeddings, 1, storage="int4")
    for kind in (None, "exact", "scann"):
        with pytest.raises(InputError, match="storage int8: only the index partitioned can have it"):
            build_index(kind, embeddings, 1, storage="int8")
    for recall in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="recall .*: must be above 0 and at most 1"):
            build_index("partitioned", embeddings, 1, recall=recall)


def test_the_default_is_partitions_only_where_they_save_work() -> None:
    generator = np.random.default_rng(4)
    centres = generator.normal(size=(200, 16))
    clustered = np.repeat(centres, 101, axis=0) + generator.normal(scale=0.05, size=(20_200, 16))
    blurred = generator.normal(size=(20_200, 16))
    for vectors, kind in ((clustered, PartitionedIndex), (blurred, ExactIndex)):
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        assert isinstance(build_index(None, unit, 1)[0], kind)


def test_a_batch_takes_no_more_memory_than_its_queries_one_by_one() -> None:
    """32 queries that score 20,000 documents of 256 numbers: 650 MB of candidates if all were gathered at once."""
    script = """
import resource, numpy as np, tensorflow as tf
from q2s_tf.index import PartitionedIndex
vectors = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
starts = np.arange(0, 20_001, 100, dtype=np.int32)
index = PartitionedIndex(vectors[:200], starts, vectors, None, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index.search(tf.constant(vectors[:32]), tf.constant(10), tf.constant(199))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = preloaded.run(["-c", script])
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < 200_000, "KiB"


def test_an_empty_batch_gives_empty_results(embeddings: np.ndarray, partitioned: Index) -> None:
    for index in (ExactIndex(embeddings), partitioned):
        scores, _ = one_trace(index)(np.empty((0, DIMENSION), np.float32), 5, 3)
        assert len(scores) == 0
