"""Query tower and index of one run as a servable: a query to document ids."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from q2s_tf.index import Catalogue, Index, Labels
from q2s_tf.index.rows import REFUSED, Accept, Found, best_rows, each_query, pad_rows
from q2s_tf.models import Tower
from q2s_tf.serving.lean import LeanTower
from q2s_tf.serving.signatures import Endpoints, graph_function
from q2s_tf.text import normalise

DEFAULT_K = 10
"""What `serving_default`, which takes no `k`, returns."""
MAX_K = 10_000
"""`k` beyond both this and the catalogue's size is cut: what one request may allocate is bounded."""
LISTED_UP_TO = 20_000
LISTED_SHARE = 16
"""Where a filter leaves no more than 20,000 documents, or a 16th of all, every one of them is scored."""
WIDEST = 8
"""How many times the effort a filter may cost that leaves more of them."""


class RetrieverServable(tf.Module):
    """Query tower and index of one run: a query to document ids.

    An answer is shorter than k only where no more documents are left: if the index found too few, all are scored.

    Args:
        tower: the query tower.
        index: over embeddings of the same run.
        catalogue: what its rows are, and what has changed since it was built.
    """

    def __init__(self, tower: Tower, index: Index, catalogue: Catalogue):
        super().__init__(name="retriever")
        self.tower = LeanTower(tower)
        self.index = index
        self.base, self.indexed = len(catalogue.alive), int(catalogue.alive.sum())
        # One place more, for "no document": row −1 is read from there.
        self.document_ids = tf.Variable(np.append(catalogue.document_ids, b""), dtype=tf.string, trainable=False)
        self.alive = None if catalogue.alive.all() else tf.Variable(_alive(catalogue), trainable=False)
        self.delta = tf.Variable(catalogue.delta, trainable=False) if len(catalogue.delta) else None
        self.labels = Labels(catalogue.filters) if catalogue.filters else None
        self.texts: tuple[tf.TensorSpec, ...] = tuple(tower.preprocessor.signature().values())
        self.endpoints = self._endpoints(tf.TensorSpec([None, tower.dimension], tf.float32, "embedding"))

    def _endpoints(self, embedding: tf.TensorSpec) -> Endpoints:
        """The signatures' functions by name; those with filters where there are filters."""
        knobs = [
            tf.TensorSpec([], tf.int32, "k"),
            tf.TensorSpec([], tf.int32, "effort"),
            tf.TensorSpec([], tf.float32, "min_score"),
        ]
        filters = [
            tf.TensorSpec([None], tf.string, f"filter_{column}")
            for column in (self.labels.columns if self.labels else [])
        ]
        count = len(self.texts)
        lists = {len(specs): specs for specs in (knobs, [*knobs, *filters])}
        # One function for all signatures with the same knobs: its graph is traced and saved once.
        answers = {size: graph_function(self._answer, [embedding, *specs]) for size, specs in lists.items()}

        def retrieve(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            vectors, wanted = self._embed(values[:count]), values[count:]
            return answers[len(wanted)](vectors, *wanted)

        def by_embedding(vectors: tf.Tensor, *wanted: tf.Tensor) -> dict[str, tf.Tensor]:
            return answers[len(wanted)](_unit(vectors), *wanted)

        def serving_default(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return retrieve(*values, tf.constant(DEFAULT_K), tf.constant(0), tf.constant(-1.0))

        def index() -> dict[str, tf.Tensor]:
            partitions = self.index.parameters.get("partitions", 1)
            return {"partitions": tf.constant(partitions), "default_effort": tf.constant(self.index.default_effort)}

        endpoints: Endpoints = {
            "serving_default": graph_function(serving_default, [*self.texts]),
            "retrieve": graph_function(retrieve, [*self.texts, *knobs]),
            "by_embedding": graph_function(by_embedding, [embedding, *knobs]),
            "index": graph_function(index, []),  # what the client's pages start from
        }
        if filters:
            endpoints["retrieve_filtered"] = graph_function(retrieve, [*self.texts, *knobs, *filters])
            endpoints["by_embedding_filtered"] = graph_function(by_embedding, [embedding, *knobs, *filters])
        return endpoints

    def _embed(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """Query vectors `[B, D]` of raw inputs in the order of the signature."""
        inputs = {spec.name: value for spec, value in zip(self.texts, values, strict=True)}
        rows = [tf.shape(value)[0] for value in values]
        message = f"{', '.join(inputs)} must have as many values: one for each query"
        with tf.control_dependencies([tf.debugging.assert_equal(rows, rows[0], message=message)]):
            return self.tower({name: tf.identity(value) for name, value in inputs.items()})["embedding"]

    def _answer(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, min_score: tf.Tensor, *wanted: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ids and scores `[B, k]`; places without a document, or under `min_score`, hold "" and −1.

        An `effort` under 1 is the index's own default. A `k` under 1 is an invalid argument.
        """
        blank = self.document_ids.shape[0] - 1
        with tf.control_dependencies([tf.debugging.assert_positive(k, message="k must be at least 1")]):
            k = tf.minimum(k, max(blank, MAX_K))
        effort = tf.where(effort < 1, self.index.default_effort, effort)
        if self.labels is not None and wanted:
            scores, rows = self._find_filtered(queries, k, effort, self.labels, wanted)
        else:
            scores, rows = self._find(queries, k, effort)
        # An all-zero query, one without a single channel, is near to nothing: it finds no document.
        found = (rows >= 0) & (scores >= min_score) & tf.reduce_any(queries != 0, axis=1, keepdims=True)
        ids = tf.gather(self.document_ids, tf.where(found, rows, blank))
        return {"document_id": ids, "score": tf.where(found, scores, -1.0)}

    def _find(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> Found:
        """The best live documents of each query, `[B, k]`."""
        accept = None if self.alive is None else lambda rows: tf.gather(self.alive, rows)
        found = self.index.search(queries, k, effort, accept)
        return self._complete(queries, k, found, accept, tf.constant(self.indexed))

    def _find_filtered(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, labels: Labels, wanted: Sequence[tf.Tensor]
    ) -> Found:
        """The best live documents of each query that have the values wanted of each column, `[B, k]`."""
        message = "every filter must have as many values as there are queries"
        rows = [tf.shape(values)[0] for values in wanted]
        with tf.control_dependencies([tf.debugging.assert_equal(rows, tf.shape(queries)[0], message=message)]):
            codes = labels.encode([normalise(values) for values in wanted])

        def find(each: tuple[tf.Tensor, tf.Tensor]) -> Found:
            query, codes = each
            start, length = labels.shortest(codes)

            def accept(rows: tf.Tensor) -> tf.Tensor:
                accepted = labels.accept(codes, rows)
                return accepted if self.alive is None else accepted & tf.gather(self.alive, rows)

            def search() -> Found:
                times = tf.clip_by_value(labels.count // tf.maximum(length, 1), 1, WIDEST)
                wide = tf.minimum(effort, tf.int32.max // WIDEST) * times
                scores, rows = self.index.search(query[tf.newaxis], k * times, wide, accept)
                least = tf.minimum(length, self.indexed)
                scores, rows = self._complete(query[tf.newaxis], k, (scores[:, :k], rows[:, :k]), accept, least)
                return scores[0], rows[0]

            return tf.cond(
                tf.reduce_any(codes >= 0) & (length <= max(LISTED_UP_TO, labels.count // LISTED_SHARE)),
                lambda: self._search_list(query, labels.rows(start, length), k, accept),
                search,
            )

        return each_query(find, (queries, codes), k)

    def _complete(
        self, queries: tf.Tensor, k: tf.Tensor, found: Found, accept: Accept | None, expected: tf.Tensor
    ) -> Found:
        """What the index found with the delta beside it, `[B, k]`.

        Where it found fewer than k, and than the documents expected in it, all of its rows are scored.
        """
        scores, rows = pad_rows(found, k)
        short = tf.reduce_sum(tf.cast(rows >= 0, tf.int32), axis=1) < tf.minimum(k, expected)

        def search_all(each: tuple[tf.Tensor, ...]) -> Found:
            query, is_short, scores, rows = each
            return tf.cond(
                is_short,
                lambda: pad_rows(best_rows(self.index.score(query), k, None, accept), k),
                lambda: (scores, rows),
            )

        scores, rows = tf.cond(
            tf.reduce_any(short),
            lambda: each_query(search_all, (queries, short, scores, rows), k),
            lambda: (scores, rows),
        )
        if self.delta is None:
            return scores, rows
        fresh = tf.matmul(queries, self.delta, transpose_b=True)
        fresh_rows = tf.range(self.base, self.base + self.delta.shape[0])
        if accept is not None:
            fresh = tf.where(accept(fresh_rows), fresh, REFUSED)
        scores = tf.concat([tf.where(rows >= 0, scores, REFUSED), fresh], 1)
        return best_rows(scores, k, tf.concat([rows, tf.broadcast_to(fresh_rows, tf.shape(fresh))], 1))

    def _search_list(self, query: tf.Tensor, rows: tf.Tensor, k: tf.Tensor, accept: Accept) -> Found:
        """The best of the listed rows for one query `[D]`, each accepted one scored, `[k]`."""
        rows = tf.boolean_mask(rows, accept(rows))
        old = tf.boolean_mask(rows, rows < self.base)
        scores = self.index.score(query, old)
        if self.delta is not None:
            new = tf.boolean_mask(rows, rows >= self.base)
            fresh = tf.linalg.matvec(tf.gather(self.delta, new - self.base), query)
            scores, old = tf.concat([scores, fresh], 0), tf.concat([old, new], 0)
        return pad_rows(best_rows(scores, k, old), k)


def _alive(catalogue: Catalogue) -> np.ndarray:
    """Which rows are no tombstones, `[N + n]`."""
    return np.concatenate([catalogue.alive, np.ones(len(catalogue.delta), bool)])


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    """Vectors `[B, D]` in unit length."""
    # By the largest number first: the square of a very large or small one is no float32.
    vectors = tf.math.divide_no_nan(vectors, tf.reduce_max(tf.abs(vectors), axis=1, keepdims=True))
    return tf.math.l2_normalize(vectors, axis=1)
