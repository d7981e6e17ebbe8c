"""The common space of finished embeddings: those of a pretrained encoder, of a teacher, and given vectors."""

import keras

ALIGNED_SEED = 3
"""Seed of every `aligned_projection`, independent of the seed of the run."""


def aligned_projection() -> keras.initializers.Initializer:
    """Initializer of the projection of finished embeddings to R^D: orthogonal, and the same in both towers.

    Their cosines are kept if D is at least their width, and approximately otherwise.
    """
    return keras.initializers.Orthogonal(seed=ALIGNED_SEED)
