"""Training examples: pairs of row numbers, drawn in shuffled batches from stored rows.

It is memory-mapped and can be larger than memory, except for 8 bytes a document with a classification head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.examples.stored_rows import RowReader, TowerRows, padded

Batch = dict[str, Any]

NO_COUNTRY = 0
"""Number of a missing country."""
TEACHER = "teacher"
"""Key of the teacher embeddings, in a batch and in the stored rows."""


@dataclass
class HeadLabels:
    """The frequent queries that led to each document, targets of the classification head.

    Attributes:
        count: C, number of queries.
        starts: int64 `[num_documents + 1]`; the labels of document d are `values[starts[d]:starts[d + 1]]`.
        values: int32, from 0, the most frequent query, to C − 1.
    """

    count: int
    starts: np.ndarray
    values: np.ndarray

    @classmethod
    def from_records(cls, records: np.ndarray, count: int, num_documents: int) -> "HeadLabels":
        """Labels from distinct records of `document` and `label`, sorted."""
        return cls(count, np.searchsorted(records["document"], np.arange(num_documents + 1)), records["label"])

    def read(self, documents: np.ndarray) -> np.ndarray:
        """Labels of documents, int32 `[B, K]`, K at least 1, padded with −1."""
        starts, ends = self.starts[documents], self.starts[documents + 1]
        return padded(self.values, starts, ends - starts, fill=-1)


@dataclass
class Examples:
    """Positives as pairs of row numbers, and the stored rows.

    Attributes:
        pairs: records `[P]` of query row, document row and weight (1 + ln of the number of occurrences); the positives,
            then the pseudo-queries.
        num_positives: number of positives.
        num_queries: number of their queries; queries that are equal after normalisation are one.
        group: int64 by query row: queries that are equal after normalisation have the same number.
        known: sorted int64 keys `group · num_documents + document` of every positive.
        queries: preprocessed inputs by query row.
        documents: preprocessed inputs by document row.
        num_documents: size of the catalogue.
        pseudo_share: share of pseudo-queries in a batch.
        labels: targets of the classification head, None without head.
        teacher: teacher embeddings by query row, None without teacher.
        query_country: int32 by query row, equal numbers for equal countries, 0 for a missing one; None if stage 2 uses
            negatives of all countries.
        document_country: the same by document row.
    """

    pairs: np.ndarray
    num_positives: int
    num_queries: int
    group: np.ndarray
    known: np.ndarray
    queries: TowerRows
    documents: TowerRows
    num_documents: int
    pseudo_share: float
    labels: HeadLabels | None = None
    teacher: RowReader | None = None
    query_country: np.ndarray | None = None
    document_country: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_positives

    def positives_per_batch(self, batch_size: int) -> int:
        """Number of positives in a batch; the other rows are pseudo-queries."""
        return min(max(1, round(batch_size * (1 - self.pseudo_share))), self.num_positives)

    def rows_per_batch(self, batch_size: int) -> int:
        """Number of rows of a batch: `batch_size`, or less with fewer positives and no pseudo-queries."""
        return batch_size if self.pseudo_share else self.positives_per_batch(batch_size)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches of an epoch."""
        return self.num_positives // self.positives_per_batch(batch_size)

    def batches(
        self, batch_size: int, seed: tuple[int, ...], hard_negatives: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch, in an order drawn from `seed`. Positives that fill no batch are left out."""
        size = self.positives_per_batch(batch_size)
        pseudo = np.random.default_rng((*seed, 1))
        left = np.empty(0, np.int64)
        for piece in shuffled(self.num_positives, seed):
            left = np.concatenate([left, piece])
            for start in range(0, len(left) - size + 1, size):
                drawn = pseudo.integers(self.num_positives, max(len(self.pairs), self.num_positives + 1), batch_size)
                extra = drawn[: batch_size - size] if self.pseudo_share else drawn[:0]
                yield self.batch(np.concatenate([left[start : start + size], extra]), hard_negatives)
            left = left[len(left) - len(left) % size :]

    def batch(self, numbers: np.ndarray, hard_negatives: np.ndarray | None = None) -> Batch:
        """One batch, by numbers of pairs.

        Args:
            numbers: B numbers of pairs.
            hard_negatives: a document row for each positive, −1 for none. They follow the B documents of the pairs.

        Returns:
            `query` and `document`: inputs of `Tower.encode_channels` of B queries and C documents; `weight` `[B]`;
            `score_mask` `[B, C]`; with a head `labels` `[B, K]`; with a teacher `teacher` `[B, D]`; with negatives of
            the searcher's country `query_country` `[B]` and `document_country` `[C]`.
        """
        numbers = np.sort(numbers)
        pairs = self.pairs[numbers]
        query, document = pairs["query"], pairs["document"]
        if hard_negatives is not None:
            mined = hard_negatives[numbers[numbers < self.num_positives]]
            document = np.concatenate([document, mined[mined >= 0]])
        batch = {
            "query": self.queries.read(query),
            "document": self.documents.read(document),
            "weight": pairs["weight"].copy(),
            "score_mask": self.negatives(query, document),
        }
        if self.labels:
            batch["labels"] = self.labels.read(pairs["document"])
        if self.teacher:
            batch[TEACHER] = self.teacher.read(query)[TEACHER][:, 0]
        if self.query_country is not None and self.document_country is not None:
            batch |= {"query_country": self.query_country[query], "document_country": self.document_country[document]}
        return batch

    def negatives(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        """Whether document j is a negative of query i: not a known positive of it. The diagonal is True.

        Returns:
            bool `[B, C]`.
        """
        keys = self.group["group"][query][:, None] * self.num_documents + document[None, :]
        positions = np.searchsorted(self.known["known"], keys)
        mask = self.known["known"][np.minimum(positions, len(self.known) - 1)] != keys
        np.fill_diagonal(mask, True)
        return mask

    def known_documents(self, query: int) -> np.ndarray:
        """The rows of the known positives of a query row and of the queries that are equal to it, sorted."""
        first = self.group["group"][query] * self.num_documents
        start, end = np.searchsorted(self.known["known"], [first, first + self.num_documents])
        return self.known["known"][start:end] - first

    def dataset(
        self,
        batch_size: int,
        seed: tuple[int, ...],
        epoch: Callable[[], int] | None = None,
        hard_negatives: Callable[[], np.ndarray] | None = None,
    ) -> tf.data.Dataset:
        """The batches of an epoch as a data set, in another order each time it is iterated.

        Args:
            batch_size: B, positives and pseudo-queries together.
            seed: of the order.
            epoch: number of the epoch that begins, part of the seed; by default the number of iterations so far.
            hard_negatives: those of `batch` in the epoch that begins; none by default.
        """
        iterations = iter(range(1, 1 << 30))
        number = epoch or (lambda: next(iterations))
        first = self.batch(np.zeros(1, np.int64))
        steps = self.steps_per_epoch(batch_size)

        def batches() -> Iterator[Batch]:
            return self.batches(batch_size, (*seed, number()), hard_negatives() if hard_negatives else None)

        return generated(first, batches, steps)

    def distillation_dataset(self, batch_size: int, seed: int) -> tf.data.Dataset:
        """The distinct queries that have a teacher embedding: inputs of the query tower and `[B, D]`, shuffled."""
        if (teacher := self.teacher) is None:
            raise ValueError("there is no teacher")
        taught = np.flatnonzero(teacher.lengths(np.arange(len(teacher))))
        size, epochs = min(batch_size, len(taught)), iter(range(1 << 30))

        def read(rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
            return self.queries.read(rows), teacher.read(rows)[TEACHER][:, 0]

        def batches() -> Iterator[Any]:
            order = np.random.default_rng((seed, 0, next(epochs))).permutation(taught)
            for start in range(0, len(taught) - size + 1, size):
                yield read(np.sort(order[start : start + size]))

        return generated(read(taught[:1]), batches, len(taught) // size)


def batch_signature(batch: Any) -> Any:
    """Specs of batches that have the structure of `batch`, with any number of rows and any length."""
    return tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, None, *array.shape[2:]][: array.ndim], array.dtype), batch
    )


def generated(first: Any, batches: Callable[[], Iterator[Any]], steps: int) -> tf.data.Dataset:
    """A data set of `steps` batches with the `batch_signature` of `first`."""
    dataset = tf.data.Dataset.from_generator(batches, output_signature=batch_signature(first))
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)


def shuffled(total: int, seed: tuple[int, ...], shard: int = 1 << 20, mixed: int = 8) -> Iterator[np.ndarray]:
    """The numbers 0 … total - 1 in an order drawn from `seed`, piece by piece.

    Shards of consecutive numbers are drawn at random, and `mixed` shards are shuffled together. The shuffle is uniform
    up to `shard · mixed` numbers; beyond, memory stays bounded.
    """
    generator = np.random.default_rng(seed)
    shards = generator.permutation(-(-total // shard))
    for start in range(0, len(shards), mixed):
        chosen = [np.arange(each * shard, min(total, (each + 1) * shard)) for each in shards[start : start + mixed]]
        yield generator.permutation(np.concatenate(chosen))
