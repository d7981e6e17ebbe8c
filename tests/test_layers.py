"""The layers against their equations in NumPy, with missing and padded input."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.layers import AttentionFusion, DeepSets, Embedding, TextEncoder, TrigramEmbedding
from q2s_tf.layers.token_rows import PackedRows


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


# --- eq. 1


def fusion_oracle(channels: np.ndarray, present: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 1 row by row; the softmax runs over the channels that are there."""
    fused, weights = [], []
    for row, there in zip(channels, present, strict=True):
        row = row * there[:, None]
        weight = np.zeros(len(there))
        if there.any():
            weight[there] = softmax((row.reshape(-1) @ kernel)[there])
        fused.append(sum(a * phi for a, phi in zip(weight, row, strict=True)))
        weights.append(weight)
    return np.array(fused), np.array(weights)


def fusion_with(kernel: np.ndarray) -> AttentionFusion:
    channels = kernel.shape[1]
    layer = AttentionFusion()
    layer.build((None, channels, kernel.shape[0] // channels), (None, channels))
    layer.set_weights([kernel] if channels > 1 else [])  # one channel has nothing to weigh
    return layer


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_fusion_is_equation_1(seed: int, batch: int, channels: int, dimension: int) -> None:
    generator = np.random.default_rng(seed)
    phi = generator.normal(scale=3, size=(batch, channels, dimension)).astype(np.float32)
    present = generator.random((batch, channels)) < 0.7
    kernel = generator.normal(size=(channels * dimension, channels)).astype(np.float32)
    fused, weights = fusion_with(kernel)(phi, present)
    expected, expected_weights = fusion_oracle(phi.astype(np.float64), present, kernel)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-5)
    np.testing.assert_allclose(fused, expected, atol=2e-4)
    assert (np.asarray(weights)[~present] == 0).all(), "a missing channel weighs exactly 0"
    np.testing.assert_allclose(np.sum(weights, axis=1), present.any(axis=1), atol=1e-5)


def test_what_a_missing_channel_holds_changes_nothing() -> None:
    generator = np.random.default_rng(1)
    phi = generator.normal(size=(4, 3, 5)).astype(np.float32)
    present = np.tile([True, False, True], (4, 1))
    layer = fusion_with(generator.normal(size=(15, 3)).astype(np.float32))
    other = phi.copy()
    other[:, 1] = 1e6
    for mine, theirs in zip(layer(phi, present), layer(other, present), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_row_without_channels_is_zero_and_not_nan() -> None:
    layer = fusion_with(np.ones((6, 2), np.float32))
    fused, weights = layer(np.ones((2, 2, 3), np.float32), np.array([[False, False], [True, True]]))
    assert not np.asarray(fused)[0].any()
    assert not np.asarray(weights)[0].any()
    assert np.isfinite(fused).all()


def test_gradients_are_finite_with_every_mask_and_large_values() -> None:
    layer = fusion_with(np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32))
    phi = tf.Variable(np.random.default_rng(3).normal(scale=100, size=(8, 3, 3)).astype(np.float32))
    present = np.array([[bool(mask & bit) for bit in (1, 2, 4)] for mask in range(8)])
    with tf.GradientTape() as tape:
        unit = keras.layers.UnitNormalization()(layer(phi, present)[0])
        loss = tf.reduce_sum(unit * tf.range(1.0, 4.0))
    by_channel, by_kernel = tape.gradient(loss, [phi, layer.kernel.value])
    assert np.isfinite(by_channel).all()
    assert np.isfinite(by_kernel).all()
    assert not np.asarray(by_channel)[~present].any(), "what is missing learns nothing"
    assert np.asarray(by_kernel).any()


def test_fusion_starts_with_equal_weights() -> None:
    _, weights = AttentionFusion()(np.ones((1, 4, 2), np.float32), np.array([[True, True, False, True]]))
    np.testing.assert_allclose(weights, [[1 / 3, 1 / 3, 0, 1 / 3]], rtol=1e-6)


# --- 3-grams

IDS = np.array([[3, 5, 3, 0], [0, 0, 0, 0], [7, 0, 0, 0], [5, 7, 9, 3]], np.int32)


def trigram_layer(buckets: int = 9, dimension: int = 4) -> TrigramEmbedding:
    layer = TrigramEmbedding(buckets, dimension)
    layer.build((None, None))
    return layer


def test_trigram_embedding_sums_the_rows_of_its_table() -> None:
    layer = trigram_layer()
    table = layer.get_weights()[0]
    expected = [sum((table[each] for each in row if each), np.zeros(4)) for row in IDS]
    np.testing.assert_allclose(layer(IDS), expected, atol=1e-6)
    assert table.shape == (10, 4)


def test_padding_of_a_trigram_row_changes_nothing() -> None:
    layer = trigram_layer()
    short = layer(IDS[:, :3][2:3])
    np.testing.assert_array_equal(layer(np.array([[7, 0, 0, 0, 0, 0]], np.int32)), short)
    np.testing.assert_array_equal(layer(np.array([[0, 0, 7]], np.int32)), short)
    assert not np.asarray(layer(np.zeros((2, 1), np.int32))).any()
    assert layer(np.zeros((0, 3), np.int32)).shape == (0, 4)


def test_the_gradient_of_the_table_is_sparse_and_counts_occurrences() -> None:
    layer = trigram_layer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(IDS))
    gradient = tape.gradient(loss, layer.table.value)
    assert isinstance(gradient, tf.IndexedSlices)
    counts = np.bincount(IDS[IDS != 0], minlength=10)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), np.tile(counts[:, None], 4))
    assert gradient.values.shape[0] == (counts > 0).sum(), "one slice for each row that occurs"


