"""A score as a sum: over pairs of channels, and within a 3-gram channel over its 3-grams."""

import numpy as np
import tensorflow as tf

from q2s_tf.models import Tower
from q2s_tf.report.channels import ChannelVectors
from q2s_tf.text import normalise


def contributions(queries: ChannelVectors, query: int, documents: ChannelVectors, document: int) -> np.ndarray:
    """What each pair of channels adds to one score.

        cos(q, d) = Σᵢ Σⱼ aᵢ bⱼ φᵢ·ψⱼ / (|f| |g|)

    Args:
        queries: rows of the query tower, a and φ.
        query: which of them.
        documents: rows of the document tower, b and ψ.
        document: which of them.

    Returns:
        Float `[N_query, N_document]`, whose sum is the score; 0 where a channel is missing.
    """
    sides = []
    for channels, row in ((queries, query), (documents, document)):
        weighed = channels.weights[row][:, None] * channels.vectors[row].astype(np.float64)
        sides.append(weighed / max(np.linalg.norm(weighed.sum(axis=0)), 1e-6))
    return sides[0] @ sides[1].T


def trigram_contributions(
    tower: Tower, channels: ChannelVectors, row: int, name: str, text: str, other: np.ndarray
) -> dict[str, tuple[int, float]]:
    """What each 3-gram of a text adds to a score.

    A 3-gram channel is the sum of its 3-grams' embeddings, so that, at the weight aᵢ that the fusion gave, its part of
    the score falls into one share a 3-gram: aᵢ E[g]·d̂ / |f|.

    Args:
        tower: the tower of the text.
        channels: rows of that tower.
        row: the one in question.
        name: the 3-gram channel.
        text: what the channel read, as it came.
        other: the other tower's embedding `[D]`.

    Returns:
        By 3-gram, how often it occurs and its contribution.
    """
    inputs = tower.tensors({tower.preprocessor.channels[name].input: [text]})
    ids = tower.preprocessor(inputs)[name].numpy()[0]
    padded = f" {normalise(tf.constant(text)).numpy().decode()} "
    windows = [padded[at : at + 3] for at in range(len(padded) - 2)][: int((ids != 0).sum())]
    embeddings = tower.encoder.get_layer(f"{name}_vector")(tf.constant(ids[: len(windows), None])).numpy()
    weight = channels.weights[row, channels.names.index(name)] / max(float(channels.fused_length()[row]), 1e-6)
    shares = weight * (embeddings @ other)
    found: dict[str, tuple[int, float]] = {}
    for window, share in zip(windows, shares.tolist(), strict=True):
        count, total = found.get(window, (0, 0.0))
        found[window] = (count + 1, total + share)
    return found
