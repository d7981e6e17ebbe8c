"""Training examples: pairs of row numbers, drawn in shuffled batches from what `build_examples` has stored.

What stays in memory is a length for every stored row; the rest is memory-mapped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.config import Config
from q2s_tf.models import encoded_input
from q2s_tf.training.frozen import encoded_path
from q2s_tf.training.labels import Labels
from q2s_tf.training.store import ChannelReader

Batch = dict[str, Any]

NO_COUNTRY = 0
"""Number of a missing country."""


class TowerStore:
    """The prepared inputs of one tower's rows, by channel."""

    def __init__(self, folder: Path, config: Config, tower: str):
        self.channels = {
            name: ChannelReader(folder / name, np.float32, channel.dimension)
            if channel.kind == "vectors"
            else ChannelReader(folder / name, np.int32)
            for name, channel in config.tower_channels(tower).items()
        }
        self.encoded = {
            encoded_input(name): ChannelReader(encoded_path(folder, name), np.float32, encoder.hidden_dim)
            for name, encoder in config.frozen_channels(tower).items()
        }

    def rows(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the tower's encoder for these rows, see `EncoderParts.channels`."""
        encoded = {name: reader.rows(numbers)[:, 0] for name, reader in self.encoded.items()}
        return {name: channel.rows(numbers) for name, channel in self.channels.items()} | encoded


@dataclass
class Examples:
    """Positives as row numbers, and the stores they point into.

    Attributes:
        pairs: records `[P]` of query row, document row and weight (1 + ln of how often the pair was seen); first the
            positives, then the pseudo-queries.
        num_positives: how many of them are positives.
        group: int64 by query row: queries that read the same after normalisation share one.
        known: sorted int64 keys `group · num_documents + document` of every positive.
        queries, documents: the prepared inputs by row.
        num_documents: size of the catalogue.
        pseudo_share: share of pseudo-queries in a batch.
        document_probability: float32 `[num_documents]`, how likely a row of a batch is to hold each document.
        labels: of the query-classification head, None without one.
        teacher: what the teacher says of each query row, None without one.
        query_country, document_country: int32 by row, equal numbers for equal countries, `NO_COUNTRY` where it is
            missing; None where stage 2 takes its negatives from all of them.
    """

    pairs: np.ndarray
    num_positives: int
    group: np.ndarray
    known: np.ndarray
    queries: TowerStore
    documents: TowerStore
    num_documents: int
    pseudo_share: float
    document_probability: np.ndarray
    labels: Labels | None = None
    teacher: ChannelReader | None = None
    query_country: np.ndarray | None = None
    document_country: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_positives

    @property
    def num_queries(self) -> int:
        """How many distinct queries there are, those made from titles included."""
        return len(self.group)

    def batches(self, batch_size: int, seed: tuple[int, ...]) -> Iterator[Batch]:
        """One epoch of batches in an order drawn from `seed`; positives that fill no batch wait for another epoch.

        Args:
            batch_size: B, positives and pseudo-queries together; fewer when there are fewer positives.
            seed: the same seed gives the same batches.
        """
        size = self.positives_per_batch(batch_size)
        pseudo = np.random.default_rng((*seed, 1))
        left = np.empty(0, np.int64)
        for piece in shuffled(self.num_positives, seed):
            left = np.concatenate([left, piece])
            for start in range(0, len(left) - size + 1, size):
                drawn = pseudo.integers(self.num_positives, max(len(self.pairs), self.num_positives + 1), batch_size)
                extra = drawn[: batch_size - size] if self.pseudo_share else drawn[:0]
                yield self.batch(np.concatenate([left[start : start + size], extra]))
            left = left[len(left) - len(left) % size :]

    def positives_per_batch(self, batch_size: int) -> int:
        """How many rows of a batch are positives; an epoch has `len(self) // positives_per_batch` batches."""
        return min(max(1, round(batch_size * (1 - self.pseudo_share))), self.num_positives)

    def rows_per_batch(self, batch_size: int) -> int:
        """How many rows a batch has: `batch_size`, or fewer when there are fewer positives and no pseudo-queries."""
        return batch_size if self.pseudo_share else self.positives_per_batch(batch_size)

    def batch(self, numbers: np.ndarray) -> Batch:
        """The inputs of both towers, `weight` and `document_probability` `[B]`, `score_mask` `[B, B]`.

        With a head also `labels` `[B, K]`, see `Labels.rows`; with a teacher also `teacher` `[B, D]`; where negatives
        are of the searcher's country also `query_country` and `document_country` `[B]`.
        """
        pairs = self.pairs[np.sort(numbers)]
        labels = {"labels": self.labels.rows(pairs["document"])} if self.labels else {}
        taught = {"teacher": self.teacher.rows(pairs["query"])[:, 0]} if self.teacher else {}
        countries = {}
        if self.query_country is not None and self.document_country is not None:
            countries["query_country"] = self.query_country[pairs["query"]]
            countries["document_country"] = self.document_country[pairs["document"]]
        return {
            **labels,
            **taught,
            **countries,
            "query": self.queries.rows(pairs["query"]),
            "document": self.documents.rows(pairs["document"]),
            "weight": pairs["weight"].copy(),
            "document_probability": self.document_probability[pairs["document"]],
            "score_mask": self.allowed(pairs["query"], pairs["document"]),
        }

    def allowed(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        """Where document j may count as a negative of query i: where it is no known positive of it.

        The diagonal is True. The same document in another row (an accidental hit) is a known positive, so is False.

        Returns:
            bool `[B, B]`.
        """
        keys = self.group["group"][query][:, None] * self.num_documents + document[None, :]
        places = np.searchsorted(self.known["known"], keys)
        allowed = self.known["known"][np.minimum(places, len(self.known) - 1)] != keys
        np.fill_diagonal(allowed, True)
        return allowed

    def dataset(self, batch_size: int, seed: tuple[int, ...]) -> tf.data.Dataset:
        """`batches` as a `tf.data.Dataset`, made ahead of the training step."""
        return _dataset(self.batch(np.zeros(1, np.int64)), lambda: self.batches(batch_size, seed))

    def lessons(self, batch_size: int, seed: tuple[int, ...]) -> tf.data.Dataset:
        """An epoch of the distinct queries and what the teacher says of them: `query` and `teacher` `[B, D]`."""

        def batches() -> Iterator[Batch]:
            order = np.random.default_rng(seed).permutation(self.num_queries)
            size = min(batch_size, self.num_queries)
            for start in range(0, self.num_queries - size + 1, size):
                yield self._lesson(np.sort(order[start : start + size]))

        return _dataset(self._lesson(np.zeros(1, np.int64)), batches)

    def _lesson(self, numbers: np.ndarray) -> Batch:
        if self.teacher is None:
            raise ValueError("there is no teacher")
        return {"query": self.queries.rows(numbers), "teacher": self.teacher.rows(numbers)[:, 0]}


def _dataset(first: Batch, batches: Callable[[], Iterator[Batch]]) -> tf.data.Dataset:
    """Batches like `first` in all but the number of rows and the length of each, made ahead of who takes them."""
    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, None, *array.shape[2:]][: array.ndim], array.dtype), first
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(4)


def shuffled(total: int, seed: tuple[int, ...], shard: int = 1 << 20, together: int = 8) -> Iterator[np.ndarray]:
    """The numbers 0 … total - 1, each once, in an order drawn from `seed`, piece by piece.

    Shards of consecutive numbers are drawn at random and mixed `together` at a time: up to `shard · together` numbers
    this is a uniform shuffle, beyond it memory stays bounded.
    """
    generator = np.random.default_rng(seed)
    shards = generator.permutation(-(-total // shard))
    for start in range(0, len(shards), together):
        chosen = [np.arange(each * shard, min(total, (each + 1) * shard)) for each in shards[start : start + together]]
        yield generator.permutation(np.concatenate(chosen))
