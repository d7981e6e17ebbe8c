"""Hard negatives of the whole catalogue, mined with the current towers."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from q2s_tf.cli import console
from q2s_tf.evaluation.rankers import cosine_rows, top_k
from q2s_tf.examples.batches import Examples
from q2s_tf.files import atomic_write
from q2s_tf.models import Towers
from q2s_tf.training.stored_embeddings import StoredEmbeddings
from q2s_tf.training.workers import Workers

POSITIVE_SHARE = 0.95
"""A document with a higher cosine than this share of the positive's is no negative: many of these are relevant too."""
HARDEST = 10
"""A negative is drawn from this many of the remaining documents, those with the highest cosines."""
MIN_DOCUMENTS = 10_000
MAX_DOCUMENTS = 200_000
DOCUMENTS_PER_POSITIVE = 10
"""A larger catalogue is sampled: so many random documents for each positive, and the positives, are searched. Mining
then takes about as long as the training of the epoch."""


class HardNegatives(keras.callbacks.Callback):
    """Mines one hard negative for each positive at the beginning of an epoch.

    For a query q with the positive p, one of the ten documents d with the highest cosines is drawn among those that are
    no known positive of q and have cos(q, d) ≤ .95 cos(q, p).

    ```python
    mined = HardNegatives(towers, examples, seed=(17,))
    model.fit(examples.dataset(128, seed=(17,), hard_negatives=mined.rows), callbacks=[mined])
    ```

    Args:
        towers: the towers in training.
        examples: the positives and the catalogue.
        seed: of the draws, together with the number of the epoch.
        workers: the processes of the training, of which the chief mines.
        file: the file from which the other workers read the negatives.
        embeddings: embeddings of documents that the validation computes; used if they are those of the whole catalogue
            and it is searched as a whole. An epoch begins with the weights of the validation before it.

    Source: Moreira et al., NV-Retriever, 2024, for the limit by the score of the positive; Huang et al.,
    Embedding-based Retrieval in Facebook Search, KDD 2020, for negatives of the whole catalogue.
    """

    def __init__(
        self,
        towers: Towers,
        examples: Examples,
        seed: tuple[int, ...],
        workers: Workers | None = None,
        file: Path | None = None,
        embeddings: StoredEmbeddings | None = None,
    ):
        super().__init__()
        self.examples, self.seed, self.workers, self.file = examples, seed, workers, file
        self._pairs = examples.pairs[: len(examples)]
        self._documents = np.arange(examples.num_documents)
        searched = int(np.clip(DOCUMENTS_PER_POSITIVE * len(examples), MIN_DOCUMENTS, MAX_DOCUMENTS))
        if examples.num_documents > searched:
            drawn = np.random.default_rng(seed).choice(examples.num_documents, searched, replace=False)
            self._documents = np.union1d(drawn, self._pairs["document"])
        self._queries, self._query = np.unique(self._pairs["query"], return_inverse=True)
        self._embed_queries = StoredEmbeddings(towers.query, examples.queries, self._queries)
        if embeddings is None or not np.array_equal(embeddings.numbers, self._documents):
            embeddings = StoredEmbeddings(towers.document, examples.documents, self._documents)
        self._embed_documents = embeddings
        self._rows = np.full(len(self._pairs), -1)

    def rows(self) -> np.ndarray:
        """The document row of the negative of each positive in the current epoch, int `[P]`; −1 for none."""
        return self._rows

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Mines the negatives of an epoch."""
        with console.status("mining hard negatives"):
            if self.workers is None or self.workers.count == 1 or self.file is None:
                self._rows = self._mine(epoch)
                return
            if self.workers.chief:
                with atomic_write(self.file) as partial:
                    partial.write_bytes(self._mine(epoch).tobytes())
        self.workers.barrier()
        self._rows = np.fromfile(self.file, np.int64)
        self.workers.barrier()  # before the file of the next epoch

    def _mine(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((*self.seed, epoch))
        documents = self._embed_documents()
        absent = np.flatnonzero(~documents.any(axis=1))
        by_query = np.split(np.argsort(self._query, kind="stable"), np.cumsum(np.bincount(self._query))[:-1])
        mined = np.full(len(self._pairs), -1)
        rows = cosine_rows(self._embed_queries(), documents)
        for query, pairs, cosines in zip(self._queries, by_query, rows, strict=True):
            positives = cosines[np.searchsorted(self._documents, self._pairs["document"][pairs])]
            known = self.examples.known_documents(query)
            places = np.minimum(np.searchsorted(self._documents, known), len(self._documents) - 1)
            candidates = cosines.copy()
            candidates[absent] = -np.inf
            candidates[places[self._documents[places] == known]] = -np.inf
            for pair, positive in zip(pairs, positives, strict=True):
                limit = positive - (1 - POSITIVE_SHARE) * abs(positive)
                hardest = top_k(np.where(candidates <= limit, candidates, -np.inf), HARDEST)
                hardest = hardest[hardest >= 0]
                if len(hardest):
                    mined[pair] = self._documents[generator.choice(hardest)]
        return mined
