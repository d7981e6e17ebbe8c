"""The text encoder: its oracle is KerasHub's XLM-R backbone with the same weights."""

from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.layers import TextEncoder
from q2s_tf.layers.token_layout import PackedTokens, PaddedTokens
from q2s_tf.models import copy_weights

VOCABULARY_SIZE, MAX_TOKENS = 50, 9
GEOMETRY: dict[str, Any] = {"num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}

TOKENS = tf.constant(
    [[2, 7, 9, 4, 5, 8], [2, 0, 0, 0, 0, 0], [2, 11, 0, 0, 0, 0], [3, 4, 2, 8, 0, 0], [2, 5, 6, 0, 0, 0]], tf.int32
)
"""Texts of 6, 1, 2, 4 and 3 tokens."""


def build_backbone(num_layers: int) -> Any:
    """A backbone whose weights are so large that a mistake in attention shows in the vector."""
    backbone = keras_hub.models.XLMRobertaBackbone(
        VOCABULARY_SIZE, num_layers=num_layers, dropout=0.0, max_sequence_length=MAX_TOKENS, **GEOMETRY
    )
    generator = np.random.default_rng(8)
    backbone.set_weights([generator.normal(size=weight.shape) for weight in backbone.get_weights()])
    return backbone


def build_encoder(backbone: Any, pooling: str = "cls", **options: Any) -> TextEncoder:
    """An encoder with the weights of a backbone."""
    options = {"dropout": 0.0, **GEOMETRY, **options}
    encoder = TextEncoder(VOCABULARY_SIZE, MAX_TOKENS, backbone.num_layers, pooling=pooling, **options)
    encoder.build((None, None))
    copy_weights(backbone, encoder, padding=0)
    return encoder


def pool(backbone: Any, ids: tf.Tensor, pooling: str) -> tf.Tensor:
    """The vectors of a backbone for texts that have tokens."""
    mask = tf.cast(ids != 0, tf.int32)
    hidden = backbone({"token_ids": ids, "padding_mask": mask})
    if pooling == "cls":
        return hidden[:, 0]
    used = tf.cast(mask, tf.float32)[..., tf.newaxis]
    return tf.reduce_sum(hidden * used, axis=1) / tf.reduce_sum(used, axis=1)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return build_backbone(2)


@pytest.fixture(scope="module")
def with_dropout(backbone: Any) -> TextEncoder:
    return build_encoder(backbone, dropout=0.5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_vectors_and_gradients_are_those_of_kerashubs_backbone(num_layers: int, pooling: str, training: bool) -> None:
    backbone = build_backbone(num_layers)
    encoder = build_encoder(backbone, pooling)
    with tf.GradientTape() as tape:
        vectors = encoder(TOKENS, training=training)
        total = tf.reduce_sum(vectors**3)
    gradients = tape.gradient(total, [weight.value for weight in encoder.trainable_variables])
    with tf.GradientTape() as tape:
        expected = pool(backbone, TOKENS, pooling)
        total = tf.reduce_sum(expected**3)
    expected_gradients = tape.gradient(total, [weight.value for weight in backbone.trainable_variables])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    # `copy_weights` brings the gradients of the backbone into the layout of the encoder.
    backbone.set_weights([tf.convert_to_tensor(gradient).numpy() for gradient in expected_gradients])
    layout = build_encoder(backbone, pooling)
    largest = max(np.abs(weight).max() for weight in layout.get_weights())
    for weight, gradient in zip(layout.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(gradient), weight.numpy(), atol=1e-5 * largest, err_msg=weight.path
        )


@given(st.lists(st.integers(0, MAX_TOKENS), min_size=1, max_size=11), st.sampled_from(["cls", "mean"]))
@settings(deadline=None, max_examples=15)
def test_the_packed_texts_of_training_have_the_vectors_of_padded_ones(
    backbone: Any, lengths: list[int], pooling: str
) -> None:
    encoder = build_encoder(backbone, pooling)
    generator = np.random.default_rng(len(lengths))
    ids = generator.integers(1, VOCABULARY_SIZE, (len(lengths), MAX_TOKENS))
    ids = (ids * (np.arange(MAX_TOKENS) < np.array(lengths)[:, None])).astype(np.int32)
    packed, padded = np.asarray(encoder(ids, training=True)), np.asarray(encoder(ids))
    present = np.array(lengths) > 0
    np.testing.assert_allclose(packed[present], padded[present], atol=1e-5)
    assert not packed[~present].any(), "a text of padding alone has the vector 0 in training"
    if pooling == "mean":
        assert not padded[~present].any()


@pytest.mark.parametrize("padding", [0, 50])
def test_packed_padding_has_no_row_and_groups_have_similar_lengths(padding: int) -> None:
    tokens = PackedTokens(tf.pad(TOKENS, [(0, 0), (0, padding)]))
    rows = tokens.embed(tf.reshape(tf.range(50), [50, 1]), tf.zeros([60, 1], tf.int32))
    assert rows.shape == (16, 1), "one row a token"
    groups = tokens.pad(rows, [1])
    assert [group.shape[:2] for group in groups] == [(1, 1), (1, 2), (1, 3), (2, 6)]
    np.testing.assert_array_equal(tokens.pack(groups, 1), rows)
    first = tokens.restore(tokens.first(rows))
    np.testing.assert_array_equal(first[:, 0], TOKENS[:, 0])
    np.testing.assert_array_equal(tf.concat(tokens.split(tokens.first(rows)), 0), tokens.first(rows))


def test_both_layouts_have_the_same_means() -> None:
    table, positions = tf.random.normal([50, 3], seed=1), tf.random.normal([9, 3], seed=2)
    packed, padded = (layout(TOKENS) for layout in (PackedTokens, PaddedTokens))
    means = [tokens.restore(tokens.mean(tokens.embed(table, positions))) for tokens in (packed, padded)]
    np.testing.assert_allclose(*means, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("training", [False, True])
def test_products_are_of_the_compute_dtype_and_weights_and_gradients_are_float32(
    policy: str, pooling: str, training: bool
) -> None:
    backbone = build_backbone(2)
    backbone.set_weights([weight / 3 for weight in backbone.get_weights()])
    exact = np.asarray(build_encoder(backbone, pooling)(TOKENS, training=training))
    encoder = build_encoder(backbone, pooling, dtype=policy)
    weights = [weight.value for weight in encoder.trainable_variables]
    with tf.GradientTape() as tape:
        vectors = encoder(TOKENS, training=training)
    gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(vectors, weights)]
    assert {value.dtype for value in [*gradients, *weights]} == {tf.float32}
    assert vectors.dtype == encoder.compute_dtype
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    difference = np.abs(np.asarray(tf.cast(vectors, tf.float32)) - exact).max() / np.abs(exact).max()
    assert 2**-17 < difference < 2**-4, "bfloat16 has 8 bits, float16 has 11, float32 has 24"


def test_padding_does_not_change_the_vector_of_a_text(with_dropout: TextEncoder) -> None:
    ids = np.array([[2, 7, 9], [2, 11, 0]], np.int32)
    vectors = np.asarray(with_dropout(ids))
    assert vectors.shape == (2, 8)
    padded = np.asarray(with_dropout(np.pad(ids, [(0, 0), (0, 5)])))
    np.testing.assert_allclose(padded, vectors, atol=1e-5)
    alone = np.asarray(with_dropout(ids[1:, :2]))
    np.testing.assert_allclose(alone, vectors[1:], atol=1e-5)


def test_the_order_of_tokens_matters(with_dropout: TextEncoder) -> None:
    one, other = np.asarray(with_dropout(np.array([[2, 7, 9], [2, 9, 7]], np.int32)))
    assert np.abs(one - other).max() > 1e-3


def test_dropout_acts_in_training_alone(with_dropout: TextEncoder) -> None:
    ids = np.array([[2, 7, 9]], np.int32)
    np.testing.assert_array_equal(with_dropout(ids), with_dropout(ids))
    assert np.abs(np.asarray(with_dropout(ids, training=True)) - np.asarray(with_dropout(ids))).max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 4), (0, 4), (2, 1)])
