"""The two towers as Keras models, and the run directory they are stored in."""

from q2s_tf.models.encoding import embed_catalogue, read_ids, unique_ids
from q2s_tf.models.fingerprint import hash_towers
from q2s_tf.models.plain_data import encode, order_by_length
from q2s_tf.models.pretrained import (
    PACKAGED,
    copy_weights,
    fill_encoders,
    load_pretrained,
    mask_untrained_channels,
    preset_towers,
    read_preset,
)
from q2s_tf.models.run_directory import (
    ENCODER_TOKENIZER,
    RUN_TOKENIZER,
    STAGE_WEIGHTS,
    load,
    load_weights,
    read_run_config,
    read_tokenizers,
    save_weights,
)
from q2s_tf.models.start_run import fill_from_start, fill_open_values, load_start
from q2s_tf.models.towers import Tower, Towers, build_towers

__all__ = [
    "ENCODER_TOKENIZER",
    "PACKAGED",
    "RUN_TOKENIZER",
    "STAGE_WEIGHTS",
    "Tower",
    "Towers",
    "build_towers",
    "copy_weights",
    "embed_catalogue",
    "encode",
    "fill_encoders",
    "fill_from_start",
    "fill_open_values",
    "hash_towers",
    "load",
    "load_pretrained",
    "load_start",
    "load_weights",
    "mask_untrained_channels",
    "order_by_length",
    "preset_towers",
    "read_ids",
    "read_preset",
    "read_run_config",
    "read_tokenizers",
    "save_weights",
    "unique_ids",
]