# --- categories


def test_an_embedding_is_the_row_of_its_table_and_only_that_learns() -> None:
    layer = Embedding(5, 3, "normal")
    ids = np.array([[3], [0], [3]], np.int32)
    with tf.GradientTape() as tape:
        rows = layer(ids)
        loss = tf.reduce_sum(rows)
    (table,) = layer.get_weights()
    np.testing.assert_array_equal(rows, table[[3, 0, 3]])
    gradient = tape.gradient(loss, layer.table.value)
    np.testing.assert_array_equal(tf.convert_to_tensor(gradient), np.repeat([[1], [0], [0], [2], [0]], 3, axis=1))


# --- Deep Sets


def test_deep_sets_pools_what_its_dense_layers_say() -> None:
    generator = np.random.default_rng(4)
    layer = DeepSets(hidden_dim=6, dimension=3)
    vectors = generator.normal(size=(3, 4, 5)).astype(np.float32)
    vectors[0, 2:] = 0
    vectors[1] = 0
    result = np.asarray(layer(vectors))
    inner, inner_bias, outer, outer_bias = layer.get_weights()
    for row, expected in zip(vectors, result, strict=True):
        hidden = np.zeros(6)
        for vector in row:
            if vector.any():
                hidden += np.asarray(keras.activations.gelu(vector @ inner + inner_bias))
        np.testing.assert_allclose(expected, hidden @ outer + outer_bias, atol=1e-5)


def deep_sets() -> DeepSets:
    keras.utils.set_random_seed(5)
    layer = DeepSets(hidden_dim=8, dimension=4)
    layer.build((None, None, 3))
    # A bias, so that a padding row that was counted would be seen.
    layer.set_weights([weight + 0.3 for weight in layer.get_weights()])
    return layer


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 4))
@settings(deadline=None, max_examples=25)
def test_deep_sets_ignores_order_and_padding(seed: int, count: int, padding: int) -> None:
    generator = np.random.default_rng(seed)
    layer = deep_sets()
    vectors = generator.normal(size=(2, count, 3)).astype(np.float32)
    expected = layer(vectors)
    padded = np.concatenate([vectors, np.zeros((2, padding, 3), np.float32)], axis=1)
    shuffled = padded[:, generator.permutation(count + padding)]
    np.testing.assert_allclose(layer(shuffled), expected, atol=1e-5)


def test_deep_sets_takes_no_vectors_at_all() -> None:
    layer = deep_sets()
    np.testing.assert_allclose(layer(np.zeros((2, 0, 3), np.float32)), layer(np.zeros((2, 4, 3), np.float32)))


# --- text


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    keras.utils.set_random_seed(6)
    layer = TextEncoder(
        50, max_tokens=9, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.5, name="encoder"
    )
    # The initial weights are small: scaled up, a mistake in attention shows in the vector.
    layer.backbone.set_weights([weight * 10 for weight in layer.backbone.get_weights()])
    return layer


