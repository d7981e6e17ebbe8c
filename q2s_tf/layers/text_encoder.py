"""A text through a transformer."""

from typing import Any

import keras
import keras_hub
from keras import ops


class TextEncoder(keras.layers.Layer):
    """The last layer's vector of [CLS] from an XLM-R encoder (KerasHub's backbone), trained from scratch.

    Args:
        vocabulary_size: token ids run from 0 (padding) to `vocabulary_size` - 1.
        max_tokens: the longest row.
        num_layers, num_heads, hidden_dim, intermediate_dim, dropout: the geometry; Que2Search's query encoder is
            2 layers, 4 heads, 128, 384, 0.1, its document encoder 6 layers.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_tokens: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.geometry = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
        }
        self.max_tokens = max_tokens
        self.backbone = keras_hub.models.XLMRobertaBackbone(
            **self.geometry, max_sequence_length=max_tokens, name="backbone"
        )

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """Encodes int32 token ids `[B, L]` (0 = padding) to `[B, hidden_dim]`."""
        there = ops.cast(ids != 0, "int32")
        return self.backbone({"token_ids": ids, "padding_mask": there}, training=training)[:, 0]

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, hidden_dim]`."""
        return (ids_shape[0], self.geometry["hidden_dim"])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), **self.geometry, "max_tokens": self.max_tokens}
