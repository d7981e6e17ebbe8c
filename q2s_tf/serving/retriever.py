"""Query tower and index of one run as a servable, from a query to document ids."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.index import FilterColumns, Index, IndexedDocuments
from q2s_tf.index.filter_columns import ANY
from q2s_tf.index.lexical import LexicalIndex, LexicalScores
from q2s_tf.index.search_ops import EXCLUDED, ScoredRows, best_rows, gather, map_queries
from q2s_tf.models import Tower
from q2s_tf.serving import MAX_RESULTS
from q2s_tf.serving.tower_servable import Endpoints, TowerServable, graph_function
from q2s_tf.text import normalise

DEFAULT_K = 10
"""Results of `serving_default`, which takes no `k`."""
MAX_K = 10_000
"""`k` is cut to this or to the number of documents, whichever is more."""
MAX_SCORES = 2**24
"""Scores of a scan that are in memory at a time (64 MB), if one query does not need more."""
LISTED_UP_TO = 20_000
LISTED_SHARE = 16
"""If a filter leaves at most 20,000 documents of a larger index, or a 16th of all, each of them is scored."""
MAX_WIDENING = 8
"""If a filter leaves more, the effort is multiplied by up to this."""
MAX_LEXICAL_WEIGHT = 100.0
"""With a larger λ, float32 has too few digits for the cosine in the sum."""
IDS = 2**18
"""Ids that are copied to a variable at a time."""
Added = Callable[[tf.Tensor | None], tf.Tensor]
"""From rows int32 (all when None) to what is added to their cosines."""
CANDIDATES = 100
"""Candidates of each index, at least, when two are fused."""
FETCHED_MULTIPLE = 4
"""Candidates that an index is asked for, as a multiple of k, if some of them may not be returned."""


class RetrieverServable(tf.Module):
    """Query tower and index of one run, from a query to document ids.

    Each signature selects in the same way: the index and the delta name candidates, each candidate is scored, those
    that are deleted or do not match the filters are excluded, and the best k are returned, or the best of each of k
    groups. If that leaves fewer than k documents and there are more, all documents are scored.

    With a lexical index, the documents with the highest BM25 of the query are candidates too, and

        score(d) = cos(q, d) + λ · BM25(q, d) / max BM25(q)

    Args:
        tower: The query tower.
        index: Index over document embeddings of the same run.
        documents: The documents behind the rows, with the changes since the index was built.
        lexical_weight: λ of requests that give none.
    """

    def __init__(self, tower: Tower, index: Index, documents: IndexedDocuments, lexical_weight: float = 0.0):
        super().__init__(name="retriever")
        self.tower = TowerServable(tower)
        self.index = index
        rows, live = documents.rows, documents.live_rows
        self.base, self.count = len(documents.alive), len(live)
        # Row −1, no document, is read from the additional last position.
        self.document_ids = _ids_variable(rows.ids)
        self.alive = None if live.all() else tf.Variable(live, trainable=False)
        self.delta = tf.Variable(documents.delta, trainable=False) if len(documents.delta) else None
        self.filters = FilterColumns(rows.filters, self.base) if rows.filters else None
        self.groups = None if rows.groups is None else tf.Variable(rows.groups, trainable=False)
        self.lexical = None if documents.postings is None else LexicalIndex(documents.postings, self.count)
        self.unread = tuple(name for name in self.tower.unread if name != "query" or self.lexical is None)
        self.lexical_weight = lexical_weight
        self.live_in_index = int(documents.alive.sum())
        self.results = int(live.sum()) if rows.groups is None else len(np.unique(rows.groups[live]))
        self.endpoints = self._make_endpoints(tf.TensorSpec([None, tower.config.dimension], tf.float32, "embedding"))

    def _make_endpoints(self, embedding: tf.TensorSpec) -> Endpoints:
        """The functions of the signatures by name."""
        dtypes = {"k": tf.int32, "effort": tf.int32, "min_score": tf.float32}
        options = [tf.TensorSpec([], dtype, name) for name, dtype in dtypes.items()]
        weight = tf.TensorSpec([], tf.float32, "lexical_weight")
        columns = self.filters.columns if self.filters else ()
        filters = [tf.TensorSpec([None], tf.string, f"filter_{column}") for column in columns]
        texts = self.tower.specs
        query = [spec.name for spec in texts].index("query")
        # Signatures with the same arguments share one graph. A server reads all graphs again for each signature.
        search = tf.function(self._search, autograph=False)

        def words(values: Sequence[tf.Tensor], weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
            return None if self.lexical is None else (values[query], weight)

        def retrieve(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            weight, *options = values[len(texts) :]
            return search(self._embed(*values[: len(texts)]), *options, words=words(values, weight))

        def by_embedding(vectors: tf.Tensor, *options: tf.Tensor) -> dict[str, tf.Tensor]:
            vectors = tf.debugging.check_numerics(vectors, "embedding must hold finite numbers")
            # Divide by the largest number first: the square of a very large or small one does not fit float32.
            vectors = tf.math.divide_no_nan(vectors, tf.reduce_max(tf.abs(vectors), axis=1, keepdims=True))
            return search(tf.math.l2_normalize(vectors, axis=1), *options)

        def serving_default(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            embeddings = self._embed(*values)
            weight, *options = (tf.constant(value) for value in (-1.0, DEFAULT_K, 0, -1.0))
            if not self.index.exhaustive or self.base <= LISTED_UP_TO:  # larger ones are faster without filters
                options += [tf.fill(tf.shape(embeddings)[:1], "")] * len(filters)
            results = search(embeddings, *options, words=words(values, weight))
            return {name: results[name] for name in ("document_id", "score")}

        def index() -> dict[str, tf.Tensor]:
            partitions = self.index.parameters.get("partitions", 1)
            return {"partitions": tf.constant(partitions), "default_effort": tf.constant(self.index.default_effort)}

        return {
            "serving_default": graph_function(serving_default, texts),
            "retrieve": graph_function(retrieve, [*texts, weight, *options, *filters]),
            "by_embedding": graph_function(by_embedding, [embedding, *options, *filters]),
            "index": graph_function(index, []),
        }

    def _embed(self, *values: tf.Tensor) -> tf.Tensor:
        """Query embeddings `[B, D]` of raw inputs in the order of the signature."""
        inputs = {spec.name: value for spec, value in zip(self.tower.specs, values, strict=True)}
        read = tuple(value for name, value in inputs.items() if name not in self.unread)
        message = f"{', '.join(inputs)} must have the same number of values, one for each query"
        with tf.control_dependencies([_check_lengths(read, message)]):
            return self.tower({name: tf.identity(value) for name, value in inputs.items()})["embedding"]

    def _search(
        self,
        queries: tf.Tensor,
        k: tf.Tensor,
        effort: tf.Tensor,
        min_score: tf.Tensor,
        *wanted: tf.Tensor,
        words: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Ids and scores `[B, k]`, "" and −1 where there is no document or its score is below `min_score`.

        `words` are the texts `[B]` of the queries and λ. An `effort` below 1 and a λ below 0 stand for the defaults. A
        `k` below 1 is an invalid argument, and so are more than `MAX_RESULTS` results.
        """
        message = f"k times the number of queries must be at most {MAX_RESULTS}; send fewer queries or a smaller k"
        cut = tf.minimum(k, max(self.count, MAX_K))
        count = tf.cast(cut, tf.int64) * tf.shape(queries, tf.int64)[0]
        checks = [_check(k > 0, "k must be at least 1"), _check(count <= MAX_RESULTS, message)]
        weight = tf.constant(0.0)
        if words is not None:
            message = f"lexical_weight must be a number of at most {MAX_LEXICAL_WEIGHT}"
            checks.append(_check(words[1] <= MAX_LEXICAL_WEIGHT, message))
            weight = tf.where(words[1] < 0, self.lexical_weight, words[1])
        with tf.control_dependencies(checks):
            k = tf.identity(cut)
        min_score = tf.debugging.check_numerics(min_score, "min_score must be a finite number")
        effort = tf.where(effort < 1, self.index.default_effort, effort)
        elements = [queries, self._encode_filters(queries, wanted)]
        if words is not None:
            elements += self._find_words(words[0], weight)
        scan_all = self.index.exhaustive and not (wanted and self.base > LISTED_UP_TO)

        def search_part(queries: tf.Tensor, codes: tf.Tensor, *words: tf.Tensor) -> tuple[tf.Tensor, ...]:
            if self.lexical is None or not words:
                found = self._scan(queries, codes, k) if scan_all else self._search_one(queries, codes, k, effort)
                return *found, tf.zeros_like(found[0])
            bm25, candidates = self._find_documents(words, codes, k)

            def added(rows: tf.Tensor | None) -> tf.Tensor:
                return weight * (bm25.of_all(self.count) if rows is None else bm25.of_rows(rows))

            if scan_all:
                scores, rows = self._scan(queries, codes, k, added)
            else:
                scores, rows = self._search_one(
                    queries, codes, k, effort, added, None if self.index.exhaustive else candidates
                )
            return scores, rows, bm25.of_rows(tf.maximum(rows, 0))

        one_by_one = words is not None or not scan_all or self.groups is not None
        at_once = 1 if one_by_one else max(1, MAX_SCORES // self.count)
        scores, rows, lexical = map_queries(search_part, elements, at_once, [tf.float32, tf.int32, tf.float32])
        # A query without any channel has a zero vector, which has no nearest documents.
        present = (rows >= 0) & (scores >= min_score) & tf.reduce_any(queries != 0, axis=1, keepdims=True)
        return {
            # No other op reads the ids, and a read of all strings would copy them.
            "document_id": tf.gather(self.document_ids, tf.where(present, rows, self.count)),
            "score": tf.where(present, scores, -1.0),
            "embedding_score": tf.where(present, scores - weight * lexical, -1.0),
            "lexical_score": tf.where(present, lexical, 0.0),
        }

    def _find_words(self, texts: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`LexicalIndex.find_words` of raw texts; no words if λ is 0."""
        assert self.lexical is not None
        find_words, none = self.lexical.find_words, [tf.size(texts), 0]
        return tf.cond(
            weight > 0,
            lambda: find_words(normalise(texts)),
            lambda: (tf.zeros(none, tf.int32), tf.zeros(none)),
        )

    def _find_documents(
        self, words: tuple[tf.Tensor, ...], codes: tf.Tensor, k: tf.Tensor
    ) -> tuple[LexicalScores, tf.Tensor]:
        """BM25 of one query by its terms and similarities `[1, W]`, and the candidates of the lexical index."""
        assert self.lexical is not None
        score, no_rows, no_words = self.lexical.score, tf.zeros([0], tf.int32), LexicalScores.from_sums(tf.zeros([1]))

        def find() -> tuple[tf.Tensor, ...]:
            bm25 = score(*words)
            return *bm25, no_rows if self.index.exhaustive else self._lexical_candidates(bm25, codes, k)

        # A request with λ = 0 has no words, and none of these ops runs.
        *bm25, candidates = tf.cond(tf.size(words[0]) > 0, find, lambda: (*no_words, no_rows))
        return LexicalScores(*bm25), candidates

    def _lexical_candidates(self, bm25: LexicalScores, codes: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        """The rows of the index with the highest BM25 among those with a word of the query."""
        if self.delta is not None:
            bm25 = bm25.where(tf.range(self.count) < self.base)
        if self.filters is not None and codes.shape[1]:
            accepts, used, found = self.filters.accepts, tf.reduce_any(codes != ANY), bm25
            bm25 = LexicalScores(*tf.cond(used, lambda: found.where(accepts(codes, None)[0]), lambda: found))
        return bm25.best(tf.maximum(k, CANDIDATES))

    def _encode_filters(self, queries: tf.Tensor, wanted: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """The codes int32 `[B, F]` of the filters of each query; F is 0 if the signature takes none."""
        if self.filters is None or not wanted:
            return tf.zeros([tf.shape(queries)[0], 0], tf.int32)
        message = "every filter must have as many values as there are queries"
        with tf.control_dependencies([_check_lengths((queries, *wanted), message)]):
            values = tf.stack(wanted, axis=1)
        encode = self.filters.encode
        return tf.cond(
            tf.reduce_any(values != ""), lambda: encode(normalise(values)), lambda: tf.fill(tf.shape(values), ANY)
        )

    def _search_one(
        self,
        query: tf.Tensor,
        codes: tf.Tensor,
        k: tf.Tensor,
        effort: tf.Tensor,
        added: Added | None = None,
        candidates: tf.Tensor | None = None,
    ) -> ScoredRows:
        """The best rows `[1, k]` of one query `[1, D]` among the candidates of the indexes or of a filter."""
        filters = self.filters if codes.shape[1] else None
        start, length = filters.shortest_list(codes[0]) if filters else (0, tf.constant(self.base))
        filtered = length < self.base
        listed = filtered & (length <= max(LISTED_UP_TO, self.base // LISTED_SHARE))

        def search_index() -> tf.Tensor:
            if self.index.exhaustive:
                return tf.range(0)  # all documents are scored below
            widening = tf.clip_by_value(self.base // tf.maximum(length, 1), 1, MAX_WIDENING)
            wide_effort = tf.minimum(effort, tf.int32.max // MAX_WIDENING) * widening
            some_excluded = filtered | (self.alive is not None or self.groups is not None)
            count = k if candidates is None else tf.where(tf.size(candidates) > 0, tf.maximum(k, CANDIDATES), k)
            count *= widening * tf.where(some_excluded, FETCHED_MULTIPLE, 1)
            return self.index.candidates(query, count, wide_effort)

        rows = tf.cond(listed, lambda: filters.list_rows(start, length), search_index) if filters else search_index()
        found, repeated = tf.size(rows), None
        if candidates is not None:
            rows, repeated = tf.concat([rows, candidates], 0), tf.size(candidates)
        scores = self._score(query, codes, rows, added)
        best = self._select(scores, k, rows, repeated)
        in_index = _count(scores[:, :found] > EXCLUDED)
        if repeated is not None:  # how many rows both have is not known
            in_index = tf.maximum(in_index, _count(scores[:, found : found + repeated] > EXCLUDED))
        short = in_index < tf.minimum(k, tf.minimum(length, self.live_in_index))
        if self.groups is not None:
            results = tf.minimum(self.results, length + self.count - self.base)
            short |= _count(best[1] >= 0) < tf.minimum(k, results)
        return tf.cond(short & ~listed, lambda: self._scan(query, codes, k, added), lambda: best)

    def _scan(self, queries: tf.Tensor, codes: tf.Tensor, k: tf.Tensor, added: Added | None = None) -> ScoredRows:
        """The best rows `[B, k]` of all."""
        return self._select(self._score(queries, codes, None, added), k)

    def _score(self, queries: tf.Tensor, codes: tf.Tensor, rows: tf.Tensor | None, added: Added | None) -> tf.Tensor:
        """The scores `[B, C + n]` of rows of the index (or all) and of the delta; `EXCLUDED` for rows to leave out."""
        scores = self.index.score(queries, rows)
        if self.delta is not None:
            scores = tf.concat([scores, tf.matmul(queries, self.delta, transpose_b=True)], axis=1)
        rows = self._add_delta(rows)
        if added is not None:
            scores += added(rows)
        if self.alive is not None:
            scores = tf.where(self.alive if rows is None else gather(self.alive, rows), scores, EXCLUDED)
        if self.filters is None or not codes.shape[1]:
            return scores
        accepts = self.filters.accepts
        if rows is None:  # no lookup by row, so the masks cost little, and a branch would make the load slower
            return tf.where(accepts(codes, rows), scores, EXCLUDED)
        used = tf.reduce_any(codes != ANY)
        return tf.cond(used, lambda: tf.where(accepts(codes, rows), scores, EXCLUDED), lambda: scores)

    def _select(
        self, scores: tf.Tensor, k: tf.Tensor, rows: tf.Tensor | None = None, repeated: tf.Tensor | None = None
    ) -> ScoredRows:
        """The best rows `[B, k]` by the scores that `_score` computed for the same rows; see `best_rows`."""
        rows = self._add_delta(rows)
        groups = self.groups if self.groups is None or rows is None else gather(self.groups, rows)
        return best_rows(scores, k, rows, groups, repeated)

    def _add_delta(self, rows: tf.Tensor | None) -> tf.Tensor | None:
        """The given rows and those of the delta; None if all rows are scored."""
        return rows if rows is None or self.delta is None else tf.concat([rows, tf.range(self.base, self.count)], 0)


def _ids_variable(ids: pa.LargeBinaryArray) -> tf.Variable:
    """The ids and an empty one, string `[R + 1]`, stored once, with bytes objects of a part of them at a time."""
    variable = tf.Variable(tf.fill([len(ids) + 1], ""), trainable=False)
    for start in range(0, len(ids), IDS):
        part = ids[start : start + IDS]
        variable[start : start + len(part)].assign(part.to_numpy(zero_copy_only=False))
    return variable


def _count(mask: tf.Tensor) -> tf.Tensor:
    """The number of true values, int32 `[]`."""
    return tf.reduce_sum(tf.cast(mask, tf.int32))


def _check_lengths(values: tuple[tf.Tensor, ...], message: str) -> tf.Operation:
    """An assertion that all tensors have as many rows as the first."""
    lengths = tf.stack([tf.shape(value)[0] for value in values])
    return _check(tf.reduce_all(lengths == lengths[0]), message)


def _check(condition: tf.Tensor, message: str) -> tf.Operation:
    """An assertion; those of `tf.debugging` with a comparison have more ops."""
    return tf.debugging.Assert(condition, [message])
