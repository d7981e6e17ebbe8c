"""The layers against their equations in NumPy, with missing and padded inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.layers import (
    AttentionFusion,
    CategoryIds,
    DeepSets,
    TextNormalization,
    TokenIds,
    TrigramEmbedding,
    TrigramIds,
    VectorSet,
)
from q2s_tf.text import normalise, train_tokenizer, trigram_ids


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


# --- eq. 1


def fusion_oracle(
    channels: np.ndarray, mask: np.ndarray, kernel: np.ndarray, bias: float | np.ndarray = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 1 row by row, where the softmax runs over the channels that are present; and the weights of unit vectors."""
    fused, weights = [], []
    for row, present in zip(channels, mask, strict=True):
        row = row * present[:, None]
        attention = np.zeros(len(present))
        if present.any():
            attention[present] = softmax((row.reshape(-1) @ kernel + bias)[present])
        fused.append(sum(a * phi for a, phi in zip(attention, row, strict=True)))
        lengths = [a * np.sqrt(phi @ phi) for a, phi in zip(attention, row, strict=True)]
        weights.append([length / (sum(lengths) or 1) for length in lengths])
    return np.array(fused), np.array(weights)


def fusion_with(kernel: np.ndarray, bias: np.ndarray | None = None) -> AttentionFusion:
    channels = kernel.shape[1]
    layer = AttentionFusion(use_bias=bias is not None)
    layer.build((None, channels, kernel.shape[0] // channels))
    layer.set_weights([weight for weight in (kernel, bias) if weight is not None] if channels > 1 else [])
    return layer


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.booleans())
@settings(deadline=None, max_examples=60)
def test_fusion_is_equation_1(seed: int, batch: int, channels: int, dimension: int, use_bias: bool) -> None:
    generator = np.random.default_rng(seed)
    phi = generator.normal(scale=3, size=(batch, channels, dimension)).astype(np.float32)
    present = generator.random((batch, channels)) < 0.7
    kernel = generator.normal(size=(channels * dimension, channels)).astype(np.float32)
    bias = generator.normal(scale=3, size=channels).astype(np.float32)
    fused, weights = fusion_with(kernel, bias if use_bias else None)(phi, present)
    expected, expected_weights = fusion_oracle(phi.astype(np.float64), present, kernel, bias if use_bias else 0)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-5)
    np.testing.assert_allclose(fused, expected, atol=2e-4)
    assert (np.asarray(weights)[~present] == 0).all(), "a missing channel weighs exactly 0"
    np.testing.assert_allclose(np.sum(weights, axis=1), present.any(axis=1), atol=1e-5)


def test_the_vector_of_a_missing_channel_is_not_read() -> None:
    generator = np.random.default_rng(1)
    phi = generator.normal(size=(4, 3, 5)).astype(np.float32)
    present = np.tile([True, False, True], (4, 1))
    layer = fusion_with(generator.normal(size=(15, 3)).astype(np.float32))
    other = phi.copy()
    other[:, 1] = 1e6
    for output, expected in zip(layer(other, present), layer(phi, present), strict=True):
        np.testing.assert_array_equal(output, expected)


def test_without_a_mask_no_channel_is_missing() -> None:
    generator = np.random.default_rng(4)
    phi = generator.normal(size=(4, 3, 5)).astype(np.float32)
    phi[1, 2] = 0
    layer = fusion_with(generator.normal(size=(15, 3)).astype(np.float32))
    for output, expected in zip(layer(phi), layer(phi, np.ones((4, 3), bool)), strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_fusion_masks_under_a_mixed_policy(policy: str) -> None:
    phi = np.random.default_rng(5).normal(size=(4, 3, 5)).astype(np.float32)
    present = np.array([[True, False, True], [False] * 3, [True] * 3, [False, False, True]])
    layer = AttentionFusion(dtype=policy)
    fused, weights = (np.asarray(tf.cast(output, tf.float32)) for output in layer(phi, present))
    assert not weights[~present].any()
    np.testing.assert_allclose(weights.sum(axis=1), [1, 0, 1, 1], atol=0.01)
    expected, _ = fusion_oracle(phi, present, np.zeros((15, 3)))
    np.testing.assert_allclose(fused, expected, atol=0.02)


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
    assert not np.asarray(by_channel)[~present].any(), "a missing channel has no gradient"
    assert np.asarray(by_kernel).any()


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_weights_of_unit_vectors_give_the_direction_of_the_fused_vector(seed: int, channels: int) -> None:
    generator = np.random.default_rng(seed)
    phi = generator.normal(size=(3, channels, 4)) * 10.0 ** generator.integers(-2, 3, (3, channels, 1))
    layer = fusion_with(generator.normal(scale=0.01, size=(channels * 4, channels)).astype(np.float32))
    fused, weights = (np.asarray(output, np.float64) for output in layer(phi.astype(np.float32)))
    direction = np.einsum("bn,bnd->bd", weights, phi / np.linalg.norm(phi, axis=2, keepdims=True))
    for vectors in (fused, direction):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(fused, direction, atol=1e-4)


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
    expected = [sum((table[number] for number in row if number), np.zeros(4)) for row in IDS]
    np.testing.assert_allclose(layer(IDS), expected, atol=1e-6)
    assert table.shape == (10, 4)


def test_padding_of_a_trigram_row_changes_nothing() -> None:
    layer = trigram_layer()
    short = layer(IDS[:, :3][2:3])
    np.testing.assert_array_equal(layer(np.array([[7, 0, 0, 0, 0, 0]], np.int32)), short)
    np.testing.assert_array_equal(layer(np.array([[0, 0, 7]], np.int32)), short)
    assert not np.asarray(layer(np.zeros((2, 1), np.int32))).any()
    assert layer(np.zeros((0, 3), np.int32)).shape == (0, 4)


@pytest.mark.parametrize("training", [False, True])
def test_the_gradient_of_the_table_is_sparse_and_counts_occurrences(training: bool) -> None:
    layer = trigram_layer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(IDS, training=training))
    gradient = tape.gradient(loss, layer.table.value)
    assert isinstance(gradient, tf.IndexedSlices)
    counts = np.bincount(IDS[IDS != 0], minlength=10)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), np.tile(counts[:, None], 4))
    assert gradient.values.shape[0] == (counts > 0).sum(), "one slice for each row that occurs"


