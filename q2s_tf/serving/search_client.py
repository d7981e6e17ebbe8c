"""What the query command and the demo page need of a client, whichever engine answers it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from q2s_tf.serving.pages import Matches, Page


class Embeddings(NamedTuple):
    """The outputs of a tower: ``embedding: float[B, D]`` of unit length and ``channel_weights: float[B, N]``.

    All rows are from one ``version`` of the tower, because vectors of two versions cannot be compared.
    """

    embedding: np.ndarray
    channel_weights: np.ndarray
    version: int


class SearchClient(Protocol):
    """A client that searches: `q2s_tf.serving.client.Client`, or that of `q2s_tf.milvus.engine_client`.

    Attributes:
        target: The address of the server, for messages.
        channel_names: The channels in the order of the weights of `embed_query`, None if the client does not have them.
    """

    @property
    def target(self) -> str: ...  # noqa: D102

    @property
    def channel_names(self) -> list[str] | None: ...  # noqa: D102

    @property
    def retrieve(self) -> Callable[..., Matches]: ...  # noqa: D102

    @property
    def pages(self) -> Callable[..., Iterator[Page]]: ...  # noqa: D102

    @property
    def embed_query(self) -> Callable[..., Embeddings]: ...  # noqa: D102