def encoder_without_dropout(num_layers: int, pooling: str, seed: int = 8) -> TextEncoder:
    """An encoder with weights so large that a mistake in attention shows in the vector."""
    geometry: dict[str, Any] = {"num_layers": num_layers, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    layer = TextEncoder(50, max_tokens=9, **geometry, dropout=0.0, pooling=pooling)
    generator = np.random.default_rng(seed)
    layer.backbone.set_weights([generator.normal(size=each.shape) for each in layer.backbone.get_weights()])
    return layer


def encoder_oracle(layer: TextEncoder, ids: tf.Tensor) -> tf.Tensor:
    """What KerasHub's backbone says of texts that have tokens."""
    there = tf.cast(ids != 0, tf.int32)
    hidden = layer.backbone({"token_ids": ids, "padding_mask": there})
    if layer.pooling == "cls":
        return hidden[:, 0]
    real = tf.cast(there, tf.float32)[..., tf.newaxis]
    return tf.reduce_sum(hidden * real, axis=1) / tf.reduce_sum(real, axis=1)


TOKENS = tf.constant(
    [[2, 7, 9, 4, 5, 8], [2, 0, 0, 0, 0, 0], [2, 11, 0, 0, 0, 0], [3, 4, 2, 8, 0, 0], [2, 5, 6, 0, 0, 0]], tf.int32
)
"""Texts of 6, 1, 2, 4 and 3 tokens."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("num_layers", "pooling"), [(1, "cls"), (3, "cls"), (1, "mean"), (3, "mean")])
def test_vectors_and_gradients_of_the_encoder_are_those_of_kerashubs_backbone(
    num_layers: int, pooling: str, training: bool
) -> None:
    layer = encoder_without_dropout(num_layers, pooling)
    weights = [weight.value for weight in layer.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        mine, theirs = layer(TOKENS, training=training), encoder_oracle(layer, TOKENS)
        sums = [tf.reduce_sum(vectors**3) for vectors in (mine, theirs)]
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    gradients, expected = [[tf.convert_to_tensor(each) for each in tape.gradient(of, weights)] for of in sums]
    largest = max(float(tf.reduce_max(tf.abs(each))) for each in expected)
    for weight, gradient, wanted in zip(weights, gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * largest, err_msg=weight.name)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=11), st.sampled_from(["cls", "mean"]))
@settings(deadline=None, max_examples=15)
def test_the_packed_texts_of_training_have_the_vectors_of_padded_ones(lengths: list[int], pooling: str) -> None:
    layer = encoder_without_dropout(2, pooling)
    generator = np.random.default_rng(len(lengths))
    ids = generator.integers(1, 50, (len(lengths), 9)) * (np.arange(9) < np.array(lengths)[:, None])
    packed = np.asarray(layer(ids.astype(np.int32), training=True))
    there = np.array(lengths) > 0
    np.testing.assert_allclose(packed[there], np.asarray(layer(ids.astype(np.int32)))[there], atol=1e-5)
    assert not packed[~there].any(), "a text of padding alone has no vector in training"


@pytest.mark.parametrize("padding", [0, 50])
def test_padding_is_no_row_and_texts_attend_beside_others_of_like_length(padding: int) -> None:
    rows = PackedRows(tf.pad(TOKENS, [(0, 0), (0, padding)]))
    embedded = rows.embed(tf.reshape(tf.range(50), [50, 1]), tf.zeros([60, 1], tf.int32))
    assert embedded.shape == (16, 1), "one for each token"
    groups = rows.spread(embedded, [1])
    assert [group.shape[:2] for group in groups] == [(1, 1), (1, 2), (1, 3), (2, 6)]
    np.testing.assert_array_equal(rows.collect(groups, 1), embedded)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_mixed_precision_is_for_the_products_of_training_alone(pooling: str) -> None:
    layer = encoder_without_dropout(2, pooling)
    layer.backbone.set_weights([weight / 3 for weight in layer.backbone.get_weights()])
    weights, exact = [weight.value for weight in layer.trainable_variables], np.asarray(layer(TOKENS, training=True))
    served = np.asarray(layer(TOKENS))
    layer.training_dtype = "bfloat16"
    with tf.GradientTape() as tape:
        vectors = layer(TOKENS, training=True)
    gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(vectors, weights)]
    assert {each.dtype for each in [vectors, *gradients, *weights]} == {tf.float32}
    difference = np.abs(vectors - exact).max() / np.abs(exact).max()
    assert 2**-14 < difference < 2**-4, "bfloat16 has 8 bits, float32 has 24"
    np.testing.assert_array_equal(layer(TOKENS), served)


def test_padding_does_not_change_the_vector_of_a_text(text_encoder: TextEncoder) -> None:
    ids = np.array([[2, 7, 9], [2, 11, 0]], np.int32)
    vectors = np.asarray(text_encoder(ids))
    assert vectors.shape == (2, 8)
    padded = np.asarray(text_encoder(np.pad(ids, [(0, 0), (0, 5)])))
    np.testing.assert_allclose(padded, vectors, atol=1e-5)
    alone = np.asarray(text_encoder(ids[1:, :2]))
    np.testing.assert_allclose(alone, vectors[1:], atol=1e-5)


def test_a_text_is_more_than_a_bag_of_tokens(text_encoder: TextEncoder) -> None:
    one, other = np.asarray(text_encoder(np.array([[2, 7, 9], [2, 9, 7]], np.int32)))
    assert np.abs(one - other).max() > 1e-3


def test_dropout_acts_in_training_alone(text_encoder: TextEncoder) -> None:
    ids = np.array([[2, 7, 9]], np.int32)
    np.testing.assert_array_equal(text_encoder(ids), text_encoder(ids))
    assert np.abs(np.asarray(text_encoder(ids, training=True)) - np.asarray(text_encoder(ids))).max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_texts_of_padding_alone_are_finite(text_encoder: TextEncoder, training: bool) -> None:
    assert np.isfinite(text_encoder(np.zeros((2, 4), np.int32), training=training)).all()


LAYERS: dict[type[keras.layers.Layer], dict[str, Any]] = {
    TrigramEmbedding: {"buckets": 9, "dimension": 4},
    DeepSets: {"hidden_dim": 6, "dimension": 4},
    Embedding: {"size": 5, "dimension": 3, "initializer": "normal"},
    AttentionFusion: {},
    TextEncoder: {
        "vocabulary_size": 50,
        "max_tokens": 9,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "dropout": 0.1,
    },
}


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_layer_is_made_again_from_its_config(kind: type[keras.layers.Layer]) -> None:
    config = kind(**LAYERS[kind], name="mine").get_config()
    assert {key: config[key] for key in LAYERS[kind]} == LAYERS[kind]
    assert kind.from_config(config).get_config() == config