def test_training_changes_only_how_the_sums_are_computed() -> None:
    layer = trigram_layer()
    np.testing.assert_allclose(layer(IDS, training=True), layer(IDS), atol=1e-6)
    assert layer(np.zeros((0, 3), np.int32), training=True).shape == (0, 4)


def test_tables_of_the_same_size_have_the_same_initial_rows() -> None:
    """The sums of two texts in two tables then have a cosine near the share of 3-grams that the texts share."""
    first, second = (trigram_layer(500, 64).get_weights()[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1).mean(), 1, atol=0.05)
    assert np.abs(first[1:] @ first[:-1].T).mean() < 0.2


# --- Deep Sets


def test_deep_sets_is_its_equation() -> None:
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


def test_deep_sets_without_a_hidden_layer_sums_and_keeps_cosines() -> None:
    layer = DeepSets(hidden_dim=0, dimension=7)
    vectors = np.random.default_rng(8).normal(size=(4, 2, 5)).astype(np.float32)
    vectors[0, 1] = 0
    sums, result = vectors.sum(axis=1), np.asarray(layer(vectors))
    np.testing.assert_allclose(result @ result.T, sums @ sums.T, atol=1e-4)
    again = DeepSets.from_config(layer.get_config())
    again.build(vectors.shape)
    np.testing.assert_array_equal(again(vectors), result)


def deep_sets() -> DeepSets:
    keras.utils.set_random_seed(5)
    layer = DeepSets(hidden_dim=8, dimension=4)
    layer.build((None, None, 3))
    # With a bias, padding that is not masked changes the sum.
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


def test_deep_sets_pools_an_empty_set() -> None:
    layer = deep_sets()
    np.testing.assert_allclose(layer(np.zeros((2, 0, 3), np.float32)), layer(np.zeros((2, 4, 3), np.float32)))


def test_the_mask_of_deep_sets_replaces_the_rule_that_zeros_are_padding() -> None:
    layer = deep_sets()
    vectors = np.random.default_rng(6).normal(size=(2, 4, 3)).astype(np.float32)
    vectors[0, 1] = 0
    mask = np.array([[True, True, False, False], [False, True, True, False]])
    counted, masked = layer(vectors, mask=mask), layer(vectors * mask[..., None])
    assert np.abs(np.asarray(counted - masked)[0]).max() > 1e-3, "a vector of zeros that the mask keeps is counted"
    np.testing.assert_allclose(counted[1], masked[1], atol=1e-5)


# --- preprocessing


def test_trigram_ids_and_token_ids_are_those_of_the_text_functions() -> None:
    texts = tf.constant(["red sofa", "", "lamp"])
    np.testing.assert_array_equal(TrigramIds(50, 6)(texts), trigram_ids(texts, 50, 6))
    layer = TokenIds("unigram", model=train_tokenizer(["red sofa and lamp"] * 20, 64))
    assert layer.tokenizer
    np.testing.assert_array_equal(layer(texts, max_tokens=5), layer.tokenizer.token_ids(texts, 5))


def test_text_normalization_only_decodes_the_texts_of_pretrained_tokenizers() -> None:
    texts = tf.constant(["Red  SOFA", " \u200d ", "", "a\0b", b"\xff", "Straße"])
    np.testing.assert_array_equal(TextNormalization()(texts), normalise(texts))
    decoded = [text.decode() for text in TextNormalization(decode_only=True)(texts).numpy()]
    assert decoded == ["Red  SOFA", "", "", "a b", "", "Straße"]


def test_category_ids_are_positions_in_the_list_and_other_values_have_none() -> None:
    texts = tf.constant(["us", "zz", "", "de", "us "])
    assert CategoryIds(["de", "us"])(texts).numpy().tolist() == [[2], [0], [0], [1], [0]]
    assert CategoryIds([])(texts).numpy().tolist() == [[0]] * 5
    assert CategoryIds(["de"])(texts[:0]).shape == (0, 1)


def test_vector_set_cuts_and_turns_vectors_that_are_not_finite_into_padding() -> None:
    vectors = np.ones((2, 4, 3), np.float32)
    vectors[0, 1, 2], vectors[1, 0, 0], vectors[1, 3] = np.nan, -np.inf, np.inf
    kept = VectorSet(3, 3)(vectors).numpy()
    assert (kept != 0).any(axis=-1).tolist() == [[True, False, True], [False, True, True]]
    assert VectorSet(3, 9)(vectors).shape == (2, 4, 3)
    assert VectorSet(3, 9)(vectors[:, :0]).shape == (2, 0, 3)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        VectorSet(4, 3)(vectors)