def test_texts_of_padding_alone_are_finite(with_dropout: TextEncoder, shape: tuple[int, int], training: bool) -> None:
    vectors = with_dropout(np.zeros(shape, np.int32), training=training)
    assert vectors.shape == (shape[0], 8)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(("activation", "approximate"), [("gelu", False), ("gelu_approximate", True)])
def test_activation_is_the_form_of_gelu_that_is_named(activation: str, approximate: bool) -> None:
    """One layer whose attention is 0, against NumPy."""
    encoder = TextEncoder(VOCABULARY_SIZE, MAX_TOKENS, 1, dropout=0.0, activation=activation, epsilon=1e-3, **GEOMETRY)
    encoder.build((None, None))
    generator = np.random.default_rng(9)
    (block,) = encoder.blocks
    for name in ("inner_kernel", "inner_bias", "outer_kernel", "outer_bias"):
        block[name].assign(generator.normal(size=block[name].shape))
    encoder.embeddings["token_table"].assign(generator.normal(size=(VOCABULARY_SIZE, 8)))
    for weight in (encoder.embeddings["position_table"], block["attention_kernel"]):
        weight.assign(np.zeros(weight.shape))

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-3)

    token = norm(norm(encoder.embeddings["token_table"].numpy()[7].astype(np.float64)))
    weights = {name: weight.numpy().astype(np.float64) for name, weight in block.items()}
    inner = keras.activations.gelu(token @ weights["inner_kernel"] + weights["inner_bias"], approximate=approximate)
    expected = norm(token + np.asarray(inner) @ weights["outer_kernel"] + weights["outer_bias"])
    np.testing.assert_allclose(encoder(np.array([[7]]))[0], expected, atol=2e-5)
