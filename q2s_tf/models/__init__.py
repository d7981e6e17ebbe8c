"""The two towers: from raw inputs to unit vectors, and back from a run directory."""

from q2s_tf.models.embedding import (
    embed_catalogue,
    embed_documents,
    order_by_length,
    predict_documents,
    read_ids,
    unique_ids,
)
from q2s_tf.models.encoders import (
    EncoderParts,
    aligned_projection,
    build_encoder,
    build_text_encoder,
    encoded_input,
    split_encoder,
)
from q2s_tf.models.preprocessing import Preprocessor
from q2s_tf.models.run import (
    OWN_TOKENIZER,
    STAGE_WEIGHTS,
    load,
    load_weights,
    pretrained_tokenizer,
    read_run_config,
    read_tokenizers,
    save_weights,
)
from q2s_tf.models.towers import Column, Tower, Towers, build_towers

__all__ = [
    "OWN_TOKENIZER",
    "STAGE_WEIGHTS",
    "Column",
    "EncoderParts",
    "Preprocessor",
    "Tower",
    "Towers",
    "aligned_projection",
    "build_encoder",
    "build_text_encoder",
    "build_towers",
    "embed_catalogue",
    "embed_documents",
    "encoded_input",
    "load",
    "load_weights",
    "order_by_length",
    "predict_documents",
    "pretrained_tokenizer",
    "read_ids",
    "read_run_config",
    "read_tokenizers",
    "save_weights",
    "split_encoder",
    "unique_ids",
]
