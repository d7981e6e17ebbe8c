"""Query tower and index of one run as a servable, from a query to document ids."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from q2s_tf.index import FilterColumns, Index, IndexedDocuments
from q2s_tf.index.search_ops import EXCLUDED, RowFilter, ScoredRows, map_queries, pad_rows, top_rows
from q2s_tf.models import Tower
from q2s_tf.serving.tower_servable import Endpoints, TowerServable, graph_function
from q2s_tf.text import normalise

DEFAULT_K = 10
"""Results of `serving_default`, which takes no `k`."""
MAX_K = 10_000
"""`k` is cut to this or to the number of documents, whichever is more, to bound the memory of one request."""
LISTED_UP_TO = 20_000
LISTED_SHARE = 16
"""If a filter leaves at most 20,000 documents, or a 16th of all, each of them is scored."""
MAX_WIDENING = 8
"""If a filter leaves more, the effort is multiplied by up to this."""


class RetrieverServable(tf.Module):
    """Query tower and index of one run, from a query to document ids.

    A result has fewer than k documents only if no more documents are left: if the index returns too few, all rows are
    scored.

    Args:
        tower: The query tower.
        index: Index over document embeddings of the same run.
        documents: The documents behind the rows, with the changes since the index was built.
    """

    def __init__(self, tower: Tower, index: Index, documents: IndexedDocuments):
        super().__init__(name="retriever")
        self.tower = TowerServable(tower)
        self.unread = self.tower.unread
        self.index = index
        self.base, self.indexed = len(documents.alive), int(documents.alive.sum())
        # Row −1, no document, is read from the additional last position.
        self.document_ids = tf.Variable(np.append(documents.document_ids, b""), dtype=tf.string, trainable=False)
        self.alive = None if documents.alive.all() else tf.Variable(documents.live_rows, trainable=False)
        self.delta = tf.Variable(documents.delta, trainable=False) if len(documents.delta) else None
        self.filters = FilterColumns(documents.filters) if documents.filters else None
        self.endpoints = self._make_endpoints(tf.TensorSpec([None, tower.config.dimension], tf.float32, "embedding"))

    def _make_endpoints(self, embedding: tf.TensorSpec) -> Endpoints:
        """The functions of the signatures by name, those with filters only if there are filter columns."""
        dtypes = {"k": tf.int32, "effort": tf.int32, "min_score": tf.float32}
        parameters = [tf.TensorSpec([], dtype, name) for name, dtype in dtypes.items()]
        columns = self.filters.columns if self.filters else ()
        filtered = [*parameters, *(tf.TensorSpec([None], tf.string, f"filter_{column}") for column in columns)]
        texts = self.tower.specs
        # Signatures with the same search parameters share one function, which is traced and saved once.
        searches = {len(specs): graph_function(self._search, [embedding, *specs]) for specs in (parameters, filtered)}

        def retrieve(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            embeddings, options = self._embed(values[: len(texts)]), values[len(texts) :]
            return searches[len(options)](embeddings, *options)

        def by_embedding(vectors: tf.Tensor, *options: tf.Tensor) -> dict[str, tf.Tensor]:
            # Divide by the largest number first: the square of a very large or small one does not fit float32.
            vectors = tf.math.divide_no_nan(vectors, tf.reduce_max(tf.abs(vectors), axis=1, keepdims=True))
            return searches[len(options)](tf.math.l2_normalize(vectors, axis=1), *options)

        def serving_default(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return retrieve(*values, tf.constant(DEFAULT_K), tf.constant(0), tf.constant(-1.0))

        def index() -> dict[str, tf.Tensor]:
            partitions = self.index.parameters.get("partitions", 1)
            return {"partitions": tf.constant(partitions), "default_effort": tf.constant(self.index.default_effort)}

        endpoints: Endpoints = {
            "serving_default": graph_function(serving_default, texts),
            "retrieve": graph_function(retrieve, [*texts, *parameters]),
            "by_embedding": graph_function(by_embedding, [embedding, *parameters]),
            "index": graph_function(index, []),
        }
        if columns:
            endpoints["retrieve_filtered"] = graph_function(retrieve, [*texts, *filtered])
            endpoints["by_embedding_filtered"] = graph_function(by_embedding, [embedding, *filtered])
        return endpoints

    def _embed(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """Query embeddings `[B, D]` of raw inputs in the order of the signature."""
        inputs = {spec.name: value for spec, value in zip(self.tower.specs, values, strict=True)}
        lengths = [tf.shape(value)[0] for name, value in inputs.items() if name not in self.unread]
        message = f"{', '.join(inputs)} must have the same number of values, one for each query"
        with tf.control_dependencies([tf.debugging.assert_equal(lengths, lengths[0], message=message)]):
            return self.tower({name: tf.identity(value) for name, value in inputs.items()})["embedding"]

    def _search(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, min_score: tf.Tensor, *wanted: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ids and scores `[B, k]`, "" and −1 where there is no document or its score is below `min_score`.

        An `effort` below 1 stands for the default of the index. A `k` below 1 is an invalid argument.
        """
        no_document = self.document_ids.shape[0] - 1
        with tf.control_dependencies([tf.debugging.assert_positive(k, message="k must be at least 1")]):
            k = tf.minimum(k, max(no_document, MAX_K))
        effort = tf.where(effort < 1, self.index.default_effort, effort)
        if self.filters is not None and wanted:
            scores, rows = self._search_filtered(queries, k, effort, self.filters, wanted)
        else:
            row_filter = None if self.alive is None else lambda rows: tf.gather(self.alive, rows)
            indexed = self.index.search(queries, k, effort, row_filter)
            scores, rows = self._complete(queries, k, indexed, row_filter, tf.constant(self.indexed))
        # A query without any channel has a zero vector, which has no nearest documents.
        present = (rows >= 0) & (scores >= min_score) & tf.reduce_any(queries != 0, axis=1, keepdims=True)
        ids = tf.gather(self.document_ids, tf.where(present, rows, no_document))
        return {"document_id": ids, "score": tf.where(present, scores, -1.0)}

    def _search_filtered(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, filters: FilterColumns, wanted: Sequence[tf.Tensor]
    ) -> ScoredRows:
        """The best live documents `[B, k]` of each query that have the wanted value in each column."""
        message = "every filter must have as many values as there are queries"
        lengths = [tf.shape(values)[0] for values in wanted]
        with tf.control_dependencies([tf.debugging.assert_equal(lengths, tf.shape(queries)[0], message=message)]):
            codes = filters.encode([normalise(values) for values in wanted])

        def search_one(elements: tuple[tf.Tensor, tf.Tensor]) -> ScoredRows:
            query, codes = elements
            start, length = filters.shortest_list(codes)

            def row_filter(rows: tf.Tensor) -> tf.Tensor:
                matches = filters.matches(codes, rows)
                return matches if self.alive is None else matches & tf.gather(self.alive, rows)

            def search_index() -> ScoredRows:
                widening = tf.clip_by_value(filters.count // tf.maximum(length, 1), 1, MAX_WIDENING)
                wide_effort = tf.minimum(effort, tf.int32.max // MAX_WIDENING) * widening
                scores, rows = self.index.search(query[tf.newaxis], k * widening, wide_effort, row_filter)
                expected = tf.minimum(length, self.indexed)
                indexed = scores[:, :k], rows[:, :k]
                scores, rows = self._complete(query[tf.newaxis], k, indexed, row_filter, expected)
                return scores[0], rows[0]

            return tf.cond(
                tf.reduce_any(codes >= 0) & (length <= max(LISTED_UP_TO, filters.count // LISTED_SHARE)),
                lambda: self._search_rows(query, filters.list_rows(start, length), k, row_filter),
                search_index,
            )

        return map_queries(search_one, (queries, codes), k)

    def _complete(
        self, queries: tf.Tensor, k: tf.Tensor, indexed: ScoredRows, row_filter: RowFilter | None, expected: tf.Tensor
    ) -> ScoredRows:
        """The results of the index merged with those of the delta, `[B, k]`.

        All rows are scored for a query with fewer results than k and than the documents that are expected.
        """
        scores, rows = pad_rows(indexed, k)
        short = tf.reduce_sum(tf.cast(rows >= 0, tf.int32), axis=1) < tf.minimum(k, expected)

        def search_all(elements: tuple[tf.Tensor, ...]) -> ScoredRows:
            query, is_short, scores, rows = elements
            return tf.cond(
                is_short,
                lambda: pad_rows(top_rows(self.index.score(query), k, None, row_filter), k),
                lambda: (scores, rows),
            )

        scores, rows = tf.cond(
            tf.reduce_any(short),
            lambda: map_queries(search_all, (queries, short, scores, rows), k),
            lambda: (scores, rows),
        )
        if self.delta is None:
            return scores, rows
        delta_scores = tf.matmul(queries, self.delta, transpose_b=True)
        delta_rows = tf.range(self.base, self.base + self.delta.shape[0])
        if row_filter is not None:
            delta_scores = tf.where(row_filter(delta_rows), delta_scores, EXCLUDED)
        scores = tf.concat([tf.where(rows >= 0, scores, EXCLUDED), delta_scores], 1)
        return top_rows(scores, k, tf.concat([rows, tf.broadcast_to(delta_rows, tf.shape(delta_scores))], 1))

    def _search_rows(self, query: tf.Tensor, rows: tf.Tensor, k: tf.Tensor, row_filter: RowFilter) -> ScoredRows:
        """The best `[k]` of the given rows for one query `[D]`, by scoring each that the filter accepts."""
        rows = tf.boolean_mask(rows, row_filter(rows))
        indexed = tf.boolean_mask(rows, rows < self.base)
        scores = self.index.score(query, indexed)
        if self.delta is None:
            return pad_rows(top_rows(scores, k, indexed), k)
        fresh = tf.boolean_mask(rows, rows >= self.base)
        fresh_scores = tf.linalg.matvec(tf.gather(self.delta, fresh - self.base), query)
        merged = tf.concat([scores, fresh_scores], 0), tf.concat([indexed, fresh], 0)
        return pad_rows(top_rows(merged[0], k, merged[1]), k)
