"""Every layer in the checks that Keras applies to its own layers.

`run_layer_test` compares a layer with one from its config and with a deserialized one, builds it, calls it with
symbolic and with eager inputs, takes one training step, and calls it under a mixed dtype policy.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.testing import TestCase  # private, but it is the only form in which Keras ships these checks
from keras.src.utils import traceback_utils

from q2s_tf.layers import (
    AttentionFusion,
    CategoryIds,
    DeepSets,
    TextEncoder,
    TextNormalization,
    TokenIds,
    TrigramEmbedding,
    TrigramIds,
    VectorSet,
)
from q2s_tf.text import train_tokenizer

TEXTS = tf.constant(["red sofa", "", "LAMP"])
IDS = tf.constant([[2, 7, 9, 4], [2, 0, 0, 0], [3, 5, 0, 0]], tf.int32)
CHANNELS = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
MASK = np.array([[True, True, False, True], [False] * 4, [True] * 4])
GEOMETRY = {"vocabulary_size": 12, "max_tokens": 6, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}


@pytest.fixture
def check() -> Iterator[Any]:
    """`run_layer_test`, which leaves the name counters and the traceback filter of Keras as they were."""
    filtered = traceback_utils.is_traceback_filtering_enabled()
    case = TestCase()
    case.setUp()
    yield case.run_layer_test
    case.doCleanups()
    if filtered:
        traceback_utils.enable_traceback_filtering()


@pytest.mark.parametrize("call_kwargs", [{}, {"mask": MASK}], ids=["no_mask", "mask"])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("num_channels", [1, 4])
def test_attention_fusion(check: Any, num_channels: int, use_bias: bool, call_kwargs: dict[str, Any]) -> None:
    check(
        AttentionFusion,
        {"use_bias": use_bias},
        input_data=tf.constant(CHANNELS[:, :num_channels]),
        call_kwargs={name: mask[:, :num_channels] for name, mask in call_kwargs.items()},
        expected_output_shape=((3, 5), (3, num_channels)),
        expected_output_dtype=("float32", "float32"),
        expected_num_trainable_weights=(1 + use_bias) * int(num_channels > 1),
        supports_masking=True,
        run_training_check=num_channels > 1,
    )


@pytest.mark.parametrize("call_kwargs", [{}, {"mask": MASK}], ids=["no_mask", "mask"])
def test_deep_sets(check: Any, call_kwargs: dict[str, Any]) -> None:
    check(
        DeepSets,
        {"hidden_dim": 6, "dimension": 3},
        input_data=tf.constant(CHANNELS),
        call_kwargs=call_kwargs,
        expected_output_shape=(3, 3),
        expected_output_dtype="float32",
        expected_num_trainable_weights=4,
        supports_masking=True,
    )


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_encoder(check: Any, pooling: str, dropout: float) -> None:
    check(
        TextEncoder,
        {**GEOMETRY, "num_layers": 2, "pooling": pooling, "dropout": dropout},
        input_data=IDS,
        expected_output_shape=(3, 8),
        expected_output_dtype="float32",
        expected_num_trainable_weights=4 + 2 * 12,
        expected_num_seed_generators=int(dropout > 0),
    )


def test_trigram_embedding(check: Any) -> None:
    check(
        TrigramEmbedding,
        {"buckets": 9, "dimension": 4},
        input_data=IDS,
        expected_output_shape=(3, 4),
        expected_output_dtype="float32",
        expected_num_trainable_weights=1,
    )


@pytest.mark.parametrize("decode_only", [False, True])
def test_text_normalization(check: Any, decode_only: bool) -> None:
    check(
        TextNormalization,
        {"decode_only": decode_only},
        input_data=TEXTS,
        expected_output_shape=(3,),
        expected_output_dtype="string",
        run_training_check=False,
    )


def test_trigram_ids(check: Any) -> None:
    check(
        TrigramIds,
        {"buckets": 50, "max_trigrams": 6},
        input_data=TEXTS,
        expected_output_dtype="int32",
        run_training_check=False,
    )


def test_category_ids(check: Any) -> None:
    check(
        CategoryIds,
        {"values": ["lamp", "red sofa"]},
        input_data=TEXTS,
        expected_output=tf.constant([[2], [0], [0]]),
        expected_output_dtype="int32",
        run_training_check=False,
    )


def test_token_ids(check: Any) -> None:
    check(
        TokenIds,
        {"kind": "unigram", "model": train_tokenizer(["red sofa and lamp"] * 20, 64)},
        input_data=TEXTS,
        call_kwargs={"max_tokens": 5},
        expected_output_dtype="int32",
        run_training_check=False,
    )


def test_vector_set(check: Any) -> None:
    check(
        VectorSet,
        {"dimension": 5, "max_vectors": 3},
        input_data=tf.constant(CHANNELS),
        expected_output=tf.constant(CHANNELS[:, :3]),
        expected_output_dtype="float32",
        run_training_check=False,
    )


LAYERS: list[keras.layers.Layer] = [
    AttentionFusion(name="mine"),
    DeepSets(6, 4, name="mine"),
    TextEncoder(**GEOMETRY, num_layers=3, dropout=0.2, pooling="mean", activation="gelu_approximate", epsilon=1e-12),
    TrigramEmbedding(9, 4, dtype="mixed_bfloat16"),
    TextNormalization(decode_only=True),
    TrigramIds(50, 6),
    CategoryIds(["a", "b"]),
    TokenIds("wordpiece", lowercase=True),
    VectorSet(5, 3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_constructor_arguments_are_attributes_and_the_config(layer: keras.layers.Layer) -> None:
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    for name in set(config) - {"name", "trainable", "dtype"}:
        value = getattr(layer, name)
        assert (list(value) if isinstance(value, tuple) else value) == config[name]


def test_unknown_options_of_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r'pooling must be "cls" or "mean"; got \'max\''):
        TextEncoder(**GEOMETRY, pooling="max")
    with pytest.raises(ValueError, match=r'activation must be "gelu" or "gelu_approximate"; got \'relu\''):
        TextEncoder(**GEOMETRY, activation="relu")
    with pytest.raises(ValueError, match="hidden_dim must be a multiple of num_heads; got 8 and 3"):
        TextEncoder(**{**GEOMETRY, "num_heads": 3})
    with pytest.raises(ValueError, match="kind must be one of unigram, wordpiece, sentencepiece; got 'bpe'"):
        TokenIds("bpe")
    with pytest.raises(ValueError, match="my_tokens has no vocabulary: load the model from a .keras file"):
        TokenIds("unigram", name="my_tokens")(TEXTS, max_tokens=4)
