"""Hashes of trained towers, by which exports and embeddings of one run are told from those of another."""

import hashlib

from q2s_tf.models.towers import Towers


def hash_towers(towers: Towers) -> dict[str, str]:
    """Hash the tokenizers, and all weights in order, to tell one trained pair of towers from another."""
    weights = hashlib.sha256()
    for tower in (towers.query, towers.document):
        for variable in tower.weights:
            weights.update(variable.numpy().tobytes())
    layers = [layer for tower in (towers.query, towers.document) for layer in tower.token_layers.values()]
    tokenizer = hashlib.sha256()
    for model in dict.fromkeys(layer.tokenizer.model for layer in layers if layer.tokenizer):  # once if it is shared
        tokenizer.update(model)
    return {"tokenizer_sha256": tokenizer.hexdigest(), "weights_sha256": weights.hexdigest()}
